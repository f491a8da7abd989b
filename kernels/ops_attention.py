"""scaled_dot_product_attention: softmax of scaled products of queries and keys, times values.

Vaswani et al., 2017, equation 1, with what later models add: query heads that share key and value
heads (Ainslie et al., 2023), an additive bias, a causal mask, and a soft cap of the scores (Gemma).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from crossdock.devices.program import Work
from crossdock.kernels import ops_math
from crossdock.kernels.ops_rules import (
    FLOAT,
    broadcast_to,
    entry,
    fail,
    integer,
    like,
    number,
    of,
    reads,
    same_dims,
    some,
)
from crossdock.kernels.ops_work import traffic
from crossdock.kernels.spec import Attrs, Specs
from crossdock.runtime.tensor import TensorSpec

NAME = "scaled_dot_product_attention"
SOFTMAX_FLOPS = 5.0
"""Operations a score takes beside the two products: scale, maximum, difference, exp, quotient."""


def _optional(op: str, name: str, value: Any) -> float | None:
    return None if value is None else number(op, name, value)


def _offset(op: str, name: str, value: Any) -> int | None:
    return None if value is None else integer(op, name, value, low=None)


def _infer(specs: Specs, attrs: Attrs) -> tuple[TensorSpec, ...]:  # noqa: ARG001 - Infer
    query, key, value = (some(specs[i]) for i in range(3))
    batch, heads, length, width = query.shape
    _, shared, keys, _ = key.shape
    if not same_dims(key.shape, (batch, shared, keys, width)):
        raise fail(NAME, f"key {key} must have the batch and the last size of query {query}")
    if not same_dims(value.shape[:3], key.shape[:3]):
        raise fail(NAME, f"value {value} must have the batch, heads and length of key {key}")
    if isinstance(heads, int) and isinstance(shared, int) and (not shared or heads % shared):
        raise fail(NAME, f"the {heads} heads of query must share the {shared} of key evenly")
    if len(specs) > 3 and specs[3] is not None:
        broadcast_to(NAME, "bias", specs[3].shape, (batch, heads, length, keys))
    return (query.with_shape((batch, heads, length, value.shape[3])),)


def _work(specs: Specs, outs: Sequence[TensorSpec], attrs: Attrs) -> Work:  # noqa: ARG001 - WorkFn
    batch, heads, length, width = some(specs[0]).dims
    keys, out_width = some(specs[2]).dims[2:]
    scores = float(batch * heads * length * keys)
    return traffic(specs, outs, scores * (2.0 * (width + out_width) + SOFTMAX_FLOPS))


def _scale(query: Any, scale: float | None) -> float:
    return 1.0 / math.sqrt(query.shape[3]) if scale is None else scale


def _causal(length: int, keys: int, offset: int) -> Any:
    """float32[length, keys]: 0 where query i sees key j (j <= i + offset), else -inf."""
    seen = np.arange(keys) <= np.arange(length)[:, None] + offset
    return np.where(seen, np.float32(0), np.float32(-np.inf))


def _attention(
    xp: Any,
    query: Any,
    key: Any,
    value: Any,
    bias: Any,
    *,
    scale: float | None,
    softcap: float,
    causal_offset: int | None,
) -> Any:
    batch, heads, length, width = query.shape
    shared, keys = key.shape[1:3]
    rows = (batch, shared, heads // shared * length)
    scaled = (query * _scale(query, scale)).reshape(*rows, width)
    scores = xp.matmul(scaled, xp.swapaxes(key, 2, 3)).reshape(batch, heads, length, keys)
    if softcap:
        scores = xp.tanh(scores / softcap) * softcap
    if causal_offset is not None:
        hidden = xp.asarray(_causal(length, keys, causal_offset)).astype(query.dtype)
        bias = hidden if bias is None else bias + hidden
    if bias is not None:
        scores = scores + bias
    top = scores.max(axis=3, keepdims=True)
    shares = xp.exp(scores - xp.where(xp.isneginf(top), xp.zeros_like(top), top))
    shares = shares / shares.sum(axis=3, keepdims=True)
    if bias is not None:
        unseen = xp.isneginf(bias.max(axis=-1, keepdims=True)) if bias.ndim else xp.isneginf(bias)
        shares = xp.where(unseen, xp.zeros_like(shares), shares)
    out = xp.matmul(shares.reshape(*rows, keys), value)
    return out.reshape(batch, heads, length, value.shape[3])


def _steps(
    b: Any,
    query: Any,
    key: Any,
    value: Any,
    bias: Any,
    *,
    scale: float | None,
    softcap: float,
    causal_offset: int | None,
) -> Any:
    batch, heads, length, width = query.shape
    shared, keys = key.shape[1:3]
    rows = [batch, shared, heads // shared * length]
    scaled = b.mul(query, b.constant(_scale(query, scale), query.dtype))
    scores = b.matmul(b.reshape(scaled, [*rows, width]), b.transpose(key, permutation=[0, 1, 3, 2]))
    scores = b.reshape(scores, [batch, heads, length, keys])
    if softcap:
        cap = b.constant(softcap, query.dtype)
        scores = b.mul(b.tanh(b.div(scores, cap)), cap)
    if causal_offset is not None:
        hidden = b.constant(_causal(length, keys, causal_offset).astype(query.dtype))
        bias = hidden if bias is None else b.add(bias, hidden)
    shares = b.softmax(scores if bias is None else b.add(scores, bias), 3)
    if bias is not None:
        shares = _seen(b, shares, bias)
    out = b.matmul(b.reshape(shares, [*rows, keys]), value)
    return b.reshape(out, [batch, heads, length, value.shape[3]])


def _seen(b: Any, shares: Any, bias: Any) -> Any:
    """Shares, but 0 for queries that the bias hides every key from."""
    rank = len(bias.shape)
    top = b.reduce_max(bias, axes=[rank - 1], keep_dimensions=True) if rank else bias
    seen = b.greater(top, b.constant(-math.inf, bias.dtype))
    return b.where(seen, shares, b.constant(0, bias.dtype))


entry(
    NAME,
    {
        "query": of(FLOAT, 4, 4),
        "key": like("query", 4, 4),
        "value": like("query", 4, 4),
        "bias?": like("query", 0, 4),
    },
    attrs={"scale": None, "softcap": 0.0, "causal_offset": None},
    canon=reads(NAME, scale=_optional, softcap=number, causal_offset=_offset),
    infer=_infer,
    run=ops_math.widened(_attention),
    work=_work,
    decompose=_steps,
    extension=True,
)
