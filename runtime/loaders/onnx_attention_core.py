"""ONNX Attention: scaled dot products under masks, windows and caches; half types in float32."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np

from crossdock.runtime.builder import Operand
from crossdock.runtime.loaders.onnx_attention import (
    at_least_single,
    heads_apart,
    heads_joined,
    scores_of,
    shared_heads,
)
from crossdock.runtime.loaders.onnx_model import ONNX_DTYPES, dtype_name
from crossdock.runtime.loaders.onnx_quantize import cast
from crossdock.runtime.loaders.onnx_table import Context, onnx_op
from crossdock.runtime.tensor import FLOATS, Array

MASK, PAST_KEY, PAST_VALUE, LENGTHS = 3, 4, 5, 6
RAW, CAPPED, BIASED, WEIGHTS = range(4)
"""What the optional last result shows of the scores."""


@onnx_op("Attention", since=23)
def attention(ctx: Context) -> list[Operand | None]:
    """Softmax of scaled products of queries and keys, under a bias, times values.

    Half types are computed in float32 and rounded once a result. A query that may see no key gives
    zeros.
    """
    b, node = ctx.b, ctx.node
    flat = len(ctx.x().shape) == 3
    q, k, v = _operands(ctx, flat=flat)
    dtype = q.dtype
    present = (k, v) if ctx.opt(PAST_KEY) is None else _grown(ctx, k, v)
    k, v = (shared_heads(ctx, x, q.shape[1]) for x in present)
    scale = node.get_float("scale", 1 / math.sqrt(q.shape[3]))
    wide = at_least_single(dtype)
    shown = [scores_of(ctx, cast(ctx, q, wide), cast(ctx, k, wide), scale)]
    softcap = node.get_float("softcap")
    shown.append(_capped(ctx, shown[RAW], softcap) if softcap else shown[RAW])
    bias = _bias(ctx, q.shape[0], q.shape[2], k.shape[2], wide)
    shown.append(shown[CAPPED] if bias is None else b.add(shown[CAPPED], bias))
    shown.append(_weights(ctx, shown[BIASED], bias))
    out = cast(ctx, b.matmul(shown[WEIGHTS], cast(ctx, v, wide)), dtype)
    out = heads_joined(ctx, out) if flat else out
    mode = node.get_int("qk_matmul_output_mode")
    if not RAW <= mode <= WEIGHTS:
        raise ctx.malformed(f"qk_matmul_output_mode {mode}")
    return [out, *present, cast(ctx, shown[mode], dtype) if ctx.wants(3) else None]


def _operands(ctx: Context, *, flat: bool) -> list[Operand]:
    """Queries, keys and values [batch, heads, length, size]."""
    operands = [ctx.x(i) for i in range(3)]
    if not flat:
        if any(len(x.shape) != 4 for x in operands):
            raise ctx.malformed("an operand is not of rank 4")
        return operands
    for name in ("q_num_heads", "kv_num_heads"):
        ctx.node.require(name)
    heads, own = ctx.node.get_int("q_num_heads"), ctx.node.get_int("kv_num_heads")
    return [heads_apart(ctx, x, n) for x, n in zip(operands, (heads, own, own), strict=True)]


def _grown(ctx: Context, k: Operand, v: Operand) -> tuple[Operand, Operand]:
    """Past keys and values with the new ones behind them."""
    if ctx.opt(LENGTHS) is not None:
        raise ctx.malformed("lengths of a cache beside a past")
    b = ctx.b
    return b.concat([ctx.x(PAST_KEY), k], 2), b.concat([ctx.x(PAST_VALUE), v], 2)


def _capped(ctx: Context, scores: Operand, softcap: float) -> Operand:
    cap = ctx.like(softcap, scores)
    return ctx.b.mul(ctx.b.tanh(ctx.b.div(scores, cap)), cap)


def _weights(ctx: Context, scores: Operand, bias: Operand | None) -> Operand:
    """Softmax over the keys; zeros where the bias hides them all."""
    b, wide = ctx.b, scores.dtype
    number = ctx.node.get_int("softmax_precision")
    dtype = ONNX_DTYPES.get(number) if number else wide
    if dtype not in FLOATS:
        raise ctx.unsupported(f"softmax in {dtype_name(number)}")
    precise = "float64" if dtype == "float64" else wide
    weights = cast(ctx, b.softmax(cast(ctx, scores, precise), 3), wide)
    fixed = None if bias is None else bias.value
    if bias is None or (fixed is not None and not np.isneginf(fixed.max(axis=3)).any()):
        return weights
    best = b.reduce_max(bias, axes=[3], keep_dimensions=True)
    hidden = b.equal(best, ctx.like(-math.inf, best))
    return b.where(hidden, ctx.like(0, weights), weights)


# --- who sees whom --------------------------------------------------------------------------------


def _bias(ctx: Context, batch: int, queries: int, keys: int, dtype: str) -> Operand | None:
    """What is added to the scores, of rank 4; None where every query sees every key."""
    b = ctx.b
    seen = _windows(ctx, batch, queries, keys)
    mask = ctx.opt(MASK)
    added = None
    if mask is not None:
        mask = _lifted(ctx, mask, keys)
        if ctx.boolean(MASK) or mask.dtype not in FLOATS:
            seen.append(mask)
        else:
            added = cast(ctx, mask, dtype)
    if not seen:
        return added
    both = functools.reduce(b.logical_and, seen)
    zero, hidden = b.constant(0.0, dtype), b.constant(-math.inf, dtype)
    return b.where(both, zero if added is None else added, hidden)


def _lifted(ctx: Context, mask: Operand, keys: int) -> Operand:
    """A mask in rank 4; keys that it does not reach are hidden."""
    shape = [1] * (4 - len(mask.shape)) + list(mask.shape)
    mask = ctx.b.reshape(mask, shape) if len(mask.shape) < 4 else mask
    short = keys - shape[3]
    if short <= 0:
        return mask
    fill = -math.inf if mask.dtype in FLOATS else 0
    return ctx.b.pad(mask, [0] * 4, [0, 0, 0, short], value=fill)


def _windows(ctx: Context, batch: int, queries: int, keys: int) -> list[Operand]:
    """Truth values, broadcasting to [batch, 1, queries, keys], of what a query may see."""
    node, b, lengths = ctx.node, ctx.b, ctx.opt(LENGTHS)
    left = node.get_int("left_window_size", -1)
    right = node.get_int("right_window_size", -1)
    if min(left, right) < -1:
        raise ctx.malformed(f"windows of {left} and {right}")
    if node.get_int("is_causal"):
        right = 0
    at_key = np.arange(keys, dtype=np.int64).reshape(1, 1, 1, keys)
    at_query = np.arange(queries, dtype=np.int64).reshape(1, 1, queries, 1)
    past = ctx.opt(PAST_KEY)
    ahead = at_key - at_query - (0 if past is None else past.shape[2])
    if lengths is None:
        return [_constant(ctx, seen) for seen in _spans(ahead, left, right)]
    # A query stands before the end of the keys that count by as much as it stands before the last.
    lengths = b.reshape(cast(ctx, lengths, "int64"), [batch, 1, 1, 1])
    seen = [b.lesser(b.constant(at_key), lengths)]
    steps = b.sub(b.constant(ahead + queries), lengths)
    if left >= 0:
        seen.append(b.greater_or_equal(steps, ctx.like(-left, steps)))
    if right >= 0:
        seen.append(b.lesser_or_equal(steps, ctx.like(right, steps)))
    return seen


def _spans(ahead: Array, left: int, right: int) -> Sequence[Array]:
    """Which keys, by how far ahead of a query they stand, each side's window holds."""
    found = [ahead >= -left] if left >= 0 else []
    return [*found, ahead <= right] if right >= 0 else found


def _constant(ctx: Context, seen: Array) -> Operand:
    return ctx.b.constant(seen.astype(np.uint8))
