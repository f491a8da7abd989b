"""Explanations against runs: what the runner-up costs, where a placement flips, what it takes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import coexecution_graphs
import pytest

import crossdock as xd
from crossdock.devices.topology import cpu_count
from crossdock.runtime import explain

FLIPS = ("matmul_branches", "two_towers", "attention", "fire")


def found(*args: str) -> dict[str, Any]:
    """What a case finds, in a process of its own."""
    if cpu_count() < 2 or not any(d.kind == "opencl" for d in xd.devices()):
        pytest.skip("needs two cores and an OpenCL device")
    script = Path(__file__).with_name("explain_cases.py")
    done = subprocess.run(
        [sys.executable, str(script), *args], check=True, stdout=subprocess.PIPE, text=True
    )
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


@pytest.mark.benchmark(group="explain")
def test_runner_up(benchmark: Any) -> None:
    """Ops whose margin exceeds two sigma, kept on the runner-up: the sign of the difference."""
    results: list[dict[str, Any]] = []
    benchmark.pedantic(lambda: results.append(found("agree")), rounds=1)
    benchmark.extra_info["results"] = results[0]["rows"]
    wrong = [f"{r['graph']} {r['op']}" for r in results[0]["rows"] if not r["agrees"]]
    benchmark.extra_info["note"] = f"{results[0]['agree']:.0%} of {results[0]['ops']} ops agree" + (
        f"; not {', '.join(wrong)}" if wrong else ""
    )


@pytest.mark.benchmark(group="explain")
def test_flips(benchmark: Any) -> None:
    """The bandwidth at which a placement flips, as explained and as measured."""
    results: list[dict[str, Any]] = []
    benchmark.pedantic(lambda: results.append(found("flips", *FLIPS)), rounds=1)
    benchmark.extra_info["results"] = results[0]["rows"]
    rows = [
        f"{r['graph']}: {r['predicted'] / 1e9:.3g} GB/s said, {r['measured'] / 1e9:.3g} measured "
        f"({r['error']:+.0%})"
        if "error" in r
        else f"{r['graph']}: none ({r['excluded']})"
        for r in results[0]["rows"]
    ]
    benchmark.extra_info["note"] = "; ".join(rows)


@pytest.mark.benchmark(group="explain")
def test_explaining(benchmark: Any) -> None:
    """What it takes to explain every op of a graph with its flips."""
    graph = coexecution_graphs.attention()
    with xd.compile(graph, "auto", measure=False) as session:
        made = benchmark.pedantic(lambda: explain.explain_all(session.plan, 60.0), rounds=3)
        whole = sum(e.scope == "whole" for e in made)
        benchmark.extra_info["note"] = f"{len(made)} ops, {whole} with margins of the whole run"
