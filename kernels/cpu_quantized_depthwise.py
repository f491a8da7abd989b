"""Depthwise convolution of ``nchw`` images of bytes on the host, with what follows it.

A plane is copied once with the zero point around it. Four neighbouring taps of a row of the window
are the four bytes of a lane: a vector of outputs takes one load and one permutation of bytes for
them, and one dot product with the four weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from crossdock.devices.base import DeviceInfo
from crossdock.devices.program import In, Lowered, NativeCall, Out, Scalar
from crossdock.kernels.cpu_dots import Dots, Unit, vector_unit
from crossdock.kernels.cpu_ir import Code, compiled
from crossdock.kernels.cpu_quantized_call import Operands, Weights, bound_slots, bounded
from crossdock.kernels.cpu_quantized_conv import fits as conv_fits
from crossdock.kernels.cpu_quantized_epilogue import Epilogue, Terms
from crossdock.kernels.cpu_rows import Words, words
from crossdock.kernels.cpu_vector import Vector
from crossdock.kernels.refusal import Cause, Refusal
from crossdock.kernels.spec import OpCall
from crossdock.kernels.table import kernel
from crossdock.runtime.tensor import Array

WORDS = (
    "out", "in", "weights", "zero", "sums", "bias", "scale", "offset", "out_zero", "low", "high",
    "channels", "copies", "height", "width", "out_height", "out_width", "top", "left", "rows",
    "pitch", "stride",
)  # fmt: skip
POINTERS = 9
PLANE = 40 << 10
"""Bytes of a plane with its border at most; it lies on the stack."""
DOTS = 14
"""Quads of taps of a window at most: their weights stay in registers."""
SLACK = 128
GRAIN_BYTES = 32 << 10
FLIP = -0x80


@dataclass(frozen=True)
class Form:
    """What is compiled: the unit, the stride along rows, the window, what follows.

    ``lanes``: bytes of a row that are copied at once, no more than it has.
    """

    unit: Unit
    stride: int
    kh: int
    kw: int
    signed: bool
    lanes: int
    terms: Terms

    def __str__(self) -> str:
        window = f"{self.stride} {self.kh}x{self.kw} {self.lanes}"
        return f"{self.unit} {window} {self.signed:d} {self.terms}"

    @property
    def quads(self) -> int:
        """Quads of taps of a row of the window."""
        return -(-self.kw // 4)


def _fits(call: OpCall, device: DeviceInfo) -> str | None:
    why = conv_fits(call, device)
    if why is not None:
        return why
    filters, attrs = call.inputs[1], call.attrs
    assert filters is not None
    _, per, kh, kw = filters.dims
    if per != 1 or attrs["groups"] == 1:
        return "more than one channel a group"
    if attrs["strides"][1] > 2 or tuple(attrs["dilations"]) != (1, 1):
        return f"strides {attrs['strides']}, dilations {attrs['dilations']}"
    rows, pitch = _plane(call)
    if kh * -(-kw // 4) > DOTS or rows * pitch + SLACK > PLANE:
        return Refusal("a large window or plane", Cause.SIZE)
    if Weights(call).count() > 1:
        return "weights of nine bits"
    return None


def _plane(call: OpCall) -> tuple[int, int]:
    """Rows of a plane with its border, and bytes from one to the next."""
    filters, image = call.inputs[1], call.inputs[0]
    assert filters is not None
    assert image is not None
    (sh, sw), (kh, kw) = call.attrs["strides"], filters.dims[2:]
    top, _, left, _ = call.attrs["padding"]
    _, _, height, width = call.outputs[0].dims
    rows = max((height - 1) * sh + kh, top + image.dims[2])
    return rows, max((width - 1) * sw + kw, left + image.dims[3])


@kernel("cpu.quantized_conv2d.depthwise", "quantized_conv2d", ("cpu",), when=_fits, rank=8)
@kernel("cpu.quantized_conv2d.depthwise", "conv_integer", ("cpu",), when=_fits, rank=8)
def lower_depthwise(call: OpCall, device: DeviceInfo) -> Lowered:  # noqa: ARG001 - the same
    """Lower a convolution with one channel a group to one native call."""
    return lowered(call, vector_unit())


def lowered(call: OpCall, unit: Unit) -> Lowered:
    """The step on a unit: an item is a plane of the result."""
    filters, image, out = call.inputs[1], call.inputs[0], call.outputs[0]
    assert filters is not None
    assert image is not None
    weights, operands = Weights(call), Operands()
    kinds = operands.parameters(call, lambda: weights.sums((1, 2, 3)))
    signed = image.dtype == "int8"
    terms = Terms(True, image.dtype, 128 if signed else 0, *kinds, out.dtype, bounded=bounded(call))
    (sh, sw), (outputs, _, kh, kw) = call.attrs["strides"], filters.dims
    lanes = min(4 * unit.lanes, 1 << (image.dims[3].bit_length() - 1))
    form = Form(unit, sw, kh, kw, signed, lanes, terms)
    operands.slots |= {"out": Out(0), "in": In(0)}
    operands.slots |= bound_slots(call)
    operands.pack("weights", lambda: pack_weights(form, weights.parts()[0]))
    rows, pitch = _plane(call)
    numbers = {
        "channels": outputs, "copies": outputs // call.attrs["groups"],
        "height": image.dims[2], "width": image.dims[3], "out_height": out.dims[2],
        "out_width": out.dims[3], "top": call.attrs["padding"][0],
        "left": call.attrs["padding"][2], "rows": rows, "pitch": pitch, "stride": sh,
    }  # fmt: skip
    for name in WORDS:  # a parameter that the form does not read
        if name not in operands.slots and name not in numbers:
            operands.slots[name] = Scalar(np.int64(0))
    step = NativeCall(
        name=call.op,
        address=compiled(f"depthwise bytes {form}", lambda code: Writer(code, form).write()),
        args=words(WORDS, operands.slots, numbers),
        extent=out.dims[0] * outputs,
        grain=max(1, GRAIN_BYTES // (rows * pitch)),
    )
    return Lowered((step,), packs=tuple(operands.packs), unused=operands.unused(call))


def pack_weights(form: Form, weights: Array) -> Array:
    """The weights by channel, row of the window and quad of taps."""
    wide = np.zeros((weights.shape[0], form.kh, 4 * form.quads), np.int8)
    wide[:, :, : form.kw] = weights[:, 0]
    return wide.reshape(-1)


class Writer:
    """Writes the kernel of one form."""

    def __init__(self, code: Code, form: Form) -> None:
        self.code = code
        self.form = form
        self.w = Words(code, WORDS, POINTERS)
        self.dots = Dots(code, form.unit)
        self.plane = code.stack("i8", PLANE)
        self.epilogue = Epilogue(code, form.unit, form.terms, self.w, WORDS.index("low"))

    def write(self) -> None:
        """Append the whole function."""
        code, w, form = self.code, self.w, self.form
        self.epilogue.settle()
        lanes = form.unit.lanes
        with code.loop("%begin", "%end") as planes:
            channel = code.rem(planes.index, w["channels"])
            source = code.div(planes.index, w["copies"])
            size = code.mul(w["height"], w["width"])
            self.copy(code.at(w["in"], "i8", code.mul(source, size)))
            taps = form.kh * form.quads
            at = code.at(w["weights"], "i32", code.mul(channel, taps))
            weights = [self.dots.spread(code.at(at, "i32", i)) for i in range(taps)]
            parameters = self.epilogue.parameters(channel, None)
            plane = code.mul(planes.index, code.mul(w["out_height"], w["out_width"]))
            with code.loop(0, w["out_height"]) as rows:
                line = code.at(
                    self.plane, "i8", code.mul(code.mul(rows.index, w["stride"]), w["pitch"])
                )
                out = code.add(plane, code.mul(rows.index, w["out_width"]))
                with code.loop(0, w["out_width"], lanes) as columns:
                    total = self.total(line, columns.index, weights)
                    value = self.epilogue.finished(total, parameters)
                    target = self.epilogue.at(code.add(out, columns.index))
                    left = code.sub(w["out_width"], columns.index)
                    self.epilogue.store([value], target, "0", left)

    def total(self, line: str, column: str, weights: list[str]) -> str:
        """The sums of a vector of outputs."""
        code, form, w = self.code, self.form, self.w
        total = Vector(code, form.unit.lanes).const("int32", 0).name
        first = code.mul(column, form.stride)
        for i, weight in enumerate(weights):
            row, quad = divmod(i, form.quads)
            at = code.add(code.add(code.mul(w["pitch"], row), first), 4 * quad)
            total = self.dots.add(total, self.bytes(code.at(line, "i8", at)), weight)
        return total

    def bytes(self, at: str) -> str:
        """Four neighbouring bytes from where each output of a vector begins."""
        code, lanes, stride = self.code, self.form.unit.lanes, self.form.stride
        reach = 2 * lanes * stride
        raw = code.let(f"load <{reach} x i8>, ptr {at}, align 1")
        order = ", ".join(f"i32 {i * stride + j}" for i in range(lanes) for j in range(4))
        both = f"<{reach} x i8> {raw}, <{reach} x i8> undef"
        picked = code.let(f"shufflevector {both}, <{4 * lanes} x i32> <{order}>")
        return code.let(f"bitcast <{4 * lanes} x i8> {picked} to {self.dots.kind}")

    # --- the plane with its border ---

    def copy(self, image: str) -> None:
        """Copy a plane into the middle of the zero point."""
        code, w = self.code, self.w
        byte = code.load("i8", w["zero"])
        size = code.mul(w["rows"], w["pitch"])
        fill = self.flipped(Vector(code, 1), byte)
        v = Vector(code, 4 * self.form.unit.lanes)
        wide = self.spread(v, fill)
        with code.loop(0, size, v.lanes) as loop:
            at = code.at(self.plane, "i8", loop.index)
            code.do(f"store {v.type('i8')} {wide}, ptr {at}, align 1")
        inner = code.add(code.mul(w["top"], w["pitch"]), w["left"])
        with code.loop(0, w["height"]) as rows:
            source = code.at(image, "i8", code.mul(rows.index, w["width"]))
            offset = code.add(inner, code.mul(rows.index, w["pitch"]))
            target = code.at(self.plane, "i8", offset)
            v = Vector(code, self.form.lanes)
            with code.loop(0, w["width"], v.lanes) as loop:
                # The last vector begins earlier, over pixels that are copied already.
                column = code.least(loop.index, code.sub(w["width"], v.lanes))
                cells = code.let(
                    f"load {v.type('i8')}, ptr {code.at(source, 'i8', column)}, align 1"
                )
                held = self.flipped(v, cells)
                at = code.at(target, "i8", column)
                code.do(f"store {v.type('i8')} {held}, ptr {at}, align 1")

    def spread(self, v: Vector, byte: str) -> str:
        """A byte in every lane."""
        kind = v.type("i8")
        first = self.code.let(f"insertelement {kind} undef, i8 {byte}, i32 0")
        return self.code.let(
            f"shufflevector {kind} {first}, {kind} undef, <{v.lanes} x i32> zeroinitializer"
        )

    def flipped(self, v: Vector, cells: str) -> str:
        """Signed bytes with 128 added, unsigned ones as they are."""
        if not self.form.signed:
            return cells
        return self.code.let(f"xor {v.type('i8')} {cells}, {v.const('int8', FLIP).name}")
