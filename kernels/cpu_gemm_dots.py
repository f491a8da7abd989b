"""General products of few rows with a transposed matrix: dot products at the speed of memory.

Fully connected layers read every weight once for each run, so the rate of memory is the bound. Rows
of the matrix are read several at a time, which keeps several streams of the hardware's prefetcher
going, and lines further ahead are asked for in time. The sums start from the addend.
"""

from __future__ import annotations

import numpy as np

from crossdock.devices.base import DeviceInfo
from crossdock.devices.program import Argument, In, Lowered, NativeCall, Out, Scalar
from crossdock.kernels.cpu_conv_pack import tile_shape
from crossdock.kernels.cpu_ir import Code, compiled
from crossdock.kernels.cpu_rows import RowReader, Words, register_lanes, words
from crossdock.kernels.cpu_vector import Value, Vector
from crossdock.kernels.refusal import Cause, Refusal
from crossdock.kernels.spec import OpCall
from crossdock.kernels.table import kernel
from crossdock.runtime.tensor import TensorSpec

MOST_ROWS = 8
"""Rows of the left operand, at most."""
UNROLL = 4
AHEAD_BYTES = 2048
GRAIN_BYTES = 1 << 19
WORDS = ("out", "a", "b", "addend", "n", "k", "alpha", "beta")


def _fits(call: OpCall, device: DeviceInfo) -> str | None:  # noqa: ARG001 - a candidate's guard
    attrs, out = call.attrs, call.outputs[0]
    if out.dtype != "float32":
        return Refusal(f"{out.dtype}, not float32", Cause.DTYPE)
    if attrs["a_transpose"] or not attrs["b_transpose"]:
        return "the right operand alone must be transposed"
    if out.dims[0] > MOST_ROWS:
        return Refusal(f"more than {MOST_ROWS} rows", Cause.SIZE)
    addend = call.inputs[2] if len(call.inputs) > 2 else None
    if addend is not None and not is_row(addend, out.dims[1]):
        return "the addend is no row of the result's length"
    return None


def is_row(spec: TensorSpec, length: int) -> bool:
    """Whether an operand is one row of that length: a column may have as many elements."""
    return (spec.size, *spec.dims[-1:]) == (length, length)


