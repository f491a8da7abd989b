"""Normalisations and activations of transformers in onnxruntime's domain (com.microsoft)."""

from __future__ import annotations

import math

import numpy as np

from crossdock.runtime.builder import Operand
from crossdock.runtime.loaders.onnx_activation import gelu_by_tanh
from crossdock.runtime.loaders.onnx_norm import layer_normalization, over_root_mean_square
from crossdock.runtime.loaders.onnx_quantize import MICROSOFT, cast
from crossdock.runtime.loaders.onnx_shape import reshaped
from crossdock.runtime.loaders.onnx_table import Context, onnx_op

EPSILON = 1e-12
"""onnxruntime's default, where ONNX has 1e-5."""

onnx_op("LayerNormalization", domain=MICROSOFT)(layer_normalization)


def last_axis_normalised(
    ctx: Context, x: Operand, scale: Operand, bias: Operand | None
) -> tuple[Operand, Operand, Operand]:
    """Normalised over the last axis; with the mean and the inverse deviation."""
    b = ctx.b
    axes = [len(x.shape) - 1]
    epsilon = ctx.node.get_float("epsilon", EPSILON)
    out = b.layer_normalization(x, scale=scale, bias=bias, axes=axes, epsilon=epsilon)
    wide = cast(ctx, x, "float32")
    mean = b.reduce_mean(wide, axes=axes, keep_dimensions=True)
    apart = b.sub(wide, mean)
    variance = b.reduce_mean(b.mul(apart, apart), axes=axes, keep_dimensions=True)
    return out, mean, b.reciprocal(b.sqrt(b.add(variance, ctx.like(epsilon, variance))))


@onnx_op("SimplifiedLayerNormalization")
@onnx_op("SimplifiedLayerNormalization", domain=MICROSOFT)
def simplified(ctx: Context) -> list[Operand | None]:
    """Divided by the root mean square; the inverse of it on request.

    onnxruntime has it in ONNX's own domain.
    """
    x = ctx.x()
    rank = len(x.shape)
    axes = list(range(ctx.axis(ctx.node.get_int("axis", -1), rank), rank))
    return list(over_root_mean_square(ctx, x, axes))


def _skipped(ctx: Context, bias: Operand | None) -> Operand:
    """Operand 0 plus operand 1, which may lack the batch, plus a bias."""
    total = ctx.b.add(ctx.x(0), ctx.x(1))
    return total if bias is None else ctx.b.add(total, bias)


@onnx_op("SkipLayerNormalization", domain=MICROSOFT)
def skip_layer_normalization(ctx: Context) -> list[Operand | None]:
    """A residual sum, normalised; then mean, inverse deviation, and the sum itself."""
    total = _skipped(ctx, ctx.opt(4))
    return [*last_axis_normalised(ctx, total, ctx.x(2), ctx.opt(3)), total]


@onnx_op("SkipSimplifiedLayerNormalization", domain=MICROSOFT)
def skip_simplified(ctx: Context) -> list[Operand | None]:
    """A residual sum over its root mean square; then nothing, the inverse, and the sum itself."""
    total = _skipped(ctx, ctx.opt(3))
    b, axes = ctx.b, [len(total.shape) - 1]
    wide = cast(ctx, total, "float32")
    square = b.reduce_mean(b.mul(wide, wide), axes=axes, keep_dimensions=True)
    epsilon = ctx.like(ctx.node.get_float("epsilon", EPSILON), square)
    inverse = b.reciprocal(b.sqrt(b.add(square, epsilon)))
    out = b.mul(cast(ctx, b.mul(wide, inverse), total.dtype), ctx.x(2))
    return [out, None, inverse, total]


