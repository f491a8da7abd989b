"""What the suites share: interleaved comparison with peers, and models with real inputs."""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):
    os.environ.pop(name, None)  # they slow a current BLAS down

Timed = Callable[[], Any]
PAUSE = 0.05


class Versus:
    """Times ``ours`` beside peers in one run: before each round of ours, one of every peer.

    Each run comes after a pause, in which the threads of the one before stop spinning, and after a
    run of its own that does not count: nobody runs on cores that another still holds.

    The ratio is that of the medians, peer over ours: above 1 we are faster.
    """

    def __init__(self, benchmark: Any) -> None:
        self._benchmark = benchmark

    def group(self, name: str) -> None:
        """Name what the ratio is averaged with."""
        self._benchmark.group = name

    def __call__(
        self, ours: Timed, peers: Mapping[str, Timed], *, rounds: int = 15, **facts: Any
    ) -> dict[str, float]:
        """Run the comparison and return the ratio by peer."""
        times: dict[str, list[float]] = {name: [] for name in peers}
        ours()

        def before() -> None:
            for name, peer in peers.items():
                time.sleep(PAUSE)
                peer()
                start = time.perf_counter()
                peer()
                times[name].append(time.perf_counter() - start)
            time.sleep(PAUSE if peers else 0.0)
            ours()

        self._benchmark.pedantic(ours, setup=before, rounds=rounds, warmup_rounds=1)
        mine = self._benchmark.stats.stats.median
        ratios = {name: statistics.median(t[1:]) / mine for name, t in times.items()}
        self._benchmark.extra_info.update(facts)
        self._benchmark.extra_info["peer_seconds"] = {
            name: statistics.median(t[1:]) for name, t in times.items()
        }
        self._benchmark.extra_info["ratios"] = ratios
        said = [f"{k} {v}" for k, v in facts.items()]
        said += [
            f"{n} {statistics.median(times[n][1:]) * 1e3:.3f} ms, ratio {r:.2f}"
            for n, r in ratios.items()
        ]
        self._benchmark.extra_info["note"] = "; ".join(said)
        return ratios


@pytest.fixture
def versus(benchmark: Any) -> Versus:
    """Interleaved comparison on top of pytest-benchmark."""
    return Versus(benchmark)
