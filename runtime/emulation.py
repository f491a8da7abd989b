"""Ops without a kernel on a device, run there through their decomposition into ops that have one.

The kernel "emulated" is a candidate for any op whose entry has a decomposition, on the devices that
run grid kernels, and only where no native kernel fits, or those alone that a library may decline.
It lowers to the steps of its parts' kernels one after the other; what passes between them lies in
the op's scratch buffers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from crossdock.devices.base import DeviceInfo
from crossdock.devices.program import (
    ArrayCall,
    In,
    Lowered,
    Out,
    Pack,
    Packed,
    Scratch,
    Slot,
    Step,
    renamed,
)
from crossdock.kernels import table
from crossdock.kernels.precision import PLAIN
from crossdock.kernels.refusal import Refusal, cause_of
from crossdock.kernels.spec import Kernel, OpCall
from crossdock.kernels.table import Candidates
from crossdock.runtime.builder import GraphBuilder, Operand
from crossdock.runtime.calls import alias_roots, is_alias, op_call
from crossdock.runtime.errors import Error
from crossdock.runtime.graph import Graph, Node
from crossdock.runtime.tensor import Array, TensorSpec

WIDER = {"float16": "float32", "bfloat16": "float32"}
"""Types that parts hand on in a wider one."""


@dataclass(frozen=True)
class Parts:
    """A decomposition that a device can run: its graph, and the kernel of each node by name.

    ``operands`` maps the graph's inputs and the constants that came from the op's own operands to
    the operands' indices.
    """

    graph: Graph
    kernels: Mapping[str, Kernel]
    calls: Mapping[str, OpCall]
    operands: Mapping[str, int]

    @property
    def ops(self) -> tuple[str, ...]:
        """The ops it takes, each once, in order of use."""
        return tuple(dict.fromkeys(n.op for n in self.graph.nodes if not is_alias(n)))


def decomposed(call: OpCall, copies: frozenset[int] = frozenset()) -> tuple[Graph, dict[str, int]]:
    """An op instance as a graph of other ops, and which values are its operands.

    Half types are widened first and rounded once, at the end, as native kernels do it. Results that
    would be an operand's bytes, or a constant's or another result's, are ``copies``, as are those
    with these numbers.

    Raises:
        Error: the decomposition breaks a rule of an op for these operands.
    """
    spec = table.op(call.op)
    assert spec.decompose is not None, call.op
    b = GraphBuilder(call.op, fold=not copies)
    given: list[Operand | None] = []
    for i, operand in enumerate(call.inputs):
        if operand is None:
            given.append(None)
        elif i in call.constants:
            given.append(b.constant(call.constants[i]))
        else:
            given.append(b.input(f"operand.{i}", operand.dims, operand.dtype))
    wide = [None if x is None else _as(b, x, WIDER.get(x.dtype, x.dtype)) for x in given]
    whole = [wide] if any(mark.endswith("*") for mark in spec.operands) else wide
    absent = [None] * (len(spec.operands) - len(whole))
    made = spec.decompose(b, *whole, *absent, **call.attrs)
    results: Sequence[Operand] = made if isinstance(made, tuple | list) else (made,)
    ends = [_as(b, x, spec.dtype) for x, spec in zip(results, call.outputs, strict=True)]
    ends = [_copy(b, end) if i in copies else end for i, end in enumerate(ends)]
    graph = b.build({f"result.{i}": end for i, end in enumerate(ends)})
    roots = alias_roots(graph)
    found = [roots[value] for value in graph.outputs.values()]
    theirs = graph.inputs.keys() | graph.constants.keys()
    more = {i for i, root in enumerate(found) if root in theirs or root in found[:i]}
    if more - copies:
        return decomposed(call, copies | more)
    return graph, {operand.name: i for i, operand in enumerate(given) if operand is not None}


def _copy(b: GraphBuilder, x: Operand) -> Operand:
    """A tensor's elements once more: joined to nothing."""
    flat = x if x.shape else b.reshape(x, (1,))
    return b.reshape(b.concat([flat], 0), x.shape)


def _as(b: GraphBuilder, x: Operand, dtype: str) -> Operand:
    return x if x.dtype == dtype else b.cast(x, dtype)


def parts_of(call: OpCall, device: DeviceInfo) -> Parts | str:
    """The parts that a device can run an op with, or why it cannot."""
    if table.op(call.op).decompose is None:
        return "it has no decomposition"
    try:
        graph, operands = decomposed(call)
    except Error as error:
        return f"its decomposition does not fit: {error}"
    chosen, calls = {}, {}
    for node in graph.nodes:
        if is_alias(node):
            continue
        part = op_call(graph, node)
        found = candidates(part, device)
        fitting = PLAIN.permitted(found.fitting)
        if not fitting:
            why = found.reason()
            return Refusal(f"its part {node.op} has no kernel: {why}", cause_of(why))
        chosen[node.name], calls[node.name] = fitting[0], part
    return Parts(graph, chosen, calls, operands)


