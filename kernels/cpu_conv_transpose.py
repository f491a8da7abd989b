"""Transposed convolution of ``nchw`` float32 images on the host: one product, then a scatter.

The product gives what every input pixel adds to its window; the scatter walks the rows of the
result and adds up the window rows that fall on each.
"""

from __future__ import annotations

import math

from crossdock.devices.base import DeviceInfo
from crossdock.devices.cpu_blas import blas
from crossdock.devices.program import Argument, In, Lowered, NativeCall, Out, Scratch
from crossdock.kernels.cpu_axis import Row
from crossdock.kernels.cpu_ir import Code, compiled
from crossdock.kernels.cpu_matmul import Product, gemm_call
from crossdock.kernels.cpu_rows import Words, words
from crossdock.kernels.cpu_vector import Value, Vector
from crossdock.kernels.refusal import Cause, Refusal
from crossdock.kernels.spec import OpCall
from crossdock.kernels.table import kernel

GRAIN_PIXELS = 50_000
LANES = 16
WORDS = (
    "out", "columns", "bias", "height", "width", "out_height", "out_width", "kh", "kw", "sh", "sw",
    "dh", "dw", "top", "left", "channels", "biased",
)  # fmt: skip


def _fits(call: OpCall, device: DeviceInfo) -> str | None:  # noqa: ARG001 - a candidate's guard
    attrs = call.attrs
    if call.outputs[0].dtype != "float32":
        return Refusal(f"{call.outputs[0].dtype}, not float32", Cause.DTYPE)
    if attrs["input_layout"] != "nchw" or attrs["filter_layout"] != "iohw":
        return f"layouts {attrs['input_layout']} and {attrs['filter_layout']}, not nchw and iohw"
    if attrs["groups"] > 1 and call.outputs[0].dims[0] > 1:
        return Refusal("several groups of several images", Cause.SIZE)
    return None if blas() is not None else Refusal("numpy's BLAS is not OpenBLAS", Cause.LIBRARY)


@kernel("cpu.conv_transpose2d", "conv_transpose2d", ("cpu",), when=_fits, rank=20, steady=False)
def lower_conv_transpose2d(call: OpCall, device: DeviceInfo) -> Lowered:  # noqa: ARG001 - the same
    """Lower a transposed convolution to a product and a scatter."""
    image, filters = call.inputs[0], call.inputs[1]
    assert image is not None
    assert filters is not None
    batch, channels, height, width = image.dims
    _, each, kh, kw = filters.dims
    groups = call.attrs["groups"]
    rows, plane = each * kh * kw, height * width
    inner = channels // groups
    product = Product(
        "float32", rows, plane, inner, a_transposed=True, batch=batch * groups,
        a_stride=inner * rows if groups > 1 else 0, b_stride=inner * plane,
    )  # fmt: skip
    scatter = _scatter(call, kh, kw)
    columns = 4 * batch * groups * rows * plane
    return Lowered((gemm_call(product, Scratch(0), In(1), In(0)), scatter), (columns,))


