"""A process of its own for a model: time to the first output, and peak memory."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import peers
import pytest
from first_output import process
from light import NAMES as LIGHT
from light import path as light_path

ROUNDS = 7
TARGET_COLD = 10.0


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.benchmark(group="cold start")
def test_warm_cache(threads: int, versus: Any) -> None:
    """Resnet50 from the start of a process to its first output, all caches on disk filled."""
    path = light_path("resnet50")
    process("crossdock", path, threads)  # fills them
    rows: list[dict[str, Any]] = []
    others = {}
    if peers.installed("onnxruntime"):
        process("onnxruntime", path, threads)
        others["onnxruntime"] = lambda: process("onnxruntime", path, threads)
    versus(lambda: rows.append(process("crossdock", path, threads)), others, rounds=ROUNDS)
    assert statistics.median(row["seconds"] for row in rows) > 0


@pytest.mark.benchmark(group="cold start")
def test_cold_cache(tmp_path: Path, versus: Any) -> None:
    """The same with nothing on disk: kernels are compiled and measured, the plan is rehearsed."""
    folders = (tmp_path / str(i) for i in range(100))

    def cold() -> None:
        more = {"CROSSDOCK_CACHE_DIR": str(next(folders))}
        assert process("crossdock", light_path("resnet50"), 2, more)["seconds"] < TARGET_COLD

    versus(cold, {}, rounds=2)


@pytest.mark.parametrize("name", LIGHT)
@pytest.mark.benchmark(group="peak memory")
def test_peak(name: str, benchmark: Any) -> None:
    """Peak resident bytes of a process with one session, beside onnxruntime's, and the arenas."""
    path = light_path(name)
    process("crossdock", path, 2)  # measures kernels, which takes memory of its own
    row = benchmark.pedantic(lambda: process("crossdock", path, 2), rounds=1)
    facts = {"peak": row["peak"], "arena over live": row["arena"]}
    if peers.installed("onnxruntime"):
        facts["onnxruntime"] = process("onnxruntime", path, 2)["peak"]
        facts["ratio"] = facts["onnxruntime"] / row["peak"]
    benchmark.extra_info.update(facts)
    said = (f"{k} {v / 2**20:.0f} MiB" if v > 1e3 else f"{k} {v:.3f}" for k, v in facts.items())
    benchmark.extra_info["note"] = "; ".join(said)
