"""What a kernel's time hangs on beside operations and bytes: extents in log2, by family of ops.

Two instances of an op with the same arithmetic and traffic can differ by a factor in time: a
product with few columns, a window of one, an axis that is short. The features tell them apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from crossdock.kernels import table
from crossdock.kernels.expression import Binary, Call, Expr, Select, Unary
from crossdock.kernels.fused import body_of
from crossdock.kernels.spec import OpCall
from crossdock.runtime.tensor import TensorSpec

Features = tuple[float, ...]

VECTOR = 16
"""Elements of a vector register of the widest machines: what does not fill it is lost."""


TILE_ROWS, TILE_VECTORS = 8, 3
"""Results of a register tile: what a tile at the edge does not need is computed all the same."""

TRANSCENDENTAL = frozenset(
    {"exp", "log", "sin", "cos", "tan", "tanh", "erf", "pow", "acos", "asin", "atan", "mod"}
)
DIVISION = 0.25
"""Of the time of a transcendental function, what a division or a square root takes."""


@dataclass(frozen=True)
class Shape:
    """Features of an op instance.

    Attributes:
        family: ops whose features mean the same.
        features: float (k,); k is the same in a family.
        units: counts that the time may be a sum of (inner loops, lines, packed elements), float
            (u,); u is the same in a family.
    """

    family: str
    features: Features
    units: Features


def shape_of(call: OpCall) -> Shape:
    """The features of an op instance."""
    family = _FAMILY.get(call.op)
    if family is not None:
        return _SHAPES[family](call)
    body = body_of(call) if call.op == "fused" or _elementwise(call) else None
    if body is None:
        return _rows(call)
    costs = [_cost(step.expr()) for step in body.steps]
    special = sum(c[1] for c in costs)
    plain = sum(c[0] for c in costs)
    out = call.outputs[0]
    full = sum(s is not None and s.size == out.size for s in call.inputs)
    lines = sum(s is not None and 1 < s.size < out.size for s in call.inputs)
    inner = out.dims[-1] if out.dims else 1
    features = (*_log(out.size, inner, plain + 1, special + 1), float(full), float(lines))
    vectors = out.size / max(1, inner) * _vectors(inner)
    units = (plain * vectors, special * vectors, out.size / max(1, inner))
    return Shape("pointwise", features, units)


def _elementwise(call: OpCall) -> bool:
    return table.op(call.op).expression(call.attrs) is not None


def _cost(expr: Expr) -> tuple[float, float]:
    """Plain operations and transcendental functions of an expression."""
    plain = special = 0.0
    for node in _walk(expr):
        name = node.fn if isinstance(node, Call) else getattr(node, "op", "")
        if name in TRANSCENDENTAL:
            special += 1.0
        elif name in ("/", "sqrt"):
            special += DIVISION
        else:
            plain += isinstance(node, Call | Unary | Binary | Select)
    return plain, special


def _walk(expr: Expr) -> Iterator[Expr]:
    yield expr
    if isinstance(expr, Call):
        parts: tuple[Expr, ...] = expr.args
    elif isinstance(expr, Unary):
        parts = (expr.x,)
    elif isinstance(expr, Binary):
        parts = (expr.a, expr.b)
    elif isinstance(expr, Select):
        parts = (expr.cond, expr.a, expr.b)
    else:
        parts = ()
    for part in parts:
        yield from _walk(part)


def _log(*values: float) -> Features:
    return tuple(math.log2(max(v, 0.5)) for v in values)


def _vectors(extent: int) -> int:
    """Vectors along an axis, the last one perhaps not full."""
    return -(-extent // VECTOR)


def _tail(extent: int) -> float:
    """Share of the vectors along an axis that is lost to its last one."""
    return 1.0 - extent / max(1, _vectors(extent) * VECTOR)


def _spec(call: OpCall, index: int) -> TensorSpec:
    spec = call.inputs[index]
    assert spec is not None, call.op
    return spec


def _conv(call: OpCall) -> Shape:
    """Pixels, output channels, input channels a group, window, width, stride, groups, tails.

    Units: multiply-adds of whole register tiles, tiles, packed pixels, pieces of rows, results.
    """
    attrs = call.attrs
    out, weights = call.outputs[0].dims, _spec(call, 1)
    first = str(attrs.get("input_layout", "nchw")) == "nchw"
    height, width, channels = (out[2], out[3], out[1]) if first else (out[1], out[2], out[3])
    groups = int(attrs.get("groups", 1) or 1)
    window = _window(call, first)
    taps = max(1, weights.size // max(1, channels))  # input channels a group times the window
    stride = next(iter(attrs.get("strides") or (1,)))
    features = (
        *_log(out[0] * height * width, channels, taps / window, window, width, stride, groups),
        _tail(width),
        _tail(channels // groups),
    )
    many = out[0] * groups
    pixels = _vectors(height * width)
    rows = -(-(channels // groups) // TILE_ROWS)
    units = (
        float(many * rows * TILE_ROWS * pixels * taps),
        float(many * rows * -(-pixels // TILE_VECTORS)),
        float(many * pixels * taps),
        float(many * taps * height) if window > 1 or stride > 1 else 0.0,
        float(many * rows * TILE_ROWS * pixels),
        float(out[0] * channels * height * _vectors(width) * taps) if taps == window else 0.0,
    )
    return Shape("conv", features, units)


def _window(call: OpCall, first: bool) -> int:
    """Elements of a convolution's window."""
    layout = str(call.attrs.get("filter_layout", "oihw" if first else "ohwi"))
    dims = _spec(call, 1).dims
    return dims[layout.index("h")] * dims[layout.index("w")]


