"""Products with more folded in, in onnxruntime's domain (com.microsoft)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from crossdock.runtime.builder import Operand
from crossdock.runtime.loaders.onnx_conv import convolution
from crossdock.runtime.loaders.onnx_linear import general_product, product
from crossdock.runtime.loaders.onnx_quantize import MICROSOFT
from crossdock.runtime.loaders.onnx_table import Context, onnx_op
from crossdock.runtime.tensor import Array, to_numpy

Activation = Callable[[Context, Operand, tuple[float, ...]], Operand]


def _bounded(ctx: Context, x: Operand, given: tuple[float, ...]) -> Operand:
    low, high = given if len(given) == 2 else (None, None)
    return ctx.b.clamp(x, min_value=low, max_value=high)


def _or(given: tuple[float, ...], index: int, default: float) -> float:
    return given[index] if index < len(given) else default


ACTIVATIONS: dict[str, Activation] = {
    "": lambda _, x, __: x,
    "Relu": lambda ctx, x, _: ctx.b.relu(x),
    "Tanh": lambda ctx, x, _: ctx.b.tanh(x),
    "Sigmoid": lambda ctx, x, _: ctx.b.sigmoid(x),
    "LeakyRelu": lambda ctx, x, given: ctx.b.leaky_relu(x, alpha=_or(given, 0, 0.01)),
    "Clip": _bounded,
    "HardSigmoid": lambda ctx, x, given: ctx.b.hard_sigmoid(
        x, alpha=_or(given, 0, 0.2), beta=_or(given, 1, 0.5)
    ),
    "Elu": lambda ctx, x, given: ctx.b.elu(x, alpha=_or(given, 0, 1.0)),
}
"""Activation functions by ONNX name, with their parameters."""


def activated(ctx: Context, x: Operand, given: tuple[float, ...]) -> Operand:
    """The node's activation of a result."""
    name = ctx.node.get_str("activation")
    if name not in ACTIVATIONS:
        raise ctx.unsupported(f"activation {name!r}")
    return ACTIVATIONS[name](ctx, x, given)


@onnx_op("FusedMatMul", "TransposeMatMul", domain=MICROSOFT)
def fused_matmul(ctx: Context) -> Operand:
    """Alpha A B, each side transposed in its last two axes, or its batch axes moved there."""
    b, node = ctx.b, ctx.node
    sides = []
    for index, side in enumerate("AB"):
        x = ctx.x(index)
        rank = len(x.shape)
        if node.get_int(f"transBatch{side}") and rank > 2:
            x = b.transpose(x, permutation=[*range(1, rank - 1), 0, rank - 1])
        if node.get_int(f"trans{side}") and rank > 1:
            x = b.transpose(x, permutation=[*range(rank - 2), rank - 1, rank - 2])
        sides.append(x)
    alpha = node.get_float("alpha", 1.0)
    out = product(ctx, sides[0], sides[1])
    return out if alpha == 1.0 else b.mul(out, ctx.like(alpha, out))


@onnx_op("FusedGemm", domain=MICROSOFT)
def fused_gemm(ctx: Context) -> Operand:
    """A general product with an activation behind it."""
    names = ("activation_alpha", "activation_beta")
    given = tuple(ctx.node.get_float(n) for n in names if n in ctx.node.attrs)
    return activated(ctx, general_product(ctx), given)


@onnx_op("FusedConv", domain=MICROSOFT)
def fused_conv(ctx: Context) -> Operand:
    """A convolution, a residual added to it, and an activation."""
    out = convolution(replace(ctx, inputs=ctx.inputs[:3]))
    rest = ctx.opt(3)
    out = out if rest is None else ctx.b.add(out, rest)
    return activated(ctx, out, ctx.node.get_floats("activation_params") or ())


# --- weights of few bits --------------------------------------------------------------------------


@onnx_op("MatMulNBits", domain=MICROSOFT)
def matmul_few_bits(ctx: Context) -> Operand:
    """Product with a constant weight of 2, 4 or 8 bits an element, by blocks of the inner axis.

    Operand 1 holds [columns, blocks, bytes], the first element of a byte in its lowest bits.
    """
    node, b = ctx.node, ctx.b
    inner, columns = node.get_int("K"), node.get_int("N")
    bits, block = node.get_int("bits", 4), node.get_int("block_size")
    if ctx.opt(4) is not None:
        raise ctx.unsupported("an order of groups")
    if bits not in (2, 4, 8) or block < 1 or inner < 1 or columns < 1:
        raise ctx.malformed(f"{bits} bits in blocks of {block}, {inner} by {columns}")
    blocks = -(-inner // block)
    elements = _fields(ctx.value(1, "a weight"), bits).reshape(columns, blocks, -1)[..., :block]
    scales = ctx.value(2, "a scale").reshape(columns, blocks, 1)
    zeros: Any = 1 << (bits - 1)
    if ctx.opt(3) is not None:
        given = ctx.value(3, "a zero point")
        if given.dtype.kind == "u":
            given = _fields(given.reshape(columns, -1), bits)[:, :blocks]
        zeros = given.reshape(columns, blocks, 1).astype(np.float32)
    wide = (elements.astype(np.float32) - zeros) * scales.astype(np.float32)
    weight = wide.reshape(columns, -1)[:, :inner].T
    x = ctx.x(0)
    out = product(ctx, x, b.constant(np.ascontiguousarray(weight.astype(to_numpy(x.dtype)))))
    return out if ctx.opt(5) is None else b.add(out, ctx.x(5))


def _fields(array: Array, bits: int) -> Array:
    """Bytes cut into fields of so many bits, the lowest first."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    cut = (array[..., None] >> shifts) & np.uint8((1 << bits) - 1)
    return np.asarray(cut).reshape(*array.shape[:-1], -1)
