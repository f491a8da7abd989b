"""Interpolation along the last two axes of float32 arrays on the host.

Every output cell is a weighted sum of source cells along each axis; cells and weights are tables
made once. Where all weights are 1 the cells are copied, and a row that repeats the one before is
copied as a whole.
"""

from __future__ import annotations

import math

import numpy as np

from crossdock.devices.base import DeviceInfo
from crossdock.devices.program import Argument, In, Lowered, NativeCall, Out, Pack, Packed
from crossdock.kernels.cpu_axis import Row
from crossdock.kernels.cpu_ir import Code, compiled
from crossdock.kernels.cpu_rows import Words, register_lanes, words
from crossdock.kernels.cpu_vector import Value, Vector
from crossdock.kernels.ops_pool import taps_of
from crossdock.kernels.ops_resample import Taps
from crossdock.kernels.ops_resize import resize_taps
from crossdock.kernels.refusal import Cause, Refusal
from crossdock.kernels.spec import OpCall
from crossdock.kernels.table import kernel
from crossdock.runtime.tensor import TensorSpec

GRAIN_CELLS = 50_000
WORDS = (
    "out", "in", "columns", "column_weights", "rows", "row_weights",
    "height", "width", "out_height", "out_width", "column_taps", "row_taps",
)  # fmt: skip


def _axis_taps(call: OpCall) -> dict[int, Taps] | None:
    """Taps by axis, or None where some cells lie outside of the source."""
    spec, attrs = call.inputs[0], call.attrs
    assert spec is not None
    if call.op == "resample2d":
        axes = zip(attrs["axes"], attrs["sizes"], strict=True)
        return {axis: taps_of(spec.dims[axis], size, attrs["mode"]) for axis, size in axes}
    taps = {}
    for i, axis in enumerate(attrs["axes"]):
        tap, outside = resize_taps(spec.dims[axis], i, attrs)
        if outside.any():
            return None
        if not tap.is_identity(spec.dims[axis]):
            taps[axis] = tap
    return taps


def _fits(call: OpCall, device: DeviceInfo) -> str | None:  # noqa: ARG001 - a candidate's guard
    spec = call.inputs[0]
    assert spec is not None
    if spec.dtype != "float32":
        return Refusal(f"{spec.dtype}, not float32", Cause.DTYPE)
    if spec.rank < 2:
        return Refusal("less than two axes", Cause.RANK)
    taps = _axis_taps(call)
    if taps is None:
        return "some cells lie outside of the source"
    if any(axis < spec.rank - 2 for axis in taps):
        return "an axis before the last two is resampled"
    return None


