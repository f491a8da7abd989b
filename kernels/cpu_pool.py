"""Pooling of ``nchw`` float32 images on the host, along columns first and then along rows.

A window's rows are combined for a whole line of pixels at a time; the combined line, with what
stands for pixels outside of the image, is then combined along itself. That takes ``kh + kw`` steps
for each pixel instead of ``kh * kw``, and the image's edges are masked once for each line.
"""

from __future__ import annotations

from collections.abc import Callable

from crossdock.devices.base import DeviceInfo
from crossdock.devices.program import Argument, In, Lowered, NativeCall, Out
from crossdock.kernels.cpu_ir import Code, compiled
from crossdock.kernels.cpu_rows import RowReader, register_lanes, store_first, words
from crossdock.kernels.cpu_vector import Value
from crossdock.kernels.cpu_window import (
    GRAIN_PIXELS,
    UNROLLED,
    WORDS,
    Form,
    WindowWriter,
    pool_fits,
    window_geometry,
)
from crossdock.kernels.refusal import Cause, Refusal
from crossdock.kernels.spec import OpCall
from crossdock.kernels.table import kernel

CELLS = 8192
"""Pixels of the combined lines that are kept at once."""


def _fits(call: OpCall, device: DeviceInfo) -> str | None:
    why = pool_fits(call, device)
    if why is not None:
        return why
    attrs, (kh, kw) = call.attrs, call.attrs["window_dimensions"]
    if tuple(attrs["dilations"]) != (1, 1):
        return "a dilated window"
    if attrs["strides"][1] > 2 or kw > UNROLLED or kh * kw == 1:
        return Refusal("a stride of more than 2, a wide window, or one pixel", Cause.SIZE)
    if _line(call) + register_lanes() > CELLS:
        return Refusal(f"lines of more than {CELLS} pixels", Cause.SIZE)
    return None


def _line(call: OpCall) -> int:
    """Pixels that a line of the result reads."""
    width = call.outputs[0].dims[3] - 1
    return int(width * call.attrs["strides"][1] + call.attrs["window_dimensions"][1])


