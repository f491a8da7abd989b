"""Elementwise ops and fused chains as native code, with broadcasting.

Dimensions are merged where every operand walks them alike, so that most calls are one loop over
contiguous memory or rows of it. A kernel is compiled for the number of loops, the operands' types
and whether each is contiguous or constant along a row; sizes and strides are arguments, so one
kernel serves all shapes of its kind. The same instructions are used in full vectors and in the
rest of a row: the bits of a result do not depend on where the work was split.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from crossdock.devices.base import DeviceInfo
from crossdock.devices.cpu_llvm import host_features
from crossdock.devices.program import In, Lowered, NativeCall, Out, Scalar, Slot
from crossdock.kernels.cpu_expression import calls_library, emit_body, obstacle, walk
from crossdock.kernels.cpu_ir import Code, compiled
from crossdock.kernels.cpu_vector import LLVM_TYPES, Value, Vector, bits
from crossdock.kernels.expression import Call
from crossdock.kernels.fused import FusedBody, FusedStep, body_of
from crossdock.kernels.refusal import Cause, Refusal
from crossdock.kernels.spec import OpCall
from crossdock.kernels.table import kernel
from crossdock.runtime.tensor import FLOATS, TensorSpec

GRAIN_SECONDS = 25e-6
"""A chunk of work below this is not worth handing to another thread."""


@dataclass(frozen=True)
class Nest:
    """The merged iteration space: sizes, outermost first, and each operand's strides."""

    sizes: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]

    @property
    def inner(self) -> int:
        """Elements in a row."""
        return self.sizes[-1]

    @property
    def rows(self) -> int:
        """Number of rows."""
        return math.prod(self.sizes[:-1])


def nest(shape: Sequence[int], operands: Sequence[Sequence[int]]) -> Nest:
    """Merge the dimensions of a result's shape for operands that broadcast to it."""
    strides = [_strides(shape, dims) for dims in operands]
    sizes: list[int] = []
    merged: list[list[int]] = [[] for _ in operands]
    for d, size in enumerate(shape):
        if size == 1:
            continue
        here = [s[d] for s in strides]
        if sizes and all(m[-1] == h * size for m, h in zip(merged, here, strict=True)):
            sizes[-1] *= size
            for m, h in zip(merged, here, strict=True):
                m[-1] = h
            continue
        sizes.append(size)
        for m, h in zip(merged, here, strict=True):
            m.append(h)
    if not sizes:
        return Nest((1,), tuple((0,) for _ in operands))
    return Nest(tuple(sizes), tuple(tuple(m) for m in merged))


def _strides(shape: Sequence[int], dims: Sequence[int]) -> list[int]:
    """Element strides of a dense operand along the result's dimensions; 0 where it repeats."""
    strides, step = [0] * len(shape), 1
    for back in range(1, len(dims) + 1):
        if dims[-back] != 1:
            strides[-back] = step
        step *= dims[-back]
    return strides


def _fits(call: OpCall, device: DeviceInfo) -> str | None:  # noqa: ARG001 - a candidate's guard
    body = body_of(call)
    if body is None:
        return f"{call.op} is not elementwise"
    why = dtype_obstacle([s.dtype for s in (*call.inputs, *call.outputs) if s is not None])
    return why or next((why for step in body.steps if (why := obstacle(step)) is not None), None)


def dtype_obstacle(dtypes: Sequence[str]) -> str | None:
    """Why native code cannot load and store elements of these types, or None."""
    if "float16" in dtypes and not host_features() & {"f16c", "neon", "fullfp16"}:
        return Refusal("this processor does not convert float16", Cause.DTYPE)
    return None


@kernel("cpu.elementwise", "*", ("cpu",), when=_fits, rank=20)
def lower_elementwise(call: OpCall, device: DeviceInfo) -> Lowered:  # noqa: ARG001 - the same
    """Lower an elementwise op, or a fused chain of them, to one native call."""
    body = body_of(call)
    assert body is not None
    body = with_known_powers(body, call)
    return Lowered((elementwise_call(body, call.inputs, call.outputs[0]),))


