"""Attention of onnxruntime's domain (com.microsoft): packed weights, masks, caches."""

from __future__ import annotations

import math

import numpy as np

from crossdock.runtime.builder import Operand
from crossdock.runtime.loaders.onnx_attention import (
    heads_apart,
    heads_joined,
    scores_of,
    shared_heads,
)
from crossdock.runtime.loaders.onnx_quantize import MICROSOFT, cast
from crossdock.runtime.loaders.onnx_quantized import matmul, scalar
from crossdock.runtime.loaders.onnx_table import Context, onnx_op

LOWEST = float(np.finfo(np.float32).min)


def attended(
    ctx: Context, q: Operand, k: Operand, v: Operand, bias: Operand | None, softcap: float = 0.0
) -> Operand:
    """Values [batch, heads, keys, size] weighted by softmax of scores plus a bias."""
    b = ctx.b
    scale = ctx.node.get_float("scale") or 1 / math.sqrt(q.shape[3])
    scores = scores_of(ctx, q, k, scale)
    if softcap:
        cap = ctx.like(softcap, scores)
        scores = b.mul(b.tanh(b.div(scores, cap)), cap)
    scores = scores if bias is None else b.add(scores, bias)
    return b.matmul(b.softmax(scores, 3), v)


# --- masks ----------------------------------------------------------------------------------------


def key_bias(ctx: Context, index: int, batch: int, queries: int, keys: int) -> Operand | None:
    """What operand ``index`` adds to the scores, in rank 4; None where there is no mask.

    The mask gives lengths [batch], ends and then starts [2 batch], or which keys count: [batch,
    keys], [batch, queries, keys], or a square [batch, 1, size, size] of whole sequences.
    """
    mask = ctx.opt(index)
    if mask is None:
        return None
    b, shape = ctx.b, tuple(mask.shape)
    if shape == (batch,):
        counts = _before(ctx, mask, keys)
    elif shape == (2 * batch,):
        ends, starts = b.slice(mask, [0], [batch]), b.slice(mask, [batch], [batch])
        counts = b.logical_and(_before(ctx, ends, keys), b.logical_not(_before(ctx, starts, keys)))
    else:
        counts = b.greater(_cut(ctx, mask, batch, queries, keys), ctx.like(0, mask))
    low = b.constant(np.float32(ctx.node.get_float("mask_filter_value", -10000.0)))
    bias = b.where(counts, b.constant(np.float32(0)), low)
    return cast(ctx, bias, _real(ctx))


def _real(ctx: Context) -> str:
    """The scores' type: the operand's, or float32 where that is quantised."""
    return ctx.x().dtype if ctx.is_float() else "float32"


def _before(ctx: Context, lengths: Operand, keys: int) -> Operand:
    """Which keys stand before a length [batch]: [batch, 1, 1, keys]."""
    places = ctx.b.constant(np.arange(keys, dtype=np.int32).reshape(1, 1, 1, keys))
    return ctx.b.lesser(places, ctx.b.reshape(lengths, [lengths.shape[0], 1, 1, 1]))


def _cut(ctx: Context, mask: Operand, batch: int, queries: int, keys: int) -> Operand:
    b, shape = ctx.b, tuple(mask.shape)
    if shape == (batch, keys):
        return b.reshape(mask, [batch, 1, 1, keys])
    if shape == (batch, queries, keys):
        return b.reshape(mask, [batch, 1, queries, keys])
    if len(shape) == 4 and shape[:2] == (batch, 1) and min(shape[2:]) >= keys:
        return b.slice(mask, [0, 0, keys - queries, 0], [batch, 1, queries, keys])
    raise ctx.unsupported(f"a mask {list(shape)} for {queries} queries and {keys} keys")


def causal(ctx: Context, bias: Operand | None, queries: int, keys: int) -> Operand | None:
    """A bias that hides what comes after each query, where the node is unidirectional."""
    if not ctx.node.get_int("unidirectional"):
        return bias
    at = np.arange(queries)[:, None] + (keys - queries)
    seen = ctx.b.constant((np.arange(keys) <= at).astype(np.uint8).reshape(1, 1, queries, keys))
    other = ctx.b.constant(0, _real(ctx)) if bias is None else bias
    return ctx.b.where(seen, other, ctx.like(LOWEST, other))


def _added(ctx: Context, bias: Operand | None, index: int) -> Operand | None:
    """A bias plus operand ``index``, which is one of the scores' rank."""
    more = ctx.opt(index)
    if more is None or bias is None:
        return bias if more is None else more
    return ctx.b.add(bias, more)


def _refused(ctx: Context, *names: str) -> None:
    for name in names:
        if ctx.node.get_int(name):
            raise ctx.unsupported(f"attribute {name!r}")


# --- Attention ------------------------------------------------------------------------------------


@onnx_op("Attention", domain=MICROSOFT)
def attention(ctx: Context) -> list[Operand | None]:
    """Self attention whose weights make queries, keys and values in one product."""
    _refused(ctx, "do_rotary", "past_present_share_buffer")
    packed = ctx.b.matmul(ctx.x(0), ctx.x(1))
    packed = packed if ctx.opt(2) is None else ctx.b.add(packed, ctx.x(2))
    return self_attention(ctx, packed, mask=3, past=4, bias=5)


@onnx_op("QAttention", domain=MICROSOFT)
def quantised_attention(ctx: Context) -> list[Operand | None]:
    """The same with a product of bytes."""
    _refused(ctx, "do_rotary", "past_present_share_buffer")
    acc = matmul(ctx, ctx.x(0), ctx.x(1), ctx.opt(6), ctx.opt(7))
    scale = ctx.b.mul(scalar(ctx, ctx.x(3)), scalar(ctx, ctx.x(4)))
    packed = ctx.b.add(ctx.b.mul(ctx.b.cast(acc, scale.dtype), scale), ctx.x(2))
    return self_attention(ctx, packed, mask=5, past=8, bias=9)


