"""ONNX normalisations."""

from __future__ import annotations

import math

from crossdock.kernels.ops_math import HALVES
from crossdock.runtime.builder import Operand
from crossdock.runtime.loaders.onnx_shape import reshaped
from crossdock.runtime.loaders.onnx_table import Context, onnx_op


@onnx_op("BatchNormalization")
def batch_normalization(ctx: Context) -> list[Operand | None]:
    """(x - mean) / sqrt(variance + epsilon) * scale + bias, a channel or (by opset 8) an element.

    In training mode the statistics are the batch's, and running ones are results.
    """
    x, opset = ctx.x(), ctx.opset
    if len(x.shape) < 2:
        raise ctx.malformed(f"an input of rank {len(x.shape)}")
    if opset < 7:
        training = not ctx.node.get_int("is_test")
    elif opset < 14:
        training = any(ctx.wants(i) for i in range(1, 5))
    else:
        training = bool(ctx.node.get_int("training_mode"))
    each = opset < 9 and not ctx.node.get_int("spatial", 1)
    if training:
        return _batch_statistics(ctx, each=each)
    parts = [_as(ctx, ctx.x(i), x.dtype) for i in range(1, 5)]
    if each:
        return [_normalised(ctx, x, *(_against(ctx, p, each=each) for p in parts))]
    scale, bias, mean, variance = parts
    epsilon = ctx.node.get_float("epsilon", 1e-5)
    out = ctx.b.batch_normalization(
        x, mean, variance, scale=scale, bias=bias, axis=1, epsilon=epsilon
    )
    return [out]


def _as(ctx: Context, x: Operand, dtype: str) -> Operand:
    return x if x.dtype == dtype else ctx.b.cast(x, dtype)


def _against(ctx: Context, part: Operand, *, each: bool) -> Operand:
    """A parameter in the input's rank: one a channel, or one for each element of a sample."""
    shape = ctx.x().shape
    want = [1, *shape[1:]] if each else [1, shape[1], *[1] * (len(shape) - 2)]
    if math.prod(part.shape) != math.prod(want):
        raise ctx.malformed(f"a parameter {list(part.shape)} for an input {list(shape)}")
    return reshaped(ctx, part, want)


def _normalised(
    ctx: Context, x: Operand, scale: Operand, bias: Operand, mean: Operand, variance: Operand
) -> Operand:
    b = ctx.b
    epsilon = ctx.node.get_float("epsilon", 1e-5)
    deviation = b.sqrt(b.add(variance, ctx.like(epsilon, variance)))
    return b.add(b.mul(b.div(b.sub(x, mean), deviation), scale), bias)


def _batch_statistics(ctx: Context, *, each: bool) -> list[Operand | None]:
    """Training mode: normalised by the batch's statistics; running ones move towards them.

    Until opset 13 the results go on with the batch's own ("saved") mean and variance.
    """
    b, x = ctx.b, ctx.x()
    axes = [0] if each else [0, *range(2, len(x.shape))]
    wide = _as(ctx, x, "float32") if x.dtype in HALVES else x
    mean = b.reduce_mean(wide, axes=axes, keep_dimensions=True)
    apart = b.sub(wide, mean)
    variance = b.reduce_mean(b.mul(apart, apart), axes=axes, keep_dimensions=True)
    scale, bias = (_against(ctx, _as(ctx, ctx.x(i), wide.dtype), each=each) for i in (1, 2))
    results: list[Operand | None] = [
        _as(ctx, _normalised(ctx, wide, scale, bias, mean, variance), x.dtype)
    ]
    momentum = ctx.node.get_float("momentum", 0.9)
    for index, batch in ((3, mean), (4, variance)):
        given = ctx.x(index)
        now = _as(ctx, reshaped(ctx, batch, given.shape), given.dtype)
        kept = b.mul(given, ctx.like(momentum, given))
        results.append(b.add(kept, b.mul(now, ctx.like(1 - momentum, now))))
    if ctx.opset < 14:
        shape = ctx.x(3).shape
        results += [reshaped(ctx, mean, shape), reshaped(ctx, variance, shape)]
    return results


@onnx_op("InstanceNormalization")
def instance_normalization(ctx: Context) -> Operand:
    """Each channel of each sample normalised over its spatial axes."""
    x = ctx.x()
    if len(x.shape) < 3:
        raise ctx.malformed(f"an input of rank {len(x.shape)}")
    n, c, *space = x.shape
    image = reshaped(ctx, x, [n, c, *space] if len(space) == 2 else [n, c, 1, math.prod(space)])
    out = ctx.b.instance_normalization(
        image, scale=ctx.x(1), bias=ctx.x(2), epsilon=ctx.node.get_float("epsilon", 1e-5)
    )
    return reshaped(ctx, out, x.shape)


