"""conv_integer and quantized_conv2d on a grid, as implicit products of bytes (``grid_window``).

Cards gather quads of taps into words (``grid_quantized_product``), and a place in the padding is
the image's zero point. On a processor the image is first copied as it is multiplied: less its zero
point, padded, in 16 bits.
"""

from __future__ import annotations

from crossdock.devices.base import DeviceInfo
from crossdock.devices.program import Argument, In, Lowered, Out, Slot
from crossdock.kernels import grid_panels, grid_quantized_product
from crossdock.kernels.grid_common import (
    KINDS,
    MAX_ROWS,
    accessors,
    define,
    has,
    i32,
    launch,
    obstacle,
    on_cpu,
    operand,
)
from crossdock.kernels.grid_conv import Convolution, filter_rows, window_of
from crossdock.kernels.grid_quantized_ending import ending
from crossdock.kernels.grid_quantized_matmul import FLOATS_OF_A
from crossdock.kernels.grid_quantized_product import flip, signed_zero
from crossdock.kernels.grid_quantized_words import FLOAT_TERMS
from crossdock.kernels.grid_tile import Parts, choose
from crossdock.kernels.grid_window import (
    FILL_B_PANELS,
    SETUP,
    SETUP_PANELS,
    STORE,
    Assembly,
    params,
)
from crossdock.kernels.ops_quantized import CONV, PLAIN, zeros_of
from crossdock.kernels.refusal import Cause, Refusal
from crossdock.kernels.spec import OpCall
from crossdock.kernels.table import kernel

_FILL_B = r"""
        for (i32 q = first; q < QUADS; q += ITEMS / (TN / 4)) {
            LOCAL_PTR u32 *to = b_tile + q * TN;
            u32 v0 = 0, v1 = 0, v2 = 0, v3 = 0;
            UNROLL for (i32 l = 0; l < 4; ++l) {
                if (4 * q + l < rest) {
                    const i32 k = k0 + 4 * q + l, from = taps[k], tap = taps[K + k];
                    const i32 dy = (i32)((u32)tap >> 16) - 32768, dx = (tap & 0xffff) - 32768;
#if CHECKED
#define INSIDE(j) ((u32)(h##j + dy) < (u32)in_h && (u32)(w##j + dx) < (u32)in_w)
#else
#define INSIDE(j) 1
#endif
                    v0 |= BYTE(INSIDE(0) ? x[x0 + from] : PAD, FLIP_B, l);
                    v1 |= BYTE(INSIDE(1) ? x[x1 + from] : PAD, FLIP_B, l);
                    v2 |= BYTE(INSIDE(2) ? x[x2 + from] : PAD, FLIP_B, l);
                    v3 |= BYTE(INSIDE(3) ? x[x3 + from] : PAD, FLIP_B, l);
                }
            }
            to[COLUMN(0)] = v0; to[COLUMN(1)] = v1; to[COLUMN(2)] = v2; to[COLUMN(3)] = v3;
        }
"""

_CENTRED = r"""
KERNEL BLOCK_SIZE(1, 1, 1)
void centred(CONSTANT X *RESTRICT x, @ZERO@ GLOBAL i16 *RESTRICT y, i32 rows, i32 per,
             i32 height, i32 tall, i32 top, i32 run, i32 before, i32 after)
{
    const i32 first = GROUP_ID(0) * per, last = first + per < rows ? first + per : rows;
    const i32 zero = PAD, wide = before + run + after;
    for (i32 r = first; r < last; ++r) {
        const i32 plane = r / tall, h = r - plane * tall - top;
        GLOBAL i16 *to = y + r * wide;
        if (h >= 0 && h < height) {
            CONSTANT X *from = x + (plane * height + h) * run;
            for (i32 i = 0; i < before; ++i) to[i] = 0;
            for (i32 i = 0; i < run; ++i) to[before + i] = (i16)(from[i] - zero);
            for (i32 i = before + run; i < wide; ++i) to[i] = 0;
        } else {
            for (i32 i = 0; i < wide; ++i) to[i] = 0;
        }
    }
}
"""


def image_zero(call: OpCall) -> Slot | None:
    """The slot of the image's zero point, where there is one."""
    at = zeros_of(call.op)[0]
    return In(at) if has(call, at) else None


def filter_zero(call: OpCall) -> tuple[Slot | None, int]:
    """The slot of the filter's zero points and their stride along output channels."""
    at = zeros_of(call.op)[1]
    return (In(at), int(operand(call, at).size > 1)) if has(call, at) else (None, 0)


def zero_params(call: OpCall) -> str:
    """Parameters ``u`` of the image's zero point and ``v`` of the filter's, which are there."""
    image, (weights, _) = image_zero(call), filter_zero(call)
    return ("CONSTANT X *RESTRICT u, " if image else "") + (
        "CONSTANT A *RESTRICT v, " if weights else ""
    )


def zero_slots(call: OpCall) -> tuple[Slot, ...]:
    """The arguments for ``zero_params``."""
    return tuple(s for s in (image_zero(call), filter_zero(call)[0]) if s is not None)


def types(call: OpCall) -> tuple[tuple[str, str], ...]:
    """Defines of element types: X of the image, A of the filter, Y of the result; and padding."""
    specs = (operand(call, 0), operand(call, 1), call.outputs[0])
    named = [accessors(s.dtype, tag)[0] for s, tag in zip(specs, "XAY", strict=True)]
    return (*named, ("PAD", "u[0]" if image_zero(call) else "0"))


