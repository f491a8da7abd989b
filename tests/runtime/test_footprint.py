"""What plans say of memory, next to what sessions allocate: never less, and not much more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import crossdock as xd
from crossdock.devices import registry
from crossdock.runtime.graph import Graph
from tests.runtime.conftest import Machine


def weights(*shape: int) -> Any:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


def convolutions() -> Graph:
    """Kernels that pack their weights, one after the other, and a head."""
    b = xd.GraphBuilder("convolutions")
    y = b.input("x", (2, 8, 24, 24))
    for i in range(3):
        y = b.relu(
            b.conv2d(y, b.constant(weights(8, 8, 3, 3)), padding=[1, 1, 1, 1], label=f"c{i}")
        )
    y = b.reshape(y, (2, 8 * 24 * 24))
    return b.build({"y": b.softmax(b.matmul(y, b.constant(weights(8 * 24 * 24, 10))), axis=1)})


def recurrent() -> Graph:
    """Kernels that need scratch."""
    b = xd.GraphBuilder("recurrent")
    x = b.input("x", (6, 2, 16))
    y = b.gru(x, b.constant(weights(1, 48, 16)), b.constant(weights(1, 48, 16)), 6, 16)
    return b.build({"y": y[0] if isinstance(y, list | tuple) else y})


def reductions() -> Graph:
    """Branches over large values, and a shared weight."""
    b = xd.GraphBuilder("reductions")
    x = b.input("x", (64, 300))
    w = b.constant(weights(300, 300))
    ends = [b.layer_normalization(b.matmul(x, w)), b.softmax(b.matmul(b.tanh(x), w), axis=1)]
    return b.build({"y": b.add(*ends), "z": b.reduce_mean(ends[0], axes=[1])})


GRAPHS: list[Callable[[], Graph]] = [convolutions, recurrent, reductions]


def check(graph: Graph, device_id: str, runs: int = 1) -> None:
    device = registry.open_device(device_id)
    device.allocate(1)  # what was freed elsewhere is counted by now
    before = device.gauge.used
    device.gauge.reset()
    feed = {n: np.ones(s.dims, np.float32) for n, s in graph.inputs.items()}
    with xd.compile(graph, [device_id], measure=False) as session:
        session.run(feed)
        part = session.plan.device(device_id)
        assert session.estimate().peak_bytes[device_id] == part.peak_bytes
        measured = device.gauge.peak - before
        assert measured <= part.peak_bytes <= 1.2 * measured
        for future in [session.submit(feed) for _ in range(runs - 1)]:
            future.result()
        assert device.gauge.peak - before <= part.fixed_bytes + runs * part.run_bytes


@pytest.mark.parametrize("make", GRAPHS)
def test_the_processor_takes_what_was_predicted(make: Callable[[], Graph]) -> None:
    check(make(), "cpu:0")


@pytest.mark.parametrize("make", GRAPHS)
def test_an_opencl_device_takes_what_was_predicted(
    make: Callable[[], Graph], opencl: xd.DeviceInfo
) -> None:
    check(make(), opencl.id)


@pytest.mark.parametrize("make", GRAPHS)
def test_a_simulated_device_takes_what_was_predicted(
    make: Callable[[], Graph], machine: Machine
) -> None:
    check(make(), machine.sim("a"), runs=4)


def test_packed_weights_and_scratch_are_in_the_plan() -> None:
    with xd.compile(convolutions(), "cpu:0", measure=False) as session:
        part = session.plan.device("cpu:0")
    assert part.packed_bytes > 0
    assert part.peak_bytes == sum(
        (part.arena_bytes, part.scratch_bytes, part.resident_bytes, part.packed_bytes)
    )
