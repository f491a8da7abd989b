"""Emulation: an op without a kernel of its own on a device runs as its decomposition's kernels.

The op stays one op of the graph and of the plan. Its parts' steps run one after the other; what
they pass on lives in scratch buffers, and the constants that a decomposition makes are packed.
Emulation is asked for only where no other kernel fits (``table.candidates``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from crossdock.devices.base import DeviceInfo
from crossdock.devices.program import (
    Argument,
    GridLaunch,
    In,
    Lowered,
    Out,
    Pack,
    Packed,
    Scratch,
    Slot,
)
from crossdock.kernels import table
from crossdock.kernels.ops_rules import MANY, bare
from crossdock.kernels.signature import named_arguments
from crossdock.kernels.spec import Kernel, OpCall
from crossdock.kernels.table import kernel
from crossdock.runtime.errors import ShapeError, UnsupportedOp
from crossdock.runtime.tensor import Array, TensorSpec, to_numpy

KINDS = ("opencl",)
"""Kinds that run no array calls: others have a kernel for every op."""


@dataclass(eq=False)
class Part:
    """A value inside a decomposition; ``value`` is its array where it is a constant."""

    spec: TensorSpec
    value: Array | None = None
    alias: Part | None = None

    @property
    def dtype(self) -> str:
        """Element type."""
        return self.spec.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the dimensions."""
        return self.spec.dims

    @property
    def rank(self) -> int:
        """Number of dimensions."""
        return self.spec.rank

    @property
    def root(self) -> Part:
        """The value whose bytes this is."""
        return self if self.alias is None else self.alias.root


@dataclass
class Steps:
    """The builder a decomposition writes with: it keeps the calls it is asked for."""

    calls: list[tuple[OpCall, list[Part | None], list[Part]]] = field(default_factory=list)

    def constant(self, value: Any, dtype: str | None = None) -> Part:
        """A constant from an array, or from numbers with an element type."""
        array = np.asarray(value, dtype=None if dtype is None else to_numpy(dtype))
        return Part(TensorSpec.of(array), np.ascontiguousarray(array).reshape(array.shape))

    def __getattr__(self, name: str) -> Callable[..., Any]:
        spec = table.op(name)

        def call(*args: Any, **options: Any) -> Any:
            options.pop("label", None)
            given = named_arguments(spec, args, options)
            operands: list[Part | None] = []
            for mark in spec.operands:
                value = given.pop(bare(mark), None)
                operands.extend(value if mark.endswith("*") else [value])
            made = self.record(name, operands, {**spec.attrs, **given})
            return tuple(made) if name in MANY else made[0]

        return call

    def record(self, name: str, operands: list[Part | None], given: dict[str, Any]) -> list[Part]:
        """Check and infer a call, and keep it."""
        spec = table.op(name)
        specs = tuple(None if o is None else o.spec for o in operands)
        attrs = given if spec.canon is None else spec.canon(specs, given)
        outs = spec.infer(specs, attrs)
        first = operands[0] if operands else None
        if spec.alias and first is not None:
            value = None if first.value is None else spec.run(np, first.value, **attrs)
            return [Part(outs[0], value, None if value is not None else first)]
        made = [Part(out) for out in outs]
        known = {
            i: o.value for i, o in enumerate(operands) if o is not None and o.value is not None
        }
        self.calls.append((OpCall(name, attrs, specs, outs, known, name), operands, made))
        return made


@dataclass(frozen=True)
class Emulation:
    """A decomposition of one op instance: its operands, calls and results."""

    operands: tuple[Part | None, ...]
    steps: Steps
    results: tuple[Part, ...]


def emulation(call: OpCall) -> Emulation:
    """Decompose an op instance.

    Raises:
        UnsupportedOp: it has no decomposition, or none for these attributes or sizes.
    """
    spec = table.op(call.op)
    if spec.decompose is None:
        raise UnsupportedOp(f"{call.op} has no decomposition")
    operands = tuple(
        None if s is None else Part(s, call.constants.get(i)) for i, s in enumerate(call.inputs)
    )
    steps = Steps()
    given: list[Any] = list(operands[: len(spec.operands)])
    if spec.operands and spec.operands[-1].endswith("*"):
        fixed = len(spec.operands) - 1
        given = [*operands[:fixed], list(operands[fixed:])]
    given += [None] * (len(spec.operands) - len(given))
    try:
        made = spec.decompose(steps, *given, **call.attrs)
    except ShapeError as error:
        raise UnsupportedOp(f"{call.op}: its decomposition does not fit: {error}") from None
    results = tuple(made) if isinstance(made, tuple | list) else (made,)
    roots = [r.root for r in results]
    computed = [p for _, _, parts in steps.calls for p in parts]
    if any(r not in computed for r in roots) or len({id(r) for r in roots}) < len(roots):
        raise UnsupportedOp(f"{call.op}: a result of its decomposition is no step's own")
    return Emulation(operands, steps, results)