def centred_image(
    parts: Assembly, conv: Convolution
) -> tuple[Slot, tuple[int, int], tuple[int, int]]:
    """The image less its zero point, padded, in 16 bits: its slot, and its height and width."""
    n, c, h, w = conv.image
    top, bottom, left, right = conv.padding
    tall, wide = h + top + bottom, w + left + right
    planes, apart = (n * c, 1) if conv.layout == "nchw" else (n, c)
    slot = parts.buffer(2 * n * c * tall * wide)
    rows = planes * tall
    per = max(1, min(32, rows // (4 * max(1, parts.device.compute_units))))
    zero = image_zero(parts.call)
    text = _CENTRED.replace("@ZERO@", "CONSTANT X *RESTRICT u," if zero else "")
    args: tuple[Argument, ...] = (
        In(0), *((zero,) if zero else ()), slot,
        *i32(rows, per, h, tall, top, w * apart, left * apart, right * apart),
    )  # fmt: skip
    defines = tuple(d for d in types(parts.call) if d[0] in ("X", "PAD"))
    parts.steps.append(launch(text, "centred", args, (-(-rows // per),), (1,), defines))
    return slot, (tall, wide), (0, 0)


# --- implicit product -----------------------------------------------------------------------------


def fits_implicit(call: OpCall, device: DeviceInfo) -> str | None:
    """None where tiles take a convolution, else the reason."""
    if (why := obstacle(call, device)) is not None:
        return why
    texts = grid_panels if on_cpu(device) else grid_quantized_product
    if not texts.fitting(device):
        return Refusal("too little local memory or too small work-groups", Cause.SIZE)
    conv = Convolution.of(call)
    if conv.is_depthwise:
        return "depthwise"
    return Refusal(f"more than {MAX_ROWS} groups", Cause.SIZE) if conv.groups > MAX_ROWS else None


def _on_card(call: OpCall, device: DeviceInfo) -> Lowered:
    conv, parts, end = Convolution.of(call), Assembly(call, device), ending(call)
    weights = filter_rows(parts)
    window = window_of(conv, conv.image[2:], (-conv.padding[0], -conv.padding[2]))
    slots: tuple[Argument, ...] = (In(0), weights, parts.table(window.taps), *zero_slots(call))
    zero, apart = filter_zero(call)
    zeros = (
        signed_zero(f"v[{apart} * (z * M + (m))]" if zero else None, operand(call, 1).dtype),
        signed_zero("u[0]" if image_zero(call) else None, operand(call, 0).dtype),
    )
    filled = Parts(
        params(zero_params(call) + end.params, "X", "A", "Y"),
        SETUP,
        grid_quantized_product.ROWS_OF_A,
        _FILL_B,
        STORE,
    )
    parts.steps.append(
        grid_quantized_product.product(
            choose(grid_quantized_product.fitting(device), *window.sizes, device),
            filled,
            window.sizes,
            (*slots, *end.args, Out(0), *window.numbers()),
            operand(call, 1).dtype,
            zeros=zeros,
            aligned=window.taps.count % 4 == 0,
            head=end.text,
            defines=(
                *(d for d in types(call) if d[0] != "A"),
                ("FLIP_B", flip(operand(call, 0).dtype)),
                ("CHECKED", str(int(any(conv.padding)))),
                _PUT,
            ),
        )
    )
    return parts.lowered()


_PUT = ("PUT(at, sum)", "(y[at] = FINISHED(sum, z * M + m))")


def _on_processor(call: OpCall, device: DeviceInfo) -> Lowered:
    conv, parts, end = Convolution.of(call), Assembly(call, device), ending(call)
    weights = filter_rows(parts)
    slot, bounds, origin = centred_image(parts, conv)
    window = window_of(conv, bounds, origin)
    zero, apart = filter_zero(call)
    between = ("CONSTANT A *RESTRICT v, " if zero else "") + end.params
    slots: tuple[Argument, ...] = (slot, weights, parts.table(window.taps))
    filled = Parts(params(between, a="A", y="Y"), SETUP_PANELS, FLOATS_OF_A, FILL_B_PANELS, STORE)
    tile = choose(grid_panels.fitting(device), *window.sizes, device)
    assert tile.tk <= FLOAT_TERMS
    args = (*slots, *((zero,) if zero else ()), *end.args, Out(0), *window.numbers())
    each = ("ZERO_A(m, k)", f"v[{apart} * (z * M + (m))]" if zero else "0")
    known = (*(d for d in types(call) if d[0] in "AY"), *define(ZERO_A_VARIES=0), each, _PUT)
    parts.steps.append(
        grid_panels.product(
            tile, filled, window.sizes, args, "int16", whole=True, head=end.text, defines=known
        )
    )
    return parts.lowered()


for _op in (CONV, PLAIN[CONV]):

    @kernel(f"grid.{_op}.implicit", _op, KINDS, when=fits_implicit, rank=20)
    def lower_implicit(call: OpCall, device: DeviceInfo) -> Lowered:
        """At most a filter's rearrangement, on a processor the image's copy, then one product."""
        return (_on_processor if on_cpu(device) else _on_card)(call, device)
