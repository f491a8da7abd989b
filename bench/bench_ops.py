"""Single ops on every device, with their rates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import crossdock as xd
from crossdock.runtime import costing

RNG = np.random.default_rng(0)


def _matmul(b: Any) -> Any:
    x = b.input("x", (512, 512))
    return b.matmul(x, b.constant(RNG.random((512, 512), np.float32)))


def _conv(channels: int, size: int, kernel: int, groups: int = 1) -> Callable[[Any], Any]:
    def build(b: Any) -> Any:
        x = b.input("x", (1, channels, size, size))
        shape = (channels, channels // groups, kernel, kernel)
        w = b.constant(RNG.standard_normal(shape).astype(np.float32) * 0.05)
        return b.conv2d(x, w, padding=[kernel // 2] * 4, groups=groups)

    return build


def _tanh(b: Any) -> Any:
    return b.tanh(b.input("x", (1024, 1024)))


def _softmax(b: Any) -> Any:
    return b.softmax(b.input("x", (256, 1024)), 1)


def _mean(b: Any) -> Any:
    return b.reduce_mean(b.input("x", (64, 128, 128)), axes=[1, 2])


OPS: dict[str, Callable[[Any], Any]] = {
    "matmul 512": _matmul,
    "conv 3x3 64 56x56": _conv(64, 56, 3),
    "conv 1x1 256 28x28": _conv(256, 28, 1),
    "conv depthwise 3x3 128 56x56": _conv(128, 56, 3, 128),
    "tanh 1 Mi": _tanh,
    "softmax 256 x 1024": _softmax,
    "mean of planes": _mean,
}


@pytest.mark.parametrize("device", [d.id for d in xd.devices()])
@pytest.mark.parametrize("name", list(OPS))
@pytest.mark.benchmark(group="ops")
def test_op(name: str, device: str, benchmark: Any) -> None:
    b = xd.GraphBuilder(name)
    graph = b.build({"y": OPS[name](b)})
    feeds = {n: RNG.random(s.dims, np.float32) for n, s in graph.inputs.items()}
    with xd.compile(graph, device) as session:
        benchmark.pedantic(lambda: session.run(feeds), rounds=15, warmup_rounds=2)
        launch = session.plan.launches()[0]
        call = next(iter(costing.op_calls(session.graph).values()))
        work = costing.op_work(call)
        benchmark.extra_info["note"] = (
            f"{launch.device} {launch.kernel}: op predicted {launch.seconds * 1e3:.3f} ms, "
            f"{work.flops / launch.seconds / 1e9:.1f} GFLOP/s, "
            f"{work.bytes / launch.seconds / 1e9:.1f} GB/s"
        )
