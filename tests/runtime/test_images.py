"""Ops of a batch run image by image: which are joined, and that they compute the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import crossdock as xd
from crossdock.devices.base import DeviceInfo
from crossdock.kernels.precision import PLAIN
from crossdock.kernels.reference import evaluate
from crossdock.kernels.spec import OpCall
from crossdock.runtime import costing, images, passes
from crossdock.runtime.calls import op_call
from crossdock.runtime.graph import Graph
from crossdock.runtime.plan_parts import ImageRow
from crossdock.runtime.target import Target
from crossdock.scheduler import CostModel
from tests.kernels.cpu_run import candidate, device, execute

IMAGES = 5


def source(batch: int = IMAGES) -> Graph:
    """Convolutions with a concatenation and a pool, then a product; all with random weights."""
    rng = np.random.default_rng(0)
    b = xd.GraphBuilder()

    def w(*dims: int) -> Any:
        return b.constant(rng.standard_normal(dims).astype(np.float32) / np.float32(8))

    x = b.input("x", (batch, 16, 12, 12))
    h = b.relu(b.conv2d(x, w(32, 16, 3, 3), bias=w(32), padding=[1, 1, 1, 1]))
    left, right = b.conv2d(h, w(16, 32, 1, 1)), b.conv2d(h, w(16, 32, 3, 3), padding=[1, 1, 1, 1])
    h = b.max_pool2d(b.concat([left, right], axis=1), window_dimensions=[2, 2], strides=[2, 2])
    h = b.reduce_mean(h, axes=[2, 3], keep_dimensions=False)
    return b.build({"y": b.matmul(h, w(32, 10))})


def network(batch: int = IMAGES) -> Graph:
    """The same as it is planned."""
    return passes.run(source(batch))


def found_row(graph: Graph, threads: int, faster: float) -> ImageRow | None:
    """The ops to join where one image of each is known to take 1 / ``faster`` of the batch."""
    model = CostModel()
    thread, host = device(1).info, device(threads).info

    def note(calls: Mapping[str, OpCall], info: DeviceInfo, seconds: float) -> None:
        for call in calls.values():
            for kernel in costing.offers(call, [info], model).best.values():
                mark = (info.fingerprint, kernel.kernel.name, call.key())
                model.record_many(*mark, [seconds], costing.cost_work(call))

    note(costing.op_calls(graph), host, 1.0)
    target = Target((host,), frozenset({host.id}), model)
    return images.by_image(
        graph, target, host, thread, lambda calls: note(calls, thread, 1.0 / faster)
    )


def joined(graph: Graph, threads: int, faster: float) -> Graph | None:
    """The graph with these ops in one."""
    row = found_row(graph, threads, faster)
    return None if row is None else images.joined(graph, row, device(1).info, PLAIN)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_images_in_turn_compute_what_the_batch_computes(threads: int) -> None:
    graph = network()
    made = joined(graph, threads, 100.0)
    assert made is not None
    node = next(n for n in made.nodes if n.op == "by_image")
    assert len(made.nodes) < len(graph.nodes)
    x = np.random.default_rng(1).standard_normal((IMAGES, 16, 12, 12)).astype(np.float32)
    want = evaluate(graph, {"x": x}, dtype="float64")["y"]
    np.testing.assert_allclose(evaluate(made, {"x": x})["y"], want, rtol=1e-4, atol=1e-4)

    call = op_call(made, node)
    (got,) = execute(candidate(call, "cpu.by_image"), call, [x], threads)
    part = replace(graph, outputs={"made": node.outputs[0]})
    meant = evaluate(part, {"x": x}, dtype="float64")["made"]
    np.testing.assert_allclose(got, meant, rtol=1e-4, atol=1e-4)


def test_ops_that_are_no_faster_image_by_image_stay() -> None:
    assert joined(network(), 1, 1.0) is None


def test_one_image_has_nothing_to_take_in_turn() -> None:
    assert joined(network(1), 1, 100.0) is None


def test_a_session_of_a_batch_computes_the_batch() -> None:
    graph = network()
    x = np.random.default_rng(2).standard_normal((IMAGES, 16, 12, 12)).astype(np.float32)
    want = evaluate(graph, {"x": x}, dtype="float64")["y"]
    with xd.compile(graph, "cpu:0", threads=2) as session:
        for _ in range(3):
            np.testing.assert_allclose(session.run({"x": x})["y"], want, rtol=1e-4, atol=1e-4)