def _lower(mode: str) -> Callable[[OpCall, DeviceInfo], Lowered]:
    def lower(call: OpCall, device: DeviceInfo) -> Lowered:  # noqa: ARG001 - the same
        window = call.attrs["window_dimensions"]
        numbers = window_geometry(call, *window) | {"channels": 1, "copies": 1}
        padded = bool(call.attrs.get("count_include_pad", False))
        form = Form(mode, numbers["sw"], numbers["kw"], padded_count=padded)
        lanes = register_lanes()
        slots: dict[str, Argument] = {"out": Out(0), "in": In(0)}
        slots |= {name: In(0) for name in ("filter", "bias", "residual")}
        result = call.outputs[0]
        pixels = max(1, result.dims[2] * result.dims[3] * sum(window))
        step = NativeCall(
            name=mode,
            address=compiled(
                f"pool {lanes} {form}", lambda code: _LineWriter(code, form, lanes).write()
            ),
            args=words(WORDS, slots, numbers),
            extent=result.dims[0] * result.dims[1],
            grain=max(1, GRAIN_PIXELS * 3 // pixels),
        )
        return Lowered((step,))

    return lower


for _mode, _op in (("max", "max_pool2d"), ("average", "average_pool2d"), ("l2", "l2_pool2d")):
    kernel(f"cpu.{_op}.lines", _op, ("cpu",), when=_fits, rank=18)(_lower(_mode))


class _LineWriter(WindowWriter):
    """Writes the kernel of one form."""

    def __init__(self, code: Code, form: Form, lanes: int) -> None:
        super().__init__(code, form, lanes)
        self.rows = RowReader(code, self.vector, self.w["width"], 1, "1", self.start)
        reach = code.add(code.mul(code.sub(self.w["out_width"], 1), self.w["sw"]), self.w["kw"])
        self.reach = reach
        self.pitch = code.add(reach, lanes)
        self.block = code.div(CELLS, self.pitch)
        self.lines = code.stack("float", CELLS + 3 * lanes)

    def write(self) -> None:
        """Append the whole function: planes, blocks of lines of the result.

        The lines of a block are all combined along columns before the first is combined along
        itself: a load just after the stores that it overlaps would wait for them.
        """
        code, w = self.code, self.w
        plane_in = code.mul(w["height"], w["width"])
        plane_out = code.mul(w["out_height"], w["out_width"])
        with code.loop("%begin", "%end") as planes:
            image = code.at(w["in"], "float", code.mul(planes.index, plane_in))
            result = code.at(w["out"], "float", code.mul(planes.index, plane_out))
            with code.loop(0, w["out_height"], self.block) as blocks:
                last = code.least(code.add(blocks.index, self.block), w["out_height"])
                with code.loop(blocks.index, last) as rows:
                    y, span = self.window(rows.index)
                    line = self.line_at(code.sub(rows.index, blocks.index))
                    with code.loop(0, self.reach, self.lanes) as columns:
                        self.down(image, y, span, columns.index, line)
                with code.loop(blocks.index, last) as rows:
                    y, span = self.window(rows.index)
                    line = self.line_at(code.sub(rows.index, blocks.index))
                    target = code.at(result, "float", code.mul(rows.index, w["out_width"]))
                    with code.loop(0, w["out_width"], self.lanes) as columns:
                        self.along_line(line, target, (y, span), columns.index)

    def window(self, row: str) -> tuple[str, tuple[str, str]]:
        """The first row of a line's windows, and which of the rows are in the image."""
        y = self.code.sub(self.code.mul(row, self.w["sh"]), self.w["top"])
        return y, self.rows_inside(y, "0", self.w["height"])

    def line_at(self, row: str) -> str:
        """Where a combined line lies."""
        return self.code.at(self.lines, "float", self.code.mul(row, self.pitch))

    def rows_inside(self, y: str, low: str, high: str) -> tuple[str, str]:
        """The window's rows that fall in [low, high); there are no dilations."""
        code, kh = self.code, self.w["kh"]
        begin = code.least(code.greatest(code.sub(low, y), 0), kh)
        return begin, code.greatest(begin, code.least(code.sub(high, y), kh))

    def down(self, image: str, y: str, span: tuple[str, str], column: str, line: str) -> None:
        """Combine the window's rows for one vector of pixels."""
        code, w = self.code, self.w
        x = code.sub(column, w["left"])
        mask = self.rows.mask(x)
        kind, first = self.vector.t("float32"), self.vector.const("float32", self.start)
        with code.loop(*span, carried=[(kind, first.name)]) as loop:
            row = code.at(image, "float", code.mul(code.add(y, loop.index), w["width"]))
            cell = self.rows.load_masked(row, x, mask)
            if self.form.mode == "l2":
                total = self.vector.fma(cell, cell, Value(loop.values[0], "float32"))
            else:
                total = self.combined(cell, Value(loop.values[0], "float32"))
            loop.next = [total.name]
        at = code.at(line, "float", column)
        self.vector.store(Value(loop.values[0], "float32"), at, "float32")

    def combined(self, cell: Value, total: Value) -> Value:
        """Two cells as one."""
        if self.form.mode == "max":
            return self.vector.extreme("max", cell, total)
        return self.vector.arith("+", total, cell)

    def along_line(
        self, line: str, target: str, window: tuple[str, tuple[str, str]], column: str
    ) -> None:
        """Combine the columns of the combined line, and store one vector of results."""
        code, w = self.code, self.w
        first = code.mul(column, w["sw"])
        value = self.reader.load(line, first)
        for k in range(1, self.form.width):
            value = self.combined(self.reader.load(line, code.add(first, k)), value)
        at = code.at(target, "float", column)
        left = code.sub(w["out_width"], column)
        if self.form.mode == "l2":
            value = self.vector.intrinsic("sqrt", value)
        if self.form.mode != "average":
            self.put(value, at, left)
            return
        x, (y, span) = code.sub(first, w["left"]), window
        inside = code.both(self.reader.inside(x), self.reader.inside(code.add(x, self.form.width)))
        for edge in (False, True):
            with code.when(code.negate(inside) if edge else inside):
                count = self.count(y, x, span, edge=edge)
                self.put(self.vector.arith("/", value, count), at, left)

    def put(self, value: Value, at: str, left: str) -> None:
        """Store up to a vector."""
        code = self.code
        whole = code.let(f"icmp sge i64 {left}, {self.lanes}")
        with code.when(whole):
            self.vector.store(value, at, "float32")
        with code.when(code.negate(whole)):
            store_first(code, value, at, left, self.lanes)