def _pool(call: OpCall) -> Shape:
    """Elements of the result, window, stride, width. Units: vectors times window, rows, vectors."""
    out, window = call.outputs[0], call.attrs.get("window_dimensions") or (1, 1)
    stride = (call.attrs.get("strides") or (1, 1))[0]
    width, taps = out.dims[-1], window[0] * window[1]
    rows = out.size / max(1, width)
    features = (*_log(out.size, taps, stride, width), _tail(width))
    return Shape("pool", features, (rows * _vectors(width) * taps, rows, rows * window[0]))


def _product(call: OpCall) -> Shape:
    """Batch, rows, columns, depth of a matrix product, tails; transposition of operands.

    Units: multiply-adds in whole vectors, elements of the operands and the result.
    """
    out, a = call.outputs[0].dims, _spec(call, 0).dims
    turned = bool(call.attrs.get("a_transpose", False))
    rows, columns = (out[-2], out[-1]) if len(out) > 1 else (1, out[-1] if out else 1)
    depth = a[-2] if turned and len(a) > 1 else (a[-1] if a else 1)
    batch = math.prod(out[:-2])
    features = (
        *_log(batch, rows, columns, depth),
        _tail(columns),
        float(turned),
        float(bool(call.attrs.get("b_transpose", False))),
    )
    units = (
        float(batch * rows * _vectors(columns) * depth),
        float(batch * rows * depth),
        float(batch * depth * columns),
        float(batch * rows * columns),
        float(batch),
    )
    return Shape("product", features, units)


def _rows(call: OpCall) -> Shape:
    """Elements of operand and result, their last extents, the number of operands.

    Units: vectors, lines.
    """
    out = call.outputs[0]
    first = next((s for s in call.inputs if s is not None), out)
    ends = [s.dims[-1] if s.dims else 1 for s in (first, out)]
    count = sum(s is not None for s in call.inputs)
    lines = [s.size / max(1, end) for s, end in zip((first, out), ends, strict=True)]
    features = (*_log(first.size, out.size, *ends, count), _tail(ends[1]))
    return Shape("rows", features, (lines[1] * _vectors(ends[1]), *lines))


