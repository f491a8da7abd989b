"""A process of its own for a model: time to the first output."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import peers
import pytest
from first_output import process
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