def with_known_powers(body: FusedBody, call: OpCall) -> FusedBody:
    """The body with powers by constants that are products, roots or reciprocals as such."""
    known = {
        i: float(array.reshape(-1)[0]) for i, array in call.constants.items() if array.size == 1
    }
    names = {2.0: "mul", 0.5: "sqrt", -1.0: "reciprocal"}
    steps = []
    for step in body.steps:
        exponent = known.get(step.args[1]) if step.op == "pow" else None
        if exponent in names and step.dtype in FLOATS:
            base, kind = step.args[0], step.inputs[0]
            count = 2 if exponent == 2.0 else 1
            step = replace(step, op=names[exponent], args=(base,) * count, inputs=(kind,) * count)
        steps.append(step)
    return FusedBody(tuple(steps))


def elementwise_call(
    body: FusedBody,
    inputs: Sequence[TensorSpec | None],
    output: TensorSpec,
    slots: Sequence[Slot] | None = None,
) -> NativeCall:
    """The native call of a body over operands ``slots`` (``In(i)``) into ``Out(0)``."""
    specs = [s for s in inputs if s is not None]
    assert len(specs) == len(inputs)
    space = nest(output.dims, [s.dims for s in specs])
    rows = tuple(s[-1] == 0 and space.inner > 1 for s in space.strides)
    outer = len(space.sizes) - 1
    types = ",".join(s.dtype + ("*" if fixed else "") for s, fixed in zip(specs, rows, strict=True))
    lanes = _lanes(body, [s.dtype for s in (*specs, output)])
    key = f"elementwise {outer} {lanes} {types}->{output.dtype} {body}"

    def write(code: Code) -> None:
        _Writer(code, body, [s.dtype for s in specs], output.dtype, rows, outer, lanes).write()

    words = (*space.sizes, *(s for strides in space.strides for s in strides[:-1]))
    cost = _seconds(body, [s.dtype for s in (*specs, output)])
    items = 1 if outer == 0 else space.inner
    return NativeCall(
        name="elementwise",
        address=compiled(key, write),
        args=(
            Out(0),
            *(slots or [In(i) for i in range(len(specs))]),
            *(Scalar(np.int64(w)) for w in words),
        ),
        extent=space.inner if outer == 0 else space.rows,
        grain=max(1, int(GRAIN_SECONDS / (cost * items))),
    )


def _lanes(body: FusedBody, dtypes: Sequence[str]) -> int:
    """Lanes of a vector: 64 bytes of 4-byte elements, fewer where calls are made lane by lane."""
    if any(calls_library(step) for step in body.steps):
        return 4
    kinds = (*dtypes, *(d for step in body.steps for d in (*step.inputs, step.dtype)))
    return 8 if any(bits(kind) == 64 for kind in kinds) else 16


