"""Reductions and softmax along one block of neighbouring axes, on the host."""

from __future__ import annotations

import math
from collections.abc import Callable

from crossdock.devices.base import DeviceInfo
from crossdock.devices.program import Argument, In, Lowered, NativeCall, Out
from crossdock.kernels import cpu_math
from crossdock.kernels.cpu_axis import Axis, lanes_of, write_axes
from crossdock.kernels.cpu_elementwise import dtype_obstacle
from crossdock.kernels.cpu_ir import Code, compiled
from crossdock.kernels.cpu_rows import Words, words
from crossdock.kernels.cpu_vector import LLVM_TYPES, Value, Vector, is_float
from crossdock.kernels.refusal import Cause, Refusal
from crossdock.kernels.spec import OpCall
from crossdock.kernels.table import kernel
from crossdock.runtime.tensor import FLOATS, TensorSpec

GRAIN_ELEMENTS = 50_000
WORDS = ("out", "in", "n", "inner")
Run = Callable[[Axis, str, str], None]


def block(spec: TensorSpec, axes: tuple[int, ...]) -> tuple[int, int, int] | None:
    """``(outer, n, inner)`` where the axes, without those of size 1, are neighbours; else None."""
    dims = spec.dims
    real = [axis for axis in sorted(axes) if dims[axis] != 1]
    if not real:
        return math.prod(dims), 1, 1
    between = [axis for axis in range(real[0], real[-1]) if dims[axis] != 1]
    if any(axis not in real for axis in between):
        return None
    return (
        math.prod(dims[: real[0]]),
        math.prod(dims[a] for a in real),
        math.prod(dims[real[-1] + 1 :]),
    )


