"""Placement that pays: two branches on two one-core devices, against each device alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import crossdock as xd
from crossdock.devices.topology import cpu_count

SIZES = (384, 512, 768)


@pytest.mark.benchmark(group="placement")
def test_two_branches(benchmark: Any) -> None:
    """Both devices together against the better one alone, next to what the plans predicted."""
    if cpu_count() < 2 or not any(d.kind == "opencl" for d in xd.devices()):
        pytest.skip("needs two cores and an OpenCL device")
    script = Path(__file__).with_name("two_branches.py")
    found: list[str] = []

    def run() -> None:
        command = [sys.executable, str(script), *map(str, SIZES)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found.append(done.stdout)

    benchmark.pedantic(run, rounds=1)
    results = json.loads(found[0].splitlines()[-1])
    benchmark.extra_info["results"] = results
    benchmark.extra_info["note"] = "; ".join(
        f"{r['size']}: cpu {r['measured']['cpu'] * 1e3:.1f} ms, OpenCL "
        f"{r['measured']['opencl'] * 1e3:.1f} ms, both {r['measured']['both'] * 1e3:.1f} ms, "
        f"speed-up {r['speedup']:.2f}, predicted {r['predicted_speedup']:.2f}"
        for r in results
    )
