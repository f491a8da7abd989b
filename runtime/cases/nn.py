"""Cases of the ops that neural networks are made of: convolution, pooling, normalisation, cells."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from crossdock.kernels.ops_conv import FILTER_AXES, TRANSPOSED_FILTER_AXES
from crossdock.runtime.cases.kit import Case, Feed, typed

F = Feed
WIDE = ("float32", "float16")


def _image(n: int, c: int, h: int, w: int, layout: str = "nchw") -> Feed:
    return F((n, c, h, w) if layout == "nchw" else (n, h, w, c), low=-1, high=1)


def _laid(sizes: tuple[int, ...], axes: tuple[int, ...]) -> Feed:
    """A filter whose sizes, in the table's own order, stand on ``axes``."""
    shape = [0] * 4
    for size, axis in zip(sizes, axes, strict=True):
        shape[axis] = size
    return F(tuple(shape), low=-1, high=1)


# name: (n, c, h, w), (out channels, kernel), options
CONV: dict[str, tuple[tuple[int, ...], tuple[int, int, int], dict[str, Any]]] = {
    "3x3": ((1, 3, 8, 9), (4, 3, 3), {"padding": [1, 1, 1, 1]}),
    "1x1": ((2, 16, 7, 7), (24, 1, 1), {}),
    "1x1-stride": ((1, 8, 9, 9), (6, 1, 1), {"strides": [2, 2]}),
    "5x3-pads": ((1, 4, 11, 6), (5, 5, 3), {"padding": [2, 1, 0, 2], "strides": [2, 1]}),
    "dilated": ((1, 4, 12, 12), (4, 3, 3), {"dilations": [2, 3], "padding": [2, 2, 3, 3]}),
    "groups": ((2, 8, 6, 6), (12, 3, 3), {"groups": 4, "padding": [1, 1, 1, 1]}),
    "depthwise": ((1, 16, 10, 10), (16, 3, 3), {"groups": 16, "padding": [1, 1, 1, 1]}),
    "depthwise-2": ((1, 6, 9, 9), (12, 3, 3), {"groups": 6, "strides": [2, 2]}),
    "line": ((2, 5, 1, 40), (7, 1, 5), {"padding": [0, 0, 2, 2]}),
    "wide": ((1, 32, 14, 14), (48, 3, 3), {"padding": [1, 1, 1, 1]}),
    "stride-2": ((1, 16, 15, 15), (32, 3, 3), {"padding": [1, 1, 1, 1], "strides": [2, 2]}),
    "whole": ((2, 4, 5, 5), (10, 5, 5), {}),
}


def _conv_cases() -> Iterator[Case]:
    for name, (size, (out, kh, kw), options) in CONV.items():
        n, c, h, w = size
        inner = c // options.get("groups", 1)
        feeds = {
            "input": _image(n, c, h, w),
            "filter": F((out, inner, kh, kw), low=-1, high=1),
            "bias": F((out,), low=-1, high=1),
        }
        fixed = frozenset({"filter", "bias"})
        case = Case("conv2d", name, feeds, options, fixed, terms=inner * kh * kw + 1)
        yield from typed(case, *(WIDE if name in ("3x3", "1x1", "groups") else WIDE[:1]))
    for layout, filters in itertools.product(("nchw", "nhwc"), FILTER_AXES):
        feeds = {
            "input": _image(1, 4, 7, 8, layout),
            "filter": _laid((6, 2, 3, 3), FILTER_AXES[filters]),
        }
        attrs = {"input_layout": layout, "filter_layout": filters, "groups": 2}
        yield Case("conv2d", f"{layout}-{filters}", feeds, attrs, terms=18)
    feeds = {"input": _image(1, 3, 6, 6), "filter": F((4, 3, 3, 3), low=-1, high=1)}
    yield Case("conv2d", "fed-filter", feeds, terms=27)


