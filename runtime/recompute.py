"""Steps that are computed again on the host; see ``checks``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from crossdock.devices.base import Event, Queue
from crossdock.kernels.reference import evaluate
from crossdock.kernels.spec import OpCall
from crossdock.runtime import costing, emulation
from crossdock.runtime.calls import op_call
from crossdock.runtime.cases.kit import Case, fast_part
from crossdock.runtime.copies import done
from crossdock.runtime.errors import WrongResult
from crossdock.runtime.graph import Graph, Node
from crossdock.runtime.plan import Step
from crossdock.runtime.program import Instance, Program, buffer_of
from crossdock.runtime.segments import Segment
from crossdock.runtime.tensor import FLOATS, Array, to_numpy

ULPS = 64.0
"""Relative error allowed, in spacings: a fused op has many roundings."""


class Recomputed:
    """A step of a run that is computed again on the host."""

    def __init__(self, program: Program, instance: Instance, part: Segment, queue: Queue) -> None:
        self._program, self._instance, self._queue = program, instance, queue
        self._step = program.plan.steps[part.steps[0]]

    def run(self, execute: Callable[[], Event | None]) -> None:
        """Run the step, which is done then, and hold its results against the host's.

        Raises:
            WrongResult: they differ by more than the op's tolerance.
        """
        graph, step = self._program.graph, self._step
        node = next(n for n in graph.nodes if n.name == step.name)
        skip = self._program.ops[step.index].lowered.unused
        had = {
            value: graph.constants[value] if value in graph.constants else self._read(value)
            for i, value in enumerate(node.inputs)
            if value is not None and (value in graph.constants or i not in skip)
        }
        had |= {v: self._blank(v) for v in node.operands if v not in had}
        done(self._queue, execute())
        got = {value: self._read(value) for value in node.outputs}
        want = _computed(graph, node, had)
        call = op_call(graph, node)
        for value in node.outputs:
            self._hold(call, value, had, got[value], want[value])

    def _hold(
        self, call: OpCall, value: str, had: Mapping[str, Array], got: Array, want: Array
    ) -> None:
        step, dtype = self._step, self._program.graph.specs[value].dtype
        rtol, atol = _tolerance(call, dtype, list(had.values()), want, step.rounds)
        if not _exact(call, step, self._queue):
            atol += fast_part(dtype) * largest(want)
        off = _distance(got, want)
        bad = off > atol + rtol * np.abs(_wide(want))
        if bad.any():
            at = [int(i) for i in np.argwhere(bad)[0]]
            raise WrongResult(
                f"op {step.name!r:.80} ({step.op}) on {step.device} with kernel {step.kernel} made "
                f"{int(bad.sum())} of {got.size} elements of {value!r:.80} that are others than "
                f"the host's, first at {at}: {got[tuple(at)]!r}, not {want[tuple(at)]!r}; do not "
                "use the kernel on that device (constraints.forbid)",
                device=step.device,
                op=step.name,
                kernel=step.kernel,
            )

    def _read(self, value: str) -> Array:
        spec = self._program.graph.specs[value]
        array = np.empty(spec.dims, to_numpy(spec.dtype))
        if array.nbytes:
            buffer = buffer_of(self._program, self._instance, value, self._step.device)
            done(self._queue, self._queue.read(buffer, array.reshape(-1).view(np.uint8)))
        return array

    def _blank(self, value: str) -> Array:
        spec = self._program.graph.specs[value]
        return np.zeros(spec.dims, to_numpy(spec.dtype))


def _computed(graph: Graph, node: Node, had: Mapping[str, Array]) -> dict[str, Array]:
    """The results of one node in float64, by value."""
    alone = replace(
        graph,
        inputs={value: graph.specs[value] for value in had},
        outputs={value: value for value in node.outputs},
        nodes=(node,),
        constants={},
        rebuild=None,
    )
    return evaluate(alone, had, dtype="float64")


def _exact(call: OpCall, step: Step, queue: Queue) -> bool:
    """Whether a step's kernel computes the op's plain arithmetic."""
    fitting = emulation.candidates(call, queue.device.info).fitting
    return all(kernel.exact for kernel in fitting if kernel.name == step.kernel)


def _tolerance(
    call: OpCall, dtype: str, operands: Sequence[Array], want: Array, rounds: str
) -> tuple[float, float]:
    """(rtol, atol) of a result, as ``Case.tolerance`` has it for what the op adds up.

    The terms are as many as its flops say, and at least as many as its longest axis has elements;
    they are as large as the largest operand or result, or for products of matrices as the product
    of the two largest operands.
    """
    sizes = sorted((largest(a) for a in operands if a.size), reverse=True)
    first = call.inputs[0]
    real = first is not None and first.dtype in FLOATS
    product = real and costing.OP_CLASSES.get(call.op) == "gemm" and len(sizes) > 1
    magnitude = max([largest(want), *sizes, sizes[0] * sizes[1] if product else 0.0])
    longest = max((d for s in call.inputs if s is not None for d in s.dims), default=1)
    terms = costing.op_work(call).flops / max(1, 2 * want.size)
    steps = int(any(s is not None and s.dtype in FLOATS for s in call.inputs))
    case = Case(
        call.op, "run", {}, ulps=ULPS, terms=round(max(terms, longest)), magnitude=magnitude,
        steps=steps,
    )  # fmt: skip
    return case.tolerance(dtype, rounds)


def largest(array: Array) -> float:
    """The largest finite magnitude; 0 where there is none."""
    finite = np.abs(_wide(array))
    return float(finite[np.isfinite(finite)].max(initial=0.0))


def _wide(array: Array) -> Array:
    return array.astype(np.float64, copy=False)


def _distance(got: Array, want: Array) -> Array:
    """How far apart two results are: infinite where just one of them is finite."""
    if want.dtype.kind != "f" and np.array_equal(got, want):
        return np.zeros(want.shape)
    a, b = _wide(got), _wide(want)
    with np.errstate(all="ignore"):
        off = np.abs(a - b)
        narrow = b.astype(got.dtype).astype(np.float64)  # beyond the type's range: infinite
    same = (a == b) | (a == narrow) | (np.isnan(a) & np.isnan(b))
    return np.where(same, 0.0, np.where(np.isnan(off), np.inf, off))
