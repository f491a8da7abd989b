"""Two devices of one core each that share graphs and ops: speed-up against what is possible."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from coexecution_graphs import GRAPHS

import crossdock as xd
from crossdock.devices.topology import cpu_count

OPS = ("gemm", "conv2d", "elementwise")


def found(benchmark: Any, script: str, *arguments: str) -> dict[str, Any]:
    """What a script of this folder prints, run in a process of its own."""
    if cpu_count() < 2 or not any(d.kind == "opencl" for d in xd.devices()):
        pytest.skip("needs two cores and an OpenCL device")
    printed: list[str] = []

    def run() -> None:
        command = [sys.executable, str(Path(__file__).with_name(script)), *arguments]
        printed.append(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    benchmark.pedantic(run, rounds=1)
    (result,) = json.loads(printed[0].splitlines()[-1])
    benchmark.extra_info["result"] = result
    made: dict[str, Any] = result
    return made


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms"


@pytest.mark.parametrize("graph", list(GRAPHS))
@pytest.mark.benchmark(group="coexecution")
def test_shared(graph: str, benchmark: Any) -> None:
    """Measured speed-up next to that at the plan's lower bound: at least 0.9 of it is the aim."""
    r = found(benchmark, "coexecution.py", graph)
    m = r["measured"]
    benchmark.extra_info["note"] = (
        f"cpu {_ms(m['cpu'])}, OpenCL {_ms(m['opencl'])}, both {_ms(m['both'])} (predicted "
        f"{_ms(r['predicted']['both'])}, bound {_ms(r['lower_bound'])}, gap {r['gap']:.0%}): "
        f"speed-up {r['speedup']:.2f} of {r['allowed']:.2f} allowed, ratio {r['ratio']:.2f}"
        f"{'; ' if r['splits'] else ''}{'; '.join(r['splits'])}"
    )


@pytest.mark.parametrize("op", OPS)
@pytest.mark.benchmark(group="op splitting")
def test_split_op(op: str, benchmark: Any) -> None:
    """The chosen split against the best of a grid: at most 1.10 is the aim."""
    r = found(benchmark, "split_grid.py", op)
    m = r["measured"]
    benchmark.extra_info["note"] = (
        f"chosen {_ms(m['chosen'])} (predicted {_ms(r['predicted'])}), best of the grid "
        f"{_ms(m[r['best']])} ({r['best']}): ratio {r['ratio']:.3f}; {'; '.join(r['splits'][:1])}"
    )