TRANSPOSED: dict[str, tuple[tuple[int, ...], tuple[int, int, int], dict[str, Any]]] = {
    "2x2": ((1, 4, 5, 6), (3, 2, 2), {"strides": [2, 2]}),
    "3x3": ((2, 3, 4, 5), (4, 3, 3), {}),
    "pads": ((1, 3, 6, 6), (2, 4, 4), {"strides": [2, 2], "padding": [1, 1, 1, 1]}),
    "uneven": ((1, 2, 5, 4), (3, 3, 3), {"padding": [0, 1, 2, 0], "strides": [2, 3]}),
    "more": ((1, 2, 4, 4), (2, 3, 3), {"strides": [2, 2], "output_padding": [1, 1]}),
    "sizes": ((1, 2, 3, 3), (1, 3, 3), {"strides": [3, 2], "output_sizes": [10, 8]}),
    "dilated": ((1, 2, 4, 4), (2, 3, 3), {"dilations": [2, 2], "padding": [1, 1, 1, 1]}),
    "groups": ((1, 6, 4, 4), (4, 3, 3), {"groups": 2, "strides": [2, 2]}),
}


def _transposed_cases() -> Iterator[Case]:
    for name, (size, (out, kh, kw), options) in TRANSPOSED.items():
        n, c, h, w = size
        per = out // options.get("groups", 1)
        feeds = {
            "input": _image(n, c, h, w),
            "filter": F((c, per, kh, kw), low=-1, high=1),
            "bias": F((out,), low=-1, high=1),
        }
        fixed = frozenset({"filter", "bias"})
        case = Case("conv_transpose2d", name, feeds, options, fixed, terms=c * kh * kw + 1)
        yield from typed(case, *(WIDE if name in ("2x2", "pads") else WIDE[:1]))
    for layout, filters in itertools.product(("nchw", "nhwc"), TRANSPOSED_FILTER_AXES):
        feeds = {
            "input": _image(1, 3, 4, 5, layout),
            "filter": _laid((3, 2, 3, 3), TRANSPOSED_FILTER_AXES[filters]),
        }
        attrs = {"input_layout": layout, "filter_layout": filters, "strides": [2, 2]}
        yield Case("conv_transpose2d", f"{layout}-{filters}", feeds, attrs, terms=27)


POOL: dict[str, dict[str, Any]] = {
    "2x2": {"window_dimensions": [2, 2], "strides": [2, 2]},
    "3x3": {"window_dimensions": [3, 3], "padding": [1, 1, 1, 1]},
    "global": {},
    "uneven": {"window_dimensions": [3, 2], "strides": [2, 1], "padding": [1, 0, 0, 1]},
    "dilated": {"window_dimensions": [2, 3], "dilations": [2, 2]},
    "ceil": {
        "window_dimensions": [3, 3], "strides": [2, 2], "output_shape_rounding": "ceil",
    },
    "sizes": {"window_dimensions": [3, 3], "strides": [2, 2], "output_sizes": [4, 4]},
    "nhwc": {"window_dimensions": [3, 3], "strides": [2, 2], "layout": "nhwc"},
}  # fmt: skip


def _pool_cases() -> Iterator[Case]:
    for op in ("average_pool2d", "l2_pool2d", "max_pool2d"):
        for name, attrs in POOL.items():
            feed = _image(2, 3, 8, 9, attrs.get("layout", "nchw"))
            case = Case(op, name, {"input": feed}, attrs, terms=72 if name == "global" else 9)
            yield from typed(case, *(WIDE if name in ("2x2", "3x3") else WIDE[:1]))
    counted = {**POOL["3x3"], "count_include_pad": True}
    yield Case("average_pool2d", "counted", {"input": _image(2, 3, 8, 9)}, counted, terms=9)
    counted = {**POOL["ceil"], "padding": [1, 1, 1, 1], "count_include_pad": True}
    yield Case("average_pool2d", "counted-ceil", {"input": _image(1, 2, 8, 9)}, counted, terms=9)
    yield Case("max_pool2d", "uint8", {"input": F((1, 2, 6, 6), "uint8", 0, 250)}, POOL["3x3"])
    yield Case("max_pool2d", "int32", {"input": F((1, 2, 6, 6), "int32", -90, -9)}, POOL["3x3"])