@kernel("cpu.gemm.dots", "gemm", ("cpu",), when=_fits, rank=18)
def lower_dots(call: OpCall, device: DeviceInfo) -> Lowered:  # noqa: ARG001 - the same
    """Lower a general product of few rows to one native call."""
    attrs, a = call.attrs, call.inputs[0]
    assert a is not None
    (m, n), k = call.outputs[0].dims, a.dims[1]
    added = len(call.inputs) > 2 and call.inputs[2] is not None and attrs["beta"] != 0.0
    lanes = register_lanes()
    columns = columns_for(m)
    slots: dict[str, Argument] = {
        "out": Out(0), "a": In(0), "b": In(1), "addend": In(2) if added else In(0),
        "alpha": Scalar(np.float64(attrs["alpha"])), "beta": Scalar(np.float64(attrs["beta"])),
    }  # fmt: skip
    step = NativeCall(
        name="gemm dots",
        address=compiled(
            f"gemm dots {m}x{columns}x{lanes} {added}",
            lambda code: _Writer(code, m, lanes, added=added).write(columns),
        ),
        args=words(WORDS, slots, {"n": n, "k": k}),
        extent=n,
        grain=max(columns, GRAIN_BYTES // (4 * k)),
        align=columns,
    )
    return Lowered((step,))


def columns_for(m: int) -> int:
    """Rows of the matrix that are read at a time: their sums fill about half of the registers."""
    sums = 16 if tile_shape().rows >= 8 else 8
    return max(1, min(4, sums // m))


class _Writer:
    """Writes the kernel for ``m`` rows."""

    def __init__(self, code: Code, m: int, lanes: int, *, added: bool) -> None:
        self.code, self.m, self.lanes, self.added = code, m, lanes, added
        self.w = Words(code, WORDS, 4)
        self.vector = Vector(code, lanes)
        self.kind = f"<{lanes} x float>"
        alpha, beta = (
            code.let(f"bitcast i64 {self.w[name]} to double") for name in ("alpha", "beta")
        )
        self.alpha = code.let(f"fptrunc double {alpha} to float")
        self.beta = code.let(f"fptrunc double {beta} to float")

    def write(self, columns: int) -> None:
        """Append the whole function: several rows of the matrix at a time, then one by one."""
        code = self.code
        count = code.sub("%end", "%begin")
        whole = code.sub(count, code.rem(count, columns))
        middle = code.add("%begin", whole)
        with code.loop("%begin", middle, columns) as blocks:
            self.block(blocks.index, columns)
        with code.loop(middle, "%end") as blocks:
            self.block(blocks.index, 1)

    def block(self, first: str, columns: int) -> None:
        """The dot products of all rows with ``columns`` rows of the matrix."""
        code, w, m = self.code, self.w, self.m
        rows = [code.at(w["a"], "float", code.mul(w["k"], i)) for i in range(m)]
        lines = [
            code.at(w["b"], "float", code.mul(code.add(first, c), w["k"])) for c in range(columns)
        ]
        zero = self.vector.const("float32", 0.0).name
        carried = [(self.kind, zero)] * (m * columns)
        step = UNROLL * self.lanes
        with code.loop(0, code.sub(w["k"], step - 1), step, carried) as main:
            sums = list(main.values)
            for u in range(UNROLL):
                at = code.add(main.index, u * self.lanes)
                self.advance(sums, rows, lines, at, None)
            main.next = sums
        done = code.sub(w["k"], code.rem(w["k"], step))
        again = list(zip([k for k, _ in carried], main.values, strict=True))
        with code.loop(done, w["k"], self.lanes, again) as rest:
            sums = list(rest.values)
            mask = RowReader(code, self.vector, w["k"], 1, "1").mask(rest.index)
            self.advance(sums, rows, lines, rest.index, mask)
            rest.next = sums
        self.finish(first, columns, rest.values)

    def advance(
        self, sums: list[str], rows: list[str], lines: list[str], at: str, mask: str | None
    ) -> None:
        """One vector of every row and of every line of the matrix."""
        code, v = self.code, self.vector
        reader = RowReader(code, v, self.w["k"], 1, "1")

        def load(row: str) -> Value:
            return reader.load(row, at) if mask is None else reader.load_masked(row, at, mask)

        fetch = code.declare("llvm.prefetch.p0", "void @(ptr, i32, i32, i32)")
        left = [load(row) for row in rows]
        for c, line in enumerate(lines):
            if mask is None:
                ahead = code.at(line, "float", code.add(at, AHEAD_BYTES // 4))
                code.do(f"call void {fetch}(ptr {ahead}, i32 0, i32 2, i32 1)")
            right = load(line)
            for i, value in enumerate(left):
                at_sum = i * len(lines) + c
                total = Value(sums[at_sum], "float32")
                sums[at_sum] = v.fma(right, value, total).name

    def finish(self, first: str, columns: int, sums: tuple[str, ...]) -> None:
        """Add up the lanes; scale, add, store."""
        code, w = self.code, self.w
        for c in range(columns):
            column = code.add(first, c)
            start = None
            if self.added:
                addend = code.load("float", code.at(w["addend"], "float", column))
                start = code.let(f"fmul float {addend}, {self.beta}")
            for i in range(self.m):
                total = self.vector.halved(
                    Value(sums[i * columns + c], "float32"), lambda h, x, y: h.arith("+", x, y)
                )
                made = code.let(f"fmul float {total.name}, {self.alpha}")
                if start is not None:
                    made = code.let(f"fadd float {made}, {start}")
                code.store("float", made, code.at(w["out"], "float",
                           code.add(code.mul(w["n"], i), column)))  # fmt: skip
