"""Peak resident memory of a process with one session, beside the peers', and the arenas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import inputs
import light
import numpy as np
import peers
import pytest
from first_output import process

THREADS = 2
PEERS = ("onnxruntime", "openvino")


@pytest.mark.parametrize("name", light.NAMES)
@pytest.mark.benchmark(group="peak memory, light models")
def test_light(name: str, benchmark: Any) -> None:
    """A light model, all caches on disk filled."""
    compare(benchmark, light.path(name), None)


@pytest.mark.parametrize("name", list(inputs.PATHS))
@pytest.mark.benchmark(group="peak memory, real models")
def test_real(name: str, benchmark: Any, tmp_path: Path) -> None:
    """A real model on real input, all caches on disk filled."""
    feeds = tmp_path / "feeds.npz"
    np.savez(feeds, **inputs.feeds(name))
    compare(benchmark, inputs.model_path(name), feeds)


def compare(benchmark: Any, path: Path, feeds: Path | None) -> None:
    """Note the peaks in bytes, and the peers' over ours: above 1 we take less."""
    process("crossdock", path, THREADS, feeds=feeds)  # measures kernels, which takes its own memory
    row = benchmark.pedantic(lambda: process("crossdock", path, THREADS, feeds=feeds), rounds=1)
    theirs = {}
    for peer in filter(peers.installed, PEERS):
        try:
            theirs[peer] = process(peer, path, THREADS, feeds=feeds)["peak"]
        except Exception as error:  # noqa: BLE001 - a peer that cannot run the model says so
            theirs[peer] = None
            benchmark.extra_info[peer] = f"{type(error).__name__}"
    ratios = {name: found / row["peak"] for name, found in theirs.items() if found}
    benchmark.extra_info.update(peak=row["peak"], peers=theirs, ratios=ratios)
    said = [f"{row['peak'] / 2**20:.0f} MiB"]
    said += [f"{n} {theirs[n] / 2**20:.0f} MiB, ratio {r:.2f}" for n, r in ratios.items()]
    if "arena" in row:
        benchmark.extra_info["arena over live"] = row["arena"]
        said.append(f"arena over live {row['arena']:.3f}")
    benchmark.extra_info["note"] = "; ".join(said)