def _resample_cases() -> Iterator[Case]:
    for mode in ("nearest-neighbor", "linear"):
        scales: dict[str, dict[str, Any]] = {
            "double": {"scales": [2.0, 2.0]},
            "uneven": {"sizes": [9, 4]},
            "smaller": {"sizes": [3, 3]},
            "last-but-one": {"sizes": [10, 12], "axes": [1, 2]},
        }
        for name, given in scales.items():
            case = Case(
                "resample2d", f"{mode}-{name}", {"input": F((2, 5, 6, 7))}, {**given, "mode": mode},
                magnitude=2,
            )  # fmt: skip
            yield from typed(case, *(WIDE if name == "double" else WIDE[:1]))
    feed = {"input": F((1, 2, 5, 7))}
    for mode, positions in itertools.product(
        ("nearest", "linear", "cubic"),
        ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel", "half_pixel_symmetric"),
    ):
        attrs: dict[str, Any] = {"coordinate_transformation_mode": positions, "mode": mode}
        for name, sizes in {"up": (11, 9), "down": (3, 4)}.items():
            whole = {**attrs, "sizes": sizes, "axes": [2, 3]}
            yield Case("resize", f"{mode}-{positions}-{name}", feed, whole, magnitude=4)
    crop = {
        "coordinate_transformation_mode": "tf_crop_and_resize", "mode": "linear",
        "sizes": [4, 6], "axes": [2, 3], "roi": [-0.2, 0.3, 0.9, 1.4], "extrapolation_value": 5.0,
    }  # fmt: skip
    yield Case("resize", "crop", feed, crop, magnitude=4)
    soft = {"mode": "cubic", "scales": [0.6, 0.6], "axes": [2, 3], "antialias": True}
    yield Case("resize", "antialias", feed, soft, magnitude=4, terms=8)


def _normalization_cases() -> Iterator[Case]:
    name: str
    shape: tuple[int, ...]
    for name, shape, axis in (
        ("image", (2, 4, 5, 6), 1),
        ("last", (3, 5, 4), 2),
        ("line", (7,), 0),
    ):
        channels = shape[axis]
        feeds = {
            "input": F(shape),
            "mean": F((channels,), low=-1, high=1),
            "variance": F((channels,), low=0.5, high=2),
        }
        full = {**feeds, "scale": F((channels,)), "bias": F((channels,))}
        attrs: dict[str, Any] = {"axis": axis, "epsilon": 1e-3}
        yield Case("batch_normalization", f"{name}-plain", feeds, attrs, magnitude=8)
        fixed = frozenset(full) - {"input"}
        case = Case("batch_normalization", name, full, attrs, fixed, magnitude=8)
        yield from typed(case, *WIDE)
    for layout in ("nchw", "nhwc"):
        channel = F((3,))
        feed = {"input": F((2, 3, 6, 5) if layout == "nchw" else (2, 6, 5, 3))}
        full = {**feed, "scale": channel, "bias": channel}
        attrs = {"layout": layout}
        name = "instance_normalization"
        yield Case(name, f"{layout}-plain", feed, attrs, terms=30, magnitude=4)
        yield from typed(
            Case(name, layout, full, attrs, frozenset({"scale", "bias"}), terms=30, magnitude=8),
            *WIDE,
        )
    yield from _layer_cases()
    for name, shape, axis in (
        ("rows", (6, 33), 1), ("columns", (9, 5), 0), ("channels", (2, 7, 4, 3), 1),
        ("line", (40,), 0), ("wide", (3, 2000), 1),
    ):  # fmt: skip
        case = Case(
            "softmax",
            name,
            {"input": F(shape, low=-6, high=6)},
            {"axis": axis},
            ulps=16,
            reason="the exponential of a rounded difference of up to 12",
        )
        yield from typed(case, *(WIDE if name in ("rows", "channels") else WIDE[:1]))
    yield Case(
        "lrn",
        "channels",
        {"input": F((2, 7, 4, 5))},
        {"size": 5, "alpha": 0.3, "beta": 0.75, "bias": 1.5},
        ulps=16,
    )
    yield Case("lrn", "even", {"input": F((1, 6, 9))}, {"size": 4, "alpha": 0.1}, ulps=16)


def _layer_cases() -> Iterator[Case]:
    for name, axes in (("default", None), ("last", [3]), ("order", [3, 1]), ("none", [])):
        shape = (2, 3, 4, 5)
        own = tuple(shape[a] for a in (axes if axes is not None else (1, 2, 3)))
        attrs = {} if axes is None else {"axes": axes}
        feeds = {"input": F(shape)}
        terms = 60 if axes is None else 15
        op = "layer_normalization"
        yield Case(op, f"{name}-plain", feeds, attrs, terms=terms, magnitude=4)
        full = {**feeds, "scale": F(own), "bias": F(own)}
        case = Case(
            op, name, full, attrs, frozenset({"scale", "bias"}), terms=terms, magnitude=8,
        )  # fmt: skip
        yield from typed(case, *(WIDE if name in ("default", "last") else WIDE[:1]))


