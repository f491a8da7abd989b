"""Depthwise convolution of ``nchw`` float32 images on the host, several rows of results at a time.

A plane is copied into a buffer with the zeros around it that the window reaches; then no load is
masked. A vector of pixels that is loaded serves every row of results whose window it is in, and the
window's weights stay in registers.
"""

from __future__ import annotations

from dataclasses import dataclass

from crossdock.devices.base import DeviceInfo
from crossdock.devices.program import Argument, In, Lowered, NativeCall, Out
from crossdock.kernels.cpu_conv_pack import tile_shape
from crossdock.kernels.cpu_epilogue import Epilogue, epilogue_of
from crossdock.kernels.cpu_ir import Code, compiled
from crossdock.kernels.cpu_rows import RowReader, Words, register_lanes, store_first, words
from crossdock.kernels.cpu_vector import Value, Vector
from crossdock.kernels.cpu_window import GRAIN_PIXELS, WORDS, depthwise_fits, window_geometry
from crossdock.kernels.refusal import Cause, Refusal
from crossdock.kernels.spec import OpCall
from crossdock.kernels.table import kernel

CELLS = 16384
"""Pixels of a plane with its zeros, at most."""
WIDEST = 5
DOWN = 2
REGISTERS = 32
"""Vector registers of the processors that have many."""


@dataclass(frozen=True)
class Form:
    """What is compiled."""

    lanes: int
    kh: int
    kw: int
    down: int
    rows: int
    bias: bool
    epilogue: Epilogue

    def __str__(self) -> str:
        window = f"{self.kh}x{self.kw}/{self.down}x{self.rows}"
        return f"{window} {self.lanes} {self.bias} {self.epilogue}"

    @property
    def lines(self) -> int:
        """Rows of the plane that a block reads."""
        return (self.rows - 1) * self.down + self.kh


