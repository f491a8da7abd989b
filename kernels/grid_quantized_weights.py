"""Products and convolutions of bytes with known weights on processors, by ``grid_quantized_words``.

A convolution's image is copied first with its channels last, those of a group in whole words, so
that a tap's channels lie side by side; its rows are then places, and its columns output channels.
"""

from __future__ import annotations

import numpy as np

from crossdock.devices.base import DeviceInfo
from crossdock.devices.program import Argument, In, Lowered, Out, Slot
from crossdock.kernels.grid_common import (
    C_TYPES,
    KINDS,
    MAX_ROWS,
    accessors,
    i32,
    launch,
    obstacle,
    on_cpu,
    operand,
)
from crossdock.kernels.grid_conv import Convolution
from crossdock.kernels.grid_quantized_conv import image_zero
from crossdock.kernels.grid_quantized_ending import ending
from crossdock.kernels.grid_quantized_matmul import Bytes
from crossdock.kernels.grid_quantized_words import Form, Words, product
from crossdock.kernels.grid_window import Assembly, Lattice
from crossdock.kernels.ops_conv import FILTER_AXES
from crossdock.kernels.ops_quantized import CONV, MATMUL, PLAIN, zeros_of
from crossdock.kernels.refusal import Cause, Refusal
from crossdock.kernels.spec import OpCall
from crossdock.kernels.table import kernel
from crossdock.runtime.tensor import Array, TensorSpec

_ROWS = r"""
KERNEL BLOCK_SIZE(1, 1, 1)
void rows(CONSTANT A *RESTRICT a, @ZERO@ GLOBAL E *RESTRICT y, i32 count, i32 per, i32 K,
          i32 padded, i32 um, i32 uk)
{
    const i32 first = GROUP_ID(0) * per, last = first + per < count ? first + per : count;
    for (i32 m = first; m < last; ++m) {
        CONSTANT A *from = a + m * K;
        GLOBAL E *to = y + m * padded;
#if VARIES
        for (i32 k = 0; k < K; ++k) to[k] = (E)(from[k] - ZERO(m, k));
#else
        const i32 zero = ZERO(m, 0);
        for (i32 k = 0; k < K; ++k) to[k] = (E)(from[k] - zero);
#endif
        for (i32 k = K; k < padded; ++k) to[k] = 0;
    }
}
"""

_IMAGE = r"""
KERNEL BLOCK_SIZE(1, 1, 1)
void image(CONSTANT A *RESTRICT x, @ZERO@ GLOBAL E *RESTRICT y, i32 rows, i32 per, i32 channels,
           i32 grouped, i32 padded, i32 deep, i32 height, i32 width, i32 tall, i32 wide, i32 top,
           i32 left, i32 xn, i32 xc, i32 xh, i32 xw)
{
    const i32 first = GROUP_ID(0) * per, last = first + per < rows ? first + per : rows;
    const i32 zero = ZERO;
    for (i32 r = first; r < last; ++r) {
        const i32 n = r / tall, h = r - n * tall - top;
        GLOBAL E *to = y + r * wide * deep;
        for (i32 i = 0; i < wide * deep; ++i) to[i] = 0;
        if (h >= 0 && h < height) {
            CONSTANT A *from = x + n * xn + h * xh;
            for (i32 c = 0; c < channels; ++c) {
                const i32 g = c / grouped;
                GLOBAL E *at = to + left * deep + g * padded + c - g * grouped;
                for (i32 w = 0; w < width; ++w) at[w * deep] = (E)(from[c * xc + w * xw] - zero);
            }
        }
    }
}
"""


def _fits(call: OpCall, device: DeviceInfo) -> str | None:
    if (why := obstacle(call, device)) is not None:
        return why
    if not on_cpu(device):
        return "for processors"
    zero = zeros_of(call.op)[1]
    known = zero >= len(call.inputs) or call.inputs[zero] is None or zero in call.constants
    return None if 1 in call.constants and known else "weights that are not known"


def _centred(call: OpCall) -> tuple[Array, frozenset[int]]:
    """The weights less their zero points in 16 bits, and which operands these were."""
    at = zeros_of(call.op)[1]
    zero = call.constants.get(at)
    weights: Array = call.constants[1].astype(np.int16)
    if zero is None:
        return weights, frozenset({1})
    return weights - zero.astype(np.int16), frozenset({1, at})