def _quantized_cases() -> Iterator[Case]:
    for name, shape, blocks in (
        ("tensor", (4, 6), (1, 1)), ("channel", (4, 6, 5), (4, 1, 1)), ("block", (4, 6), (2, 3)),
        ("scalar", (), ()),
    ):  # fmt: skip
        for dtype in ("uint8", "int8"):
            low = 0 if dtype == "uint8" else -100
            scale, zero = F(blocks, low=0.05, high=0.2), F(blocks, dtype, low, 100)
            feeds: dict[str, Any] = {"input": F(shape, low=-20, high=20)}
            yield Case(
                "quantize_linear", f"{name}-{dtype}", {**feeds, "scale": scale, "zero_point": zero},
                steps=1, reason="a quotient next to a half rounds either way",
            )  # fmt: skip
            feeds = {"input": F(shape, dtype, low, 100), "scale": scale, "zero_point": zero}
            yield from typed(Case("dequantize_linear", f"{name}-{dtype}", feeds), *WIDE)
    feeds = {
        "input": F((5,), "int32", -900, 900),
        "scale": F((1,)),
        "zero_point": F((1,), "int32", 0, 9),
    }
    yield Case("dequantize_linear", "int32", feeds)


STEPS, BATCH, WIDTH, HIDDEN = 4, 2, 3, 5


def _recurrent_cases() -> Iterator[Case]:
    for op, gates, layouts in (("lstm", 4, ("iofg", "ifgo")), ("gru", 3, ("zrn", "rzn"))):
        for direction, full in itertools.product(("forward", "backward", "both"), (False, True)):
            d = 2 if direction == "both" else 1
            feeds = _cell_feeds(op, gates, (d,), full)
            feeds = {"input": F((STEPS, BATCH, WIDTH), low=-1, high=1), **feeds}
            attrs = {
                "steps": STEPS, "hidden_size": HIDDEN, "direction": direction,
                "return_sequence": full, "layout": layouts[full],
            }  # fmt: skip
            case = _cell_case(op, f"{direction}-{full:d}", feeds, attrs)
            yield from typed(case, *(WIDE if direction == "forward" else WIDE[:1]))
        for full in (False, True):
            feeds = {"input": F((BATCH, WIDTH), low=-1, high=1), **_cell_feeds(op, gates, (), full)}
            attrs = {"hidden_size": HIDDEN, "layout": layouts[full]}
            if op == "gru":
                attrs["reset_after"] = not full
            if full:
                attrs["activations"] = ["sigmoid", "relu", "tanh"][: 2 + (op == "lstm")]
            yield _cell_case(f"{op}_cell", f"cell-{full:d}", feeds, attrs)


def _cell_case(op: str, name: str, feeds: dict[str, Any], attrs: dict[str, Any]) -> Case:
    terms = (WIDTH + HIDDEN) * attrs.get("steps", 1)
    fixed = frozenset(feeds) - {"input", "hidden_state", "cell_state"}
    return Case(
        op, name, feeds, attrs, fixed, terms=terms, ulps=16, reason="errors pass on by step"
    )


def _cell_feeds(op: str, gates: int, lead: tuple[int, ...], full: bool) -> dict[str, Any]:
    rows = gates * HIDDEN
    feeds: dict[str, Any] = {
        "weight": F((*lead, rows, WIDTH), low=-0.5, high=0.5),
        "recurrent_weight": F((*lead, rows, HIDDEN), low=-0.5, high=0.5),
    }
    state = F((*lead, BATCH, HIDDEN), low=-1, high=1)
    cells = ("hidden", "cell") if op == "lstm" else ("hidden",)
    if not lead:
        feeds |= {f"{name}_state": state for name in cells}
    if full:
        feeds |= {n: F((*lead, rows), low=-0.5, high=0.5) for n in ("bias", "recurrent_bias")}
        if op == "lstm":
            feeds["peephole_weight"] = F((*lead, 3 * HIDDEN), low=-0.5, high=0.5)
        if lead:
            feeds |= {f"initial_{name}_state": state for name in cells}
    return feeds


def nn_cases() -> Iterator[Case]:
    """The cases of this module."""
    for family in (
        _conv_cases, _transposed_cases, _pool_cases, _resample_cases, _normalization_cases,
        _quantized_cases, _recurrent_cases,
    ):  # fmt: skip
        yield from family()
