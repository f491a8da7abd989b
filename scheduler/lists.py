"""Insertion-based list scheduling in plain Python, for both link models.

Upward ranks and insertion: H. Topcuoglu, S. Hariri, M.-Y. Wu, "Performance-effective and
low-complexity task scheduling for heterogeneous computing", IEEE TPDS 13(3), 2002.
Look-ahead: L. F. Bittencourt, R. Sakellariou, E. R. M. Madeira, "DAG scheduling using a lookahead
variant of the heterogeneous earliest finish time algorithm", PDP 2010.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence

import numpy as np

from crossdock.runtime.errors import MemoryBudget, NoPlacement
from crossdock.scheduler.limits import Limits
from crossdock.scheduler.problem import Floats, Ints, Problem
from crossdock.scheduler.result import Links, Transfer
from crossdock.scheduler.tensors import inputs_of, tensor_bytes
from crossdock.scheduler.timeline import Timeline

MAX_CHILDREN = 60


class ListState:
    """A partial schedule that tasks are placed into one by one, with undo.

    Not thread-safe; one instance a run.
    """

    def __init__(self, problem: Problem, links: Links, limits: Limits) -> None:
        self.problem = problem
        self.held: list[float] = limits.held.tolist()
        self.room: list[float] = limits.room.tolist()
        self.serial = links == "serial"
        n, m = problem.n, problem.m
        self.cost: list[list[float]] = problem.cost.tolist()
        self.resource: list[int] = problem.resource.tolist()
        self.latency: list[list[float]] = problem.latency.tolist()
        self.inv_bw: list[list[float]] = problem.inv_bw.tolist()
        self.inputs = inputs_of(problem)
        self.size: list[float] = tensor_bytes(problem).tolist()
        self.lanes = [Timeline() for _ in range(max(self.resource, default=0) + 1)]
        self.channels = [[Timeline() for _ in range(m)] for _ in range(m)] if self.serial else []
        self.device = [-1] * n
        self.start = [0.0] * n
        self.finish = [0.0] * n
        self.sent: dict[tuple[int, int], Transfer] = {}
        self._journal: list[tuple[int, int, list[tuple[Timeline, int, tuple[int, int]]]]] = []

    def ready(self, task: int, device: int) -> float:
        """When the inputs placed so far can be on ``device``; inf where unreachable."""
        if self.serial:
            added: list[tuple[Timeline, int, tuple[int, int]]] = []
            when = self._send_inputs(task, device, added)
            self._unsend(added)
            return when
        when = 0.0
        for producer, _, nbytes in self.inputs[task]:
            src = self.device[producer]
            if src < 0:
                continue
            at = self.finish[producer]
            if src != device:
                at += self.latency[src][device] + nbytes * self.inv_bw[src][device]
            if at > when:
                when = at
        return when

    def probe(self, task: int, device: int) -> float:
        """Finish of ``task`` on ``device`` if placed now; inf where it cannot be."""
        exec_s = self.cost[task][device]
        if math.isinf(exec_s) or self.held[task] > self.room[device]:
            return math.inf
        ready = self.ready(task, device)
        if math.isinf(ready):
            return math.inf
        begin, _ = self.lanes[self.resource[device]].earliest(ready, exec_s)
        return begin + exec_s

    def place(self, task: int, device: int) -> float:
        """Place ``task`` on ``device`` in the earliest gap; returns its finish."""
        added: list[tuple[Timeline, int, tuple[int, int]]] = []
        ready = self._send_inputs(task, device, added) if self.serial else self.ready(task, device)
        lane = self.lanes[self.resource[device]]
        begin, index = lane.earliest(ready, self.cost[task][device])
        end = begin + self.cost[task][device]
        lane.insert(index, begin, end)
        self.room[device] -= self.held[task]
        self.device[task], self.start[task], self.finish[task] = device, begin, end
        self._journal.append((task, index, added))
        return end

    def undo(self) -> None:
        """Take back the last placement."""
        task, index, added = self._journal.pop()
        self.room[self.device[task]] += self.held[task]
        self.lanes[self.resource[self.device[task]]].remove(index)
        self.device[task] = -1
        self._unsend(added)

    def _send_inputs(
        self, task: int, device: int, added: list[tuple[Timeline, int, tuple[int, int]]]
    ) -> float:
        when = 0.0
        missing: list[tuple[float, int, int]] = []
        for producer, tensor, _ in self.inputs[task]:
            src = self.device[producer]
            if src < 0:
                continue
            at = self.finish[producer]
            if src != device:
                held = self.sent.get((tensor, device))
                if held is None:
                    missing.append((at, producer, tensor))
                    continue
                at = held.finish
            when = max(when, at)
        for at, producer, tensor in sorted(missing):
            held = self.sent.get((tensor, device))
            if held is None:
                held = self._send(producer, tensor, at, device, added)
            when = max(when, held.finish)
        return when

    def _send(
        self,
        producer: int,
        tensor: int,
        at: float,
        device: int,
        added: list[tuple[Timeline, int, tuple[int, int]]],
    ) -> Transfer:
        src, nbytes = self.device[producer], self.size[tensor]
        takes = self.latency[src][device] + nbytes * self.inv_bw[src][device]
        channel = self.channels[src][device]
        if math.isinf(takes):
            begin, index = at, len(channel.starts)
        else:
            begin, index = channel.earliest(at, takes)
            channel.insert(index, begin, begin + takes)
            added.append((channel, index, (tensor, device)))
        transfer = Transfer(producer, tensor, src, device, nbytes, begin, begin + takes)
        if math.isfinite(takes):
            self.sent[tensor, device] = transfer
        return transfer

    def _unsend(self, added: list[tuple[Timeline, int, tuple[int, int]]]) -> None:
        for channel, index, key in reversed(added):
            channel.remove(index)
            del self.sent[key]


def upward_ranks(problem: Problem) -> Floats:
    """HEFT's upward rank: mean cost plus mean transfer along the heaviest path to an exit."""
    cost = np.where(np.isfinite(problem.cost), problem.cost, np.nan)
    mean = np.nanmean(cost, axis=1).tolist() if problem.n else []
    pairs = np.isfinite(problem.latency) & ~np.eye(problem.m, dtype=bool)
    latency = float(problem.latency[pairs].mean()) if pairs.any() else 0.0
    inv_bw = float(problem.inv_bw[pairs].mean()) if pairs.any() else 0.0
    succ, size = problem.succs, problem.edge_bytes.tolist()
    ptr, child, edge = succ.ptr.tolist(), succ.task.tolist(), succ.edge.tolist()
    rank = [0.0] * problem.n
    for t in reversed(problem.topo.tolist()):
        best = 0.0
        for k in range(ptr[t], ptr[t + 1]):
            best = max(best, latency + size[edge[k]] * inv_bw + rank[child[k]])
        rank[t] = mean[t] + best
    return np.array(rank)