def _lower(call: OpCall, device: DeviceInfo) -> Lowered:  # noqa: ARG001 - the same
    spec, out = call.inputs[0], call.outputs[0]
    assert spec is not None
    found = _axis_taps(call)
    assert found is not None
    rows, columns = (
        found.get(axis) or _same(spec.dims[axis]) for axis in (spec.rank - 2, spec.rank - 1)
    )
    copy = rows.is_copy and columns.is_copy
    numbers = {
        "height": spec.dims[-2], "width": spec.dims[-1],
        "out_height": out.dims[-2], "out_width": out.dims[-1],
        "column_taps": columns.cells.shape[1], "row_taps": rows.cells.shape[1],
    }  # fmt: skip
    slots: dict[str, Argument] = {"out": Out(0), "in": In(0)}
    tables = (
        columns.cells.T.astype(np.int32), columns.weights.T.astype(np.float32),
        rows.cells.astype(np.int64), rows.weights.astype(np.float32),
    )  # fmt: skip
    packs = []
    for i, (name, table) in enumerate(zip(WORDS[2:6], tables, strict=True)):
        kept = np.ascontiguousarray(table)
        packs.append(Pack(lambda kept=kept: kept, TensorSpec.of(kept)))  # type: ignore[misc]
        slots[name] = Packed(i)
    lanes = register_lanes()
    planes = math.prod(out.dims[:-2])
    step = NativeCall(
        name="resample",
        address=compiled(f"resample {lanes} {copy}", lambda code: _write(code, lanes, copy)),
        args=words(WORDS, slots, numbers),
        extent=planes,
        grain=max(1, GRAIN_CELLS // max(1, math.prod(out.dims[-2:]))),
    )
    return Lowered((step,), (), tuple(packs))


for _op in ("resample2d", "resize"):
    kernel(f"cpu.{_op}", _op, ("cpu",), when=_fits, rank=20)(_lower)


def _same(size: int) -> Taps:
    return Taps(np.arange(size)[:, None], np.ones((size, 1)))


def _write(code: Code, lanes: int, copy: bool) -> None:
    w = Words(code, WORDS, 6)
    plane = code.mul(w["height"], w["width"])
    plane_out = code.mul(w["out_height"], w["out_width"])
    with code.loop("%begin", "%end") as planes:
        image = code.at(w["in"], "float", code.mul(planes.index, plane))
        result = code.at(w["out"], "float", code.mul(planes.index, plane_out))
        with code.loop(0, w["out_height"]) as rows:
            line = code.at(result, "float", code.mul(rows.index, w["out_width"]))
            if copy:
                _copy_row(code, w, lanes, image, line, rows.index)
            else:
                _blend_row(code, w, lanes, image, line, rows.index)


def _copy_row(code: Code, w: Words, lanes: int, image: str, line: str, row: str) -> None:
    """Copy the row before where it came from the same source row, else pick the cells."""
    source = code.load("i64", code.at(w["rows"], "i64", row))
    before = code.greatest(code.sub(row, 1), 0)
    last = code.load("i64", code.at(w["rows"], "i64", before))
    again = code.both(code.equal(source, last), code.less(0, row))
    above = code.at(line, "float", code.sub(0, w["out_width"]))
    cells = code.at(image, "float", code.mul(source, w["width"]))

    def repeat(vector: Vector, index: str) -> None:
        value = vector.load(code.at(above, "float", index), "float32")
        vector.store(value, code.at(line, "float", index), "float32")

    def pick(vector: Vector, index: str) -> None:
        at = code.at(w["columns"], "i32", index)
        vector.store(_gather(vector, cells, at), code.at(line, "float", index), "float32")

    with code.when(again):
        Row(code, "float32", w["out_width"], 16).each(repeat)
    with code.when(code.negate(again)):
        Row(code, "float32", w["out_width"], lanes).each(pick)


def _blend_row(code: Code, w: Words, lanes: int, image: str, line: str, row: str) -> None:
    """Weighted sums over rows of weighted sums along each."""

    def blend(vector: Vector, index: str) -> None:
        kind, zero = vector.t("float32"), vector.const("float32", 0.0).name
        first = code.mul(row, w["row_taps"])
        with code.loop(0, w["row_taps"], 1, [(kind, zero)]) as down:
            tap = code.add(first, down.index)
            source = code.load("i64", code.at(w["rows"], "i64", tap))
            cells = code.at(image, "float", code.mul(source, w["width"]))
            with code.loop(0, w["column_taps"], 1, [(kind, zero)]) as along:
                place = code.add(code.mul(along.index, w["out_width"]), index)
                value = _gather(vector, cells, code.at(w["columns"], "i32", place))
                weight = vector.load(code.at(w["column_weights"], "float", place), "float32")
                total = Value(along.values[0], "float32")
                along.next = [vector.fma(value, weight, total).name]
            one = code.load("float", code.at(w["row_weights"], "float", tap))
            weight = vector.splat(Value(one, "float32"))
            total = Value(down.values[0], "float32")
            down.next = [vector.fma(Value(along.values[0], "float32"), weight, total).name]
        vector.store(Value(down.values[0], "float32"), code.at(line, "float", index), "float32")

    Row(code, "float32", w["out_width"], lanes).each(blend)


def _gather(vector: Vector, base: str, indices: str) -> Value:
    """The cells of a row that a vector of indices (int32) names."""
    code, lanes = vector.code, vector.lanes
    index = code.let(f"load {vector.type('i32')}, ptr {indices}, align 4")
    if lanes == 1:
        wide = code.let(f"sext i32 {index} to i64")
        return vector.load(code.at(base, "float", wide), "float32")
    kind, bits = f"<{lanes} x float>", f"<{lanes} x i1>"
    at = code.let(f"getelementptr float, ptr {base}, <{lanes} x i32> {index}")
    fn = code.declare(
        f"llvm.masked.gather.v{lanes}f32.v{lanes}p0",
        f"{kind} @(<{lanes} x ptr>, i32, {bits}, {kind})",
    )
    every = vector.const("mask", 1).name
    given = f"<{lanes} x ptr> {at}, i32 4, {bits} {every}, {kind} undef"
    return Value(code.let(f"call {kind} {fn}({given})"), "float32")
