"""ONNX operators along one axis in order: running sums and products, the largest elements."""

from __future__ import annotations

from crossdock.runtime.builder import Operand
from crossdock.runtime.loaders.onnx_elementwise import method
from crossdock.runtime.loaders.onnx_table import Context, onnx_op

RUNNING = {"CumSum": "cumulative_sum", "CumProd": "cumulative_product"}


@onnx_op("CumSum", since=11)
@onnx_op("CumProd", since=26)
def running(ctx: Context) -> Operand:
    """Running sum or product along a constant axis."""
    x = ctx.x()
    return method(ctx, RUNNING[ctx.node.op])(
        x,
        ctx.axis(int(ctx.scalar(1, "an axis")), len(x.shape)),
        exclusive=bool(ctx.node.get_int("exclusive")),
        reversed=bool(ctx.node.get_int("reverse")),
    )


@onnx_op("TopK")
def top_k_by_attribute(ctx: Context) -> tuple[Operand, ...]:
    """The k largest elements along an axis, and their places."""
    ctx.node.require("k")
    return _top(ctx, ctx.node.get_int("k"), largest=True)


@onnx_op("TopK", since=10)
def top_k(ctx: Context) -> tuple[Operand, ...]:
    """The k largest or smallest elements; a constant operand says how many.

    They come in order, which ONNX leaves open where ``sorted`` is 0; of equal ones the first wins.
    """
    k = int(ctx.scalar(1, "a number of elements"))
    return _top(ctx, k, largest=bool(ctx.node.get_int("largest", 1)))


def _top(ctx: Context, k: int, *, largest: bool) -> tuple[Operand, ...]:
    x = ctx.x()
    axis = ctx.axis(ctx.node.get_int("axis", -1), len(x.shape))
    if not 0 <= k <= x.shape[axis]:
        raise ctx.malformed(f"k is {k}, the axis has {x.shape[axis]} elements")
    if 0 in x.shape or not k:
        shape = [k if i == axis else d for i, d in enumerate(x.shape)]
        return ctx.frame.empty(x.dtype, shape), ctx.frame.empty("int64", shape)
    return ctx.b.top_k(x, k, axis, largest=largest)