def axis_call(
    name: str, key: str, dtype: str, view: tuple[int, int, int], run: Callable[[Code, Words], Run]
) -> NativeCall:
    """A native call that runs over the rows or columns of a view of ``In(0)``."""
    outer, n, inner = view
    rows = inner == 1
    items = outer if rows else outer * -(-inner // lanes_of(dtype))

    def write(code: Code) -> None:
        w = Words(code, WORDS, 2)
        write_axes(code, dtype, (w["n"], w["inner"]), ("%begin", "%end"), run(code, w), rows=rows)

    slots: dict[str, Argument] = {"out": Out(0), "in": In(0)}
    return NativeCall(
        name=name,
        address=compiled(f"{key} {dtype} {rows}", write),
        args=words(WORDS, slots, {"n": n, "inner": inner}),
        extent=items,
        grain=max(1, GRAIN_ELEMENTS * items // max(1, outer * n * inner)),
    )


# --- reductions -----------------------------------------------------------------------------------

SUMS = ("sum", "mean", "l1", "l2", "sum_square", "log_sum", "log_sum_exp")
REDUCTIONS = (*SUMS, "max", "min", "product")


def _fits(call: OpCall, device: DeviceInfo) -> str | None:  # noqa: ARG001 - a candidate's guard
    spec = call.inputs[0]
    assert spec is not None
    if not call.attrs["axes"]:
        return "no axis is reduced"
    if spec.dtype == "bool":
        return Refusal("bool has no native reduction", Cause.DTYPE)
    if block(spec, call.attrs["axes"]) is None:
        return f"axes {list(call.attrs['axes'])} are not neighbours"
    return dtype_obstacle([spec.dtype])


def _lower(name: str) -> Callable[[OpCall, DeviceInfo], Lowered]:
    def lower(call: OpCall, device: DeviceInfo) -> Lowered:  # noqa: ARG001 - the same
        spec = call.inputs[0]
        assert spec is not None
        view = block(spec, call.attrs["axes"])
        assert view is not None
        return Lowered((reduce_call(name, spec.dtype, view),))

    return lower


for _name in REDUCTIONS:
    kernel(f"cpu.reduce_{_name}", f"reduce_{_name}", ("cpu",), when=_fits, rank=20)(_lower(_name))


def reduce_call(name: str, dtype: str, view: tuple[int, int, int]) -> NativeCall:
    """Reduce the middle of ``[outer, n, inner]``."""

    def run(code: Code, w: Words) -> Run:
        def one(axis: Axis, outer: str, column: str) -> None:
            kind = LLVM_TYPES[dtype]
            start = code.add(code.mul(code.mul(outer, w["n"]), w["inner"]), column)
            source = code.at(w["in"], kind, start)
            at = code.at(w["out"], kind, code.add(code.mul(outer, w["inner"]), column))
            axis.store(_reduced(axis, name, source), at)

        return one

    return axis_call(f"reduce {name}", f"reduce {name}", dtype, view, run)


def _reduced(axis: Axis, name: str, source: str) -> Value:
    """The value of a reduction along an axis."""
    load, v = axis.load(source), axis.single
    if name in ("max", "min"):
        return _extreme(axis, name, source)
    if name == "product":
        return axis.fold(1, load, lambda vec, total, x: vec.arith("*", total, x))
    if name == "log_sum_exp":
        return _log_sum_exp(axis, source)

    def element(vector: Vector, index: str) -> Value:
        x = load(vector, index)
        if name == "l1":
            return vector.absolute(x)
        return vector.arith("*", x, x) if name in ("l2", "sum_square") else x

    total = axis.fold(0, element, lambda vec, sofar, x: vec.arith("+", sofar, x))
    if name == "mean":
        return v.arith("/", total, axis.count())
    if name == "l2":
        return v.intrinsic("sqrt", total)
    return cpu_math.log(v, total) if name == "log_sum" else total


def _extreme(axis: Axis, name: str, source: str) -> Value:
    if is_float(axis.kind):
        first = math.inf if name == "min" else -math.inf
    else:
        first = _integer_limit(axis.kind, lowest=name == "max")
    return axis.fold(first, axis.load(source), lambda vec, a, b: vec.extreme(name, a, b))


def _integer_limit(kind: str, *, lowest: bool) -> int:
    width = int(kind.lstrip("uint"))
    if kind.startswith("u"):
        return 0 if lowest else (1 << width) - 1
    return -(1 << (width - 1)) if lowest else (1 << (width - 1)) - 1


def _log_sum_exp(axis: Axis, source: str) -> Value:
    """Shifted by the maximum, unless that is infinite."""
    v, kind = axis.single, axis.kind
    peak = _extreme(axis, "max", source)
    finite = v.compare("<", v.absolute(peak), v.const(kind, math.inf))
    peak = v.select(finite, peak, v.const(kind, 0.0))

    def element(vector: Vector, index: str) -> Value:
        x = vector.arith("-", axis.load(source)(vector, index), axis.spread(vector, peak))
        return cpu_math.exp(vector, x)

    total = axis.fold(0, element, lambda vec, sofar, x: vec.arith("+", sofar, x))
    return v.arith("+", cpu_math.log(v, total), peak)


# --- pooling over whole images --------------------------------------------------------------------


def _global_fits(call: OpCall, device: DeviceInfo) -> str | None:  # noqa: ARG001 - the same
    spec, attrs = call.inputs[0], call.attrs
    assert spec is not None
    if attrs["layout"] != "nchw":
        return f"layout {attrs['layout']}, not nchw"
    if tuple(attrs["window_dimensions"]) != spec.dims[2:] or any(attrs["padding"]):
        return "the window is not the whole image"
    if any(d != 1 for d in attrs["dilations"]) or call.outputs[0].dims[2:] != (1, 1):
        return "the window is not the whole image"
    return dtype_obstacle([spec.dtype]) if spec.dtype in FLOATS else f"{spec.dtype} is no float"


def _lower_global(name: str) -> Callable[[OpCall, DeviceInfo], Lowered]:
    def lower(call: OpCall, device: DeviceInfo) -> Lowered:  # noqa: ARG001 - the same
        spec = call.inputs[0]
        assert spec is not None
        batch, channels, height, width = spec.dims
        view = (batch * channels, height * width, 1)
        return Lowered((reduce_call(name, spec.dtype, view),))

    return lower


for _name, _op in (("max", "max_pool2d"), ("mean", "average_pool2d"), ("l2", "l2_pool2d")):
    kernel(f"cpu.{_op}.global", _op, ("cpu",), when=_global_fits, rank=10)(_lower_global(_name))


# --- softmax --------------------------------------------------------------------------------------


def _softmax_fits(call: OpCall, device: DeviceInfo) -> str | None:  # noqa: ARG001 - the same
    return dtype_obstacle([call.outputs[0].dtype])


@kernel("cpu.softmax", "softmax", ("cpu",), when=_softmax_fits, rank=20)
def lower_softmax(call: OpCall, device: DeviceInfo) -> Lowered:  # noqa: ARG001 - the same
    """Lower a softmax to one native call of three passes over memory in the cache."""
    spec = call.outputs[0]
    view = block(spec, (call.attrs["axis"],))
    assert view is not None
    return Lowered((softmax_call(spec.dtype, view),))


def softmax_call(dtype: str, view: tuple[int, int, int]) -> NativeCall:
    """Softmax along the middle of ``[outer, n, inner]``."""

    def run(code: Code, w: Words) -> Run:
        def one(axis: Axis, outer: str, column: str) -> None:
            start = code.add(code.mul(code.mul(outer, w["n"]), w["inner"]), column)
            kind = LLVM_TYPES[dtype]
            _softmax(axis, code.at(w["in"], kind, start), code.at(w["out"], kind, start))

        return one

    return axis_call("softmax", "softmax", dtype, view, run)


def _softmax(axis: Axis, source: str, target: str) -> None:
    """exp(x - max) stored and summed, then scaled; half precision is not rounded in between."""
    peak = _extreme(axis, "max", source)
    kept = axis.kind == axis.dtype

    def raised(vector: Vector, index: str) -> Value:
        x = vector.arith("-", axis.load(source)(vector, index), axis.spread(vector, peak))
        return cpu_math.exp(vector, x)

    def stored(vector: Vector, index: str) -> Value:
        value = raised(vector, index)
        if kept:
            vector.store(value, axis.address(target, index), axis.dtype)
        return value

    total = axis.fold(0, stored, lambda vec, sofar, x: vec.arith("+", sofar, x))
    factor = axis.single.arith("/", axis.single.const(axis.kind, 1.0), total)

    def scale(vector: Vector, index: str) -> None:
        value = axis.load(target)(vector, index) if kept else raised(vector, index)
        scaled = vector.arith("*", value, axis.spread(vector, factor))
        vector.store(scaled, axis.address(target, index), axis.dtype)

    axis.each(scale)
