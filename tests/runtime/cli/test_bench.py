"""Running a checkout's benchmark suites."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import crossdock
from crossdock.runtime.cli import bench

SUITE = """
def test_tiny(benchmark):
    benchmark.extra_info["ratio"] = 2.0
    benchmark.pedantic(sum, args=([1, 2],), rounds=3)
"""


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with one suite that passes and one that fails."""
    folder = tmp_path / "bench"
    folder.mkdir()
    (tmp_path / "pyproject.toml").write_text("[tool.pytest.ini_options]\n")
    (folder / "bench_tiny.py").write_text(SUITE)
    (folder / "bench_broken.py").write_text("def test_it(benchmark):\n    raise ValueError\n")
    (folder / "tools.py").write_text("")
    monkeypatch.setattr(crossdock, "__file__", str(tmp_path / "__init__.py"))
    return tmp_path


def test_suites_are_told_by_their_prefix(checkout: Path) -> None:
    assert set(bench.suites(checkout / "bench")) == {"tiny", "broken"}


@pytest.mark.usefixtures("checkout")
def test_a_suite_runs_and_its_figures_come_with_the_machine(call: Any) -> None:
    got = call("bench", "tiny", "--json", "-")
    assert got.status == 0, got.err
    data = got.json
    assert data["schema"] == "crossdock-bench/1"
    assert [b["name"] for b in data["benchmarks"]] == ["test_tiny"]
    assert data["machine"]["cores"] >= 1
    assert data["machine"]["devices"][0]["id"] == "cpu:0"
    assert "hostname" not in str(data["machine"])


@pytest.mark.usefixtures("checkout")
def test_the_table_shows_what_a_benchmark_adds(call: Any) -> None:
    got = call("bench", "tiny")
    assert "test_tiny" in got.out
    assert "ratio=2" in got.out


@pytest.mark.usefixtures("checkout")
def test_a_suite_that_fails_fails_the_command(call: Any) -> None:
    got = call("bench", "broken")
    assert got.status == 1
    assert "pytest ended with status 1" in got.err


@pytest.mark.usefixtures("checkout")
def test_an_expression_that_matches_nothing_is_bad_input(call: Any) -> None:
    done = call("bench", "tiny", "-k", "nothing")
    assert done.status == 2
    assert "no benchmark of tiny matches -k 'nothing'" in done.err


@pytest.mark.usefixtures("checkout")
def test_an_unknown_suite_is_bad_input(call: Any) -> None:
    got = call("bench", "none")
    assert (got.status, got.err) == (
        2,
        "crossdock: no benchmark suite 'none'; there are broken, tiny\n",
    )


def test_a_wheel_has_no_suites(call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crossdock, "__file__", str(tmp_path / "__init__.py"))
    got = call("bench")
    assert got.status == 2
    assert "not in the wheel" in got.err


def test_every_suite_of_the_checkout_can_be_collected() -> None:
    """Suites share modules, and a name that one of them lost is seen when they are imported."""
    folder = Path(__file__).resolve().parents[3] / "bench"
    suites = sorted(folder.glob("bench_*.py"))
    alone = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "--collect-only",
            "-q",
            *suites,
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=folder,
        env=alone,
    )
    assert done.returncode == 0, done.stdout[-2000:]
