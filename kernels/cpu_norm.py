"""Layer, instance and batch normalisation on the host."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from crossdock.devices.base import DeviceInfo
from crossdock.devices.program import (
    Argument,
    In,
    Lowered,
    NativeCall,
    Out,
    Pack,
    Packed,
    Scalar,
)
from crossdock.kernels.cpu_axis import Axis, write_axes
from crossdock.kernels.cpu_elementwise import dtype_obstacle, elementwise_call
from crossdock.kernels.cpu_ir import Code, compiled
from crossdock.kernels.cpu_reduce import GRAIN_ELEMENTS, block
from crossdock.kernels.cpu_rows import Words, words
from crossdock.kernels.cpu_vector import LLVM_TYPES, Value, Vector
from crossdock.kernels.fused import FusedBody, FusedStep
from crossdock.kernels.refusal import Cause, Refusal
from crossdock.kernels.spec import OpCall
from crossdock.kernels.table import kernel
from crossdock.runtime.tensor import Array, TensorSpec

WORDS = ("out", "in", "scale", "bias", "n", "channels", "epsilon")


@dataclass(frozen=True)
class Affine:
    """What comes after centring: operands or none, one value a row or one an element."""

    scale: bool
    bias: bool
    by_row: bool

    def __str__(self) -> str:
        return f"{'s' * self.scale}{'b' * self.bias}{'r' * self.by_row}"


def _there(call: OpCall, index: int) -> bool:
    return len(call.inputs) > index and call.inputs[index] is not None


def _layer_fits(call: OpCall, device: DeviceInfo) -> str | None:  # noqa: ARG001 - a guard
    spec, axes = call.outputs[0], call.attrs["axes"]
    if not axes:
        return "no axis is normalised"
    if tuple(axes) != tuple(range(spec.rank - len(axes), spec.rank)):
        return f"axes {list(axes)} are not the last ones in order"
    return dtype_obstacle([spec.dtype])


@kernel("cpu.layer_normalization", "layer_normalization", ("cpu",), when=_layer_fits, rank=20)
def lower_layer(call: OpCall, device: DeviceInfo) -> Lowered:  # noqa: ARG001 - the same
    """Lower a layer normalisation over the last axes to one native call."""
    view = block(call.outputs[0], call.attrs["axes"])
    assert view is not None
    outer, n, inner = view
    affine = Affine(_there(call, 1), _there(call, 2), by_row=False)
    return Lowered((_centre_call(call, affine, outer, n * inner, 1),))


def _instance_fits(call: OpCall, device: DeviceInfo) -> str | None:  # noqa: ARG001 - the same
    if call.attrs["layout"] != "nchw":
        return f"layout {call.attrs['layout']}, not nchw"
    return dtype_obstacle([call.outputs[0].dtype])


@kernel(
    "cpu.instance_normalization", "instance_normalization", ("cpu",), when=_instance_fits, rank=20
)
def lower_instance(call: OpCall, device: DeviceInfo) -> Lowered:  # noqa: ARG001 - the same
    """Lower an instance normalisation: a row is a channel's image."""
    batch, channels, height, width = call.outputs[0].dims
    affine = Affine(_there(call, 1), _there(call, 2), by_row=True)
    return Lowered((_centre_call(call, affine, batch * channels, height * width, channels),))


