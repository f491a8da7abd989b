"""Cases of the quantised products: pairings of types, what follows the sum, saturation.

Their results are exact but for the roundings in float32 that their definition names, and the
reference makes the same: no step is allowed between them on the host. A device that
scales in another order may be off by one where a result lies on a half.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from crossdock.runtime.cases.kit import Case, Feed

F = Feed
RANGES = {"uint8": (0, 256), "int8": (-128, 128)}


def _bytes(shape: tuple[int, ...], dtype: str) -> Feed:
    low, high = RANGES[dtype]
    return F(shape, dtype, low, high)


def _cases(
    op: str, left: Feed, right: Feed, channels: int, attrs: Mapping[str, object]
) -> Iterator[Case]:
    names = ("input", "filter") if op == "quantized_conv2d" else ("a", "b")
    first = {names[0]: left, names[1]: right}
    zeros = {f"{n}_zero_point": _bytes((), f.dtype) for n, f in first.items()}
    row = {"bias": F((channels,), "int32", -3000, 3000), "offset": F((channels,), "float32", -5, 5)}
    scales = {"scale": F((channels,), "float32", 0.0005, 0.003)}
    fixed = frozenset({names[1], *zeros, *scales, *row, "output_zero_point"})
    terms = right.shape[-1] * right.shape[-2]

    def case(id_: str, feeds: dict[str, Feed], **more: object) -> Case:
        name = f"{left.dtype}-{right.dtype}-{id_}"
        return Case(
            op, name, feeds, {**attrs, **more}, fixed & set(feeds), magnitude=60.0, terms=terms,
            steps=1, reason="a result on a half may be rounded either way",
        )  # fmt: skip

    yield case("real", first | {"scale": F((), "float32", 0.001, 0.002)})
    out = {"output_zero_point": _bytes((), left.dtype)}
    yield case("quantised", first | scales | zeros | row | out)
    yield case("bounded", first | scales | zeros | out, min_value=-20.5, max_value=31.25)
    wide = {"scale": F((1,), "float32", 0.1, 0.2), "output_zero_point": _bytes((1,), "int8")}
    yield case("saturated", first | wide | zeros)


def quantized_cases() -> Iterator[Case]:
    """All of them."""
    window = {"padding": [1, 0, 1, 2], "strides": [2, 1], "dilations": [1, 2]}
    for a in RANGES:
        for b in RANGES:
            yield from _cases("quantized_matmul", _bytes((5, 70), a), _bytes((70, 19), b), 19, {})
            image, filters = _bytes((2, 6, 7, 8), a), _bytes((4, 3, 3, 3), b)
            yield from _cases("quantized_conv2d", image, filters, 4, window | {"groups": 2})
