"""The history of benchmarks: what is kept, and what counts as slower."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from crossdock.runtime.cli import bench_history
from crossdock.runtime.cli.bench_history import Entry, trends
from crossdock.runtime.errors import LoadError
from tests.runtime.cli.test_bench import checkout as checkout

ONE = Entry("2026-01-01", "cpu", "tiny", "case", 1.0, 0.0, {}, {"onnxruntime": "1"})


def runs(*medians: float, peers: tuple[float, ...] = (), **more: Any) -> list[Entry]:
    fed = peers or (0.0,) * len(medians)
    return [
        replace(ONE, median=m, peers={"onnxruntime": p} if p else {}, **more)
        for m, p in zip(medians, fed, strict=True)
    ]


def only(history: list[Entry]) -> bench_history.Trend:
    (trend,) = trends(history, "cpu")
    return trend


def test_a_first_run_has_nothing_to_be_compared_with() -> None:
    trend = only(runs(2.0))
    assert (trend.runs, trend.last, trend.best, trend.earlier) == (1, 2.0, 2.0, None)
    assert trend.verdict == ""


@pytest.mark.parametrize(
    ("medians", "verdict"),
    [
        ((1.0, 1.01, 0.99, 1.0, 1.2), "REGRESSION"),
        ((1.0, 1.01, 0.99, 1.0, 1.03), ""),
        ((1.0, 1.01, 0.99, 1.0, 0.8), "faster"),
        ((1.0, 1.5, 0.7, 1.2, 1.3), ""),  # runs that differ so much tell of no change
        ((1.0, 1.1), ""),  # one run tells nothing of the noise
        ((1.0, 1.5), "REGRESSION"),
    ],
)
def test_what_is_beyond_the_noise_of_earlier_runs_is_told(
    medians: tuple[float, ...], verdict: str
) -> None:
    trend = only(runs(*medians))
    assert trend.verdict == verdict
    assert trend.best == min(medians)


def test_a_run_that_is_noisy_in_itself_is_no_regression() -> None:
    history = runs(1.0, 1.0, 1.0, 1.0, 1.2)
    assert only(history).verdict == "REGRESSION"
    assert only([*history[:-1], replace(history[-1], spread=0.5)]).verdict == ""


def test_a_slower_machine_is_no_regression_where_peers_ran_beside() -> None:
    slow = runs(1.0, 1.0, 1.0, 1.0, 2.0, peers=(3.0, 3.0, 3.0, 3.0, 6.0))
    trend = only(slow)
    assert (trend.ratio, trend.verdict, trend.control) == (
        pytest.approx(1.0), "", ("onnxruntime",)
    )  # fmt: skip
    assert trend.better == 3.0
    ours = runs(1.0, 1.0, 1.0, 1.0, 1.0, peers=(3.0, 3.0, 3.0, 3.0, 2.0))
    assert only(ours).verdict == "REGRESSION", "the machine was faster, and we were not"


def test_a_peer_of_another_version_is_no_control() -> None:
    history = runs(1.0, 1.0, 1.0, 1.0, 1.0, peers=(3.0, 3.0, 3.0, 3.0, 2.0))
    history[-1] = replace(history[-1], versions={"onnxruntime": "2"})
    trend = only(history)
    assert trend.control == ()
    assert trend.verdict == ""


def test_machines_suites_and_cases_are_apart() -> None:
    history = [
        *runs(1.0), *runs(5.0, machine="other"), *runs(6.0, suite="large"), *runs(7.0, case="b")
    ]  # fmt: skip
    assert [t.last for t in trends(history, "cpu")] == [1.0, 6.0, 7.0]
    assert [t.last for t in trends(history, "cpu", "large")] == [6.0]
    assert [t.last for t in trends(history, "other")] == [5.0]


def test_what_is_written_is_read_and_damage_is_named(tmp_path: Path) -> None:
    file = tmp_path / "results" / "history.jsonl"
    assert bench_history.read(file) == []
    history = runs(1.0, 2.0, peers=(3.0, 4.0))
    for entry in history:
        bench_history.append(file, [entry])
    assert bench_history.read(file) == history
    file.write_text(file.read_text() + '{"median": 1}\n')
    with pytest.raises(LoadError, match="line 3 is no benchmark's figures"):
        bench_history.read(file)
    with pytest.raises(LoadError, match="cannot be written"):
        bench_history.append(tmp_path / "results" / "history.jsonl" / "x", history)


PEER = """
import pytest

@pytest.mark.benchmark(group="peers")
def test_peer(benchmark):
    benchmark.extra_info["peer_seconds"] = {"onnxruntime": 4.0, "openvino": 2.0}
    benchmark.pedantic(sum, args=([1, 2],), rounds=3)
"""


def test_runs_are_kept_and_compared(call: Any, checkout: Path) -> None:
    (checkout / "bench" / "bench_peer.py").write_text(PEER)
    assert "no benchmark has run here yet" in call("bench", "--history").out
    for _ in range(2):
        assert call("bench", "tiny").status == 0
    got = call("bench", "peer")
    assert got.status == 0
    assert "Beside the peers" in got.out
    assert "peers: geometric mean of 1 ratios" in got.out
    lines = (checkout / "bench" / bench_history.FILE).read_text().splitlines()
    assert len(lines) == 3
    data = call("bench", "--history", "--json", "-").json
    assert [(c["suite"], c["case"], c["runs"]) for c in data["cases"]] == [
        ("tiny", "test_tiny", 2), ("peer", "test_peer", 1)
    ]  # fmt: skip
    assert data["cases"][0]["ratio"] > 0
    assert data["cases"][1]["better"] > 1
    assert "test_peer" not in call("bench", "tiny", "--history").out
    assert "regressions among 2 cases" in call("bench", "--history").out