@onnx_op("EmbedLayerNormalization", domain=MICROSOFT)
def embed_layer_normalization(ctx: Context) -> list[Operand | None]:
    """Embeddings of words, places and segments added and normalised; lengths; the sum."""
    b, ids = ctx.b, ctx.x(0)
    batch, length = ids.shape
    total = b.gather(ctx.x(2), ids, axis=0)
    places = ctx.opt(8)
    if places is None:
        near = b.slice(ctx.x(3), [0, 0], [length, ctx.x(3).shape[1]])
    else:
        near = b.gather(ctx.x(3), places, axis=0)
    total = b.add(total, near)
    segments, kinds = ctx.opt(1), ctx.opt(4)
    if segments is not None and kinds is not None:
        total = b.add(total, b.gather(kinds, segments, axis=0))
    out, _, _ = last_axis_normalised(ctx, total, ctx.x(5), ctx.x(6))
    mask = ctx.opt(7)
    if mask is None:
        lengths = ctx.frame.filled((batch,), np.zeros((), np.int32)).operand
    else:
        lengths = b.cast(b.reduce_sum(b.cast(mask, "int32"), axes=[1]), "int32")
    return [out, lengths, total]


@onnx_op("GroupNorm", domain=MICROSOFT)
def group_norm(ctx: Context) -> Operand:
    """Groups of channels normalised, channels last by default; Swish behind it on request."""
    b, x, node = ctx.b, ctx.x(), ctx.node
    rank = len(x.shape)
    last = bool(node.get_int("channels_last", 1))
    if last:
        x = b.transpose(x, permutation=[0, rank - 1, *range(1, rank - 1)])
    n, c, *space = x.shape
    groups = node.get_int("groups")
    if groups < 1 or c % groups:
        raise ctx.malformed(f"{c} channels in {groups} groups")
    rows = b.reshape(x, [n, groups, math.prod((c, *space)) // groups])
    y = b.layer_normalization(rows, axes=[2], epsilon=node.get_float("epsilon", 1e-5))
    y = cast(ctx, b.reshape(y, list(x.shape)), "float32")
    along = [1, c, *[1] * len(space)]
    scale, bias = (cast(ctx, reshaped(ctx, ctx.x(i), along), "float32") for i in (1, 2))
    y = b.add(b.mul(y, scale), bias)
    y = b.mul(y, b.sigmoid(y)) if node.get_int("activation") else y
    y = cast(ctx, y, x.dtype)
    return b.transpose(y, permutation=[0, *range(2, rank), 1]) if last else y


# --- activations ----------------------------------------------------------------------------------


def _biased(ctx: Context) -> Operand:
    bias = ctx.opt(1)
    return ctx.x() if bias is None else ctx.b.add(ctx.x(), bias)


@onnx_op("Gelu", "BiasGelu", domain=MICROSOFT)
def gelu(ctx: Context) -> Operand:
    """Gaussian error linear unit, of a sum where there is a bias."""
    return ctx.b.gelu(_biased(ctx))


@onnx_op("FastGelu", domain=MICROSOFT)
def fast_gelu(ctx: Context) -> Operand:
    """The approximation by tanh, of a sum where there is a bias."""
    return gelu_by_tanh(ctx, _biased(ctx))


@onnx_op("QuickGelu", domain=MICROSOFT)
def quick_gelu(ctx: Context) -> Operand:
    """The approximation by a sigmoid: x sigmoid(alpha x)."""
    b, x = ctx.b, ctx.x()
    return b.mul(x, b.sigmoid(b.mul(x, ctx.like(ctx.node.get_float("alpha", 1.702), x))))


@onnx_op("BiasSplitGelu", domain=MICROSOFT)
def bias_split_gelu(ctx: Context) -> Operand:
    """The first half of the last axis times gelu of the second, of a sum with a bias."""
    b, x = ctx.b, _biased(ctx)
    half = x.shape[-1] // 2
    left, right = b.split(x, 2, axis=len(x.shape) - 1)
    if left.shape[-1] != half:
        raise ctx.malformed(f"a last axis of {x.shape[-1]} in halves")
    return b.mul(left, b.gelu(right))


@onnx_op("BiasAdd", domain=MICROSOFT)
def bias_add(ctx: Context) -> Operand:
    """The sum of an operand, a bias along the last axis, and a residual."""
    return ctx.b.add(ctx.b.add(ctx.x(0), ctx.x(1)), ctx.x(2))