def _moded(call: OpCall) -> Shape:
    """As of rows, and the mode, whose code is its own. Units: vectors, lines by kind of mode."""
    plain = _rows(call)
    cheap = str(call.attrs.get("mode", "")) in ("constant", "nearest-neighbor")
    flag = float(cheap)
    units = (*plain.units, *(u * flag for u in plain.units))
    return Shape("moded", (*plain.features, flag), units)


def _along(call: OpCall) -> Shape:
    """Lines, their length, and what lies behind the axes. Units: vectors, lines, elements."""
    spec = _spec(call, 0)
    axes = call.attrs.get("axes")
    if axes is None:
        axes = (int(call.attrs.get("axis", spec.rank - 1)),)
    length = math.prod(spec.dims[a] for a in axes)
    behind = math.prod(spec.dims[max(axes, default=0) + 1 :]) if axes else 1
    lines = spec.size / max(1, length)
    vectors = lines * _vectors(length) if behind == 1 else spec.size / behind * _vectors(behind)
    features = (*_log(lines, length, behind), _tail(length if behind == 1 else behind))
    return Shape("along", features, (vectors, lines, float(spec.size)))


def _turn(call: OpCall) -> Shape:
    """Elements, the last extents, whether the last axis stays. Units: elements, lines of both."""
    spec, out = _spec(call, 0), call.outputs[0]
    order = list(call.attrs.get("permutation") or [])
    stays = order[-1:] == [spec.rank - 1]
    ends = [s.dims[-1] if s.dims else 1 for s in (spec, out)]
    lines = [spec.size / max(1, end) for end in ends]
    moved = 0.0 if stays else float(spec.size)
    return Shape("turn", (*_log(spec.size, *ends), float(stays)), (moved, *lines))


def _join(call: OpCall) -> Shape:
    """Elements, pieces, contiguous elements of a piece. Units: elements, contiguous runs."""
    out = call.outputs[0]
    axis = int(call.attrs.get("axis", 0))
    several = len(call.inputs) > 1
    pieces = len(call.inputs) if several else len(call.outputs)
    whole = out if several else _spec(call, 0)
    runs = math.prod(whole.dims[:axis]) * pieces
    return Shape("join", _log(whole.size, pieces, whole.size / max(1, runs)), (float(runs),))


def _recurrent(call: OpCall) -> Shape:
    """Steps, batch, input and hidden extents. Units: steps, and multiply-adds of a step."""
    steps, batch, width = ([1, 1, 1] + list(_spec(call, 0).dims))[-3:]
    hidden = int(call.attrs.get("hidden_size", 1))
    features = _log(steps, batch, width, hidden, call.outputs[0].size)
    return Shape("recurrent", features, (float(steps), float(steps * hidden * hidden)))


_SHAPES: dict[str, Callable[[OpCall], Shape]] = {
    "conv": _conv,
    "pool": _pool,
    "product": _product,
    "turn": _turn,
    "join": _join,
    "recurrent": _recurrent,
    "along": _along,
    "moded": _moded,
}
_FAMILY = {
    **dict.fromkeys(
        ("conv2d", "fused_conv2d", "conv_transpose2d", "conv_integer", "quantized_conv2d"), "conv"
    ),
    **dict.fromkeys(("max_pool2d", "average_pool2d", "l2_pool2d"), "pool"),
    **dict.fromkeys(
        ("matmul", "fused_matmul", "gemm", "linear", "matmul_integer", "quantized_matmul"),
        "product",
    ),
    **dict.fromkeys(("pad", "resample2d", "resize"), "moded"),
    "transpose": "turn",
    **dict.fromkeys(("concat", "split"), "join"),
    **dict.fromkeys(("lstm", "gru"), "recurrent"),
    **dict.fromkeys(
        (
            "softmax", "layer_normalization", "instance_normalization", "cumulative_sum",
            "reduce_mean", "reduce_sum", "reduce_max", "reduce_min", "reduce_l2", "reduce_product",
        ),
        "along",
    ),
}  # fmt: skip
