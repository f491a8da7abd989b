"""How far kernels are from what their device can do: the roofline of a probed device.

Williams, Waterman and Patterson (Communications of the ACM 52, 2009): no kernel ends before its
operations at the rate of multiply-adds in registers, nor before its bytes at the rate of a copy of
as many. Bytes count once, as if caches held all that is read again.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from crossdock.devices.machine import Rates
from crossdock.devices.program import Work
from crossdock.runtime import costing
from crossdock.runtime.accuracy import op_seconds
from crossdock.runtime.errors import PlanError
from crossdock.runtime.session import Session


@dataclass(frozen=True)
class Timed:
    """An op's kernel on a device: what it does, how long it takes, how long it must.

    Attributes:
        name, op, kernel, device: of the step.
        seconds: measured.
        work: operations and bytes.
        bound: seconds of the roofline; None where the device has not been measured.
        memory: whether the bytes take longer than the operations.
    """

    name: str
    op: str
    kernel: str
    device: str
    seconds: float
    work: Work
    bound: float | None
    memory: bool

    @property
    def share(self) -> float | None:
        """Share of the roofline bound that is reached: 1 is the device's limit."""
        return None if self.bound is None else self.bound / self.seconds

    @property
    def flops(self) -> float:
        """Operations a second."""
        return self.work.flops / self.seconds

    @property
    def bandwidth(self) -> float:
        """Bytes a second."""
        return self.work.bytes / self.seconds


def peak(rates: Rates, dtype: str) -> float:
    """Multiply-adds in registers in a dtype, in operations a second.

    Of float32 for dtypes that were not measured, since they are computed in it.
    """
    flops = rates.flops_by_class()
    return flops.get(f"fma:{dtype}") or flops.get("fma:float32") or max(flops.values(), default=0.0)


def limits(rates: Rates, work: Work, dtype: str) -> tuple[float, float]:
    """Operations a second, and bytes a second for as many bytes as some work moves, at best."""
    return peak(rates, dtype), rates.bandwidth_at(work.bytes)


def timed(
    name: str, op: str, kernel: str, device: str, seconds: float,
    work: Work, best: tuple[float, float] | None,
) -> Timed:  # fmt: skip
    """A measured kernel beside what its device does at best, in operations and bytes a second."""
    if best is None or not all(best):
        return Timed(name, op, kernel, device, seconds, work, None, memory=False)
    compute, memory = work.flops / best[0], work.bytes / best[1]
    bound = max(compute, memory)
    return Timed(name, op, kernel, device, seconds, work, bound, memory=memory > compute)


def profile(
    session: Session, feeds: Mapping[str, Any], repeat: int, rates: Mapping[str, Rates]
) -> tuple[Timed, ...]:
    """Time every op of a session's graph within runs of it.

    Args:
        session: of a graph that does not run in stages.
        feeds: inputs, as ``Session.run`` takes them.
        repeat: runs, of which each op's median counts.
        rates: what devices sustain, by id.

    Raises:
        PlanError: the graph runs in stages.
    """
    if session.graph.staged is not None:
        raise PlanError(
            "it runs in stages, whose ops differ from run to run; fix the sizes that its values "
            "decide, or profile a stage's graph"
        )
    session.run(feeds)
    program = session.ready().program
    calls = costing.op_calls(program.graph)
    found: dict[str, list[float]] = {}
    for _ in range(repeat):
        for name, seconds in op_seconds(session.profile(feeds).spans).items():
            found.setdefault(name, []).append(seconds)
    rows = []
    for step in program.plan.launches():
        call = calls.get(step.name)
        if call is None or step.name not in found:
            continue
        work, dtype = costing.op_work(call), costing.cost_work(call).dtype
        seconds = max(statistics.median(found[step.name]), 1e-9)
        known = rates.get(step.device)
        best = None if known is None else limits(known, work, dtype)
        rows.append(timed(step.name, call.op, step.kernel, step.device, seconds, work, best))
    return tuple(rows)
