"""Local response normalisation over channels on the host."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from crossdock.devices.base import DeviceInfo
from crossdock.devices.program import Argument, In, Lowered, NativeCall, Out, Scalar
from crossdock.kernels import cpu_math
from crossdock.kernels.cpu_axis import Row
from crossdock.kernels.cpu_ir import Code, compiled
from crossdock.kernels.cpu_rows import Words, words
from crossdock.kernels.cpu_vector import Value, Vector
from crossdock.kernels.spec import OpCall
from crossdock.kernels.table import kernel

LANES = 16
GRAIN_CELLS = 10_000
WORDS = ("out", "in", "channels", "plane", "size", "alpha", "beta", "bias")


def _fits(call: OpCall, device: DeviceInfo) -> str | None:  # noqa: ARG001 - a candidate's guard
    dtype = call.outputs[0].dtype
    return None if dtype == "float32" else f"{dtype}, not float32"


@kernel("cpu.lrn", "lrn", ("cpu",), when=_fits, rank=20)
def lower_lrn(call: OpCall, device: DeviceInfo) -> Lowered:  # noqa: ARG001 - the same
    """Lower to one native call: an item is a channel of an image."""
    dims, attrs = call.outputs[0].dims, call.attrs
    plane = math.prod(dims[2:])
    slots: dict[str, Argument] = {
        "out": Out(0),
        "in": In(0),
        "alpha": Scalar(np.float64(attrs["alpha"] / attrs["size"])),
        "beta": Scalar(np.float64(-attrs["beta"])),
        "bias": Scalar(np.float64(attrs["bias"])),
    }
    usual = attrs["beta"] == 0.75
    step = NativeCall(
        name="lrn",
        address=compiled(f"lrn {usual}", lambda code: _write(code, usual)),
        args=words(WORDS, slots, {"channels": dims[1], "plane": plane, "size": attrs["size"]}),
        extent=dims[0] * dims[1],
        grain=max(1, GRAIN_CELLS // max(1, plane)),
    )
    return Lowered((step,))


@dataclass(frozen=True)
class Line:
    """A channel: its image, its result, where it begins in the image, its neighbours."""

    source: str
    target: str
    own: str
    low: str
    high: str


def _write(code: Code, usual: bool) -> None:
    """X * (bias + alpha * sum of squares) ** -beta; for beta 3/4 the power is made of roots."""
    w = Words(code, WORDS, 2)
    alpha, beta, bias = (_number(code, w[name]) for name in ("alpha", "beta", "bias"))
    with code.loop("%begin", "%end") as items:
        channel = code.rem(items.index, w["channels"])
        image = code.mul(code.sub(items.index, channel), w["plane"])
        source = code.at(w["in"], "float", image)
        target = code.at(w["out"], "float", code.mul(items.index, w["plane"]))
        own = code.mul(channel, w["plane"])
        before = code.div(code.sub(w["size"], 1), 2)
        first = code.sub(channel, before)
        low = code.greatest(first, 0)
        high = code.least(code.add(first, w["size"]), w["channels"])

        line = Line(source, target, own, low, high)
        Row(code, "float32", w["plane"], LANES).each(
            lambda vector, index, line=line: _cells(  # type: ignore[misc]
                vector, index, line, w["plane"], (alpha, beta, bias), usual
            )
        )


def _cells(
    vector: Vector,
    index: str,
    line: Line,
    plane: str,
    factors: tuple[Value, Value, Value],
    usual: bool,
) -> None:
    """One vector of pixels of a channel."""
    code, (alpha, beta, bias) = vector.code, factors

    def at(offset: str) -> Value:
        return vector.load(code.at(line.source, "float", code.add(offset, index)), "float32")

    zero = vector.const("float32", 0.0).name
    with code.loop(line.low, line.high, 1, [(vector.t("float32"), zero)]) as near:
        x = at(code.mul(near.index, plane))
        near.next = [vector.fma(x, x, Value(near.values[0], "float32")).name]
    total = Value(near.values[0], "float32")
    base = vector.fma(total, vector.splat(alpha), vector.splat(bias))
    value = vector.arith("*", at(line.own), _power(vector, base, beta, usual))
    vector.store(value, code.at(line.target, "float", index), "float32")


def _number(code: Code, word: str) -> Value:
    wide = code.let(f"bitcast i64 {word} to double")
    return Value(code.let(f"fptrunc double {wide} to float"), "float32")


def _power(vector: Vector, base: Value, exponent: Value, usual: bool) -> Value:
    if usual:
        root = vector.intrinsic("sqrt", base)
        product = vector.arith("*", root, vector.intrinsic("sqrt", root))
        return vector.arith("/", vector.const("float32", 1.0), product)
    scaled = vector.arith("*", cpu_math.log(vector, base), vector.splat(exponent))
    return cpu_math.exp(vector, scaled)
