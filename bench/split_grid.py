"""Ops split over two one-core devices at every share of a grid; prints what was found as JSON.

For each graph the session's own choice is run beside the whole on each device and every share on
the grid, along every axis that can be cut.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from pinned import pinned  # first: it sets what PoCL and BLAS read

# isort: split

import numpy as np
from timing import feeds_of, interleaved, opencl, same

import crossdock as xd
from crossdock.devices import registry
from crossdock.runtime import costing, knowledge, prepare
from crossdock.runtime.plan import Constraints
from crossdock.runtime.planner import Options, make_plan
from crossdock.runtime.pool import Deadline
from crossdock.runtime.ready import Ready, make_ready
from crossdock.runtime.split import SplitGraph, grow
from crossdock.runtime.split_choice import Planned, plan_parts
from crossdock.runtime.split_cost import Shares
from crossdock.runtime.target import Target

GRID = 8


def _constant(b: Any, *shape: int) -> Any:
    rng = np.random.default_rng(0)
    return b.constant((rng.standard_normal(shape) / shape[-1] ** 0.5).astype(np.float32))


def gemm() -> Any:
    """One product with a constant."""
    b = xd.GraphBuilder("gemm")
    return b.build({"y": b.gemm(b.input("x", (512, 768)), _constant(b, 768, 768), label="op")})


def conv2d() -> Any:
    """One 3x3 convolution of one image: output channels are what can be cut."""
    b = xd.GraphBuilder("conv2d")
    x, w = b.input("x", (1, 64, 64, 64)), _constant(b, 128, 64, 3, 3)
    return b.build({"y": b.conv2d(x, w, padding=[1] * 4, label="op")})


def elementwise() -> Any:
    """A chain of elementwise ops, fused into one."""
    b = xd.GraphBuilder("elementwise")
    x = b.input("x", (1024, 1024))
    y = b.tanh(b.exp(b.sin(x)))
    return b.build({"y": b.mul(b.sigmoid(b.add(y, _constant(b, 1024))), b.cos(x))})


OPS: dict[str, Callable[[], Any]] = {f.__name__: f for f in (gemm, conv2d, elementwise)}


def measure(name: str) -> dict[str, Any]:
    """Medians of interleaved runs: the choice, and each share of the grid by axis and share."""
    graph, other = OPS[name](), opencl()
    ids = ("cpu:0", other)
    feeds = feeds_of(graph)
    session = xd.compile(graph, ids, threads=1)
    runs: dict[str, Callable[[], Any]] = {"chosen": partial(session.run, feeds)}
    devices = {d: registry.open_device(d, threads=1) for d in ids}
    simple = prepare.simplify(graph, Constraints())
    runs |= {k: partial(_outputs, ready, feeds) for k, ready in _grid(simple, devices)}
    same({k: run() for k, run in runs.items()})
    with pinned():
        measured = interleaved(runs)
    best = min(measured, key=lambda k: measured[k] if k != "chosen" else float("inf"))
    return {
        "op": name,
        "splits": [str(s) for s in session.plan.splits],
        "predicted": session.estimate().seconds,
        "measured": measured,
        "best": best,
        "ratio": measured["chosen"] / measured[best],
    }


def _outputs(ready: Ready, feeds: dict[str, Any]) -> dict[str, Any]:
    return ready.run(feeds, Deadline(), profile=False).outputs


def _grid(graph: Any, devices: dict[str, Any]) -> Any:
    """Name and program of the whole on each device, and of each share along each axis."""
    ids = tuple(devices)
    infos = tuple(d.info for d in devices.values())
    model = costing.store().model
    capacity = knowledge.group_capacity(infos)
    for name in ids:
        target = Target(infos, frozenset([name]), model, capacity)
        whole = Planned(SplitGraph(graph), make_plan(graph, target, Options()))
        yield f"whole {name}", _ready(graph, whole, devices, capacity)
    target = Target(infos, frozenset(ids), model, capacity)
    whole = Planned(SplitGraph(graph), make_plan(graph, target, Options()))
    node = graph.nodes[0]
    for axis in range(graph.specs[node.outputs[0]].rank):
        region = grow(graph, node, axis)
        if region is None:
            continue
        for k in range(1, min(GRID, region.units)):
            first = region.units * k // min(GRID, region.units)
            shares = Shares(ids, (first, region.units - first), 0.0)
            made = plan_parts(whole, [(region, shares)], target, Options())
            if made is not None:
                yield f"axis {axis} {first}", _ready(graph, made, devices, capacity)


def _ready(
    graph: Any, planned: Planned, devices: dict[str, Any], capacity: dict[str, int]
) -> Ready:
    return make_ready(graph, planned, frozenset(devices), devices, 1, capacity)


if __name__ == "__main__":
    print(json.dumps([measure(name) for name in sys.argv[1:] or OPS]))
