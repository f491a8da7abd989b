"""Rotary embeddings and grouped-query attention of onnxruntime's domain (com.microsoft)."""

from __future__ import annotations

import numpy as np

from crossdock.runtime.builder import Operand
from crossdock.runtime.loaders.onnx_attention import cache_written, heads_apart, heads_joined
from crossdock.runtime.loaders.onnx_contrib_attention import grouped, joined_bias
from crossdock.runtime.loaders.onnx_quantize import MICROSOFT
from crossdock.runtime.loaders.onnx_table import Context, onnx_op


def rotated(ctx: Context, x: Operand, cos: Operand, sin: Operand, *, interleaved: bool) -> Operand:
    """Pairs of elements of [batch, heads, length, size] turned by angles (Su et al. 2021).

    ``cos`` and ``sin`` are [batch or 1, 1, length, pairs]; elements behind the pairs stay. A pair
    is an element and the one ``pairs`` further on, or (``interleaved``) the next.
    """
    b = ctx.b
    batch, heads, length, size = x.shape
    pairs = cos.shape[3]
    turned, rest = x, None
    if 2 * pairs < size:
        turned, rest = b.split(x, [2 * pairs, size - 2 * pairs], axis=3)
    shape = [batch, heads, length, pairs]
    if interleaved:
        halves = b.split(b.reshape(turned, [*shape, 2]), 2, axis=4)
        left, right = (b.reshape(half, shape) for half in halves)
    else:
        left, right = b.split(turned, 2, axis=3)
    first = b.sub(b.mul(left, cos), b.mul(right, sin))
    second = b.add(b.mul(left, sin), b.mul(right, cos))
    if interleaved:
        both = b.concat([b.reshape(part, [*shape, 1]) for part in (first, second)], 4)
        out = b.reshape(both, [batch, heads, length, 2 * pairs])
    else:
        out = b.concat([first, second], 3)
    return out if rest is None else b.concat([out, rest], 3)


def angles(ctx: Context, index: int, places: Operand) -> tuple[Operand, Operand]:
    """Rows of operands ``index`` (cosines) and ``index + 1`` (sines) at places [batch, length]."""
    found = []
    for cache in (ctx.x(index), ctx.x(index + 1)):
        rows = ctx.b.gather(cache, places, axis=0)
        batch, length, pairs = rows.shape
        found.append(ctx.b.reshape(rows, [batch, 1, length, pairs]))
    return found[0], found[1]


@onnx_op("RotaryEmbedding", domain=MICROSOFT)
def rotary_embedding(ctx: Context) -> Operand:
    """Rotation by place; the places are given, or follow one that is."""
    b, node, x = ctx.b, ctx.node, ctx.x()
    if node.get_int("is_packed_batching"):
        raise ctx.unsupported("packed batching")
    flat = len(x.shape) == 3
    if flat:
        whole = not node.get_int("rotary_embedding_dim")
        heads = x.shape[2] // (2 * ctx.x(2).shape[1]) if whole else node.get_int("num_heads")
        x = heads_apart(ctx, x, heads)
    places = ctx.x(1)
    if tuple(places.shape) == (1,):
        steps = b.constant(np.arange(x.shape[2], dtype=np.int64))
        places = b.reshape(b.add(steps, places), [1, x.shape[2]])
    cos, sin = angles(ctx, 2, places)
    out = rotated(ctx, x, cos, sin, interleaved=bool(node.get_int("interleaved")))
    return heads_joined(ctx, out) if flat else out


@onnx_op("GroupQueryAttention", domain=MICROSOFT)
def group_query_attention(ctx: Context) -> list[Operand | None]:
    """Causal attention with a cache that new keys and values are written into."""
    b, node = ctx.b, ctx.node
    heads, own = node.get_int("num_heads"), node.get_int("kv_num_heads")
    if node.get_int("smooth_softmax") or ctx.opt(11) is not None:
        raise ctx.unsupported("a softmax with a sink")
    q, k, v = _three(ctx, heads, own)
    batch, _, length, _ = q.shape
    total = int(ctx.scalar(6, "a total length"))
    # Where each sample's new steps start: behind what it has, or at 0 in a first prompt.
    starts = b.cast(ctx.x(5), "int64")
    starts = b.reshape(starts, [batch])
    starts = b.add(starts, b.constant(np.array(1 - length, np.int64)))
    if length == total:
        starts = ctx.frame.filled((batch,), np.zeros((), np.int64)).operand
    steps = b.constant(np.arange(length, dtype=np.int64).reshape(1, length))
    places = b.add(b.reshape(starts, [batch, 1]), steps)
    if node.get_int("do_rotary"):
        given = ctx.opt(9)
        cos, sin = angles(ctx, 7, places if given is None else given)
        turn = bool(node.get_int("rotary_interleaved"))
        q, k = (rotated(ctx, x, cos, sin, interleaved=turn) for x in (q, k))
    k, v = (_cached(ctx, x, 3 + i, starts, total) for i, x in enumerate((k, v)))
    seen = _seen(ctx, places, k.shape[2])
    out = grouped(ctx, q, k, v, joined_bias(ctx, seen, 10), node.get_float("softcap"))
    return [heads_joined(ctx, out), k, v]


def _three(ctx: Context, heads: int, own: int) -> list[Operand]:
    """Queries, keys and values by heads; packed in one operand where there are no keys."""
    if own < 1 or heads % own:
        raise ctx.malformed(f"{heads} query heads share {own} heads")
    if ctx.opt(1) is not None:
        return [heads_apart(ctx, ctx.x(i), n) for i, n in enumerate((heads, own, own))]
    packed = ctx.x(0)
    size = packed.shape[2] // (heads + 2 * own)
    parts = ctx.b.split(packed, [heads * size, own * size, own * size], axis=2)
    return [heads_apart(ctx, p, n) for p, n in zip(parts, (heads, own, own), strict=True)]


def _cached(ctx: Context, new: Operand, index: int, starts: Operand, total: int) -> Operand:
    """The cache, operand ``index``, with new steps in it; grown where it is too short."""
    past = ctx.opt(index)
    batch, heads, length, size = new.shape
    if past is None or past.shape[2] == 0:
        if length == total:
            return new
        past = ctx.frame.filled((batch, heads, total, size), np.zeros((), np.float32)).operand
        past = past if past.dtype == new.dtype else ctx.b.cast(past, new.dtype)
    short = total - past.shape[2]
    if short > 0:
        past = ctx.b.pad(past, [0, 0, 0, 0], [0, 0, short, 0])
    return cache_written(ctx, past, new, starts, 2, circular=False)


def _seen(ctx: Context, places: Operand, keys: int) -> Operand:
    """Keys up to each query's place, from the start of its window on."""
    b, node = ctx.b, ctx.node
    batch, length = places.shape
    at = b.reshape(places, [batch, 1, length, 1])
    own = b.constant(np.arange(keys, dtype=np.int64).reshape(1, 1, 1, keys))
    seen = b.lesser_or_equal(own, at)
    window = node.get_int("local_window_size", -1)
    if window > 0:
        seen = b.logical_and(seen, b.greater(own, b.sub(at, ctx.like(window, at))))
    return seen