def _seconds(body: FusedBody, dtypes: Sequence[str]) -> float:
    """A rough time an element, good enough to size chunks."""
    moved = sum(bits(d) // 8 for d in dtypes)
    return 0.05e-9 * moved + sum(_step_seconds(step) for step in body.steps)


HEAVY = frozenset({"exp", "log", "tanh", "erf", "normcdf"})
"""Functions of twenty operations and more."""


def _step_seconds(step: FusedStep) -> float:
    if calls_library(step):
        return 10e-9
    heavy = any(isinstance(n, Call) and n.fn in HEAVY for n in walk(step.expr()))
    return 1e-9 if heavy else 0.1e-9


class _Writer:
    """Writes the loops of one kernel.

    Words: result, operands, sizes (outermost first, the row's last), then for each operand its
    strides along the outer loops, all in elements.
    """

    def __init__(
        self,
        code: Code,
        body: FusedBody,
        inputs: Sequence[str],
        output: str,
        fixed: Sequence[bool],
        outer: int,
        lanes: int,
    ) -> None:
        self.code = code
        self.body = body
        self.inputs = inputs
        self.output = output
        self.fixed = fixed
        self.outer = outer
        self.lanes = lanes

    def write(self) -> None:
        """Append the whole function."""
        code, count = self.code, len(self.inputs)
        target = code.pointer(0)
        sources = [code.pointer(1 + i) for i in range(count)]
        sizes = [code.word(1 + count + d) for d in range(self.outer + 1)]
        if self.outer == 0:
            self.row(target, sources, "%begin", "%end")
            return
        first = 2 + count + self.outer
        strides = [
            [code.word(first + i * self.outer + d) for d in range(self.outer)] for i in range(count)
        ]
        start = self.split("%begin", sizes)
        with code.loop("%begin", "%end", carried=[("i64", s) for s in start]) as rows:
            place = rows.values
            at = code.at(target, LLVM_TYPES[self.output], code.mul(rows.index, sizes[-1]))
            here = [
                code.at(source, LLVM_TYPES[dtype], self.offset(place, strides[i]))
                for i, (source, dtype) in enumerate(zip(sources, self.inputs, strict=True))
            ]
            self.row(at, here, "0", sizes[-1])
            rows.next = self.following(place, sizes)

    def split(self, row: str, sizes: Sequence[str]) -> list[str]:
        """The index along each outer loop of a row number."""
        place: list[str] = []
        for d in range(self.outer - 1, 0, -1):
            place.append(self.code.rem(row, sizes[d]))
            row = self.code.div(row, sizes[d])
        return [self.code.add(row, 0), *reversed(place)]

    def following(self, place: Sequence[str], sizes: Sequence[str]) -> list[str]:
        """The indices of the next row."""
        after: list[str] = []
        carry = "1"
        for d in range(self.outer - 1, 0, -1):
            up = self.code.add(place[d], carry)
            full = self.code.let(f"icmp eq i64 {up}, {sizes[d]}")
            after.append(self.code.select(full, 0, up))
            carry = self.code.let(f"zext i1 {full} to i64")
        return [self.code.add(place[0], carry), *reversed(after)]

    def offset(self, place: Sequence[str], strides: Sequence[str]) -> str:
        """Where an operand's row begins, in elements."""
        total = self.code.mul(place[0], strides[0])
        for index, stride in zip(place[1:], strides[1:], strict=True):
            total = self.code.add(total, self.code.mul(index, stride))
        return total

    def row(self, target: str, sources: Sequence[str], begin: str, end: str) -> None:
        """Whole vectors, then the elements that are left."""
        wide, one = Vector(self.code, self.lanes), Vector(self.code, 1)
        fixed = {
            i: one.load(source, self.inputs[i]) for i, source in enumerate(sources) if self.fixed[i]
        }
        splat = {i: wide.splat(value) for i, value in fixed.items()}
        last = self.code.add(self.code.sub(end, self.lanes), 1)
        with self.code.loop(begin, last, self.lanes) as loop:
            self.element(wide, target, sources, splat, loop.index)
        whole = self.code.let(f"sub i64 {end}, {begin}")
        rest = self.code.let(f"and i64 {whole}, {self.lanes - 1}")
        with self.code.loop(self.code.sub(end, rest), end) as loop:
            self.element(one, target, sources, fixed, loop.index)

    def element(
        self,
        vector: Vector,
        target: str,
        sources: Sequence[str],
        fixed: dict[int, Value],
        index: str,
    ) -> None:
        """Load, compute and store the lanes at ``index``."""
        values: list[Value] = []
        for i, (source, dtype) in enumerate(zip(sources, self.inputs, strict=True)):
            if i in fixed:
                values.append(fixed[i])
            else:
                at = self.code.at(source, LLVM_TYPES[dtype], index)
                values.append(vector.load(at, dtype))
        result = emit_body(vector, self.body, values)
        at = self.code.at(target, LLVM_TYPES[self.output], index)
        vector.store(result, at, self.output)
