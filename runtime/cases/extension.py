"""Cases of the ops beyond WebNN: bits, order, determinants, transforms, scatters that combine."""

from __future__ import annotations

from collections.abc import Iterator

from crossdock.runtime.cases.kit import Case, Feed, typed

F = Feed
WIDE = ("float32", "float16")
INTS = ("int32", "uint32", "int64", "uint64", "int8", "uint8", "int16", "uint16")
NAN, INF = float("nan"), float("inf")


def _inverse_cases() -> Iterator[Case]:
    for op, high in (("acos", 0.95), ("asin", 0.95), ("atan", 6.0)):
        for name, shape in {"line": (37,), "image": (2, 3, 4, 5)}.items():
            yield from typed(Case(op, name, {"input": F(shape, low=-high, high=high)}), *WIDE)


def _bit_cases() -> Iterator[Case]:
    for op in ("bitwise_and", "bitwise_or", "bitwise_xor"):
        for dtype in INTS:
            low = 0 if dtype.startswith("u") else -120
            feeds = {"a": F((5, 6), dtype, low, 120), "b": F((6,), dtype, low, 120)}
            yield Case(op, dtype, feeds)
    for op in ("shift_left", "shift_right"):
        for dtype in INTS:
            signed = not dtype.startswith("u")
            feeds = {
                "a": F((5, 6), dtype, -120 if signed else 0, 120),
                "b": F((6,), dtype, values=(0, 1, 3, 7, 64, -1 if signed else 31)),
            }
            yield Case(op, dtype, feeds)
    for dtype in INTS:
        low = 0 if dtype.startswith("u") else -120
        yield Case("bitwise_not", dtype, {"input": F((4, 9), dtype, low, 120)})
    for source, target in (("int32", "uint32"), ("uint8", "int8"), ("int64", "uint64")):
        low = 0 if source.startswith("u") else -120
        feeds = {"input": F((4, 9), source, low, 120)}
        yield Case("bit_cast", f"{source}-{target}", feeds, {"data_type": target})


def _running_cases() -> Iterator[Case]:
    op = "cumulative_product"
    for axis in range(3):
        for exclusive in (False, True):
            for back in (False, True):
                attrs = {"axis": axis, "exclusive": exclusive, "reversed": back}
                feed = F((3, 5, 8), low=0.5, high=1.5)
                yield Case(op, f"{axis}{exclusive:d}{back:d}", {"input": feed}, attrs, ulps=12)
    yield Case(op, "int32", {"input": F((3, 7), "int32", -3, 4)}, {"axis": 1})
    yield Case(op, "half", {"input": F((4, 6), "float16", 0.8, 1.2)}, {"axis": 0})


def _top_cases() -> Iterator[Case]:
    for axis in range(3):
        for largest in (True, False):
            feed = F((4, 7, 9), low=-5, high=5, kind="distinct")
            attrs = {"k": 3, "axis": axis, "largest": largest}
            yield Case("top_k", f"{axis}{largest:d}", {"input": feed}, attrs)
    for dtype in ("int32", "int64", "uint8", "uint64", "float16"):
        feed = F((3, 20), dtype, 0, 6)
        for largest in (True, False):
            attrs = {"k": 20, "axis": 1, "largest": largest}
            yield Case("top_k", f"ties-{dtype}-{largest:d}", {"input": feed}, attrs)
    special = F((11,), values=(1.0, NAN, -INF, INF, 0.0, -0.0, 2.0, NAN, 1.0, -2.5, INF))
    for largest in (True, False):
        attrs = {"k": 11, "axis": 0, "largest": largest}
        yield Case("top_k", f"special-{largest:d}", {"input": special}, attrs)


def _numeric_cases() -> Iterator[Case]:
    why = "elimination rounds once a step, and pivots differ between methods"
    for size in (1, 2, 5):
        feed = F((2, 3, size, size), low=-1, high=1)
        yield Case("det", f"size{size}", {"input": feed}, ulps=32, magnitude=8, reason=why)
    singular = F((3, 3), values=(1.0, 2.0, 3.0, 2.0, 4.0, 6.0, 0.0, 1.0, 5.0))
    yield Case("det", "singular", {"input": singular}, magnitude=40, terms=4, reason=why)
    for size in (1, 8, 12, 37):
        for parts in (1, 2):
            for inverse in (False, True):
                feed = F((2, 3, size, parts), low=-1, high=1)
                name = f"{size}-{parts}-{inverse:d}"
                attrs = {"inverse": inverse}
                yield Case("dft", name, {"input": feed}, attrs, terms=2 * size, magnitude=2)


def _combining_cases() -> Iterator[Case]:
    places = (0, 9, 2, 1, 2, -9)
    for reduction in ("add", "mul", "max", "min"):
        attrs = {"axis": 1, "reduction": reduction}
        for dtype in ("float32", "float16", "int32", "int64", "uint8"):
            feeds = {
                "input": F((4, 3, 5), dtype, 1, 3),
                "indices": F((4, 6, 5), "int32", -5, 5),
                "updates": F((4, 6, 5), dtype, 1, 3),
            }
            name = f"{reduction}-{dtype}"
            yield Case(
                "scatter_elements", name, feeds, attrs, ulps=12, terms=6, magnitude=90,
                reason="float16 is rounded once an update on some devices",
            )  # fmt: skip
        for depth, shape in ((1, (4, 5)), (2, (3, 4, 5))):
            feeds = {
                "input": F(shape),
                "indices": F((6, depth), "int32", values=places * depth),
                "updates": F((6, 5)),
            }
            name = f"{reduction}-depth{depth}"
            yield Case(
                "scatter_nd", name, feeds, {"reduction": reduction}, ulps=12, terms=6, magnitude=8
            )


def extension_cases() -> Iterator[Case]:
    """All of them."""
    yield from _inverse_cases()
    yield from _bit_cases()
    yield from _running_cases()
    yield from _top_cases()
    yield from _numeric_cases()
    yield from _combining_cases()
