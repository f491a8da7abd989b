"""Drafts: timed placements on their way to becoming a Schedule, and the choice among them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from crossdock.runtime.errors import MemoryBudget, NoPlacement
from crossdock.scheduler.bounds import lower_bound
from crossdock.scheduler.decode import Timed, decode
from crossdock.scheduler.limits import Limits
from crossdock.scheduler.lists import ListState, run_fixed
from crossdock.scheduler.memory import peak_bytes
from crossdock.scheduler.packing import pack
from crossdock.scheduler.problem import Ints, Problem
from crossdock.scheduler.result import Links, Options, Schedule

ATTEMPTS = 6  # times that the room for parameters is tightened by what live tensors need
Maker = Callable[[Limits], "list[Draft]"]


@dataclass(frozen=True, slots=True)
class Draft:
    """A placement with times; ``device`` has n entries."""

    name: str
    device: Sequence[int] | Ints
    timed: Timed

    @property
    def makespan(self) -> float:
        """Predicted end."""
        return self.timed.makespan


def draft_of(state: ListState, name: str) -> Draft:
    """Draft of a complete list state."""
    timed = Timed(state.start, state.finish, state.sent, max(state.finish, default=0.0))
    return Draft(name, state.device, timed)


def place_fixed(
    problem: Problem, links: Links, limits: Limits, order: Ints, device: Ints, name: str
) -> Draft | None:
    """The better of insertion and plain decoding of a device vector; None if it cannot work."""
    state = run_fixed(problem, links, limits, order, device)
    if state is None:
        return None
    plain = Draft(name, device, decode(problem, order, device, links))
    return min((draft_of(state, name), plain), key=lambda x: x.makespan)


def freeze(
    problem: Problem,
    links: Links,
    draft: Draft,
    *,
    bound: float | None = None,
    single: Mapping[str, float] | None = None,
    stats: Mapping[str, float] | None = None,
) -> Schedule:
    """Make a draft a Schedule."""
    where = np.array(draft.device, np.int64)
    begin = np.array(draft.timed.start, np.float64)
    end = np.array(draft.timed.finish, np.float64)
    makespan = float(end.max()) if problem.n else 0.0
    if math.isinf(makespan):
        raise NoPlacement("an input cannot reach the device of its task; add a link")
    least = lower_bound(problem) if bound is None else bound
    for array in (where, begin, end):
        array.flags.writeable = False
    return Schedule(
        problem=problem,
        links=links,
        device=where,
        start=begin,
        finish=end,
        sent=tuple(draft.timed.sent.values()) if links == "serial" else None,
        makespan=makespan,
        lower_bound=min(least, makespan),
        policy=draft.name,
        single=dict(single or {}),
        stats=dict(stats or {}),
    )


def best_of(problem: Problem, options: Options, make: Maker) -> Draft:
    """The earliest draft that ``make`` finds, within memory if the options ask for that.

    Raises:
        MemoryBudget: nothing fits, with a proof where there is one, or nothing found does, with
            the device and the bytes that miss.
        NoPlacement: there is no draft at all.
    """
    if not options.memory:
        return min(make(Limits.none(problem)), key=lambda x: x.makespan)
    packing = pack(problem)
    if packing.proof:
        raise MemoryBudget(packing.proof)
    room, complaint = problem.mem_bytes.copy(), ""
    for attempt in range(ATTEMPTS + 1):
        last = attempt == ATTEMPTS
        limits = Limits.everything(problem) if last else Limits.parameters(problem, room)
        drafts = []
        try:
            drafts = sorted(make(limits), key=lambda x: x.makespan)
        except MemoryBudget as error:
            complaint = complaint or str(error)
        if packing.device is not None:
            drafts += packed_drafts(problem, options.links, packing.device)
        if not drafts:
            continue
        excess = [_excess(problem, options.links, draft) for draft in drafts]
        for draft, over in zip(drafts, excess, strict=True):
            if (over <= 0.0).all():
                return draft
        least = min(excess, key=lambda over: float(over.max()))
        worst = int(least.argmax())
        complaint = (
            f"no placement found that fits: {problem.device_ids[worst]} needs "
            f"{least[worst]:.0f} B more than its {problem.mem_bytes[worst]:.0f} B"
        )
        room = room - np.maximum(least, 0.0)
    raise MemoryBudget(complaint or "no placement found that fits the devices' memory")


def packed_drafts(problem: Problem, links: Links, device: Ints) -> list[Draft]:
    """Plain decodings of a packing: in topological order, and depth first to hold little."""
    orders = (problem.topo, depth_first(problem))
    drafts = [Draft("packing", device, decode(problem, x, device, links)) for x in orders]
    return [x for x in drafts if math.isfinite(x.makespan)]


def depth_first(problem: Problem) -> Ints:
    """A topological order that goes on with the newest ready task, int64 (n,)."""
    ptr, task = problem.succs.ptr.tolist(), problem.succs.task.tolist()
    waits = np.diff(problem.preds.ptr).tolist()
    stack = [t for t in reversed(range(problem.n)) if waits[t] == 0]
    order = []
    while stack:
        t = stack.pop()
        order.append(t)
        for c in task[ptr[t] : ptr[t + 1]]:
            waits[c] -= 1
            if waits[c] == 0:
                stack.append(c)
    return np.array(order, np.int64)


def _excess(
    problem: Problem, links: Links, draft: Draft
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Bytes above each device's memory, float64 (m,); at most 0 where it fits."""
    schedule = freeze(problem, links, draft, bound=0.0)
    return peak_bytes(problem, schedule) - problem.mem_bytes