def priority_order(problem: Problem, priority: Sequence[float] | Floats) -> Ints:
    """Topological order that takes the ready task of the largest priority first."""
    succ = problem.succs
    ptr, child = succ.ptr.tolist(), succ.task.tolist()
    degree = np.diff(problem.preds.ptr).tolist()
    key = [-float(x) for x in priority]
    heap = [(key[t], t) for t in range(problem.n) if degree[t] == 0]
    heapq.heapify(heap)
    order: list[int] = []
    while heap:
        _, t = heapq.heappop(heap)
        order.append(t)
        for k in range(ptr[t], ptr[t + 1]):
            c = child[k]
            degree[c] -= 1
            if degree[c] == 0:
                heapq.heappush(heap, (key[c], c))
    return np.array(order, np.int64)


Chooser = Callable[[ListState, int, list[int]], int]


def run_list(
    problem: Problem, links: Links, limits: Limits, order: Ints, choose: Chooser
) -> ListState:
    """Place the tasks of ``order`` where ``choose`` says, among the devices that may work.

    Raises:
        NoPlacement: a task that no device can run with its inputs where they are.
        MemoryBudget: the devices that can have no room left.
    """
    state = ListState(problem, links, limits)
    usable: list[list[int]] = [np.flatnonzero(row).tolist() for row in np.isfinite(problem.tails)]
    all_linked = bool(np.isfinite(problem.latency).all())
    for t in order.tolist():
        options = usable[t]
        if not all_linked:
            options = [d for d in options if math.isfinite(state.ready(t, d))]
        name = problem.task_names[t]
        if not options:
            raise NoPlacement(
                f"task {name!r}: no device can run it and receive its inputs; "
                "add a link or loosen a pin"
            )
        options = [d for d in options if state.held[t] <= state.room[d]]
        if not options:
            raise MemoryBudget(f"task {name!r}: no device has {state.held[t]:.0f} B left for it")
        state.place(t, options[0] if len(options) == 1 else choose(state, t, options))
    return state


def earliest_finish(state: ListState, task: int, options: list[int]) -> int:
    """HEFT's choice: the device where the task finishes first."""
    return min(options, key=lambda d: state.probe(task, d))


def look_ahead(children: list[list[int]]) -> Chooser:
    """Choice by the latest finish of the task's children, each placed greedily in turn.

    ``children``: consumers of every task, most urgent first.
    """

    def choose(state: ListState, task: int, options: list[int]) -> int:
        best, best_key = options[0], (math.inf, math.inf)
        for d in options:
            end = state.place(task, d)
            worst, placed = end, 1
            for child in children[task][:MAX_CHILDREN]:
                ends = [state.probe(child, x) for x in range(state.problem.m)]
                at = min(range(len(ends)), key=ends.__getitem__)
                if math.isinf(ends[at]):
                    worst = math.inf
                    break
                worst = max(worst, state.place(child, at))
                placed += 1
            for _ in range(placed):
                state.undo()
            if (worst, end) < best_key:
                best, best_key = d, (worst, end)
        return best

    return choose


def run_fixed(
    problem: Problem, links: Links, limits: Limits, order: Ints, device: Sequence[int] | Ints
) -> ListState | None:
    """Insertion list schedule of a given device vector; None if it cannot work."""
    state = ListState(problem, links, limits)
    where = [int(d) for d in device]
    for t in order.tolist():
        if math.isinf(state.probe(t, where[t])) or math.isinf(state.place(t, where[t])):
            return None
    return state
