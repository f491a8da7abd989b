"""Sound things that files are made of and held against: graphs, plans, costs, a cache."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import crossdock as xd
from crossdock.devices import sim
from crossdock.devices.machine import Machine
from crossdock.devices.sim import SimSpec
from crossdock.runtime import costing, knowledge
from crossdock.runtime.graph import Graph
from crossdock.runtime.plan import Plan
from crossdock.scheduler import CostModel, DeviceRates, LinkModel

X = np.linspace(-1, 1, 16, dtype=np.float32).reshape(4, 4)
SIMS = ("sim:a", "sim:b")
NAMES = ("left", "turn", "right", "join")


@cache
def graph() -> Graph:
    """Two branches that join: enough for copies, waits and memory of several devices."""
    b = xd.GraphBuilder()
    x = b.input("x", (4, 4))
    w = b.constant(np.eye(4, dtype=np.float32) * 2)
    left = b.matmul(x, w, label="left")
    right = b.tanh(b.transpose(x, label="turn"), label="right")
    return b.build({"y": b.matmul(left, right, label="join")})


@cache
def want() -> Any:
    """What the graph gives for ``X``."""
    return 2 * X @ np.tanh(X.T)


def quiet() -> None:
    """Two simulated devices; nothing of this machine is measured, and nothing kept on disk."""
    empty = Machine("0", "cpu", 1, {}, "2026-01-01T00:00:00", quick=True, seconds=0.0)
    knowledge.probe = lambda **_: empty  # type: ignore[assignment]
    for name in SIMS:
        sim.register(SimSpec(name.partition(":")[2]))


def plans() -> Iterator[Plan]:
    """Plans of the graph: on the processor, and over three devices."""
    quiet()
    pins = {"left": "sim:a", "turn": "sim:b", "right": "sim:b", "join": "cpu:0"}
    for ids, pin in ((["cpu:0"], {}), (["cpu:0", *SIMS], pins)):
        rules = xd.Constraints(pin=pin)
        with xd.compile(graph(), ids, constraints=rules, measure=False) as session:
            yield session.plan


def costs() -> CostModel:
    """Costs with something of every kind in them."""
    model = CostModel()
    model.set_rates("fp", DeviceRates({"*": 1e9, "gemm:float32": 2e9}, 1e9, 1e-5))
    model.set_link("host", "fp", LinkModel(1e-5, ((1.0, 1e9), (1e6, 2e9))))
    with xd.compile(graph(), ["cpu:0"], measure=0.2) as session:
        session.run({"x": X})
    return costing.store().model.merge(model)


def model_file(place: Path) -> Path:
    """A small model's file in a folder."""
    from tests.runtime.hostile.kit import seed_model

    place.mkdir(parents=True, exist_ok=True)
    path = place / "model.onnx"
    path.write_bytes(seed_model().SerializeToString())
    return path


def opened(model: Path) -> Any:
    """What comes of loading, compiling and running that model, all of it from the cache if kept."""
    feeds = {"x": np.ones((2, 3), np.float32), "t": np.float32(1)}
    with xd.compile(xd.load(model), ["cpu:0"], threads=1, measure=0.1) as session:
        return session.run(feeds)["y"]
