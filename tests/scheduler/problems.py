"""Random placement problems, and what an exhaustive search says about small ones."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from hypothesis import strategies as st

from crossdock.scheduler import DeviceSpec, EdgeSpec, LinkSpec, Problem, TaskSpec
from crossdock.scheduler.decode import decode
from crossdock.scheduler.result import Links

LINKS: tuple[Links, ...] = ("free", "serial")


@st.composite
def problems(draw: st.DrawFn, max_tasks: int = 12, max_devices: int = 3) -> Problem:
    """Graphs with forbidden devices, several tensors a task, groups and zero-cost tasks."""
    m = draw(st.integers(1, max_devices))
    names = [f"d{i}" for i in range(m)]
    cost = st.one_of(st.just(0.0), st.floats(0.01, 10.0))
    tasks: list[TaskSpec] = []
    edges: list[EdgeSpec] = []
    for t in range(draw(st.integers(1, max_tasks))):
        able = draw(st.sets(st.sampled_from(names), min_size=1))
        tasks.append(TaskSpec(f"t{t}", {d: draw(cost) for d in sorted(able)}))
        for s in sorted(draw(st.sets(st.integers(0, t - 1), max_size=3))) if t else ():
            tensor = draw(st.sampled_from([None, "x", "y"]))
            edges.append(EdgeSpec(s, t, draw(st.floats(0.0, 100.0)), tensor))
    groups = draw(st.sampled_from([[None] * m, ["g"] * m, [None] + ["g"] * (m - 1)]))
    devices = [DeviceSpec(d, resource_group=g) for d, g in zip(names, groups, strict=True)]
    links = [
        LinkSpec(a, b, draw(st.floats(0.0, 1.0)), draw(st.floats(1.0, 100.0)))
        for a in names
        for b in names
        if a != b
    ]
    return Problem.build(tasks, edges, devices, links)


def chain(costs: list[list[float]], nbytes: float = 1.0, group: str | None = "cpu") -> Problem:
    """A chain of tasks over devices of one resource group, linked by 1 byte a second."""
    m = len(costs[0])
    tasks = [TaskSpec(f"t{i}", row) for i, row in enumerate(costs)]
    edges = [(i, i + 1, nbytes) for i in range(len(costs) - 1)]
    devices = [DeviceSpec(f"d{i}", resource_group=group) for i in range(m)]
    links = [LinkSpec(a, b, 0.1, 1.0) for a in range(m) for b in range(m) if a != b]
    return Problem.build(tasks, edges, devices, links)


def orders(problem: Problem) -> Iterator[list[int]]:
    """Every topological order."""
    preds = [set() for _ in range(problem.n)]  # type: list[set[int]]
    for a, b in zip(problem.edge_src.tolist(), problem.edge_dst.tolist(), strict=True):
        preds[b].add(a)

    def grow(done: list[int]) -> Iterator[list[int]]:
        if len(done) == problem.n:
            yield list(done)
        for t in range(problem.n):
            if t not in done and preds[t] <= set(done):
                yield from grow([*done, t])

    yield from grow([])


def optimum(problem: Problem, links: Links) -> float:
    """Least makespan over every order and placement; for a handful of tasks."""
    able = [
        [d for d in range(problem.m) if problem.cost[t, d] < float("inf")] for t in range(problem.n)
    ]
    return min(
        decode(problem, order, where, links).makespan
        for order in orders(problem)
        for where in itertools.product(*able)
    )
