"""Maxima over windows of ``nchw`` images of bytes on the host.

As for floats, the rows of a window are combined for a whole line first, and the line along itself
after that; a line with the lowest number around it is a few vectors of bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

from crossdock.devices.base import DeviceInfo
from crossdock.devices.program import Argument, In, Lowered, NativeCall, Out
from crossdock.kernels.cpu_ir import Code, compiled
from crossdock.kernels.cpu_rows import Words, register_lanes, words
from crossdock.kernels.cpu_vector import Vector
from crossdock.kernels.refusal import Cause, Refusal
from crossdock.kernels.spec import OpCall
from crossdock.kernels.table import kernel

WORDS = (
    "out", "in", "height", "width", "out_height", "out_width", "top", "left", "stride", "kh",
)  # fmt: skip
LINE = 4096
"""Bytes of a line at most."""
WIDEST = 8
GRAIN_BYTES = 64 << 10


@dataclass(frozen=True)
class Form:
    """What is compiled: the sign of the bytes, the stride along rows (1 or 2), the width.

    ``lanes`` are those of vectors of columns of the image and of the result: no more than it has.
    """

    signed: bool
    lanes: tuple[int, int]
    stride: int
    kw: int

    def __str__(self) -> str:
        return f"{self.signed:d} {self.lanes} {self.stride} {self.kw}"


def _fits(call: OpCall, device: DeviceInfo) -> str | None:  # noqa: ARG001 - a candidate's guard
    attrs, image = call.attrs, call.inputs[0]
    assert image is not None
    if image.dtype not in ("uint8", "int8"):
        return Refusal(f"{image.dtype}, not bytes", Cause.DTYPE)
    if attrs["layout"] != "nchw" or tuple(attrs["dilations"]) != (1, 1):
        return f"layout {attrs['layout']}, dilations {attrs['dilations']}"
    if attrs["strides"][1] > 2 or attrs["window_dimensions"][1] > WIDEST:
        return Refusal("a stride of more than 2, or a wide window", Cause.SIZE)
    reach = call.outputs[0].dims[3] * attrs["strides"][1] + attrs["window_dimensions"][1]
    if max(reach, image.dims[3] + attrs["padding"][2]) + 256 > LINE:
        return Refusal(f"a line of more than {LINE} bytes", Cause.SIZE)
    return None


@kernel("cpu.max_pool2d.bytes", "max_pool2d", ("cpu",), when=_fits, rank=15)
def lower_max(call: OpCall, device: DeviceInfo) -> Lowered:  # noqa: ARG001 - the same
    """Lower to one native call: an item is a plane."""
    attrs, image, out = call.attrs, call.inputs[0], call.outputs[0]
    assert image is not None
    batch, channels, height, width = image.dims
    lanes = fitting_lanes(width), fitting_lanes(out.dims[3])
    form = Form(image.dtype == "int8", lanes, attrs["strides"][1], attrs["window_dimensions"][1])
    numbers = {
        "height": height, "width": width, "out_height": out.dims[2], "out_width": out.dims[3],
        "top": attrs["padding"][0], "left": attrs["padding"][2], "stride": attrs["strides"][0],
        "kh": attrs["window_dimensions"][0],
    }  # fmt: skip
    slots: dict[str, Argument] = {"out": Out(0), "in": In(0)}
    step = NativeCall(
        name="max",
        address=compiled(f"max bytes {form}", lambda code: Writer(code, form).write()),
        args=words(WORDS, slots, numbers),
        extent=batch * channels,
        grain=max(1, GRAIN_BYTES // (height * width)),
    )
    return Lowered((step,))


def fitting_lanes(columns: int) -> int:
    """Bytes of a vector: a power of two, no more than there are columns."""
    return min(4 * register_lanes(), 1 << (columns.bit_length() - 1))


class Writer:
    """Writes the kernel of one form."""

    def __init__(self, code: Code, form: Form) -> None:
        self.code = code
        self.form = form
        self.vector = Vector(code, 4 * register_lanes())
        self.w = Words(code, WORDS, 2)
        self.line = code.stack("i8", LINE + 4 * self.vector.lanes)
        self.lowest = -128 if form.signed else 0

    def write(self) -> None:
        """Append the whole function."""
        code, w = self.code, self.w
        kind = self.vector.type("i8")
        lowest = self.vector.const("int8", self.lowest).name
        with code.loop(0, LINE, self.vector.lanes) as loop:
            code.do(f"store {kind} {lowest}, ptr {code.at(self.line, 'i8', loop.index)}, align 1")
        inner = code.at(self.line, "i8", w["left"])
        with code.loop("%begin", "%end") as planes:
            image = code.at(
                w["in"], "i8", code.mul(planes.index, code.mul(w["height"], w["width"]))
            )
            size = code.mul(w["out_height"], w["out_width"])
            out = code.at(w["out"], "i8", code.mul(planes.index, size))
            with code.loop(0, w["out_height"]) as rows:
                y = code.sub(code.mul(rows.index, w["stride"]), w["top"])
                low = code.greatest(y, 0)
                high = code.least(code.add(y, w["kh"]), w["height"])
                wide, narrow = self.form.lanes
                with code.loop(0, w["width"], wide) as columns:
                    # The last vector begins earlier, over columns that are done already.
                    column = code.least(columns.index, code.sub(w["width"], wide))
                    self.down(wide, image, (low, high), column, inner)
                target = code.at(out, "i8", code.mul(rows.index, w["out_width"]))
                with code.loop(0, w["out_width"], narrow) as columns:
                    column = code.least(columns.index, code.sub(w["out_width"], narrow))
                    self.across(narrow, column, target)

    def larger(self, v: Vector, a: str, b: str) -> str:
        """The larger of two."""
        fn = f"llvm.{'s' if self.form.signed else 'u'}max.{v.suffix('i8')}"
        kind = v.type("i8")
        name = self.code.declare(fn, f"{kind} @({kind}, {kind})")
        return self.code.let(f"call {kind} {name}({kind} {a}, {kind} {b})")

    def down(self, lanes: int, image: str, span: tuple[str, str], column: str, line: str) -> None:
        """The maximum of the window's rows, for some columns."""
        code, v = self.code, Vector(self.code, lanes)
        kind, lowest = v.type("i8"), v.const("int8", self.lowest).name
        with code.loop(*span, carried=[(kind, lowest)]) as rows:
            at = code.add(code.mul(rows.index, self.w["width"]), column)
            cell = code.let(f"load {kind}, ptr {code.at(image, 'i8', at)}, align 1")
            rows.next = [self.larger(v, rows.values[0], cell)]
        code.do(f"store {kind} {rows.values[0]}, ptr {code.at(line, 'i8', column)}, align 1")

    def across(self, lanes: int, column: str, target: str) -> None:
        """The maximum of the window's columns, for some results."""
        code, stride = self.code, self.form.stride
        v, wide = Vector(code, lanes), Vector(code, lanes * stride)
        first = code.at(self.line, "i8", code.mul(column, stride))
        total = ""
        for k in range(self.form.kw):
            at = code.at(first, "i8", k)
            cell = code.let(f"load {wide.type('i8')}, ptr {at}, align 1")
            total = cell if k == 0 else self.larger(wide, total, cell)
        if stride == 2:
            total = self.even(total, lanes)
        at = code.at(target, "i8", column)
        code.do(f"store {v.type('i8')} {total}, ptr {at}, align 1")

    def even(self, value: str, lanes: int) -> str:
        """Every second byte."""
        kind = f"<{2 * lanes} x i8>"
        if lanes == 1:
            return self.code.let(f"extractelement {kind} {value}, i32 0")
        order = ", ".join(f"i32 {2 * i}" for i in range(lanes))
        return self.code.let(
            f"shufflevector {kind} {value}, {kind} undef, <{lanes} x i32> <{order}>"
        )