def rows_of(height: int, kh: int, kw: int) -> int:
    """Rows of results of a block: of those that waste fewest, the most that registers hold."""
    room = REGISTERS - 1 - kh * kw if tile_shape().rows >= 8 else 0  # a register for the pixels
    fitting = [rows for rows in (4, 5, 6, 7, 8) if rows <= max(4, room)]
    return min(fitting, key=lambda rows: (-(-height // rows) * rows, -rows))


def _fits(call: OpCall, device: DeviceInfo) -> str | None:
    why = depthwise_fits(call, device)
    if why is not None:
        return why
    filters, attrs = call.inputs[1], call.attrs
    assert filters is not None
    kh, kw = filters.dims[2:]
    down, across = attrs["strides"]
    if (across, *attrs["dilations"]) != (1, 1, 1) or down > DOWN or max(kh, kw) > WIDEST:
        return (
            f"not a window of at most {WIDEST} x {WIDEST}, dilations of 1, and strides of at most "
            f"{DOWN} from row to row and of 1 along them"
        )
    numbers = window_geometry(call, kh, kw)
    rows, pitch = _buffer(numbers, register_lanes())
    if rows * pitch > CELLS:
        return Refusal(f"a plane of more than {CELLS} pixels", Cause.SIZE)
    return None


def _buffer(numbers: dict[str, int], lanes: int) -> tuple[int, int]:
    """Rows of a plane with its zeros, and elements from one to the next."""
    block = rows_of(numbers["out_height"], numbers["kh"], numbers["kw"])
    results = -(-numbers["out_height"] // block) * block
    rows = (results - 1) * numbers["sh"] + numbers["kh"]
    widest = max(numbers["width"], numbers["out_width"])
    pitch = -(-widest // lanes) * lanes + numbers["left"] + lanes
    return max(rows, numbers["top"] + numbers["height"]), pitch


@kernel("cpu.conv2d.depthwise-rows", "conv2d", ("cpu",), when=_fits, rank=9)
@kernel("cpu.conv2d.depthwise-rows", "fused_conv2d", ("cpu",), when=_fits, rank=9)
def lower_depthwise_rows(call: OpCall, device: DeviceInfo) -> Lowered:  # noqa: ARG001 - the same
    """Lower a convolution with one channel a group to one native call."""
    filters, image = call.inputs[1], call.inputs[0]
    assert filters is not None
    assert image is not None
    bias = len(call.inputs) > 2 and call.inputs[2] is not None
    outputs, _, kh, kw = filters.dims
    numbers = window_geometry(call, kh, kw)
    numbers |= {"channels": outputs, "copies": outputs // call.attrs["groups"]}
    lanes = register_lanes()
    rows, pitch = _buffer(numbers, lanes)
    epilogue, residual = epilogue_of(call)
    block = rows_of(numbers["out_height"], kh, kw)
    form = Form(lanes, kh, kw, numbers["sh"], block, bias, epilogue)
    slots: dict[str, Argument] = {
        "out": Out(0), "in": In(0), "filter": In(1), "bias": In(2) if bias else In(1),
        "residual": residual,
    }  # fmt: skip
    out = call.outputs[0]
    pixels = max(1, out.dims[2] * out.dims[3] * (kh + kw))
    step = NativeCall(
        name="depthwise rows",
        address=compiled(f"depthwise rows {form}", lambda code: _Writer(code, form).write()),
        args=words((*WORDS, "rows", "pitch"), slots, numbers | {"rows": rows, "pitch": pitch}),
        extent=out.dims[0] * out.dims[1],
        grain=max(1, GRAIN_PIXELS * 3 // pixels),
    )
    return Lowered((step,))


class _Writer:
    """Writes the kernel of one form."""

    def __init__(self, code: Code, form: Form) -> None:
        self.code, self.form = code, form
        self.vector = Vector(code, form.lanes)
        self.w = Words(code, (*WORDS, "rows", "pitch"), 5)
        self.cells = code.stack("float", CELLS + 2 * form.lanes)

    def write(self) -> None:
        """Append the whole function: planes, blocks of rows, vectors."""
        code, w, form = self.code, self.w, self.form
        plane_in = code.mul(w["height"], w["width"])
        plane_out = code.mul(w["out_height"], w["out_width"])
        zero = self.vector.const("float32", 0.0)
        with code.loop(0, code.mul(w["rows"], w["pitch"]), form.lanes) as cells:
            self.vector.store(zero, code.at(self.cells, "float", cells.index), "float32")
        with code.loop("%begin", "%end") as planes:
            image = code.mul(code.div(planes.index, w["copies"]), plane_in)
            self.copy(code.at(w["in"], "float", image))
            channel = code.rem(planes.index, w["channels"])
            taps = self.weights(channel)
            start = zero
            if form.bias:
                one = code.load("float", code.at(w["bias"], "float", channel))
                start = self.vector.splat(Value(one, "float32"))
            first = code.mul(planes.index, plane_out)
            coming = code.div(code.add(planes.index, 1), w["copies"])
            coming = code.at(w["in"], "float", code.mul(coming, plane_in))
            with (
                code.loop(0, w["out_height"], form.rows) as rows,
                code.loop(0, w["out_width"], form.lanes) as columns,
            ):
                self.expect(coming, rows.index, columns.index)
                sums = self.block(taps, start, rows.index, columns.index)
                at = code.add(code.mul(rows.index, w["out_width"]), columns.index)
                self.put(sums, rows.index, code.add(first, at), columns.index)

    def copy(self, image: str) -> None:
        """Copy a plane into the middle of the zeros."""
        code, w = self.code, self.w
        reader = RowReader(code, self.vector, w["width"], 1, "1")
        with code.loop(0, w["height"]) as rows:
            source = code.at(image, "float", code.mul(rows.index, w["width"]))
            row = code.mul(code.add(rows.index, w["top"]), w["pitch"])
            target = code.at(self.cells, "float", code.add(row, w["left"]))
            with code.loop(0, w["width"], self.form.lanes) as columns:
                value = reader.load_masked(source, columns.index, reader.mask(columns.index))
                self.vector.store(value, code.at(target, "float", columns.index), "float32")

    def expect(self, image: str, row: str, column: str) -> None:
        """Ask for a part of the plane that comes next, while this one is computed."""
        code, w, down = self.code, self.w, self.form.down
        fn = code.declare("llvm.prefetch.p0", "void @(ptr, i32, i32, i32)")
        first = code.mul(row, down)
        for r in range(self.form.rows * down):
            at = code.add(code.mul(code.add(first, r), w["width"]), column)
            code.do(f"call void {fn}(ptr {code.at(image, 'float', at)}, i32 0, i32 3, i32 1)")

    def weights(self, channel: str) -> list[list[Value]]:
        """The window's weights, each in every lane."""
        code, form = self.code, self.form
        filters = code.at(self.w["filter"], "float", code.mul(channel, form.kh * form.kw))
        return [
            [
                self.vector.splat(
                    Value(code.load("float", code.at(filters, "float", t * form.kw + k)), "float32")
                )
                for k in range(form.kw)
            ]
            for t in range(form.kh)
        ]

    def block(self, taps: list[list[Value]], start: Value, row: str, column: str) -> list[Value]:
        """One vector of several rows of results."""
        code, form = self.code, self.form
        at = code.add(code.mul(code.mul(row, form.down), self.w["pitch"]), column)
        line = code.at(self.cells, "float", at)
        sums = [start] * form.rows
        for i in range(form.lines):
            for k in range(form.kw):
                pixels = self.vector.load(code.at(line, "float", k), "float32")
                for r in range(form.rows):
                    if 0 <= i - r * form.down < form.kh:
                        sums[r] = self.vector.fma(pixels, taps[i - r * form.down][k], sums[r])
            line = code.at(line, "float", self.w["pitch"])
        return sums

    def put(self, sums: list[Value], row: str, at: str, column: str) -> None:
        """Store the results of a block, with what follows.

        A block within the plane is stored without a branch between rows: the compiler would move
        each row's sum behind its branch, where every product waits for the one before.
        """
        code, w, lanes = self.code, self.w, self.form.lanes
        left = code.sub(w["out_width"], column)
        below = code.less(code.add(row, len(sums) - 1), w["out_height"])
        whole = code.let(f"and i1 {below}, {code.let(f'icmp sge i64 {left}, {lanes}')}")
        steps = [code.add(at, code.mul(w["out_width"], r)) for r in range(len(sums))]
        with code.when(whole):
            for value, step in zip(sums, steps, strict=True):
                made = self.ending(value, step, None)
                self.vector.store(made, code.at(w["out"], "float", step), "float32")
        with code.when(code.negate(whole)):
            for r, (value, step) in enumerate(zip(sums, steps, strict=True)):
                with code.when(code.less(code.add(row, r), w["out_height"])):
                    made = self.ending(value, step, left)
                    store_first(code, made, code.at(w["out"], "float", step), left, lanes)

    def ending(self, value: Value, at: str, left: str | None) -> Value:
        """A result with what follows; of the residual no more than ``left`` elements are read."""
        other = self.code.at(self.w["residual"], "float", at)
        return self.form.epilogue.apply(self.vector, value, other, left)
