"""ONNX's own Attention (opset 23 on): caches, masks of every form, causal and sliding windows.

The op's decomposition is written out, so that each part is placed on its own and runs by the
kernels that devices have; half types are computed in float32 and rounded once.
"""

from __future__ import annotations

import math

import numpy as np

from crossdock.kernels import table
from crossdock.runtime.builder import Operand
from crossdock.runtime.loaders.onnx_attention import heads_apart, heads_joined
from crossdock.runtime.loaders.onnx_model import ONNX_DTYPES, OnnxNode
from crossdock.runtime.loaders.onnx_quantize import cast
from crossdock.runtime.loaders.onnx_table import Context, onnx_op


def _plain(node: OnnxNode) -> bool:
    """No scores are asked for, and float32 is precise enough for the softmax."""
    scores = len(node.outputs) > 3 and bool(node.outputs[3])
    return not scores and ONNX_DTYPES.get(node.get_int("softmax_precision") or 1) == "float32"


@onnx_op("Attention", since=23, when=_plain)
def attention(ctx: Context) -> list[Operand | None]:
    """Attention, and the keys and values with the past ones before them."""
    node, flat = ctx.node, len(ctx.x().shape) == 3
    q, k, v = (ctx.x(i) for i in range(3))
    if flat:
        heads, shared = node.get_int("q_num_heads"), node.get_int("kv_num_heads")
        q, k, v = (heads_apart(ctx, x, n) for x, n in ((q, heads), (k, shared), (v, shared)))
    past = 0
    if ctx.opt(4) is not None:
        past = ctx.x(4).shape[2]
        k, v = (ctx.b.concat([ctx.x(4 + i), x], 2) for i, x in enumerate((k, v)))
    decompose = table.op("scaled_dot_product_attention").decompose
    assert decompose is not None
    out = decompose(
        ctx.b,
        q,
        k,
        v,
        _bias(ctx, q, q.shape[2], k.shape[2], past),
        scale=node.get_float("scale", 1 / math.sqrt(q.shape[3])),
        softcap=node.get_float("softcap"),
        causal_offset=None,
    )
    return [
        heads_joined(ctx, out) if flat else out,
        k if ctx.wants(1) else None,
        v if ctx.wants(2) else None,
    ]


def _bias(ctx: Context, q: Operand, queries: int, keys: int, past: int) -> Operand | None:
    """What is added to the scores: the mask, and -inf at what is hidden; None for nothing."""
    b, mask = ctx.b, ctx.opt(3)
    low, zero = ctx.like(-math.inf, q), ctx.like(0, q)
    if mask is not None:
        given = b.where(mask, zero, low) if ctx.boolean(3) else cast(ctx, mask, q.dtype)
        mask = _to_all_keys(ctx, given, low, keys)
    seen = _seen(ctx, queries, keys, past)
    if seen is None:
        return mask
    hidden = b.where(seen, zero, low)
    return hidden if mask is None else b.add(mask, hidden)


def _to_all_keys(ctx: Context, mask: Operand, low: Operand, keys: int) -> Operand:
    """A mask that is shorter than the keys hides the rest."""
    short = keys - mask.shape[-1]
    if short < 0:
        raise ctx.malformed(f"a mask {list(mask.shape)} for {keys} keys")
    if not short:
        return mask
    rest = ctx.b.expand(low, [*mask.shape[:-1], short])
    return ctx.b.concat([mask, rest], len(mask.shape) - 1)


def _seen(ctx: Context, queries: int, keys: int, past: int) -> Operand | None:
    """Which keys each query sees, by place: [queries, keys] or [batch, 1, queries, keys]."""
    b, node, lengths = ctx.b, ctx.node, ctx.opt(6)
    left, right = (node.get_int(f"{side}_window_size", -1) for side in ("left", "right"))
    ahead = np.arange(keys) - np.arange(queries)[:, None]  # a key's place less its query's
    ends = [right] * (right >= 0) + [0] * bool(node.get_int("is_causal"))
    if lengths is None or ctx.opt(4) is not None:
        if not ends and left < 0:
            return None
        seen = ahead <= past + min(ends, default=keys)
        return b.constant((seen & ((left < 0) | (ahead >= past - left))).astype(np.uint8))
    lengths = b.reshape(cast(ctx, lengths, "int32"), [lengths.shape[0], 1, 1, 1])
    offset = b.sub(lengths, ctx.like(queries, lengths))
    places = b.constant(ahead.astype(np.int32).reshape(1, 1, queries, keys))
    found = b.lesser(b.constant(np.arange(keys, dtype=np.int32).reshape(1, 1, 1, keys)), lengths)
    if ends:
        last = b.add(offset, ctx.like(min(ends), offset))
        found = b.logical_and(found, b.lesser_or_equal(places, last))
    if left >= 0:
        first = b.sub(offset, ctx.like(left, offset))
        found = b.logical_and(found, b.greater_or_equal(places, first))
    return found
