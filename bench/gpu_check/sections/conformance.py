"""The device conformance suite on the card, and the tests that are marked ``cuda``."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from bench.gpu_check.place import Place
from bench.gpu_check.report import Report

ROOT = Path(__file__).resolve().parents[3]
INI = Path(__file__).resolve().parents[1] / "pytest.ini"
SHOWN = 10
PRETENDED = "tests/devices/test_cuda_card.py"
"""The marked tests that the fake cupy can do as well; others ask for more than it has."""
PLUGINS = ("-p", "no:cacheprovider", "-p", "no:asyncio")
"""Not needed, and not everywhere."""


class Counter:
    """A pytest plugin that counts outcomes and keeps what failed."""

    def __init__(self) -> None:
        self.passed = 0
        self.failures: list[tuple[str, str]] = []
        self.skips: dict[str, int] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Note a phase of a test: its call, or a setup or teardown that went wrong."""
        if report.failed:
            lines = str(report.longrepr).splitlines()
            why = next((line for line in lines if line.startswith("E ")), lines[-1])
            self.failures.append((report.nodeid, why.removeprefix("E ").strip()))
        elif report.skipped:
            reason = str(report.longrepr[-1]) if report.longrepr else ""
            self.skips[reason] = self.skips.get(reason, 0) + 1
        elif report.when == "call":
            self.passed += 1


def suites(place: Place) -> dict[str, list[str]]:
    """Arguments of pytest by what they run."""
    device = "cuda-fake" if place.rehearsal else place.device
    files = [str(ROOT / PRETENDED)] if place.rehearsal else marked()
    few = " and (release or round or copies)" if place.rehearsal else ""
    return {
        "device conformance": ["tests/devices/conformance", "-k", f"{device}{few}"],
        "tests marked cuda": [*files, "-m", "cuda"],
    }


def marked() -> list[str]:
    """The test files with the mark: others may ask for packages that are not here."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return [str(file) for file in files if "pytest.mark.cuda" in file.read_text(encoding="utf-8")]


def run(place: Place, report: Report) -> None:
    """Counts of what passed, failed and was skipped."""
    if importlib.util.find_spec("pytest") is None:
        report.not_run("the suites", "pytest is not installed")
        return
    import pytest

    for what, arguments in suites(place).items():
        counter = Counter()
        common = ["-c", str(INI), "--rootdir", str(ROOT), "-q", *PLUGINS]
        status = pytest.main([*common, *arguments], plugins=[counter])
        report.figure(f"{what}: passed", counter.passed, "tests", ">= 1")
        report.bound(f"{what}: failed", len(counter.failures), "== 0", "tests")
        for name, why in counter.failures[:SHOWN]:
            report.failed(name, why)
        for reason, count in counter.skips.items():
            report.not_run(f"{what}: {count} skipped", reason)
        if status not in (0, 1, 5):
            report.failed(what, f"pytest ended with status {int(status)}; its output is above")