def _per(rows: int, device: DeviceInfo) -> int:
    """Rows that an item copies."""
    return max(1, min(32, rows // (4 * max(1, device.compute_units))))


def _packed(parts: Assembly, words: Words, weights: Array, used: frozenset[int]) -> Slot:
    """Weights [groups, terms, n] in panels."""
    groups, terms, n = weights.shape
    shape = (groups, -(-n // words.wide), terms // words.per, words.wide, words.per)
    parts.unused |= used
    return parts.pack(lambda: words.panels(weights), TensorSpec(words.dtype, shape))


# --- matrices -------------------------------------------------------------------------------------


def _fits_matmul(call: OpCall, device: DeviceInfo) -> str | None:
    if (why := _fits(call, device)) is not None:
        return why
    return None if Bytes.of(call).batch == 1 else Refusal("a batch of products", Cause.FORM)


def _lower_matmul(call: OpCall, device: DeviceInfo) -> Lowered:
    given, parts, words = Bytes.of(call), Assembly(call, device), Words.of(device)
    padded, element = words.padded(given.k), C_TYPES[words.dtype]
    slot = parts.buffer(given.m * padded * np.dtype(words.dtype).itemsize)
    zero = given.zeros[0]
    um, uk = (0, 0) if zero is None else zero.strides
    per = _per(given.m, device)
    args: tuple[Argument, ...] = (
        In(0), *((zero.slot,) if zero else ()), slot, *i32(given.m, per, given.k, padded, um, uk),
    )  # fmt: skip
    known = (
        accessors(given.dtypes[0], "A")[0], ("E", element), ("VARIES", str(int(bool(uk)))),
        ("ZERO(m, k)", "u[(m) * um + (k) * uk]" if zero else "0"),
    )  # fmt: skip
    text = _ROWS.replace("@ZERO@", "CONSTANT A *RESTRICT u," if zero else "")
    parts.steps.append(launch(text, "rows", args, (-(-given.m // per),), (1,), known))
    weights, used = _centred(call)
    full = np.zeros((1, padded, given.n), np.int16)
    full[0, : given.k] = weights.reshape(-1, given.n)
    factors = (slot, _packed(parts, words, full, used))
    form = Form(
        "i32 deep", "const i32 place = m * deep;", "const i32 to = m * N + n0;",
        f"({words.per} * (k))", "1",
    )  # fmt: skip
    sizes = (given.m, given.n, padded // words.per, 1)
    result = accessors(call.outputs[0].dtype, "Y")[:1]
    parts.steps.append(
        product(words, form, given.end, sizes, (factors, Out(0)), i32(padded), device,
                defines=result)
    )  # fmt: skip
    return parts.lowered()


# --- convolutions ---------------------------------------------------------------------------------


def _fits_conv(call: OpCall, device: DeviceInfo) -> str | None:
    if (why := _fits(call, device)) is not None:
        return why
    conv = Convolution.of(call)
    if conv.is_depthwise:
        return "depthwise"
    return Refusal(f"more than {MAX_ROWS} groups", Cause.SIZE) if conv.groups > MAX_ROWS else None


def _copied(parts: Assembly, conv: Convolution, words: Words) -> tuple[Slot, int, int]:
    """The image with channels last: its slot, the elements of a group and of a place."""
    n, c, h, w = conv.image
    top, bottom, left, right = conv.padding
    tall, wide = h + top + bottom, w + left + right
    grouped = conv.per_group[0]
    padded = words.padded(grouped)
    deep = conv.groups * padded
    slot = parts.buffer(n * tall * wide * deep * np.dtype(words.dtype).itemsize)
    zero, x = image_zero(parts.call), Lattice.of(c, h, w, conv.layout)
    per = _per(n * tall, parts.device)
    args: tuple[Argument, ...] = (
        In(0), *((zero,) if zero else ()), slot,
        *i32(n * tall, per, c, grouped, padded, deep, h, w, tall, wide, top, left),
        *i32(x.n, x.c, x.h, x.w),
    )  # fmt: skip
    known = (
        accessors(operand(parts.call, 0).dtype, "A")[0], ("E", C_TYPES[words.dtype]),
        ("ZERO", "u[0]" if zero else "0"),
    )  # fmt: skip
    text = _IMAGE.replace("@ZERO@", "CONSTANT A *RESTRICT u," if zero else "")
    parts.steps.append(launch(text, "image", args, (-(-n * tall // per),), (1,), known))
    return slot, padded, deep


def _taps(conv: Convolution, words: Words, padded: int, deep: int) -> Array:
    """Where each word of a window lies from its first one."""
    wide = conv.image[3] + conv.padding[2] + conv.padding[3]
    down, right, c = np.meshgrid(
        np.arange(conv.window[0]) * conv.dilations[0] * wide * deep,
        np.arange(conv.window[1]) * conv.dilations[1] * deep,
        np.arange(0, padded, words.per),
        indexing="ij",
    )
    table: Array = (down + right + c).reshape(-1).astype(np.int32)
    return table


def _matrix(call: OpCall, conv: Convolution, padded: int) -> tuple[Array, frozenset[int]]:
    """The weights as [groups, taps and channels, outputs of a group]."""
    weights, used = _centred(call)
    dense = weights.transpose(FILTER_AXES[call.attrs["filter_layout"]])
    per_in, per_out = conv.per_group
    split = dense.reshape(conv.groups, per_out, per_in, *conv.window).transpose(0, 3, 4, 2, 1)
    full = np.zeros((*split.shape[:3], padded, per_out), np.int16)
    full[..., :per_in, :] = split
    return full.reshape(conv.groups, -1, per_out), used


def _lower_conv(call: OpCall, device: DeviceInfo) -> Lowered:
    conv, parts, words = Convolution.of(call), Assembly(call, device), Words.of(device)
    slot, padded, deep = _copied(parts, conv, words)
    weights = _packed(parts, words, *_matrix(call, conv, padded))
    taps = _taps(conv, words, padded, deep)
    table = parts.pack(lambda: taps, TensorSpec.of(taps))
    n, outputs, oh, ow = conv.result
    y = Lattice.of(outputs, oh, ow, conv.layout)
    top, bottom, left, right = conv.padding
    tall, wide = conv.image[2] + top + bottom, conv.image[3] + left + right
    where = "const i32 q = m / out_w, b = q / out_h, h = q - b * out_h, v = m - q * out_w;"
    form = Form(
        "i32 out_h, i32 out_w, i32 xg, i32 xn, i32 xh, i32 xw, i32 yn, i32 yc, i32 yh, i32 yw",
        f"{where} const i32 place = z * xg + b * xn + h * xh + v * xw;",
        f"{where} const i32 to = b * yn + (z * N + n0) * yc + h * yh + v * yw;",
        "taps[k]",
        "1" if y.c == 1 else "yc",
    )
    step_h, step_w = conv.steps
    numbers = i32(
        oh, ow, padded, tall * wide * deep, step_h * wide * deep, step_w * deep, y.n, y.c, y.h, y.w
    )
    sizes = (n * oh * ow, conv.per_group[1], taps.size, conv.groups)
    parts.steps.append(
        product(words, form, ending(call), sizes, ((slot, weights, table), Out(0)), numbers, device,
                between="CONSTANT i32 *RESTRICT taps, ",
                defines=accessors(call.outputs[0].dtype, "Y")[:1])
    )  # fmt: skip
    return parts.lowered()


for _op in (MATMUL, PLAIN[MATMUL]):

    @kernel(f"grid.{_op}.weights", _op, KINDS, when=_fits_matmul, rank=12)
    def lower_matmul(call: OpCall, device: DeviceInfo) -> Lowered:
        """The rows' copy, then one launch."""
        return _lower_matmul(call, device)


for _op in (CONV, PLAIN[CONV]):

    @kernel(f"grid.{_op}.weights", _op, KINDS, when=_fits_conv, rank=12)
    def lower_conv(call: OpCall, device: DeviceInfo) -> Lowered:
        """The image's copy, then one launch."""
        return _lower_conv(call, device)