def _fits(call: OpCall, device: DeviceInfo) -> str | None:
    found = parts_of(call, device)
    return found if isinstance(found, str) else None


def _lower(call: OpCall, device: DeviceInfo) -> Lowered:
    """The steps of an op's parts."""
    parts = parts_of(call, device)
    assert isinstance(parts, Parts), parts
    return _Assembly(call, parts, device).lowered()


EMULATED = Kernel("emulated", "*", frozenset({"opencl", "cuda"}), _fits, _lower, 95, native=False)
"""The candidate for any op that has a decomposition."""


def candidates(call: OpCall, device: DeviceInfo) -> Candidates:
    """The kernels for an op instance on a device; emulation where none is sure to run natively."""
    found = table.candidates(call, device)
    if device.kind not in EMULATED.kinds or not all(k.declines for k in found.fitting):
        return found
    why = EMULATED.when(call, device)
    if why is None:
        return Candidates((*found.fitting, EMULATED), found.rejected)
    return Candidates(found.fitting, (*found.rejected, (EMULATED.name, why)))


class _Assembly:
    """Gathers the steps of the parts, each part's slots renamed to the op's."""

    def __init__(self, call: OpCall, parts: Parts, device: DeviceInfo) -> None:
        self.call, self.parts = call, parts
        self.graph = parts.graph
        self.roots = alias_roots(self.graph)
        self.scratch: list[int] = []
        self.packs: list[Pack] = []
        self.free: list[int] = []
        self.slots: dict[str, Slot] = {
            value: In(i) for value, i in parts.operands.items() if value in self.roots
        }
        for i, value in enumerate(self.graph.outputs.values()):
            self.slots[self.roots[value]] = Out(i)
        self.steps: list[Step] = []
        last: dict[str, int] = {}
        for index, node in enumerate(self.graph.nodes):
            last.update((self.roots[v], index) for v in node.operands)
        for index, node in enumerate(self.graph.nodes):
            if node.name in parts.kernels:
                self._add(node, parts.kernels[node.name].lowered(parts.calls[node.name], device))
            self._release(index, last)

    def _add(self, node: Node, lowered: Lowered) -> None:
        names: dict[Slot, Slot] = {}
        for i, value in enumerate(node.inputs):
            if value is not None and i not in lowered.unused:
                names[In(i)] = self._slot(self.roots[value])
        for i, value in enumerate(node.outputs):
            names[Out(i)] = self._slot(value)
        inner = [self._take(nbytes) for nbytes in lowered.scratch]
        names.update((Scratch(i), Scratch(at)) for i, at in enumerate(inner))
        names.update((Packed(i), Packed(len(self.packs) + i)) for i in range(len(lowered.packs)))
        self.packs += lowered.packs
        self.steps += [renamed(step, names) for step in lowered.steps]
        self.free += inner

    def _slot(self, root: str) -> Slot:
        """Where a value lies: an operand, a result, a constant of the parts, or scratch."""
        if root not in self.slots:
            if root in self.graph.constants:
                array = self.graph.constants[root]
                self.slots[root] = Packed(len(self.packs))
                self.packs.append(Pack(_giving(array), TensorSpec.of(array)))
            else:
                self.slots[root] = Scratch(self._take(self.graph.specs[root].nbytes))
        return self.slots[root]

    def _take(self, nbytes: int) -> int:
        """A scratch buffer that nothing lives in now: the smallest that fits, or the largest."""
        ready = sorted(self.free, key=lambda i: (self.scratch[i] < nbytes, self.scratch[i]))
        if not ready:
            self.scratch.append(nbytes)
            return len(self.scratch) - 1
        at = ready[0] if self.scratch[ready[0]] >= nbytes else ready[-1]
        self.free.remove(at)
        self.scratch[at] = max(self.scratch[at], nbytes)
        return at

    def _release(self, index: int, last: Mapping[str, int]) -> None:
        """Give back the scratch of values that no later node reads."""
        for root, slot in list(self.slots.items()):
            if isinstance(slot, Scratch) and last.get(root, index) <= index:
                del self.slots[root]
                self.free.append(slot.index)

    def lowered(self) -> Lowered:
        """The op, lowered."""
        read = {slot.index for step in self.steps for slot in _slots(step) if isinstance(slot, In)}
        given = {i for i, spec in enumerate(self.call.inputs) if spec is not None}
        return Lowered(
            tuple(self.steps),
            tuple(max(1, n) for n in self.scratch),
            tuple(self.packs),
            frozenset(given - read),
        )


def _giving(array: Array) -> Callable[[], Array]:
    return lambda: array


def _slots(step: Step) -> list[object]:
    return [*step.ins, *step.outs] if isinstance(step, ArrayCall) else list(step.args)