def _chosen(plan: Emulation, device: DeviceInfo) -> list[Kernel] | str:
    """A kernel for each part, or why one has none."""
    chosen = []
    for part, _, _ in plan.steps.calls:
        found = table.candidates(part, device)
        if not found.fitting:
            return f"its part {part.op} has no kernel ({found.reason()})"
        chosen.append(found.fitting[0])
    return chosen


def _fits(call: OpCall, device: DeviceInfo) -> str | None:
    try:
        chosen = _chosen(emulation(call), device)
    except UnsupportedOp as error:
        return str(error)
    return chosen if isinstance(chosen, str) else None


@kernel("emulated", "*", KINDS, when=_fits, rank=95, native=False)
def lower_emulated(call: OpCall, device: DeviceInfo) -> Lowered:
    """Lower every part, and give their operands and results buffers."""
    plan = emulation(call)
    chosen = _chosen(plan, device)
    assert not isinstance(chosen, str), chosen
    lowered = [
        k.lower(part, device) for k, (part, _, _) in zip(chosen, plan.steps.calls, strict=True)
    ]
    return _Joiner(plan, lowered).joined()


class _Joiner:
    """Puts parts' steps behind each other: values become slots of the whole."""

    def __init__(self, plan: Emulation, lowered: Sequence[Lowered]) -> None:
        self.plan = plan
        self.lowered = lowered
        self.slots: dict[int, Slot] = {}
        self.packs: list[Pack] = []
        self.sizes: list[int] = []
        self.free: list[int] = []
        self.last: dict[int, int] = {}
        for i, operand in enumerate(plan.operands):
            if operand is not None:
                self.slots[id(operand)] = In(i)
        for i, result in enumerate(plan.results):
            self.slots[id(result.root)] = Out(i)
        for index, (_, operands, made) in enumerate(plan.steps.calls):
            for part in (*operands, *made):
                if part is not None:
                    self.last[id(part.root)] = index

    def joined(self) -> Lowered:
        """The whole op."""
        steps: list[GridLaunch] = []
        own: list[int] = []
        for index, (_, operands, made) in enumerate(self.plan.steps.calls):
            part = self.lowered[index]
            for value in made:
                self.place(value)
            base = len(self.packs)
            self.packs.extend(part.packs)
            for i, size in enumerate(part.scratch):
                if i == len(own):
                    own.append(0)
                own[i] = max(own[i], size)
            for step in part.steps:
                assert isinstance(step, GridLaunch), step
                args = tuple(self.argument(a, operands, made, base) for a in step.args)
                steps.append(replace(step, args=args))
            self.release(index, (*operands, *made))
        count = len(self.sizes)
        moved = tuple(replace(s, args=tuple(_shift(a, count) for a in s.args)) for s in steps)
        used = {a for s in moved for a in s.args}
        unused = frozenset(i for i in range(len(self.plan.operands)) if In(i) not in used)
        return Lowered(moved, (*self.sizes, *own), tuple(self.packs), unused)

    def place(self, value: Part) -> None:
        """Give a value a scratch buffer, a free one where there is one."""
        if id(value) in self.slots:
            return
        wanted = max(1, value.spec.nbytes)
        if self.free:
            at = min(self.free, key=lambda i: abs(self.sizes[i] - wanted))
            self.free.remove(at)
            self.sizes[at] = max(self.sizes[at], wanted)
        else:
            at = len(self.sizes)
            self.sizes.append(wanted)
        self.slots[id(value)] = Scratch(at)

    def release(self, index: int, parts: Sequence[Part | None]) -> None:
        """Free the buffers of values that no later part reads."""
        for root in {id(p.root): p.root for p in parts if p is not None}.values():
            slot = self.slots.get(id(root))
            if isinstance(slot, Scratch) and self.last[id(root)] == index:
                self.free.append(slot.index)

    def argument(
        self,
        argument: Argument,
        operands: Sequence[Part | None],
        made: Sequence[Part],
        base: int,
    ) -> Argument:
        """An argument of a part in the slots of the whole; its own scratch keeps its place."""
        match argument:
            case In(index):
                part = operands[index]
                assert part is not None, index
                return self.read(part.root)
            case Out(index):
                return self.slots[id(made[index])]
            case Packed(index):
                return Packed(base + index)
            case Scratch(index):
                return Scratch(-1 - index)
        return argument

    def read(self, part: Part) -> Slot:
        """Where a value lies; a constant is packed when it is first read."""
        if id(part) not in self.slots:
            array = part.value
            assert array is not None, part
            self.packs.append(Pack(lambda: array, part.spec))
            self.slots[id(part)] = Packed(len(self.packs) - 1)
        return self.slots[id(part)]


def _shift(argument: Argument, count: int) -> Argument:
    """A part's own scratch behind the ``count`` buffers of values."""
    if isinstance(argument, Scratch) and argument.index < 0:
        return Scratch(count - 1 - argument.index)
    return argument