def self_attention(
    ctx: Context, packed: Operand, *, mask: int, past: int, bias: int
) -> list[Operand | None]:
    """Attention of queries, keys and values side by side; mask, past and bias are operands."""
    b, node = ctx.b, ctx.node
    if len(packed.shape) != 3:
        raise ctx.malformed(f"an operand of rank {len(packed.shape)}")
    batch, length, width = packed.shape
    heads = node.get_int("num_heads")
    sizes = node.get_ints("qkv_hidden_sizes") or (width // 3,) * 3
    if len(sizes) != 3 or sum(sizes) != width:
        raise ctx.malformed(f"hidden sizes {list(sizes)} of {width} columns")
    q, k, v = (heads_apart(ctx, part, heads) for part in b.split(packed, list(sizes), axis=2))
    if ctx.opt(past) is not None:
        old_k, old_v = (_layer(ctx, ctx.x(past), i) for i in range(2))
        k, v = b.concat([old_k, k], 2), b.concat([old_v, v], 2)
    present = None
    if ctx.wants(1):
        present = b.concat([b.reshape(part, [1, *part.shape]) for part in (k, v)], 0)
    keys = k.shape[2]
    hidden = causal(ctx, key_bias(ctx, mask, batch, length, keys), length, keys)
    out = attended(ctx, q, k, v, _added(ctx, hidden, bias))
    return [heads_joined(ctx, out), present]


def _layer(ctx: Context, pair: Operand, index: int) -> Operand:
    """One of the two halves of a past state [2, batch, heads, length, size]."""
    starts = [index, *[0] * (len(pair.shape) - 1)]
    half = ctx.b.slice(pair, starts, [1, *pair.shape[1:]])
    return ctx.b.reshape(half, list(pair.shape[1:]))


# --- MultiHeadAttention ---------------------------------------------------------------------------


@onnx_op("MultiHeadAttention", domain=MICROSOFT)
def multi_head_attention(ctx: Context) -> list[Operand | None]:
    """Attention of projected queries, keys and values, which may be packed, or cached."""
    b, heads = ctx.b, ctx.node.get_int("num_heads")
    if ctx.opt(8) is not None or ctx.opt(9) is not None:
        raise ctx.unsupported("a cache shared by past and present")
    q, k, v = _biased(ctx, _parts(ctx, heads), heads)
    if ctx.opt(6) is not None:
        k, v = b.concat([ctx.x(6), k], 2), b.concat([ctx.x(7), v], 2)
    batch, _, length, _ = q.shape
    keys = k.shape[2]
    bias = causal(ctx, key_bias(ctx, 4, batch, length, keys), length, keys)
    out = heads_joined(ctx, attended(ctx, q, k, v, _added(ctx, bias, 5)))
    return [out, k if ctx.wants(1) else None, v if ctx.wants(2) else None]


def _parts(ctx: Context, heads: int) -> list[Operand]:
    """Queries, keys and values [batch, heads, length, size], packed or not."""
    q, k, v = ctx.x(0), ctx.opt(1), ctx.opt(2)
    if k is None:
        return _unpacked(ctx, q, 3)
    parts = [heads_apart(ctx, q, heads)]
    if len(k.shape) == 5:
        return parts + _unpacked(ctx, k, 2)
    if v is None:
        raise ctx.malformed("keys without values")
    return parts + [x if len(x.shape) == 4 else heads_apart(ctx, x, heads) for x in (k, v)]


def _unpacked(ctx: Context, x: Operand, count: int) -> list[Operand]:
    """The parts of [batch, length, heads, count, size]."""
    if len(x.shape) != 5 or x.shape[3] != count:
        raise ctx.malformed(f"a packed operand {list(x.shape)}, not of {count} parts")
    batch, length, heads, _, size = x.shape
    found = []
    for part in ctx.b.split(x, count, axis=3):
        flat = ctx.b.reshape(part, [batch, length, heads, size])
        found.append(ctx.b.transpose(flat, permutation=[0, 2, 1, 3]))
    return found


def _biased(ctx: Context, parts: list[Operand], heads: int) -> list[Operand]:
    """Parts plus their shares of the bias, operand 3."""
    bias = ctx.opt(3)
    if bias is None:
        return parts
    sizes = [heads * part.shape[3] for part in parts]
    if tuple(bias.shape) != (sum(sizes),):
        raise ctx.malformed(f"a bias {list(bias.shape)} for {sizes} columns")
    shares = ctx.b.split(bias, sizes, axis=0)
    return [
        ctx.b.add(part, ctx.b.reshape(share, [1, heads, 1, part.shape[3]]))
        for part, share in zip(parts, shares, strict=True)
    ]


# --- more heads for queries than for keys ---------------------------------------------------------


def joined_bias(ctx: Context, seen: Operand, index: int) -> Operand:
    """What hides keys that are not ``seen`` [batch, 1, queries, keys], plus operand ``index``."""
    more = ctx.opt(index)
    other = ctx.like(0, ctx.x()) if more is None else more
    return ctx.b.where(seen, other, ctx.like(LOWEST, other))


def grouped(
    ctx: Context, q: Operand, k: Operand, v: Operand, bias: Operand, softcap: float
) -> Operand:
    """Attention whose keys and values several query heads share."""
    k, v = (shared_heads(ctx, x, q.shape[1]) for x in (k, v))
    return attended(ctx, q, k, v, bias, softcap)