def _scatter(call: OpCall, kh: int, kw: int) -> NativeCall:
    image, out, attrs = call.inputs[0], call.outputs[0], call.attrs
    assert image is not None
    bias = len(call.inputs) > 2 and call.inputs[2] is not None
    (sh, sw), (dh, dw) = attrs["strides"], attrs["dilations"]
    top, _, left, _ = attrs["padding"]
    numbers = {
        "height": image.dims[2], "width": image.dims[3],
        "out_height": out.dims[2], "out_width": out.dims[3],
        "kh": kh, "kw": kw, "sh": sh, "sw": sw, "dh": dh, "dw": dw, "top": top, "left": left,
        "channels": out.dims[1], "biased": int(bias),
    }  # fmt: skip
    slots: dict[str, Argument] = {
        "out": Out(0), "columns": Scratch(0), "bias": In(2) if bias else In(0),
    }  # fmt: skip
    cells = math.prod(image.dims[2:]) * kh * kw
    return NativeCall(
        name="scatter",
        address=compiled(f"conv_transpose2d scatter {sw == 1}", lambda c: _write(c, sw == 1)),
        args=words(WORDS, slots, numbers),
        extent=out.dims[0] * out.dims[1],
        grain=max(1, GRAIN_PIXELS // max(1, cells)),
    )


def _write(code: Code, dense: bool) -> None:
    """Planes, rows of the result, rows of the window; ``dense`` means a horizontal stride of 1."""
    w = Words(code, WORDS, 3)
    plane_out = code.mul(w["out_height"], w["out_width"])
    plane, cells = code.mul(w["height"], w["width"]), code.mul(w["kh"], w["kw"])
    with code.loop("%begin", "%end") as planes:
        result = code.at(w["out"], "float", code.mul(planes.index, plane_out))
        block = code.mul(code.mul(planes.index, cells), plane)
        columns = code.at(w["columns"], "float", block)
        channel = code.at(w["bias"], "float", code.rem(planes.index, w["channels"]))
        there = code.equal(w["biased"], 1)
        start = code.select(there, code.load("float", channel), "0.0", "float")
        with code.loop(0, w["out_height"]) as rows:
            line = code.at(result, "float", code.mul(rows.index, w["out_width"]))
            _fill(code, line, w["out_width"], start)
            with code.loop(0, w["kh"]) as taps:
                reached = code.sub(code.add(rows.index, w["top"]), code.mul(taps.index, w["dh"]))
                iy = code.let(f"sdiv i64 {reached}, {w['sh']}")
                exact = code.equal(code.mul(iy, w["sh"]), reached)
                inside = code.both(
                    code.let(f"icmp sge i64 {reached}, 0"), code.less(iy, w["height"])
                )
                with code.when(code.both(exact, inside)):
                    tap = code.mul(code.mul(taps.index, w["kw"]), plane)
                    row = code.at(columns, "float", code.add(tap, code.mul(iy, w["width"])))
                    _add_row(code, w, (line, row, plane), dense)


def _fill(code: Code, line: str, width: str, start: str) -> None:
    def body(vector: Vector, index: str) -> None:
        value = vector.splat(Value(start, "float32"))
        vector.store(value, code.at(line, "float", index), "float32")

    Row(code, "float32", width, LANES).each(body)


def _add_row(code: Code, w: Words, at: tuple[str, str, str], dense: bool) -> None:
    """Add the input row's part of every tap of a window row to a row of the result."""
    line, row, plane = at
    with code.loop(0, w["kw"]) as taps:
        shift = code.sub(code.mul(taps.index, w["dw"]), w["left"])  # of input pixel 0
        short = code.greatest(code.sub(0, shift), 0)
        low = code.div(code.add(short, code.sub(w["sw"], 1)), w["sw"])
        room = code.greatest(code.sub(w["out_width"], shift), 0)
        high = code.div(code.add(room, code.sub(w["sw"], 1)), w["sw"])
        high = code.least(high, w["width"])
        low = code.least(low, high)
        source = code.at(code.at(row, "float", code.mul(taps.index, plane)), "float", low)
        first = code.add(code.mul(low, w["sw"]), shift)
        target = code.at(line, "float", first)
        count = code.sub(high, low)
        if dense:
            _add_dense(code, source, target, count)
        else:
            _add_apart(code, source, target, count, w["sw"])


def _add_apart(code: Code, source: str, target: str, count: str, step: str) -> None:
    with code.loop(0, count) as pixels:
        to = code.at(target, "float", code.mul(pixels.index, step))
        value = code.load("float", code.at(source, "float", pixels.index))
        total = code.let(f"fadd float {code.load('float', to)}, {value}")
        code.store("float", total, to)


def _add_dense(code: Code, source: str, target: str, count: str) -> None:
    def body(vector: Vector, index: str) -> None:
        to = code.at(target, "float", index)
        value = vector.load(code.at(source, "float", index), "float32")
        vector.store(vector.arith("+", vector.load(to, "float32"), value), to, "float32")

    Row(code, "float32", count, LANES).each(body)
