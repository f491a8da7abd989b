"""lstm on the host: the input's part of all steps is one product, then one native call.

That call walks the steps: the product with the recurrent weights adds to the gates, which a
vector loop then turns into the next state. Directions are independent items.
"""

from __future__ import annotations

import numpy as np

from crossdock.devices.base import DeviceInfo
from crossdock.devices.cpu_blas import blas, routine
from crossdock.devices.program import Argument, In, Lowered, NativeCall, Out, Scalar, Scratch
from crossdock.kernels import cpu_math
from crossdock.kernels.cpu_axis import Row
from crossdock.kernels.cpu_blas_call import PLAIN, TRANSPOSED, BlasCall
from crossdock.kernels.cpu_ir import Code, compiled
from crossdock.kernels.cpu_matmul import Product, gemm_call
from crossdock.kernels.cpu_rows import Words, words
from crossdock.kernels.cpu_vector import Value, Vector
from crossdock.kernels.refusal import Cause, Refusal
from crossdock.kernels.spec import OpCall
from crossdock.kernels.table import kernel

WEIGHT, RECURRENT, BIAS, RECURRENT_BIAS, PEEPHOLE, HIDDEN, CELL = range(1, 8)
OPTIONAL = (BIAS, RECURRENT_BIAS, HIDDEN, CELL)
WORDS = (
    "last_h", "last_c", "sequence", "drive", "recurrent", "bias", "recurrent_bias", "h0", "c0",
    "blas", "steps", "batch", "hidden", "directions", "backward", "one",
)  # fmt: skip
POINTERS = 10


def _there(call: OpCall, index: int) -> bool:
    return len(call.inputs) > index and call.inputs[index] is not None


def _fits(call: OpCall, device: DeviceInfo) -> str | None:  # noqa: ARG001 - a candidate's guard
    if call.outputs[0].dtype != "float32":
        return Refusal(f"{call.outputs[0].dtype}, not float32", Cause.DTYPE)
    if _there(call, PEEPHOLE):
        return "peephole weights"
    if tuple(call.attrs["activations"]) != ("sigmoid", "tanh", "tanh"):
        return f"activations {', '.join(call.attrs['activations'])}"
    return None if blas() is not None else Refusal("numpy's BLAS is not OpenBLAS", Cause.LIBRARY)


@kernel("cpu.lstm", "lstm", ("cpu",), when=_fits, rank=20, steady=False)
def lower_lstm(call: OpCall, device: DeviceInfo) -> Lowered:  # noqa: ARG001 - the same
    """Lower an lstm to one product and one call over the steps."""
    image, weight = call.inputs[0], call.inputs[WEIGHT]
    library = blas()
    assert image is not None
    assert weight is not None
    assert library is not None
    steps, batch, width = image.dims
    directions, gates, _ = weight.dims
    drive = Product(
        "float32", steps * batch, gates, width, b_transposed=True,
        batch=directions, b_stride=gates * width,
    )  # fmt: skip
    present = tuple(_there(call, i) for i in OPTIONAL)
    sequence, order = bool(call.attrs["return_sequence"]), call.attrs["layout"]
    slots: dict[str, Argument] = {
        "last_h": Out(0), "last_c": Out(1), "sequence": Out(2) if sequence else Out(0),
        "drive": Scratch(0), "recurrent": In(RECURRENT),
        "blas": routine("sgemv" if batch == 1 else "sgemm"),
        "one": Scalar(np.float64(1.0)),
    }  # fmt: skip
    names = ("bias", "recurrent_bias", "h0", "c0")
    for name, index, there in zip(names, OPTIONAL, present, strict=True):
        slots[name] = In(index) if there else In(0)
    numbers = {
        "steps": steps, "batch": batch, "hidden": gates // 4, "directions": directions,
        "backward": int(call.attrs["direction"] == "backward"),
    }  # fmt: skip
    key = f"lstm {order} {present} {sequence} {batch == 1} {library.wide}"
    writer = compiled(
        key, lambda code: _Writer(code, order, present, sequence, batch == 1, library.wide).write()
    )
    walk = NativeCall("lstm", writer, words(WORDS, slots, numbers), directions, blas=True)
    scratch = 4 * directions * steps * batch * gates
    return Lowered((gemm_call(drive, Scratch(0), In(0), In(WEIGHT)), walk), (scratch,))


