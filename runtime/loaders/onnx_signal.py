"""ONNX signal processing: Fourier transforms, windows of a signal, mel filters."""

from __future__ import annotations

import math

import numpy as np

from crossdock.runtime.builder import Operand
from crossdock.runtime.loaders.onnx_constant import checked_size, known
from crossdock.runtime.loaders.onnx_index import padded
from crossdock.runtime.loaders.onnx_model import ONNX_DTYPES, dtype_name
from crossdock.runtime.loaders.onnx_table import Context, Value, onnx_op
from crossdock.runtime.tensor import to_numpy


@onnx_op("DFT", since=17)
def dft_by_attribute(ctx: Context) -> Operand:
    """The axis as an attribute."""
    return _dft(ctx, ctx.node.get_int("axis", 1))


@onnx_op("DFT", since=20)
def dft(ctx: Context) -> Operand:
    """The axis as a constant operand, by default the last before the parts."""
    return _dft(ctx, -2 if ctx.opt(2) is None else int(ctx.scalar(2, "an axis")))


def _dft(ctx: Context, axis: int) -> Operand:
    """Discrete Fourier transform of ``x`` [..., real and imaginary part] along an axis.

    The one-sided transform gives (and its inverse takes) the first half of the frequencies alone.
    """
    b, x = ctx.b, ctx.x()
    rank = len(x.shape)
    axis = ctx.axis(axis, rank)
    if axis == rank - 1 or x.shape[-1] not in (1, 2):
        raise ctx.malformed(f"an input {list(x.shape)} along axis {axis}")
    inverse = bool(ctx.node.get_int("inverse"))
    one_sided = bool(ctx.node.get_int("onesided"))
    order = [*(i for i in range(rank) if i not in (axis, rank - 1)), axis, rank - 1]
    moved = order != list(range(rank))
    line = b.transpose(x, permutation=order) if moved else x
    length = None if ctx.opt(1) is None else int(ctx.scalar(1, "a length"))
    if length is not None and length < 1:
        raise ctx.malformed(f"a transform of length {length}")
    if inverse and one_sided:
        out = _inverse_of_half(ctx, line, length)
    else:
        line = line if length is None else _fitted(ctx, line, length)
        out = b.dft(line, inverse=inverse)
        if one_sided:
            out = _first(ctx, out, out.shape[-2] // 2 + 1)
    return b.transpose(out, permutation=[order.index(i) for i in range(rank)]) if moved else out


def _first(ctx: Context, x: Operand, count: int) -> Operand:
    """The first elements along the last axis but one."""
    dims = [*x.shape[:-2], count, x.shape[-1]]
    return x if dims == list(x.shape) else ctx.b.slice(x, [0] * len(dims), dims)


def _fitted(ctx: Context, x: Operand, length: int) -> Operand:
    """Cut, or padded with zeros, to a length along the last axis but one."""
    if length <= x.shape[-2]:
        return _first(ctx, x, length)
    high = [0] * len(x.shape)
    high[-2] = length - x.shape[-2]
    return padded(ctx, x, [0] * len(high), high)


def _inverse_of_half(ctx: Context, x: Operand, length: int | None) -> Operand:
    """The real signal of a length whose spectrum starts with ``x``; the rest is conjugate to it."""
    b = ctx.b
    size = 2 * (x.shape[-2] - 1) if length is None else length
    if size < 1:
        raise ctx.malformed("a spectrum of one frequency needs a length")
    half = _fitted(ctx, x, size // 2 + 1)
    if half.shape[-1] == 1:
        half = padded(ctx, half, [0] * len(half.shape), [0] * (len(half.shape) - 1) + [1])
    ctx.make_room(size * 24)
    places = np.arange(size)
    behind = places > size // 2
    places = np.where(behind, size - places, places)
    sign = np.ones((size, 2), to_numpy(x.dtype))
    sign[behind, 1] = -1
    whole = b.gather(half, b.constant(places.astype(np.int64)), axis=len(x.shape) - 2)
    out = b.dft(b.mul(whole, b.constant(sign)), inverse=True)
    return b.slice(out, [0] * len(out.shape), [*out.shape[:-1], 1])


@onnx_op("STFT", since=17)
def short_time_dft(ctx: Context) -> Operand:
    """Fourier transforms of windows that step along a signal [batch, length, parts]."""
    b, x, window = ctx.b, ctx.x(0), ctx.opt(2)
    if len(x.shape) == 2:
        x = b.reshape(x, [*x.shape, 1])
    if len(x.shape) != 3:
        raise ctx.malformed(f"a signal of rank {len(x.shape)}")
    step = int(ctx.scalar(1, "a step"))
    if ctx.opt(3) is not None:
        length = int(ctx.scalar(3, "a window's length"))
    elif window is not None:
        length = window.shape[0]
    else:
        raise ctx.malformed("neither a window nor its length is given")
    if step < 1 or not 0 < length <= x.shape[1]:
        raise ctx.malformed(f"windows of {length} by {step} in a signal of {x.shape[1]}")
    count = (x.shape[1] - length) // step + 1
    ctx.make_room(count * length * 8)
    places = np.arange(count)[:, None] * step + np.arange(length)
    frames = b.gather(x, b.constant(places.astype(np.int64)), axis=1)
    if window is not None:
        if tuple(window.shape) != (length,):
            raise ctx.malformed(f"a window {list(window.shape)} of length {length}")
        frames = b.mul(frames, b.reshape(window, [length, 1]))
    out = b.dft(frames)
    return _first(ctx, out, length // 2 + 1) if ctx.node.get_int("onesided", 1) else out


@onnx_op("MelWeightMatrix", since=17)
def mel_weights(ctx: Context) -> Value:
    """Triangular filters of equal width on the mel scale, from five constant numbers."""
    bins, size, rate = (int(ctx.scalar(i, "a size")) for i in range(3))
    low, high = (float(ctx.scalar(i, "a frequency")) for i in (3, 4))
    number = ctx.node.get_int("output_datatype", 1)
    dtype = ONNX_DTYPES.get(number)
    if dtype is None:
        raise ctx.unsupported(f"a matrix of {dtype_name(number)}")
    if min(bins, size, rate) < 1 or not 0 <= low < high:
        raise ctx.malformed(f"{bins} filters from {low} to {high} of {size} points at {rate}")
    count = size // 2 + 1
    checked_size(ctx, (count, bins), dtype)
    ctx.make_room(max(count, 8) * (bins + 2) * 8)
    mels = [2595 * math.log10(1 + f / 700) for f in (low, high)]
    edges = np.arange(bins + 2) * ((mels[1] - mels[0]) / (bins + 2)) + mels[0]
    points = ((size + 1) * (700 * (np.power(10, edges / 2595) - 1)) // rate).astype(np.int64)
    out = np.zeros((count, bins))
    at = np.arange(count)
    for i in range(bins):
        lower, centre, higher = points[i : i + 3]
        rise = centre - lower
        if rise == 0:
            out[min(centre, count - 1), i] = 1
        else:
            up = (at >= lower) & (at <= centre)
            out[up, i] = (at[up] - lower) / rise
        fall = higher - centre
        if fall > 0:
            down = (at >= centre) & (at < higher)
            out[down, i] = (higher - at[down]) / fall
    return known(ctx, out.astype(to_numpy(dtype)))
