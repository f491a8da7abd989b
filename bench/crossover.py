"""Predicted against measured crossover: from how many runs on a plan with dearer kernels pays.

    python crossover.py [GRAPH...]

For each graph of ``GRAPHS``: costs are learnt in a process whose OpenCL cache is cold, plans for
one run and for very many are made in another, and each plan is begun and run in a process of its
own with a cold OpenCL cache again. ``cpu:0`` has one core and OpenCL all, so that its runs may be
shorter. The ratio is that of the predicted crossover over the measured. Prints JSON.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import crossdock as xd
from crossdock.devices import registry
from crossdock.runtime import degrade, knowledge, planner, prepare

RUNS = 40
LEARN_SECONDS = 60.0


def normal(*shape: int) -> Any:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def scans() -> Any:
    """Running sums along rows."""
    b = xd.GraphBuilder("scans")
    y = b.input("x", (512, 1024))
    for i in range(4):
        y = b.cumulative_sum(b.mul(y, b.constant(normal(1, 1024) / 32)), axis=1, label=f"scan{i}")
    return b.build({"y": y})


def positions() -> Any:
    """Where the largest values of columns are, of several functions of the input."""
    b = xd.GraphBuilder("positions")
    x = b.input("x", (512, 1024))
    ends = {f"y{i}": b.arg_max(b.mul(x, b.constant(normal(512, 1))), axis=0) for i in range(4)}
    return b.build(ends)


def rows() -> Any:
    """Long rows, normalised again and again."""
    b = xd.GraphBuilder("rows")
    y = b.input("x", (512, 2048))
    for i in range(4):
        y = b.softmax(b.mul(y, b.constant(normal(1, 2048))), axis=1, label=f"softmax{i}")
    return b.build({"y": y})


GRAPHS: dict[str, Callable[[], Any]] = {f.__name__: f for f in (scans, positions, rows)}


def devices() -> list[str]:
    """The processor and the first OpenCL device."""
    return ["cpu:0", next(d.id for d in xd.devices() if d.kind == "opencl")]


def learn(graph: Any, _path: str) -> None:
    """Measure kernels and their builds."""
    xd.compile(graph, devices(), threads=1, measure=LEARN_SECONDS).close()


def predict(graph: Any, path: str) -> dict[str, Any]:
    """The plans for few runs and for many, written to files; what they say."""
    found: dict[str, Any] = {}
    opened = {d: registry.open_device(d, threads=1) for d in devices()}
    target = knowledge.target_here(opened, frozenset(opened))
    passed = prepare.simplify(graph, xd.Constraints())
    for name, runs in (("few", 1), ("many", 1_000_000)):
        options = planner.Options(expected_runs=runs)
        plan = degrade.plan_best(passed, target, options, split=False).plan
        Path(path, f"{name}.json").write_text(plan.dumps())
        found[name] = {"shares": plan.shares(), "run": plan.predicted}
        horizon = plan.horizon
        found[name] |= {"uploads": horizon.uploads, "builds": horizon.builds}
        found["crossover"] = horizon.crossover or found.get("crossover")
    return found


def measure(graph: Any, plan: str) -> dict[str, float]:
    """Seconds before the steady state, and of a run in it."""
    for name in devices():
        registry.open_device(name, threads=1)
    feed = {n: normal(*spec.dims) for n, spec in graph.inputs.items()}
    given = xd.Plan.loads(Path(plan).read_text())
    began = time.perf_counter()
    session = xd.compile(graph, plan=given, threads=1)
    session.run(feed)
    first = time.perf_counter() - began
    times = []
    for _ in range(RUNS):
        begin = time.perf_counter()
        session.run(feed)
        times.append(time.perf_counter() - begin)
    run = statistics.median(times)
    return {"once": first - run, "run": run}


STEPS: dict[str, Callable[[Any, str], Any]] = {
    "learn": learn,
    "predict": predict,
    "measure": measure,
}


def child(step: str, name: str, path: str, cache: Path) -> Any:
    """A step in a process of its own, with an OpenCL cache that nothing is in."""
    with tempfile.TemporaryDirectory() as cold:
        env = {
            **os.environ,
            "CROSSDOCK_CACHE_DIR": str(cache),
            "POCL_CACHE_DIR": cold,
            "OPENBLAS_NUM_THREADS": "1",
        }
        command = [sys.executable, __file__, "--step", step, name, path]
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=env)
    return json.loads(done.stdout.splitlines()[-1])


def crossover(name: str) -> dict[str, Any]:
    """All of it for one graph."""
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder, "cache")
        cache.mkdir()
        child("learn", name, "", cache)  # fills the processor's own cache of code
        for costs in cache.rglob("costs*.json"):
            costs.unlink()
        child("learn", name, "", cache)
        predicted = child("predict", name, folder, cache)
        found = {k: child("measure", name, f"{folder}/{k}.json", cache) for k in ("few", "many")}
    few, many = found["few"], found["many"]
    saved = few["run"] - many["run"]
    runs = (many["once"] - few["once"]) / saved if saved > 0 else None
    ratio = predicted["crossover"] / runs if runs and predicted["crossover"] else None
    measured = {**found, "crossover": runs}
    return {"graph": name, "predicted": predicted, "measured": measured, "ratio": ratio}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--step"]:
        step, name, path = sys.argv[2:]
        print(json.dumps(STEPS[step](GRAPHS[name](), path)))
    else:
        print(json.dumps([crossover(name) for name in sys.argv[1:] or GRAPHS], indent=1))
