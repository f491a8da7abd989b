"""Attention that reads its operands where they lie, as one op: ``fused_attention``.

An operand is *by head*, [batch, heads, rows, features], or *by row*: any dense tensor of
[batch, rows, columns], where head h has the ``features`` columns from ``offset + h * features`` on.
So the products that make queries, keys and values need no transposition, and may be one product.
The result is by head, or by row: [batch, rows, heads, features]. The meaning is that of
``scaled_dot_product_attention``; but where ``hidden_zero`` is false, queries that see no key get
NaN, as a softmax gives it, not 0. Graph passes alone make the op.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from crossdock.devices.program import Work
from crossdock.kernels import table
from crossdock.kernels.spec import REQUIRED, Attrs, OpCall, OpSpec, Specs
from crossdock.runtime.tensor import TensorSpec

NAME = "fused_attention"
PLAIN = "scaled_dot_product_attention"
CORE = ("scale", "softcap", "causal_offset")
WIDEST = 512
"""Features of a head, at most: kernels hold a block of queries and its results on their stack."""


@dataclass(frozen=True)
class Extents:
    """Sizes of an attention: ``heads`` of queries share ``shared`` of keys and values."""

    batch: int
    heads: int
    shared: int
    length: int
    keys: int
    width: int
    out_width: int

    def __str__(self) -> str:
        return "x".join(map(str, self.operand(0) + self.operand(2)))

    def operand(self, index: int) -> tuple[int, int, int, int]:
        """Operand 0, 1 or 2 by head: [batch, heads, rows, features]."""
        if index == 0:
            return self.batch, self.heads, self.length, self.width
        width = self.width if index == 1 else self.out_width
        return self.batch, self.shared, self.keys, width


Offsets = tuple[int | None, int | None, int | None]
"""The first column of query, key and value by row; None where one is by head."""


def extents_of(call: OpCall) -> Extents:
    """The sizes of a fused attention or a plain one."""
    if call.op == NAME:
        found = call.attrs["extents"]
        assert isinstance(found, Extents)
        return found
    query, key, value = call.inputs[:3]
    assert query is not None
    assert key is not None
    assert value is not None
    batch, heads, length, width = query.dims
    return Extents(batch, heads, key.dims[1], length, key.dims[2], width, value.dims[3])


def strides_of(call: OpCall, index: int) -> tuple[int, int, int, int]:
    """Where an operand begins, and its strides along batch, heads and rows, in elements."""
    batch, heads, rows, width = extents_of(call).operand(index)
    offset = call.attrs["offsets"][index] if call.op == NAME else None
    if offset is None:
        return 0, heads * rows * width, rows * width, width
    spec = call.inputs[index]
    assert spec is not None
    columns = spec.size // max(1, batch * rows)
    return offset, rows * columns, width, columns


def result_strides(call: OpCall) -> tuple[int, int, int]:
    """Strides of the result along batch, heads and rows, in elements."""
    sizes = extents_of(call)
    heads, length, width = sizes.heads, sizes.length, sizes.out_width
    if call.op == NAME and call.attrs["by_row"]:
        return length * heads * width, width, heads * width
    return heads * length * width, length * width, width


def _infer(specs: Specs, attrs: Attrs) -> tuple[TensorSpec, ...]:
    sizes, query = attrs["extents"], specs[0]
    assert query is not None
    batch, heads, length, width = sizes.batch, sizes.heads, sizes.length, sizes.out_width
    if attrs["by_row"]:
        return (query.with_shape((batch, length, heads, width)),)
    return (query.with_shape((batch, heads, length, width)),)


def _work(specs: Specs, outs: Sequence[TensorSpec], attrs: Attrs) -> Work:
    sizes, dtype = attrs["extents"], outs[0].dtype
    plain = [TensorSpec(dtype, sizes.operand(i)) for i in range(3)]
    return table.op(PLAIN).work([*plain, *specs[3:]], outs, attrs)


def by_head(xp: Any, array: Any, sizes: Extents, offsets: Offsets, index: int) -> Any:
    """An operand as [batch, heads, rows, features], for a namespace of arrays."""
    batch, heads, rows, width = sizes.operand(index)
    offset = offsets[index]
    if offset is None:
        return array.reshape(batch, heads, rows, width)
    part = array.reshape(batch, rows, -1)[:, :, offset : offset + heads * width]
    return xp.transpose(part.reshape(batch, rows, heads, width), (0, 2, 1, 3))


def _run(
    xp: Any,
    query: Any,
    key: Any,
    value: Any,
    bias: Any = None,
    *,
    extents: Extents,
    offsets: Offsets,
    by_row: bool,
    hidden_zero: bool,
    **core: Any,
) -> Any:
    operands = [by_head(xp, x, extents, offsets, i) for i, x in enumerate((query, key, value))]
    made = table.op(PLAIN).run(xp, *operands, bias, **core)
    if not hidden_zero and bias is not None:
        top = xp.broadcast_to(bias, (*made.shape[:3], extents.keys)).max(axis=3, keepdims=True)
        made = xp.where(xp.isneginf(top), xp.asarray(float("nan"), made.dtype), made)
    return xp.transpose(made, (0, 2, 1, 3)) if by_row else made


def _steps(
    b: Any,
    query: Any,
    key: Any,
    value: Any,
    bias: Any,
    *,
    extents: Extents,
    offsets: Offsets,
    by_row: bool,
    hidden_zero: bool,
    **core: Any,
) -> Any:
    query, key, value = (
        _by_head_steps(b, x, extents, offsets, i) for i, x in enumerate((query, key, value))
    )
    if hidden_zero:
        made = b.scaled_dot_product_attention(query, key, value, bias=bias, **core)
    else:
        made = _softmax_steps(b, query, key, value, bias, core["scale"])
    return b.transpose(made, permutation=[0, 2, 1, 3]) if by_row else made


def _by_head_steps(b: Any, x: Any, sizes: Extents, offsets: Offsets, index: int) -> Any:
    batch, heads, rows, width = sizes.operand(index)
    offset = offsets[index]
    if offset is None:
        return b.reshape(x, [batch, heads, rows, width])
    columns = math.prod(x.shape) // (batch * rows)
    x = b.reshape(x, [batch, rows, columns])
    if columns != heads * width:
        x = b.slice(x, [0, 0, offset], [batch, rows, heads * width])
    return b.transpose(b.reshape(x, [batch, rows, heads, width]), permutation=[0, 2, 1, 3])


def _softmax_steps(b: Any, query: Any, key: Any, value: Any, bias: Any, scale: float) -> Any:
    """A softmax of its own: attention without a cap or a causal mask, and heads of their own."""
    scaled = b.mul(query, b.constant(scale, query.dtype))
    scores = b.matmul(scaled, b.transpose(key, permutation=[0, 1, 3, 2]))
    scores = scores if bias is None else b.add(scores, bias)
    return b.matmul(b.softmax(scores, 3), value)


ATTRS = {
    "extents": REQUIRED, "offsets": (None, None, None), "by_row": False, "hidden_zero": True,
    "scale": None, "softcap": 0.0, "causal_offset": None,
}  # fmt: skip

table.define(
    OpSpec(
        name=NAME,
        operands=("query", "key", "value", "bias?"),
        infer=_infer,
        run=_run,
        work=_work,
        attrs=ATTRS,
        decompose=_steps,
        extension=True,
    )
)
