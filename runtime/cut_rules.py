"""Along which axes an op can be cut into independent parts, and what each part reads.

A *cut* of an op along an axis of its result gives parts that are the same op on windows of its
operands. Which axes those are follows from the op alone: rows of a product come from rows of A,
output channels of a convolution from filters, images of a batch from images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from crossdock.kernels import table
from crossdock.kernels.fused_attention import extents_of
from crossdock.kernels.fused_conv import conv_of
from crossdock.kernels.fused_matmul import product_of
from crossdock.kernels.ops_conv import FILTER_AXES, TRANSPOSED_FILTER_AXES
from crossdock.kernels.spec import Attrs, OpCall
from crossdock.runtime.tensor import TensorSpec

Fit = Callable[[Attrs, int, int], Attrs]
"""(attributes, size of a part along the result's axis, size of the whole) -> a part's attributes"""


def _same(attrs: Attrs, part: int, whole: int) -> Attrs:  # noqa: ARG001 - Fit
    return attrs


@dataclass(frozen=True)
class Cut:
    """How an op is cut: the axis of each operand (None: every part reads the whole) and result.

    A part's share of every axis is the same fraction, which must be whole on all of them.
    """

    operands: tuple[int | None, ...]
    results: tuple[int, ...]
    fit: Fit = field(default=_same, compare=False)


def cut(call: OpCall, axis: int) -> Cut | None:
    """The cut of an op along an axis of its first result; None where it cannot be cut there."""
    if not 0 <= axis < call.outputs[0].rank:
        return None
    rule = _RULES.get(call.op)
    if rule is not None:
        return rule(call, axis)
    if call.op == "fused" or table.op(call.op).expression(call.attrs) is not None:
        return _elementwise(call, axis)
    return None


def _elementwise(call: OpCall, axis: int) -> Cut:
    out = call.outputs[0]
    return Cut(tuple(_broadcast(spec, out, axis) for spec in call.inputs), (axis,))


def _broadcast(spec: TensorSpec | None, out: TensorSpec, axis: int) -> int | None:
    """The axis of an operand that numpy's rules broadcast along the result's; None if it has none.

    Aligned at the last axes.
    """
    if spec is None:
        return None
    at = axis - (out.rank - spec.rank)
    return at if at >= 0 and spec.dims[at] == out.dims[axis] else None


def _matmul(call: OpCall, axis: int) -> Cut:
    a, b, out = _spec(call, 0), _spec(call, 1), call.outputs[0]
    if axis == out.rank - 2:
        return Cut((a.rank - 2, None), (axis,))
    if axis == out.rank - 1:
        return Cut((None, b.rank - 1), (axis,))
    return Cut((_broadcast(a, out, axis), _broadcast(b, out, axis)), (axis,))


def _gemm(call: OpCall, axis: int) -> Cut:
    out = call.outputs[0]
    row = 1 if call.attrs["a_transpose"] else 0
    column = 0 if call.attrs["b_transpose"] else 1
    ends: list[int | None] = [row, None] if axis == 0 else [None, column]
    return Cut((*ends, *(_broadcast(c, out, axis) for c in call.inputs[2:])), (axis,))


def _channel_axis(layout: str) -> int:
    return 1 if layout == "nchw" else 3


def _batch_only(call: OpCall, axis: int) -> Cut | None:
    """Images of a batch: the first operand's, with all parameters whole."""
    return Cut((0, *(None for _ in call.inputs[1:])), (0,)) if axis == 0 else None


def _conv(call: OpCall, axis: int, filters: Mapping[str, tuple[int, ...]], out: int) -> Cut | None:
    """``out`` says where the filter's layout names its output channels."""
    if axis != _channel_axis(call.attrs["input_layout"]):
        return _batch_only(call, axis)
    if call.attrs["groups"] != 1:
        return _grouped(call, axis, filters)
    bias = tuple(None if spec is None else 0 for spec in call.inputs[2:])
    return Cut((None, filters[call.attrs["filter_layout"]][out], *bias), (axis,))


def _fused_conv(call: OpCall, axis: int) -> Cut | None:
    """The convolution's cut, with the residual cut as the result is."""
    found = _conv(conv_of(call), axis, FILTER_AXES, 0)
    residual = tuple(None if spec is None else axis for spec in call.inputs[3:])
    return found if found is None else replace(found, operands=found.operands + residual)


def _grouped(call: OpCall, axis: int, filters: Mapping[str, tuple[int, ...]]) -> Cut | None:
    """Whole groups: parts of the channels of input and output, and of the filter's first axis.

    Only where each group has one channel in and out (depthwise): there any part is of whole groups.
    """
    groups = call.attrs["groups"]
    if call.outputs[0].dims[axis] != groups or _spec(call, 0).dims[axis] != groups:
        return None
    first = filters[call.attrs["filter_layout"]][0]
    bias = tuple(None if spec is None else 0 for spec in call.inputs[2:])
    return Cut((axis, first, *bias), (axis,), _fewer_groups)


def _fewer_groups(attrs: Attrs, part: int, whole: int) -> Attrs:
    return {**attrs, "groups": attrs["groups"] * part // whole}


def _pool(call: OpCall, axis: int) -> Cut | None:
    return Cut((axis,), (axis,)) if axis in (0, _channel_axis(call.attrs["layout"])) else None


def _aside(*names: str) -> Callable[[OpCall, int], Cut | None]:
    """Any axis but those that the attributes ``names`` hold; further operands stay whole."""

    def rule(call: OpCall, axis: int) -> Cut | None:
        taken = {a for n in names for a in _axes(call.attrs[n])}
        rest = (None for _ in call.inputs[1:])
        return None if axis in taken else Cut((axis, *rest), tuple(axis for _ in call.outputs))

    return rule


def _axes(value: int | Sequence[int]) -> Sequence[int]:
    return (value,) if isinstance(value, int) else value


def _reduce(call: OpCall, axis: int) -> Cut | None:
    axes = _axes(call.attrs["axes"] if "axes" in call.attrs else call.attrs["axis"])
    if call.attrs["keep_dimensions"]:
        return None if axis in axes else Cut((axis,), (axis,))
    kept = [a for a in range(_spec(call, 0).rank) if a not in axes]
    return Cut((kept[axis],), (axis,))


def _batch_normalization(call: OpCall, axis: int) -> Cut:
    along = 0 if axis == call.attrs["axis"] else None
    return Cut((axis, *(None if s is None else along for s in call.inputs[1:])), (axis,))


def _instance_normalization(call: OpCall, axis: int) -> Cut | None:
    if axis != _channel_axis(call.attrs["layout"]):
        return _batch_only(call, axis)
    return Cut((axis, *(None if s is None else 0 for s in call.inputs[1:])), (axis,))


def _concat(call: OpCall, axis: int) -> Cut | None:
    return None if axis == call.attrs["axis"] else Cut((axis,) * len(call.inputs), (axis,))


def _transpose(call: OpCall, axis: int) -> Cut:
    return Cut((call.attrs["permutation"][axis],), (axis,))


def _sized(name: str, axis: int) -> Fit:
    """The attribute ``name`` holds the result's sizes."""

    def fit(attrs: Attrs, part: int, whole: int) -> Attrs:  # noqa: ARG001 - Fit
        sizes = list(attrs[name])
        sizes[axis] = part
        return {**attrs, name: tuple(sizes)}

    return fit


def _reshape(call: OpCall, axis: int) -> Cut | None:
    """The operand's axis that begins where the result's does: equal shares are the same elements.

    (Both axes then walk the same blocks of the same outer dimensions.)
    """
    source, out = _spec(call, 0).dims, call.outputs[0].dims
    outer = math.prod(out[:axis])
    for at, size in enumerate(source):
        if size > 1 and math.prod(source[:at]) == outer:
            return Cut((at,), (axis,), _sized("new_shape", axis))
    return None


def _expand(call: OpCall, axis: int) -> Cut:
    along = _broadcast(call.inputs[0], call.outputs[0], axis)
    return Cut((along,), (axis,), _sized("new_shape", axis))


def _slice(call: OpCall, axis: int) -> Cut | None:
    whole = _spec(call, 0).dims[axis]
    if call.attrs["starts"][axis] or call.outputs[0].dims[axis] != whole:
        return None
    return Cut((axis,), (axis,), _sized("sizes", axis))


def _pad(call: OpCall, axis: int) -> Cut | None:
    padded = call.attrs["beginning_padding"][axis] or call.attrs["ending_padding"][axis]
    return None if padded else Cut((axis,), (axis,))


def _attention(call: OpCall, axis: int) -> Cut | None:
    """Batch, or heads where every head of the queries has keys and values of its own."""
    query, key, out = _spec(call, 0), _spec(call, 1), call.outputs[0]
    if axis > 1 or (axis == 1 and query.dims[1] != key.dims[1]):
        return None
    biases = (_broadcast(spec, out, axis) for spec in call.inputs[3:])
    return Cut((axis, axis, axis, *biases), (axis,))


def _fused_matmul(call: OpCall, axis: int) -> Cut:
    """The product's cut, with what is added to it cut as the result is."""
    found, out = _matmul(product_of(call), axis), call.outputs[0]
    return replace(
        found, operands=(*found.operands, *(_broadcast(s, out, axis) for s in call.inputs[2:]))
    )


def _fused_attention(call: OpCall, axis: int) -> Cut | None:
    """Batch, or heads where each has keys, values and columns of its own."""
    sizes = extents_of(call)
    heads = 2 if call.attrs["by_row"] else 1
    names: tuple[str, ...]
    if axis == heads and sizes.heads == sizes.shared:
        ends = [_heads_of(call, i) for i in range(3)]
        names, along = ("heads", "shared"), 1
    elif axis == 0:
        ends = [0 if _spec(call, i).dims[0] % sizes.batch == 0 else None for i in range(3)]
        names, along = ("batch",), 0
    else:
        return None
    if None in ends:
        return None
    scores = call.outputs[0].with_shape((sizes.batch, sizes.heads, sizes.length, sizes.keys))
    biases = (_broadcast(spec, scores, along) for spec in call.inputs[3:])
    return Cut((*ends, *biases), (axis,), _fewer(names))


def _heads_of(call: OpCall, index: int) -> int | None:
    """The axis of an operand of which a part is whole heads, as many as of the result."""
    _, heads, _, width = extents_of(call).operand(index)
    spec, offset = _spec(call, index), call.attrs["offsets"][index]
    if offset is None:
        return 1 if spec.rank == 4 and spec.dims[1] == heads else None
    return spec.rank - 1 if offset == 0 and spec.dims[-1] == heads * width else None


def _fewer(names: Sequence[str]) -> Fit:
    """Extents that are a part's share."""

    def fit(attrs: Attrs, part: int, whole: int) -> Attrs:
        sizes = attrs["extents"]
        less = {n: getattr(sizes, n) * part // whole for n in names}
        return {**attrs, "extents": replace(sizes, **less)}

    return fit


def _spec(call: OpCall, index: int) -> TensorSpec:
    spec = call.inputs[index]
    assert spec is not None, (call.op, index)
    return spec


_RULES: dict[str, Callable[[OpCall, int], Cut | None]] = {
    "matmul": _matmul,
    "gemm": _gemm,
    "conv2d": lambda call, axis: _conv(call, axis, FILTER_AXES, 0),
    "fused_conv2d": _fused_conv,
    "fused_matmul": _fused_matmul,
    "fused_attention": _fused_attention,
    "conv_transpose2d": lambda call, axis: _conv(call, axis, TRANSPOSED_FILTER_AXES, 1),
    "average_pool2d": _pool,
    "max_pool2d": _pool,
    "l2_pool2d": _pool,
    "softmax": _aside("axis"),
    "split": _aside("axis"),
    "cumulative_sum": _aside("axis"),
    "reverse": _aside("axes"),
    "layer_normalization": _aside("axes"),
    "resample2d": _aside("axes"),
    "batch_normalization": _batch_normalization,
    "instance_normalization": _instance_normalization,
    "concat": _concat,
    "transpose": _transpose,
    "reshape": _reshape,
    "identity": lambda _call, axis: Cut((axis,), (axis,)),
    "expand": _expand,
    "slice": _slice,
    "pad": _pad,
    "scaled_dot_product_attention": _attention,
    "arg_max": _reduce,
    "arg_min": _reduce,
    "reduce_l1": _reduce,
    "reduce_l2": _reduce,
    "reduce_log_sum": _reduce,
    "reduce_log_sum_exp": _reduce,
    "reduce_max": _reduce,
    "reduce_mean": _reduce,
    "reduce_min": _reduce,
    "reduce_product": _reduce,
    "reduce_sum": _reduce,
    "reduce_sum_square": _reduce,
}
"""Ops whose cuts are not those of an elementwise op."""