@onnx_op("LayerNormalization")
def layer_normalization(ctx: Context) -> list[Operand | None]:
    """Normalised over the axes from ``axis`` on; mean and inverse deviation on request.

    ONNX has it since opset 17; before that onnxruntime's optimiser writes it as its own.
    """
    b, x = ctx.b, ctx.x()
    rank = len(x.shape)
    axes = list(range(ctx.axis(ctx.node.get_int("axis", -1), rank), rank))
    epsilon = ctx.node.get_float("epsilon", 1e-5)
    scale, bias = ctx.x(1), ctx.opt(2)
    inner = tuple(x.shape[axes[0] :])
    if tuple(scale.shape) == inner and (bias is None or tuple(bias.shape) == inner):
        out = b.layer_normalization(x, scale=scale, bias=bias, axes=axes, epsilon=epsilon)
    else:
        out = b.mul(b.layer_normalization(x, axes=axes, epsilon=epsilon), scale)
        out = out if bias is None else b.add(out, bias)
    if not ctx.wants(1) and not ctx.wants(2):
        return [out]
    mean = b.reduce_mean(x, axes=axes, keep_dimensions=True)
    apart = b.sub(x, mean)
    variance = b.reduce_mean(b.mul(apart, apart), axes=axes, keep_dimensions=True)
    deviation = b.sqrt(b.add(variance, ctx.like(epsilon, variance)))
    return [out, mean, b.reciprocal(deviation)]


@onnx_op("RMSNormalization", since=23)
def rms_normalization(ctx: Context) -> Operand:
    """Divided by the root mean square over the axes from ``axis`` on."""
    x = ctx.x()
    rank = len(x.shape)
    axes = list(range(ctx.axis(ctx.node.get_int("axis", -1), rank), rank))
    return over_root_mean_square(ctx, x, axes)[0]


def over_root_mean_square(ctx: Context, x: Operand, axes: list[int]) -> tuple[Operand, Operand]:
    """``x`` over its root mean square (Zhang & Sennrich 2019), times operand 1; and the inverse."""
    b = ctx.b
    epsilon = ctx.node.get_float("epsilon", 1e-5)
    half = x.dtype in ("float16", "bfloat16")
    wide = b.cast(x, "float32") if half else x
    square = b.reduce_mean(b.mul(wide, wide), axes=axes, keep_dimensions=True)
    root = b.sqrt(b.add(square, ctx.like(epsilon, square)))
    out = b.div(wide, root)
    return b.mul(b.cast(out, x.dtype) if half else out, ctx.x(1)), b.reciprocal(root)


@onnx_op("GroupNormalization", since=18)
def group_normalization(ctx: Context) -> Operand:
    """Groups of channels normalised; scale and bias a channel, or before opset 21 a group."""
    b, x = ctx.b, ctx.x()
    if len(x.shape) < 2:
        raise ctx.malformed(f"an input of rank {len(x.shape)}")
    n, c = x.shape[:2]
    ctx.node.require("num_groups")
    groups = ctx.node.get_int("num_groups")
    if groups < 1 or c % groups:
        raise ctx.malformed(f"{c} channels in {groups} groups")
    rows = b.reshape(x, [n, groups, math.prod(x.shape[1:]) // groups])
    out = b.layer_normalization(rows, axes=[2], epsilon=ctx.node.get_float("epsilon", 1e-5))
    scale, bias = ctx.x(1), ctx.x(2)
    if ctx.opset < 21:
        shape = [1, groups, 1]
    else:
        out = b.reshape(out, list(x.shape))
        shape = [1, c, *([1] * (len(x.shape) - 2))]
    out = b.add(b.mul(out, reshaped(ctx, scale, shape)), reshaped(ctx, bias, shape))
    return reshaped(ctx, out, x.shape)


@onnx_op("LRN")
def local_response_normalization(ctx: Context) -> Operand:
    """Divide: x / (bias + alpha / size * sum of squares over near channels) ^ beta."""
    node = ctx.node
    node.require("size")
    return ctx.b.lrn(
        ctx.x(),
        node.get_int("size"),
        alpha=node.get_float("alpha", 1e-4),
        beta=node.get_float("beta", 0.75),
        bias=node.get_float("bias", 1.0),
    )