def _centre_call(call: OpCall, affine: Affine, rows: int, n: int, channels: int) -> NativeCall:
    dtype = call.outputs[0].dtype
    slots: dict[str, Argument] = {
        "out": Out(0),
        "in": In(0),
        "scale": In(1) if affine.scale else In(0),
        "bias": In(2) if affine.bias else In(0),
        "epsilon": Scalar(np.float64(call.attrs["epsilon"])),
    }
    return NativeCall(
        name=call.op,
        address=compiled(
            f"centre {dtype} {affine}", lambda code: _write_centre(code, dtype, affine)
        ),
        args=words(WORDS, slots, {"n": n, "channels": channels}),
        extent=rows,
        grain=max(1, GRAIN_ELEMENTS // max(1, n)),
    )


def _write_centre(code: Code, dtype: str, affine: Affine) -> None:
    w = Words(code, WORDS, 4)

    def one(axis: Axis, row: str, column: str) -> None:  # noqa: ARG001 - rows have no columns
        llvm, start = LLVM_TYPES[dtype], code.mul(row, w["n"])
        source, target = code.at(w["in"], llvm, start), code.at(w["out"], llvm, start)
        channel = code.rem(row, w["channels"])
        _centre(axis, affine, (source, target), (w["scale"], w["bias"]), channel, w["epsilon"])

    write_axes(code, dtype, (w["n"], "1"), ("%begin", "%end"), one, rows=True)


def _centre(
    axis: Axis,
    affine: Affine,
    arrays: tuple[str, str],
    operands: tuple[str, str],
    channel: str,
    epsilon: str,
) -> None:
    """(x - mean) / sqrt(variance + epsilon), scaled and shifted; the variance in a second pass."""
    code, one, kind = axis.code, axis.single, axis.kind
    source, target = arrays
    load = axis.load(source)

    def add(vector: Vector, total: Value, x: Value) -> Value:
        return vector.arith("+", total, x)

    mean = one.arith("/", axis.fold(0, load, add), axis.count())

    def square(vector: Vector, index: str) -> Value:
        away = vector.arith("-", load(vector, index), axis.spread(vector, mean))
        return vector.arith("*", away, away)

    variance = one.arith("/", axis.fold(0, square, add), axis.count())
    wide = Value(code.let(f"bitcast i64 {epsilon} to double"), "float64")
    spread = one.intrinsic("sqrt", one.arith("+", variance, one.convert(wide, kind)))
    factor = one.arith("/", one.const(kind, 1.0), spread)
    shift: Value | None = None
    if affine.by_row and affine.scale:
        at = axis.address(operands[0], channel)
        factor = one.arith("*", factor, one.load(at, axis.dtype))
    if affine.by_row and affine.bias:
        shift = one.load(axis.address(operands[1], channel), axis.dtype)

    def body(vector: Vector, index: str) -> None:
        y = vector.arith("-", load(vector, index), axis.spread(vector, mean))
        y = vector.arith("*", y, axis.spread(vector, factor))
        if affine.scale and not affine.by_row:
            y = vector.arith("*", y, axis.load(operands[0])(vector, index))
        if shift is not None:
            y = vector.arith("+", y, axis.spread(vector, shift))
        elif affine.bias:
            y = vector.arith("+", y, axis.load(operands[1])(vector, index))
        vector.store(y, axis.address(target, index), axis.dtype)

    axis.each(body)


# --- batch normalisation --------------------------------------------------------------------------


def _batch_fits(call: OpCall, device: DeviceInfo) -> str | None:  # noqa: ARG001 - a guard
    if call.outputs[0].dtype not in ("float32", "float64"):
        return Refusal(f"{call.outputs[0].dtype}, not float32 or float64", Cause.DTYPE)
    if any(_there(call, i) and i not in call.constants for i in range(1, 5)):
        return "its statistics are not constant"
    return None


@kernel("cpu.batch_normalization", "batch_normalization", ("cpu",), when=_batch_fits, rank=20)
def lower_batch(call: OpCall, device: DeviceInfo) -> Lowered:  # noqa: ARG001 - the same
    """Lower a batch normalisation with constant statistics: a sum, a product and a sum.

    The mean is taken off first: one multiply-add, with the mean in its constant, would lose the
    digits of results that are small beside it.
    """
    out = call.outputs[0]
    axis = call.attrs["axis"]
    channels = TensorSpec(out.dtype, tuple(d if i == axis else 1 for i, d in enumerate(out.dims)))
    kinds = (out.dtype, out.dtype)
    names = ("sub", "mul", "add") if _there(call, 4) else ("sub", "mul")
    body = FusedBody(
        tuple(FusedStep(name, {}, (-i, i + 1), out.dtype, kinds) for i, name in enumerate(names))
    )
    packs = tuple(
        Pack(lambda which=which: _batch_vector(call, which).reshape(channels.dims), channels)  # type: ignore[misc]
        for which in names
    )
    step = elementwise_call(
        body,
        [out, *[channels] * len(packs)],
        out,
        [In(0), *(Packed(i) for i in range(len(packs)))],
    )
    return Lowered((step,), (), packs, frozenset(range(1, len(call.inputs))))


def _batch_vector(call: OpCall, step: str) -> Array:
    """The channels' second operand of a step; the scale is computed in float64."""
    if step != "mul":
        return call.constants[1 if step == "sub" else 4]
    scale = 1.0 / np.sqrt(call.constants[2].astype(np.float64) + call.attrs["epsilon"])
    if _there(call, 3):
        scale = scale * call.constants[3]
    vector: Array = scale.astype(call.outputs[0].dtype)
    return vector
