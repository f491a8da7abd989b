"""What-if and then really: one case in a process of its own; prints what was found as JSON.

``predict`` plans each model for ``cpu:0`` and an OpenCL device with a core each, and for the same
machine with each change made. The other cases make the change and run:

``removed``
    the OpenCL device is not asked for;
``one-core``
    the whole process is confined to one core;
``slow-link``
    the OpenCL device is behind a link of ``BANDWIDTH`` bytes a second.

Cases run minutes after they were predicted, and neighbours on the host change the processor's pace
in between: ``steady`` seconds are those at pace 1.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from pinned import pinned  # first: it sets what PoCL and BLAS read

# isort: split

if sys.argv[1:2] == ["one-core"]:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))

import inputs
import numpy as np
import two_branches
from light import path as light_path

import crossdock as xd
from crossdock.devices import registry, throttle
from crossdock.runtime import costing, planner, virtual, whatif
from crossdock.runtime.config import Config
from crossdock.runtime.knowledge import measure_parts, target_here
from crossdock.runtime.plan import HOST, Constraints, Plan
from crossdock.runtime.prediction import pace_factor
from crossdock.runtime.prepare import simplify
from crossdock.runtime.split_choice import plan_split
from crossdock.runtime.whatif import Changes

ROUNDS = 21
BANDWIDTH = 1e9
MODELS = ("branches-256", "branches-512", "branches-768", "squeezenet", "rapidocr-cls",
          "rapidocr-rec", "rapidocr-det")  # fmt: skip
CASES = ("removed", "one-core", "slow-link")


def model(name: str) -> tuple[Any, dict[str, Any]]:
    """A graph of fixed shapes and its feeds; raises FileNotFoundError where it is not here."""
    rng = np.random.default_rng(0)
    if name.startswith("branches-"):
        size = int(name.partition("-")[2])
        graph = two_branches.branches(6, size)
    elif name in inputs.PATHS:
        feeds = inputs.feeds(name)
        loaded = xd.load(inputs.model_path(name))
        return loaded.bind(shapes={k: v.shape for k, v in feeds.items()}), feeds
    else:
        graph = xd.load(light_path(name))
    made = {n: rng.standard_normal(s.dims).astype(np.float32) for n, s in graph.inputs.items()}
    return graph, made


def opencl_id() -> str:
    """The OpenCL device that shares the work."""
    return next(d.id for d in xd.devices() if d.kind == "opencl")


def changes(case: str, opencl: str) -> Changes:
    """What a case changes, as what-if."""
    return {
        "unchanged": Changes(),
        "removed": Changes(without=(opencl,)),
        "one-core": Changes(cores=1),
        "slow-link": Changes(links={(HOST, opencl): BANDWIDTH, (opencl, HOST): BANDWIDTH}),
    }[case]


def placement(plan: Plan, graph: Any, names: dict[str, str]) -> dict[str, list[str]]:
    """Devices by op; ``names`` gives other ids."""
    ops = [n.name for n in simplify(graph, Constraints()).nodes]
    found = whatif.placement(plan, ops)
    return {op: [names.get(d, d) for d in devices] for op, devices in found.items()}


def predict(name: str) -> dict[str, Any]:
    """Plans and simulated seconds of a model, by case."""
    graph, _ = model(name)
    opencl = opencl_id()
    devices = {name: registry.open_device(name, threads=1) for name in (HOST, opencl)}
    devices[opencl].pace()  # so that the driver's threads are there, to be given a core
    with pinned():
        xd.compile(graph, [HOST, opencl], threads=1).close()  # measures what is not known
    target = target_here(devices, frozenset(devices))
    found = {}
    for case in ("unchanged", *CASES):
        other = whatif.changed(target, changes(case, opencl))
        timing = measure_parts(Config(threads=1), devices, other.model)
        static = simplify(graph, Constraints())
        made = plan_split(static, other, planner.Options(), timing)
        plan, calls = made.plan, costing.op_calls(made.split.graph)
        steady = pace_factor(plan, calls, other.model.pace, other.model)
        found[case] = {
            "predicted": plan.predicted,
            "steady": plan.predicted / steady,
            "simulated": virtual.execute(plan, other.capacity).makespan,
            "placement": placement(plan, graph, {}),
        }
    return found


def really(case: str, name: str) -> dict[str, Any]:
    """Make the change, plan anew and run."""
    graph, feeds = model(name)
    opencl = opencl_id()
    devices = {"removed": [HOST], "slow-link": [HOST, "sim:slow"]}.get(case, [HOST, opencl])
    for device in devices:
        registry.open_device(device, threads=1).pace()
    cores = nullcontext() if case == "one-core" else pinned()
    with cores, xd.compile(graph, devices, threads=1) as session:
        session.run(feeds)
        times, steady = [], []
        for _ in range(ROUNDS):
            start = time.perf_counter()
            session.run(feeds)
            times.append(time.perf_counter() - start)
            steady.append(times[-1] / slower(session))
        return {
            "measured": statistics.median(times),
            "steady": statistics.median(steady),
            "predicted": session.estimate().seconds,
            "placement": placement(session.plan, graph, {"sim:slow": opencl}),
        }


def slower(session: Any) -> float:
    """How much longer than at pace 1 a run takes at the devices' paces of this moment."""
    program, model = session.ready().program, costing.store().model
    paces = {d.info.fingerprint: d.pace() for d in program.devices.values()}
    calls = costing.op_calls(program.graph)
    return pace_factor(program.plan, calls, paces.__getitem__, model)


def main(case: str, names: list[str]) -> dict[str, Any]:
    """Results by model; a model that is not here is left out."""
    if case == "slow-link":
        opencl = registry.open_device(opencl_id(), threads=1)
        throttle.register("slow", opencl, BANDWIDTH)
    found = {}
    for name in names or MODELS:
        try:
            found[name] = predict(name) if case == "predict" else really(case, name)
        except FileNotFoundError as error:
            sys.stderr.write(f"{name}: {error}\n")
    return found


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2:])))
