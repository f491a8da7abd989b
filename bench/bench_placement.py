"""Placement that pays: two branches on two one-core devices, against each device alone."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

import crossdock as xd

ROUNDS = 25


@contextmanager
def two_cores() -> Iterator[None]:
    """Skip where there are no two cores to share."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two cores")
    yield


def branches(depth: int, size: int) -> Any:
    """Two independent chains of matrix products and their sum."""
    rng = np.random.default_rng(0)
    b = xd.GraphBuilder("two branches")
    x = b.input("x", (size, size))
    ends = []
    for side in ("left", "right"):
        y = x
        for i in range(depth):
            w = b.constant((rng.standard_normal((size, size)) / size**0.5).astype(np.float32))
            y = b.tanh(b.matmul(y, w, label=f"{side}{i}"))
        ends.append(y)
    return b.build({"y": b.add(*ends)})


@pytest.mark.benchmark(group="placement")
def test_two_branches(benchmark: Any) -> None:
    """Each device on one core; both together must beat either, as the plan predicts."""
    opencl = [d.id for d in xd.devices() if d.kind == "opencl"]
    if not opencl:
        pytest.skip("needs an OpenCL device")
    with two_cores():
        graph = branches(6, 384)
        feed = {"x": np.random.default_rng(1).standard_normal((384, 384)).astype(np.float32)}
        sets = {"cpu": ["cpu:0"], "opencl": opencl[:1], "both": ["cpu:0", opencl[0]]}
        sessions = {k: xd.compile(graph, v, threads=1) for k, v in sets.items()}
        answers = {k: s.run(feed)["y"] for k, s in sessions.items()}
        for answer in answers.values():
            np.testing.assert_allclose(answer, answers["cpu"], atol=1e-3)
        times: dict[str, list[float]] = {k: [] for k in sessions}

        def others() -> None:
            for name in ("cpu", "opencl"):
                start = time.perf_counter()
                sessions[name].run(feed)
                times[name].append(time.perf_counter() - start)

        benchmark.pedantic(
            lambda: sessions["both"].run(feed), setup=others, rounds=ROUNDS, warmup_rounds=2
        )
        both = benchmark.stats.stats.median
        alone = {k: statistics.median(v) for k, v in times.items() if v}
        plan = sessions["both"].plan
        predicted = {k: s.estimate().seconds for k, s in sessions.items()}
        benchmark.extra_info["note"] = (
            f"cpu alone {alone['cpu'] * 1e3:.2f} ms, OpenCL alone {alone['opencl'] * 1e3:.2f} ms; "
            f"speed-up over the better {min(alone.values()) / both:.2f}, predicted "
            f"{min(predicted['cpu'], predicted['opencl']) / predicted['both']:.2f} "
            f"(both {predicted['both'] * 1e3:.2f} ms); shares {plan.shares()}"
        )
        for session in sessions.values():
            session.close()
