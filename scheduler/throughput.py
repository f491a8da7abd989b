"""Successive runs over the same queues: the steady-state interval between their ends.

Every queue takes the runs in order, and in each run its jobs in the plan's order. Then job ends are
a (max, +) linear system, and the interval between runs is its eigenvalue: the largest mean weight
of a cycle over the queues, where the arc from q to r weighs the longest path from the start of q's
first job to the end of r's last. See Baccelli, Cohen, Olsder and Quadrat, "Synchronization and
Linearity", 1992, chapter 3; the cycle mean is found as in R. Karp, "A characterization of the
minimum cycle mean in a digraph", 1978.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from crossdock.scheduler.bounds import load_bound
from crossdock.scheduler.decode import Timed
from crossdock.scheduler.problem import Floats, Ints, Problem
from crossdock.scheduler.tensors import copy_sizes, inputs_of


@dataclass(frozen=True)
class Jobs:
    """What the queues do in a run, each job after those that it waits for.

    Attributes:
        queue: the queue of each job; a queue's jobs run in the order given.
        seconds: of each job.
        after: jobs that each waits for, all before it.
        shared: seconds of a run for each resource that several queues share.
    """

    queue: Sequence[Hashable]
    seconds: Sequence[float]
    after: Sequence[Sequence[int]]
    shared: Mapping[Hashable, float]


def interval_of(jobs: Jobs) -> float:
    """Seconds between the ends of successive runs, as many in flight as there are jobs for."""
    names = {name: i for i, name in enumerate(dict.fromkeys(jobs.queue))}
    if not names:
        return 0.0
    far = np.full((len(jobs.queue), len(names)), -np.inf)
    last = [-1] * len(names)
    for i, (name, seconds) in enumerate(zip(jobs.queue, jobs.seconds, strict=True)):
        q = names[name]
        row = far[i]
        for before in jobs.after[i] if last[q] < 0 else (*jobs.after[i], last[q]):
            np.maximum(row, far[before], out=row)
        if last[q] < 0:
            row[q] = max(row[q], 0.0)
        row += seconds
        last[q] = i
    mean = max_cycle_mean(far[last].T)
    return max(mean, max(jobs.shared.values(), default=0.0))


def max_cycle_mean(weight: Floats) -> float:
    """Largest mean weight of a cycle; ``weight`` float64 (k, k), -inf where there is no arc.

    Every node has an arc to itself.
    """
    k = len(weight)
    best = float(weight.diagonal().max())
    # Paths of each length from any start: a source with an arc of weight 0 to every node.
    walks = np.full((k + 1, k), -np.inf)
    walks[0] = 0.0
    for length in range(1, k + 1):
        walks[length] = (walks[length - 1][:, None] + weight).max(axis=0)
    lengths = np.arange(k, 0, -1)[:, None]
    means = (walks[k] - walks[:k]) / lengths
    return max(best, float(means.min(axis=0).max()))


def jobs_of(problem: Problem, device: Ints, timed: Timed, hub: int | None) -> Jobs:
    """The queues' jobs of a timed placement, in the order of their starts.

    A device computes on one queue, and each direction of a link is one; a task that takes no time
    (a graph's input or output) holds none. Where there is a ``hub``, transfers between two other
    devices take the way through it, and a tensor goes there once.
    """
    made = _Jobs(problem, device, timed, hub)
    rank = np.empty(problem.n, np.int64)
    rank[problem.topo] = np.arange(problem.n)
    inputs = inputs_of(problem)
    for t in np.lexsort((rank, np.asarray(timed.start))).tolist():
        made.task(t, [(producer, tensor) for producer, tensor, _ in inputs[t]])
    busy = np.zeros(int(problem.resource.max(initial=0)) + 1)
    np.add.at(busy, problem.resource[device], problem.cost[np.arange(problem.n), device])
    return Jobs(made.queue, made.seconds, made.after, dict(enumerate(busy.tolist())))


class _Jobs:
    """Jobs, added in topological order; transfers come at the first need for them."""

    def __init__(self, problem: Problem, device: Ints, timed: Timed, hub: int | None) -> None:
        self.problem, self.timed, self.hub = problem, timed, hub
        self.where = device.tolist()
        ends = zip(problem.edge_tensor.tolist(), device[problem.edge_dst].tolist(), strict=True)
        self.sizes = dict(zip(ends, copy_sizes(problem, device).tolist(), strict=True))
        self.queue: list[Hashable] = []
        self.seconds: list[float] = []
        self.after: list[list[int]] = []
        self.of_task = [-1] * problem.n
        self.at: dict[tuple[int, int], int] = {}  # (tensor, device) -> the job that brings it

    def task(self, task: int, inputs: Sequence[tuple[int, int]]) -> None:
        """Add a task, and before it the transfers of inputs that are not on its device yet."""
        d = self.where[task]
        foreign = sorted((self.timed.finish[a], a, x) for a, x in inputs if self.where[a] != d)
        needs = [self.of_task[a] for a, x in inputs if self.where[a] == d]
        needs += [self._bring(a, x, d) for _, a, x in foreign]
        seconds = float(self.problem.cost[task, d])
        queue: Hashable = d if seconds > 0.0 else ("free", task)
        self.of_task[task] = self._add(queue, seconds, needs)

    def _bring(self, producer: int, tensor: int, dst: int) -> int:
        if (tensor, dst) not in self.at:
            src, before = self.where[producer], self.of_task[producer]
            nbytes = self.sizes[tensor, dst]
            if self.hub is not None and self.hub not in (src, dst):
                if (tensor, self.hub) not in self.at:
                    self.at[tensor, self.hub] = self._send(src, self.hub, nbytes, before)
                src, before = self.hub, self.at[tensor, self.hub]
            self.at[tensor, dst] = self._send(src, dst, nbytes, before)
        return self.at[tensor, dst]

    def _send(self, src: int, dst: int, nbytes: float, before: int) -> int:
        return self._add((src, dst), self.problem.transfer_s(nbytes, src, dst), [before])

    def _add(self, queue: Hashable, seconds: float, after: list[int]) -> int:
        self.queue.append(queue)
        self.seconds.append(seconds)
        self.after.append(after)
        return len(self.queue) - 1


def interval_bound(problem: Problem) -> float:
    """No placement has a shorter interval: tasks' loads on the resources, transfers left out."""
    if not problem.n:
        return 0.0
    longest = float(problem.cost.min(axis=1).max())
    return max(longest, load_bound(problem.cost, problem.resource))
