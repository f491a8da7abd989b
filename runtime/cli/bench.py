"""``crossdock bench``: the benchmark suites of a checkout, run by pytest in another process."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click

import crossdock
from crossdock.devices import registry, topology
from crossdock.devices.codec import encode
from crossdock.kernels.kernel_set import kernel_set
from crossdock.runtime.cli import bench_history, options
from crossdock.runtime.cli.bench_tables import show_history, show_peers
from crossdock.runtime.cli.output import Output, add_row, make_table
from crossdock.runtime.cli.text import seconds, short
from crossdock.runtime.errors import ExecutionError, LoadError
from crossdock.runtime.files import read_json

PEERS = ("onnxruntime", "openvino", "numpy", "numba", "pyopencl", "cupy")
PREFIXES = ("bench_", "test_")


@click.command()
@click.argument("suite", required=False)
@click.option("-k", "only", metavar="EXPRESSION", help="Benchmarks to run, as pytest's -k.")
@click.option(
    "--history", is_flag=True, help="Run nothing: compare the last runs with earlier ones."
)
@options.json_option
def bench(suite: str | None, only: str | None, history: bool, json_to: str | None) -> None:
    """Run the benchmark SUITE of the checkout that crossdock runs from, or all suites.

    The figures are added to bench/results/history.jsonl. With --history they are compared: each
    case's last run with those before it on this machine, and what is slower beyond the noise is
    marked. Where peers ran beside a case, what is compared is its time over theirs, so that a
    machine that is slower as a whole is no regression.
    """
    output = Output(json_to)
    folder = bench_folder()
    chosen = _chosen(suites(folder), suite)
    if history:
        show_history(output, bench_history.read(folder / bench_history.FILE), suite)
        return
    if importlib.util.find_spec("pytest_benchmark") is None:
        raise LoadError("benchmarks need pytest-benchmark: pip install crossdock[bench]")
    with tempfile.TemporaryDirectory() as temporary:
        report = Path(temporary) / "benchmarks.json"
        status = _pytest(folder, chosen, report, only)
        if only and status == 5:  # pytest has left every benchmark out
            raise LoadError(f"no benchmark of {suite or 'the suites'} matches -k {only!r}")
        results = read_json(report, "benchmark report") if report.exists() else None
    data = {
        "schema": "crossdock-bench/1",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "suites": sorted(path.name for path in chosen),
        "machine": machine_facts(),
        "pytest_status": status,
        "benchmarks": [] if results is None else results.get("benchmarks", []),
    }
    _show(data, output)
    found = bench_history.entries(data, kernel_set())
    show_peers(output, found)
    output.json(data)
    bench_history.append(folder / bench_history.FILE, found)
    if status not in (0, 5):  # 5: the suite has no benchmark that can run here
        raise ExecutionError(f"pytest ended with status {status}; its report is above")


def bench_folder() -> Path:
    """The checkout's ``bench`` folder; raises LoadError where crossdock runs from a wheel."""
    root = Path(crossdock.__file__).resolve().parent
    folder = root / "bench"
    if not folder.is_dir() or not (root / "pyproject.toml").is_file():
        raise LoadError(
            f"crossdock runs from {root}, which has no bench folder: the suites are in the "
            "repository, not in the wheel; run this in a checkout (make bench)"
        )
    return folder


def suites(folder: Path) -> dict[str, Path]:
    """Suites by name: files and folders whose names start with ``bench_`` or ``test_``."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        prefix = next((p for p in PREFIXES if path.name.startswith(p)), None)
        if prefix is not None and (path.is_dir() or path.suffix == ".py"):
            found[path.stem.removeprefix(prefix)] = path
    return found


def _chosen(found: dict[str, Path], name: str | None) -> list[Path]:
    if not found:
        raise LoadError("the bench folder has no suite (a file bench_NAME.py)")
    if name is None:
        return list(found.values())
    if name not in found:
        raise LoadError(f"no benchmark suite {name!r}; there are {', '.join(found)}")
    return [found[name]]


def _pytest(folder: Path, chosen: Sequence[Path], report: Path, only: str | None) -> int:
    """Run pytest on the suites; what it prints goes to stderr."""
    command = [
        sys.executable, "-m", "pytest", "--benchmark-only", f"--benchmark-json={report}",
        "--benchmark-quiet", "-q", "-W", "default", "--tb=short",
        *(("-k", only) if only else ()), *(str(path) for path in chosen),
    ]  # fmt: skip
    done = subprocess.run(command, cwd=folder.parent, stdout=2, check=False)
    return done.returncode


def machine_facts() -> dict[str, Any]:
    """What a figure depends on: processor, memory, versions and devices. No host name."""
    return {
        "cpu": topology.cpu_model(),
        "cores": topology.cpu_count(),
        "memory_bytes": topology.memory_bytes(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "crossdock": crossdock.__version__,
        "packages": {name: found for name in PEERS if (found := _version(name)) is not None},
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "devices": [encode(info) for info in registry.devices()],
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _show(data: dict[str, Any], output: Output) -> None:
    table = make_table(
        "Benchmarks", ("group", "benchmark", ">median", ">fastest", ">spread", ">rounds", "note")
    )
    for row in data["benchmarks"]:
        stats, extra = row["stats"], row.get("extra_info") or {}
        add_row(
            table,
            (
                row.get("group") or "",
                (short(row["name"], 72), "bold"),
                seconds(stats["median"]),
                seconds(stats["min"]),
                seconds(stats["iqr"]),
                stats["rounds"],
                _note(extra),
            ),
        )
    output.table(table)


def _note(extra: Mapping[str, Any]) -> str:
    """What a benchmark adds to its times: its own words for it, or every value by name."""
    if isinstance(extra.get("note"), str):
        return str(extra["note"])
    return " ".join(f"{k}={_brief(v)}" for k, v in extra.items())


def _brief(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value)