class _Writer:
    """Writes the walk over the steps for a layout of the gates and the operands that are there."""

    def __init__(
        self,
        code: Code,
        order: str,
        present: tuple[bool, ...],
        sequence: bool,
        single: bool,
        wide: bool,
    ) -> None:
        self.code = code
        self.order = order
        self.bias, self.recurrent_bias, self.h0, self.c0 = present
        self.sequence = sequence
        self.single = single
        self.wide = wide
        self.w = Words(code, WORDS, POINTERS)
        self.rows = code.mul(self.w["hidden"], 4)

    def write(self) -> None:
        """Append the whole function."""
        code, w = self.code, self.w
        state = code.mul(w["batch"], w["hidden"])
        drive = code.mul(w["batch"], self.rows)
        with code.loop("%begin", "%end") as items:
            d = items.index
            h, c = (self.at(n, code.mul(d, state)) for n in ("last_h", "last_c"))
            self.begin(h, "h0" if self.h0 else "", code.mul(d, state), state)
            self.begin(c, "c0" if self.c0 else "", code.mul(d, state), state)
            recurrent = self.at("recurrent", code.mul(code.mul(d, self.rows), w["hidden"]))
            first = self.at("drive", code.mul(code.mul(d, w["steps"]), drive))
            back = code.let(f"or i64 {w['backward']}, {d}")
            with code.loop(0, w["steps"]) as times:
                mirrored = code.sub(code.sub(w["steps"], 1), times.index)
                t = code.select(code.equal(back, 0), times.index, mirrored)
                gates = code.at(first, "float", code.mul(t, drive))
                self.product(h, recurrent, gates)
                place = code.mul(code.add(code.mul(t, w["directions"]), d), state)
                with code.loop(0, w["batch"]) as batch:
                    self.update(batch.index, d, gates, (h, c), self.at("sequence", place))

    def at(self, name: str, offset: str) -> str:
        return self.code.at(self.w[name], "float", offset)

    def begin(self, state: str, source: str, offset: str, size: str) -> None:
        """The first state: given, or zero."""

        def body(vector: Vector, index: str) -> None:
            value = vector.const("float32", 0.0)
            if source:
                value = vector.load(
                    self.code.at(self.at(source, offset), "float", index), "float32"
                )
            vector.store(value, self.code.at(state, "float", index), "float32")

        Row(self.code, "float32", size, 16).each(body)

    def product(self, h: str, recurrent: str, gates: str) -> None:
        """Add the recurrent part to the gates."""
        w = self.w
        call = BlasCall(self.code, "float32", self.wide, w["blas"])
        one = call.scale(w["one"])
        if self.single:
            call.gemv(
                str(PLAIN), (self.rows, w["hidden"]), (one, one), (recurrent, w["hidden"]), h, gates
            )
            return
        call.gemm(
            (str(PLAIN), str(TRANSPOSED)), (w["batch"], self.rows, w["hidden"]), (one, one),
            (h, w["hidden"]), (recurrent, w["hidden"]), (gates, self.rows),
        )  # fmt: skip

    def update(
        self, row: str, direction: str, gates: str, states: tuple[str, str], sequence: str
    ) -> None:
        """The next state of one row of the batch."""
        code, hidden = self.code, self.w["hidden"]
        line = code.mul(row, hidden)
        h, c, kept = (code.at(p, "float", line) for p in (*states, sequence))
        gates = code.at(gates, "float", code.mul(row, self.rows))
        own = code.mul(direction, self.rows)
        extra = [
            self.at(name, own)
            for name, there in (("bias", self.bias), ("recurrent_bias", self.recurrent_bias))
            if there
        ]
        starts = {gate: code.mul(hidden, k) for k, gate in enumerate(self.order)}

        def body(vector: Vector, index: str) -> None:
            def gate(name: str) -> Value:
                place = code.add(starts[name], index)
                total = vector.load(code.at(gates, "float", place), "float32")
                for bias in extra:
                    more = vector.load(code.at(bias, "float", place), "float32")
                    total = vector.arith("+", total, more)
                return total

            at = code.at(c, "float", index)
            forget = vector.arith("*", sigmoid(vector, gate("f")), vector.load(at, "float32"))
            fresh = cpu_math.tanh(vector, gate("g"))
            cell = vector.fma(sigmoid(vector, gate("i")), fresh, forget)
            out = vector.arith("*", sigmoid(vector, gate("o")), cpu_math.tanh(vector, cell))
            vector.store(cell, at, "float32")
            vector.store(out, code.at(h, "float", index), "float32")
            if self.sequence:
                vector.store(out, code.at(kept, "float", index), "float32")

        Row(code, "float32", hidden, 8).each(body)


def sigmoid(vector: Vector, x: Value) -> Value:
    """1 / (1 + exp(-x))."""
    one = vector.const("float32", 1.0)
    return vector.arith("/", one, vector.arith("+", one, cpu_math.exp(vector, vector.neg(x))))
