"""Schedules against the best known, HEFT and 92 published schedulers; and large graphs.

``CROSSDOCK_INSTANCES`` names a folder with ``best.json`` and ``instances/*.json``;
``CROSSDOCK_BUDGETS`` the seconds a schedule, separated by commas (default 0.1,0.01).
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crossdock.scheduler import DeviceSpec, LinkSpec, Problem, TaskSpec, schedule, solve, warm_up
from crossdock.scheduler.decode import decode

FOLDER = os.environ.get("CROSSDOCK_INSTANCES", "")
BUDGETS = tuple(float(x) for x in os.environ.get("CROSSDOCK_BUDGETS", "0.1,0.01").split(","))
ROUNDING = 1 + 1e-9
WORST = 10


def evaluate(folder: Path, links: Any, budget: float) -> dict[str, Any]:
    """The table of one link model and budget over all instances of a folder."""
    best = json.loads((folder / "best.json").read_text())
    rows = []
    for path in sorted((folder / "instances").glob("*.json")):
        instance, known = json.loads(path.read_text()), best[path.stem][links]
        began = time.perf_counter()
        made = solve(instance, links=links, budget_s=budget)
        rows.append(
            {
                "name": path.stem,
                "ratio": made["makespan"] / known["best"],
                "beats": made["makespan"] <= known["best_of_saga"] * ROUNDING,
                "proven": made["makespan"] <= made["lower_bound"] * ROUNDING,
                "seconds": time.perf_counter() - began,
            }
        )
    ratios = np.array([row["ratio"] for row in rows])
    return {
        "links": links,
        "budget_s": budget,
        "instances": len(rows),
        "mean": float(ratios.mean()),
        "p95": float(np.quantile(ratios, 0.95)),
        "max": float(ratios.max()),
        "at_most_best_of_92": float(np.mean([row["beats"] for row in rows])),
        "proven_optimal": sum(row["proven"] for row in rows),
        "seconds_max": max(row["seconds"] for row in rows),
        "worst": sorted(((r["ratio"], r["name"]) for r in rows), reverse=True)[:WORST],
        "better": sorted((r["ratio"], r["name"]) for r in rows if r["ratio"] * ROUNDING < 1.0),
    }


def summary(table: dict[str, Any]) -> str:
    """The table in a line."""
    worst = ", ".join(f"{name} {ratio:.3f}" for ratio, name in table["worst"])
    better = ", ".join(f"{name} {ratio:.3f}" for ratio, name in table["better"])
    return (
        f"mean {table['mean']:.4f}, p95 {table['p95']:.4f}, max {table['max']:.3f}, at most the "
        f"best of 92 on {table['at_most_best_of_92']:.1%}, proven optimal "
        f"{table['proven_optimal']} of {table['instances']}, longest {table['seconds_max']:.3f} s; "
        f"worst: {worst}; better than best known: {better or 'none'}"
    )


@pytest.mark.benchmark(group="schedule")
@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("links", ["free", "serial"])
def test_instances(benchmark: Any, links: str, budget: float) -> None:
    """Ratio of the makespan to the best known."""
    if not FOLDER:
        pytest.skip("CROSSDOCK_INSTANCES names no folder of instances")
    warm_up()
    tables: list[dict[str, Any]] = []
    benchmark.pedantic(lambda: tables.append(evaluate(Path(FOLDER), links, budget)), rounds=1)
    benchmark.extra_info.update(tables[0])
    benchmark.extra_info["note"] = summary(tables[0])


def layered(tasks: int, devices: int, seed: int = 1) -> dict[str, Any]:
    """A random graph in the JSON form: up to three inputs from the 40 tasks before."""
    rng = np.random.default_rng(seed)
    speed = rng.uniform(0.5, 2.0, devices)
    spread = rng.uniform(0.7, 1.3, (tasks, devices))
    cost = rng.uniform(1.0, 10.0, (tasks, 1)) / speed * spread
    edges = []
    for t in range(1, tasks):
        inputs = sorted(set(rng.integers(max(0, t - 40), t, rng.integers(1, 4)).tolist()))
        edges += [(s, t, float(rng.uniform(0.5, 10.0))) for s in inputs]
    problem = Problem.build(
        [TaskSpec(str(t), row) for t, row in enumerate(cost.tolist())],
        edges,
        [DeviceSpec(f"d{i}") for i in range(devices)],
        [LinkSpec(a, b, 0.01, 1.0, both=True) for a in range(devices) for b in range(a)],
    )
    return problem.to_json()


@pytest.mark.benchmark(group="schedule")
@pytest.mark.parametrize(("tasks", "budget"), [(2_000, 1.0), (20_000, 10.0)])
@pytest.mark.parametrize("links", ["free", "serial"])
def test_large_graphs(benchmark: Any, links: Any, tasks: int, budget: float) -> None:
    """A large graph on 12 devices within its budget, beside HEFT as published.

    HEFT plans for free links; under serial ones its order and placement are executed.
    """
    warm_up()
    instance = layered(tasks, 12)
    problem = Problem.from_json(instance)
    plan = schedule(problem, "heft", links="free")
    order = problem.topo[np.argsort(plan.start[problem.topo], kind="stable")]
    heft = decode(problem, order, plan.device, links).makespan
    made: list[dict[str, Any]] = []
    benchmark.pedantic(lambda: made.append(solve(instance, links=links, budget_s=budget)), rounds=1)
    ratio = made[0]["makespan"] / heft
    took = benchmark.stats.stats.max
    assert ratio <= 1.03
    benchmark.extra_info.update({"tasks": tasks, "to_heft": ratio})
    benchmark.extra_info["note"] = f"{ratio:.3f} of HEFT's makespan in {took:.2f} s"
