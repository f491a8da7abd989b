"""Cases of the integer products: every pairing of types, zero points, and sums past 2^24."""

from __future__ import annotations

from collections.abc import Iterator

from crossdock.runtime.cases.kit import Case, Feed

F = Feed
RANGES = {"uint8": (0, 256), "int8": (-128, 128)}


def _bytes(shape: tuple[int, ...], dtype: str) -> Feed:
    low, high = RANGES[dtype]
    return F(shape, dtype, low, high)


def _matmul_cases() -> Iterator[Case]:
    op = "matmul_integer"
    for a in RANGES:
        for b in RANGES:
            feeds = {"a": _bytes((5, 7), a), "b": _bytes((7, 9), b)}
            yield Case(op, f"{a}-{b}", feeds)
            zeros = {"a_zero_point": _bytes((), a), "b_zero_point": _bytes((9,), b)}
            yield Case(op, f"{a}-{b}-zeros", feeds | zeros)
            yield Case(op, f"{a}-{b}-fixed", feeds | zeros, constants=frozenset(zeros))
    for size in (300, 600, 5000):
        for name, values in (("highest", (255,)), ("mixed", (255, 0, 254, 1, 17))):
            feeds = {
                "a": F((3, size), "uint8", values=values),
                "b": F((size, 2), "uint8", values=values),
                "b_zero_point": F((1,), "uint8", values=(3,)),
            }
            yield Case(op, f"{name}-{size}", feeds)
    feeds = {"a": _bytes((2, 1, 4, 6), "uint8"), "b": _bytes((3, 6, 5), "int8")}
    yield Case(op, "batch", feeds)
    yield Case(op, "rows", feeds | {"a_zero_point": _bytes((4, 1), "uint8")})


def _conv_cases() -> Iterator[Case]:
    op = "conv_integer"
    window = {"padding": [1, 0, 1, 2], "strides": [2, 1], "dilations": [1, 2]}
    for x in RANGES:
        for w in RANGES:
            feeds = {"input": _bytes((2, 4, 7, 8), x), "filter": _bytes((6, 4, 3, 3), w)}
            yield Case(op, f"{x}-{w}", feeds)
            zeros = {
                "input_zero_point": _bytes((), x),
                "filter_zero_point": _bytes((6, 1, 1, 1), w),
            }
            yield Case(op, f"{x}-{w}-zeros", feeds | zeros, window)
    feeds = {"input": _bytes((1, 4, 6, 6), "uint8"), "filter": _bytes((8, 2, 3, 3), "int8")}
    yield Case(op, "groups", feeds, {"groups": 2, "padding": [1, 1, 1, 1]})
    feeds = {"input": _bytes((1, 6, 6, 4), "uint8"), "filter": _bytes((4, 3, 3, 1), "int8")}
    layouts = {"input_layout": "nhwc", "filter_layout": "ohwi", "groups": 4}
    zero = {"filter_zero_point": _bytes((4, 1, 1, 1), "int8")}
    yield Case(op, "depthwise-nhwc", feeds | zero, layouts)
    for channels in (64, 600):
        feeds = {
            "input": F((1, channels, 4, 4), "uint8", values=(255, 254, 253)),
            "filter": F((2, channels, 3, 3), "uint8", values=(255, 251)),
        }
        yield Case(op, f"deep-{channels}", feeds)


def integer_cases() -> Iterator[Case]:
    """All of them."""
    yield from _matmul_cases()
    yield from _conv_cases()
