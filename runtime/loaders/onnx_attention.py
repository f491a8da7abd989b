"""ONNX attention beyond what function bodies give: flexible and linear attention, cache updates."""

from __future__ import annotations

import math

import numpy as np

from crossdock.kernels.ops_math import HALVES
from crossdock.runtime.builder import Operand
from crossdock.runtime.loaders.onnx_frame import Frame
from crossdock.runtime.loaders.onnx_model import ONNX_DTYPES, dtype_name
from crossdock.runtime.loaders.onnx_quantize import cast
from crossdock.runtime.loaders.onnx_table import Context, Value, onnx_op
from crossdock.runtime.tensor import FLOATS

PREVIEW = "ai.onnx.preview"
MAX_STEPS = 4096
"""Longest sequence whose recurrence is written out step by step."""


def heads_apart(ctx: Context, x: Operand, heads: int) -> Operand:
    """[batch, length, heads size] as [batch, heads, length, size]."""
    if len(x.shape) != 3 or heads < 1 or x.shape[2] % heads:
        raise ctx.malformed(f"an operand {list(x.shape)} in {heads} heads")
    batch, length, width = x.shape
    split = ctx.b.reshape(x, [batch, length, heads, width // heads])
    return ctx.b.transpose(split, permutation=[0, 2, 1, 3])


def heads_joined(ctx: Context, x: Operand) -> Operand:
    """The inverse of ``heads_apart``."""
    batch, heads, length, size = x.shape
    rows = ctx.b.transpose(x, permutation=[0, 2, 1, 3])
    return ctx.b.reshape(rows, [batch, length, heads * size])


def shared_heads(ctx: Context, x: Operand, heads: int) -> Operand:
    """Keys or values [batch, kv heads, length, size] once for each query head that shares them."""
    batch, own, length, size = x.shape
    if own == heads:
        return x
    if heads % own:
        raise ctx.malformed(f"{heads} query heads share {own} heads")
    one = ctx.b.reshape(x, [batch, own, 1, length, size])
    many = ctx.b.expand(one, [batch, own, heads // own, length, size])
    return ctx.b.reshape(many, [batch, heads, length, size])


def scores_of(ctx: Context, q: Operand, k: Operand, scale: float) -> Operand:
    """Products of queries and keys [batch, heads, length, size], scaled."""
    turned = ctx.b.transpose(k, permutation=[0, 1, 3, 2])
    return ctx.b.matmul(ctx.b.mul(q, ctx.like(scale, q)), turned)


def called(ctx: Context, name: str, argument: Operand) -> Operand:
    """A subgraph of one input and one output, written in place for an operand."""
    if name not in ctx.node.attrs:
        return argument
    graph, frame = ctx.node.graph(name), ctx.frame
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        raise ctx.malformed(f"{name} has {len(graph.inputs)} inputs, {len(graph.outputs)} outputs")
    inner = Frame(
        frame.converter,
        frame.writer,
        frame.opsets,
        parent=frame,
        prefix=f"{ctx.node.label}/",
    )
    inner.values[graph.inputs[0].name] = Value(argument)
    b = frame.writer.b
    label, made = b.label, b.made
    frame.converter.graph(inner, graph)
    b.label, b.made = label, made
    result = graph.outputs[0].name
    if inner.has_failed(result):
        raise ctx.unsupported(name)
    found = inner.get(result)
    if not isinstance(found, Value):
        raise ctx.unsupported(f"a result of {name} that is no tensor")
    if tuple(found.operand.shape) != tuple(argument.shape):
        raise ctx.malformed(f"{name} makes {list(found.operand.shape)} of {list(argument.shape)}")
    return found.operand


@onnx_op("FlexAttention", domain=PREVIEW)
def flex_attention(ctx: Context) -> Operand:
    """Attention whose scores and probabilities go through subgraphs of the node's own."""
    b, node = ctx.b, ctx.node
    q, k, v = (ctx.x(i) for i in range(3))
    if any(len(x.shape) != 4 for x in (q, k, v)):
        raise ctx.malformed("an operand is not of rank 4")
    heads = q.shape[1]
    k, v = (shared_heads(ctx, x, heads) for x in (k, v))
    scale = node.get_float("scale", 1 / math.sqrt(q.shape[3]))
    number = node.get_int("softmax_precision")
    precise = ONNX_DTYPES.get(number) if number else at_least_single(q.dtype)
    if precise not in FLOATS:
        raise ctx.unsupported(f"softmax in {dtype_name(number)}")
    half = q.dtype in HALVES
    wide = [cast(ctx, x, "float32") if half else x for x in (q, k)]
    scores = called(ctx, "score_mod", cast(ctx, scores_of(ctx, wide[0], wide[1], scale), precise))
    weights = called(ctx, "prob_mod", b.softmax(scores, 3))
    return b.matmul(cast(ctx, weights, v.dtype), v)


def at_least_single(dtype: str) -> str:
    """An element type, or float32 in place of a half."""
    return "float32" if dtype in HALVES else dtype


# --- linear attention -----------------------------------------------------------------------------

RULES = ("linear", "gated", "delta", "gated_delta")


@onnx_op("LinearAttention", since=27)
def linear_attention(ctx: Context) -> list[Operand | None]:
    """A state of keys times values, updated and read once a step of the sequence."""
    b, node = ctx.b, ctx.node
    rule = node.get_str("update_rule", "gated_delta")
    heads, own = node.get_int("q_num_heads"), node.get_int("kv_num_heads")
    if rule not in RULES:
        raise ctx.malformed(f"update_rule {rule!r}")
    q, k, v = (heads_apart(ctx, ctx.x(i), n) for i, n in enumerate((heads, own, own)))
    if heads % own:
        raise ctx.malformed(f"{heads} query heads share {own} heads")
    batch, _, length, width = k.shape
    if length > MAX_STEPS:
        raise ctx.unsupported(f"a sequence of more than {MAX_STEPS} steps")
    dtype = q.dtype
    precise = at_least_single(dtype)
    scale = node.get_float("scale") or 1 / math.sqrt(q.shape[3])
    state = ctx.opt(3)
    if state is None:
        shape = (batch, own, width, v.shape[3])
        state = ctx.frame.filled(shape, np.zeros((), np.float32)).operand
    kept = state.dtype if ctx.opt(3) is not None else dtype
    state = cast(ctx, state, precise)
    q, k, v = (cast(ctx, x, precise) for x in (q, k, v))
    decay = _gate(ctx, 4, own, precise) if "gated" in rule else None
    beta = _gate(ctx, 5, own, precise) if "delta" in rule else None
    q = b.mul(q, ctx.like(scale, q))
    outs = []
    for step in range(length):
        at = [None if x is None else _at(ctx, x, step) for x in (q, k, v, decay, beta)]
        state = _updated(ctx, state, at[1], at[2], at[3], at[4])
        query = b.reshape(_some(at[0]), [batch, own, heads // own, width])
        outs.append(b.reshape(b.matmul(query, state), [batch, heads, 1, v.shape[3]]))
    whole = outs[0] if len(outs) == 1 else b.concat(outs, 2)
    return [cast(ctx, heads_joined(ctx, whole), dtype), cast(ctx, state, kept)]


def _gate(ctx: Context, index: int, heads: int, dtype: str) -> Operand:
    """A decay or update rate [batch, length, heads size or 1] by heads."""
    x = cast(ctx, ctx.x(index), dtype)
    return heads_apart(ctx, x, 1 if x.shape[2] == 1 else heads)


def _some(x: Operand | None) -> Operand:
    assert x is not None
    return x


def _at(ctx: Context, x: Operand, step: int) -> Operand:
    """One step [batch, heads, 1, size] of a sequence."""
    if x.shape[2] == 1:
        return x
    batch, heads, _, size = x.shape
    return ctx.b.slice(x, [0, 0, step, 0], [batch, heads, 1, size])


def _updated(
    ctx: Context,
    state: Operand,
    k: Operand | None,
    v: Operand | None,
    decay: Operand | None,
    beta: Operand | None,
) -> Operand:
    """The next state [batch, heads, key size, value size] (delta rules: Yang et al. 2024)."""
    b = ctx.b
    k, v = _some(k), _some(v)
    turned = b.transpose(k, permutation=[0, 1, 3, 2])
    if decay is not None:
        state = b.mul(b.transpose(b.exp(decay), permutation=[0, 1, 3, 2]), state)
    if beta is not None:
        v = b.mul(beta, b.sub(v, b.matmul(k, state)))
    return b.add(state, b.mul(turned, v))


# --- caches ---------------------------------------------------------------------------------------


@onnx_op("TensorScatter", since=24)
def tensor_scatter(ctx: Context) -> Operand:
    """A cache with new steps written at an index a sample, around its end where circular."""
    past, update = ctx.x(0), ctx.x(1)
    rank = len(past.shape)
    axis = ctx.axis(ctx.node.get_int("axis", -2), rank)
    mode = ctx.node.get_str("mode", "linear")
    if axis == 0 or mode not in ("linear", "circular"):
        raise ctx.malformed(f"mode {mode!r}, axis {axis}")
    starts = ctx.opt(2)
    if starts is None:
        starts = ctx.frame.filled((past.shape[0],), np.zeros((), np.int64)).operand
    return cache_written(ctx, past, update, starts, axis, circular=mode == "circular")


def cache_written(
    ctx: Context, past: Operand, update: Operand, starts: Operand, axis: int, *, circular: bool
) -> Operand:
    """A cache whose steps along ``axis`` from ``starts`` (int64 [batch]) on are new ones."""
    b, rank = ctx.b, len(past.shape)
    batch, size, count = past.shape[0], past.shape[axis], update.shape[axis]
    # Step j of the cache takes update step (j - start), if there is one.
    places = b.constant(np.arange(size, dtype=np.int64).reshape(1, size))
    steps = b.sub(places, b.reshape(starts, [batch, 1]))
    if circular:
        steps = b.mod(steps, ctx.like(size, steps))
    fresh = b.logical_and(
        b.greater_or_equal(steps, ctx.like(0, steps)), b.lesser(steps, ctx.like(count, steps))
    )
    steps = b.clamp(steps, min_value=0, max_value=count - 1)
    shape = [batch, *(size if i == axis else 1 for i in range(1, rank))]
    taken = b.gather_elements(
        update, b.expand(b.reshape(steps, shape), list(past.shape)), axis=axis
    )
    return b.where(b.reshape(fresh, shape), taken, past)
