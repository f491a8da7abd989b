"""Depthwise convolution and pooling of ``nchw`` float32 images on the host.

One item is one plane of the result. Every output row is cut into vectors; where all pixels that a
vector touches are in the image the taps are plain loads, at the edges they are masked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from crossdock.devices.base import DeviceInfo
from crossdock.devices.program import Argument, In, Lowered, NativeCall, Out
from crossdock.kernels.cpu_epilogue import Epilogue, epilogue_obstacle, epilogue_of
from crossdock.kernels.cpu_ir import Code, compiled
from crossdock.kernels.cpu_rows import RowReader, Words, register_lanes, store_first, words
from crossdock.kernels.cpu_vector import Value, Vector
from crossdock.kernels.refusal import Cause, Refusal
from crossdock.kernels.spec import OpCall
from crossdock.kernels.table import kernel

GRAIN_PIXELS = 20_000
NONE = Epilogue()
UNROLLED = 7
"""Windows of at most this width are unrolled along a row."""

WORDS = (
    "out", "in", "filter", "bias", "residual", "channels", "copies", "height", "width",
    "out_height", "out_width", "kh", "kw", "sh", "sw", "dh", "dw", "top", "left", "bottom", "right",
)  # fmt: skip


@dataclass(frozen=True)
class Form:
    """What is compiled: ``mode`` is depthwise, max, average or l2.

    ``stride`` is 1, 2 or 0 for others; ``width`` the window's where it is unrolled, else 0.
    """

    mode: str
    stride: int
    width: int
    bias: bool = False
    padded_count: bool = False
    epilogue: Epilogue = NONE

    def __str__(self) -> str:
        extra = f"{' bias' * self.bias}{' padded' * self.padded_count} {self.epilogue}"
        return f"{self.mode} {self.stride} {self.width}{extra}"


def depthwise_fits(call: OpCall, device: DeviceInfo) -> str | None:  # noqa: ARG001 - a guard
    """Why window kernels do not take this for one channel a group, or None."""
    attrs, filters = call.attrs, call.inputs[1]
    assert filters is not None
    if call.outputs[0].dtype != "float32":
        return Refusal(f"{call.outputs[0].dtype}, not float32", Cause.DTYPE)
    if attrs["input_layout"] != "nchw" or attrs["filter_layout"] != "oihw":
        return f"layouts {attrs['input_layout']} and {attrs['filter_layout']}, not nchw and oihw"
    if filters.dims[1] != 1 or attrs["groups"] == 1:
        return f"{filters.dims[1]} channels a group, not 1"
    return epilogue_obstacle(call)


@kernel("cpu.conv2d.depthwise", "conv2d", ("cpu",), when=depthwise_fits, rank=10)
@kernel("cpu.conv2d.depthwise", "fused_conv2d", ("cpu",), when=depthwise_fits, rank=10)
def lower_depthwise(call: OpCall, device: DeviceInfo) -> Lowered:  # noqa: ARG001 - the same
    """Lower a convolution with one channel a group to one native call."""
    filters = call.inputs[1]
    assert filters is not None
    bias = len(call.inputs) > 2 and call.inputs[2] is not None
    outputs, _, kh, kw = filters.dims
    numbers = window_geometry(call, kh, kw) | {
        "channels": outputs,
        "copies": outputs // call.attrs["groups"],
    }
    epilogue, residual = epilogue_of(call)
    slots: dict[str, Argument] = {
        "filter": In(1), "bias": In(2) if bias else In(1), "residual": residual,
    }  # fmt: skip
    return Lowered((_native(call, "depthwise", numbers, slots, bias=bias, epilogue=epilogue),))


def pool_fits(call: OpCall, device: DeviceInfo) -> str | None:  # noqa: ARG001 - a guard
    """Why window kernels do not pool this, or None."""
    if call.outputs[0].dtype != "float32":
        return Refusal(f"{call.outputs[0].dtype}, not float32", Cause.DTYPE)
    if call.attrs["layout"] != "nchw":
        return f"layout {call.attrs['layout']}, not nchw"
    return None


def _lower_pool(mode: str) -> Callable[[OpCall, DeviceInfo], Lowered]:
    def lower(call: OpCall, device: DeviceInfo) -> Lowered:  # noqa: ARG001 - the same
        numbers = window_geometry(call, *call.attrs["window_dimensions"]) | {
            "channels": 1,
            "copies": 1,
        }
        slots: dict[str, Argument] = {"filter": In(0), "bias": In(0), "residual": In(0)}
        padded = bool(call.attrs.get("count_include_pad", False))
        return Lowered((_native(call, mode, numbers, slots, padded_count=padded),))

    return lower


for _mode, _op in (("max", "max_pool2d"), ("average", "average_pool2d"), ("l2", "l2_pool2d")):
    kernel(f"cpu.{_op}.window", _op, ("cpu",), when=pool_fits, rank=20)(_lower_pool(_mode))


def window_geometry(call: OpCall, kh: int, kw: int) -> dict[str, int]:
    """The numbers of a call that every window kernel takes."""
    image, attrs = call.inputs[0], call.attrs
    assert image is not None
    (sh, sw), (dh, dw) = attrs["strides"], attrs["dilations"]
    top, bottom, left, right = attrs["padding"]
    return {
        "height": image.dims[2], "width": image.dims[3],
        "out_height": call.outputs[0].dims[2], "out_width": call.outputs[0].dims[3],
        "kh": kh, "kw": kw, "sh": sh, "sw": sw, "dh": dh, "dw": dw,
        "top": top, "left": left, "bottom": bottom, "right": right,
    }  # fmt: skip


def _native(
    call: OpCall,
    mode: str,
    numbers: dict[str, int],
    slots: dict[str, Argument],
    *,
    bias: bool = False,
    padded_count: bool = False,
    epilogue: Epilogue = NONE,
) -> NativeCall:
    result = call.outputs[0]
    stride = numbers["sw"] if numbers["sw"] in (1, 2) else 0
    width = numbers["kw"] if numbers["kw"] <= UNROLLED else 0
    form = Form(mode, stride, width, bias, padded_count, epilogue)
    lanes = register_lanes()
    planes = result.dims[0] * result.dims[1]
    cells = numbers["kh"] * numbers["kw"] * result.dims[2] * result.dims[3]
    return NativeCall(
        name=mode,
        address=compiled(
            f"window {lanes} {form}", lambda code: WindowWriter(code, form, lanes).write()
        ),
        args=words(WORDS, {"out": Out(0), "in": In(0), **slots}, numbers),
        extent=planes,
        grain=max(1, GRAIN_PIXELS * 9 // cells),
    )


class WindowWriter:
    """Writes the kernel of one form."""

    def __init__(self, code: Code, form: Form, lanes: int) -> None:
        self.code = code
        self.form = form
        self.lanes = lanes
        self.vector = Vector(code, lanes)
        self.w = Words(code, WORDS, 5)
        self.start = float("-inf") if form.mode == "max" else 0.0
        self.reader = RowReader(
            code, self.vector, self.w["width"], form.stride, self.w["sw"], self.start
        )

    def write(self) -> None:
        """Append the whole function: planes, rows, vectors."""
        code, w = self.code, self.w
        plane_in, plane_out = (
            code.mul(w["height"], w["width"]),
            code.mul(w["out_height"], w["out_width"]),
        )
        with code.loop("%begin", "%end") as planes:
            image = code.at(
                w["in"], "float", code.mul(code.div(planes.index, w["copies"]), plane_in)
            )
            result = code.at(w["out"], "float", code.mul(planes.index, plane_out))
            channel = code.rem(planes.index, w["channels"])
            cells = code.mul(w["kh"], w["kw"])
            filters = code.at(w["filter"], "float", code.mul(channel, cells))
            first = self.first(channel)
            with code.loop(0, w["out_height"]) as rows:
                y = code.sub(code.mul(rows.index, w["sh"]), w["top"])
                span = self.rows_inside(y, "0", w["height"])
                line = code.at(result, "float", code.mul(rows.index, w["out_width"]))
                with code.loop(0, w["out_width"], self.lanes) as columns:
                    x = code.sub(code.mul(columns.index, w["sw"]), w["left"])
                    far = code.add(x, code.mul(code.sub(w["kw"], 1), w["dw"]))
                    inside = code.both(self.reader.inside(x), self.reader.inside(far))
                    at = code.at(line, "float", columns.index)
                    left = code.least(self.lanes, code.sub(w["out_width"], columns.index))
                    with code.when(inside):
                        self.cells(image, filters, first, (y, x), span, (at, left), edge=False)
                    with code.when(code.negate(inside)):
                        self.cells(image, filters, first, (y, x), span, (at, left), edge=True)

    def first(self, channel: str) -> Value:
        """What an output starts from."""
        if not self.form.bias:
            return self.vector.const("float32", self.start)
        one = self.code.load("float", self.code.at(self.w["bias"], "float", channel))
        return self.vector.splat(Value(one, "float32"))

    def rows_inside(self, y: str, low: str, high: str) -> tuple[str, str]:
        """The window's rows that fall in [low, high), where its first row is at ``y``."""
        code, w = self.code, self.w
        short = code.greatest(code.sub(low, y), 0)
        begin = code.least(code.div(code.add(short, code.sub(w["dh"], 1)), w["dh"]), w["kh"])
        room = code.greatest(code.sub(high, y), 0)
        end = code.least(code.div(code.add(room, code.sub(w["dh"], 1)), w["dh"]), w["kh"])
        return begin, code.greatest(begin, end)

    def cells(
        self,
        image: str,
        filters: str,
        first: Value,
        corner: tuple[str, str],
        span: tuple[str, str],
        target: tuple[str, str],
        *,
        edge: bool,
    ) -> None:
        """Combine the window's cells for one vector of outputs and store it."""
        code, w, (y, x), (at, left) = self.code, self.w, corner, target
        kind = self.vector.t("float32")
        firsts = [code.add(x, code.mul(w["dw"], k)) for k in range(self.form.width)]
        masks = [self.reader.mask(ix) if edge else None for ix in firsts]
        with code.loop(*span, carried=[(kind, first.name)]) as rows:
            iy = code.add(y, code.mul(rows.index, w["dh"]))
            row = code.at(image, "float", code.mul(iy, w["width"]))
            taps = code.at(filters, "float", code.mul(rows.index, w["kw"]))
            total = rows.values[0]
            if not firsts:
                total = self.along(row, taps, x, total, edge=edge)
            for k, (ix, mask) in enumerate(zip(firsts, masks, strict=True)):
                total = self.tap(row, taps, ix, str(k), total, mask)
            rows.next = [total]
        value = Value(rows.values[0], "float32")
        if self.form.mode == "l2":
            value = self.vector.intrinsic("sqrt", value)
        if self.form.mode == "average":
            value = self.vector.arith("/", value, self.count(y, x, span, edge=edge))
        whole = code.equal(left, self.lanes)
        other = code.at(w["residual"], "i8", self.offset(at))
        with code.when(whole):
            made = self.form.epilogue.apply(self.vector, value, other, None)
            self.vector.store(made, at, "float32")
        with code.when(code.negate(whole)):
            made = self.form.epilogue.apply(self.vector, value, other, left)
            store_first(code, made, at, left, self.lanes)

    def offset(self, at: str) -> str:
        """Bytes from the result's beginning to an address in it."""
        code = self.code
        begin = code.let(f"ptrtoint ptr {self.w['out']} to i64")
        return code.sub(code.let(f"ptrtoint ptr {at} to i64"), begin)

    def along(self, row: str, taps: str, x: str, total: str, *, edge: bool) -> str:
        """Combine one row of a window that is too wide to unroll."""
        code, kind = self.code, self.vector.t("float32")
        with code.loop(0, self.w["kw"], carried=[(kind, total)]) as loop:
            ix = code.add(x, code.mul(loop.index, self.w["dw"]))
            mask = self.reader.mask(ix) if edge else None
            loop.next = [self.tap(row, taps, ix, loop.index, loop.values[0], mask)]
        return loop.values[0]

    def tap(self, row: str, taps: str, ix: str, k: str, total: str, mask: str | None) -> str:
        """Combine one cell, masked at the image's edge."""
        v, so_far = self.vector, Value(total, "float32")
        if mask is None:
            cell = self.reader.load(row, ix)
        else:
            cell = self.reader.load_masked(row, ix, mask)
        if self.form.mode == "depthwise":
            one = self.code.load("float", self.code.at(taps, "float", k))
            return v.fma(cell, v.splat(Value(one, "float32")), so_far).name
        if self.form.mode == "max":
            return v.extreme("max", cell, so_far).name
        if self.form.mode == "l2":
            return v.fma(cell, cell, so_far).name
        return v.arith("+", so_far, cell).name

    # --- how many cells an average counts ---

    def count(self, y: str, x: str, span: tuple[str, str], *, edge: bool) -> Value:
        """Cells counted for each lane: at least one."""
        code, w, v = self.code, self.w, self.vector
        if self.form.padded_count:
            low = code.sub(0, w["top"])
            span = self.rows_inside(y, low, code.add(w["height"], w["bottom"]))
        rows = v.splat(self.as_float(code.sub(span[1], span[0])))
        if not edge:
            return v.arith("*", rows, v.splat(self.as_float(w["kw"])))
        columns = v.arith("*", rows, self.columns(x))
        return v.extreme("max", columns, v.const("float32", 1.0))

    def columns(self, x: str) -> Value:
        """Columns of the window that are counted, for each lane."""
        code, w, v = self.code, self.w, self.vector
        width, at = w["width"], x
        if self.form.padded_count:
            width = code.add(code.add(width, w["left"]), w["right"])
            at = code.add(x, w["left"])
        lanes = f"<{self.lanes} x i64>"
        numbers = ", ".join(f"i64 {i}" for i in range(self.lanes))
        step = v.splat(Value(w["sw"], "int64")).name
        offsets = code.let(f"mul {lanes} <{numbers}>, {step}")
        limit = v.splat(Value(width, "int64")).name
        zero = v.const("float32", 0.0)
        with code.loop(0, w["kw"], carried=[(v.t("float32"), zero.name)]) as loop:
            ix = v.splat(Value(code.add(at, code.mul(loop.index, w["dw"])), "int64")).name
            pixels = code.let(f"add {lanes} {ix}, {offsets}")
            mask = Value(code.let(f"icmp ult {lanes} {pixels}, {limit}"), "mask")
            one = v.select(mask, v.const("float32", 1.0), zero)
            loop.next = [v.arith("+", Value(loop.values[0], "float32"), one).name]
        return Value(loop.values[0], "float32")

    def as_float(self, number: str) -> Value:
        """An i64 as a float."""
        return Value(self.code.let(f"sitofp i64 {number} to float"), "float32")
