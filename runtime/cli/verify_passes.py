"""``crossdock verify --passes``: a model after each pass, and the pass that makes it wrong."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from crossdock.runtime import pass_check
from crossdock.runtime.cli.inputs import about, load_model, prepare
from crossdock.runtime.cli.options import Feeding
from crossdock.runtime.cli.output import Output, add_row, make_table
from crossdock.runtime.cli.text import seconds, short
from crossdock.runtime.pass_check import Report, Row, check_passes

NOTE = (
    "each row: ops the pass changed, ops there are then, its own time, work and bytes of the graph "
    "after it, a run's predicted time, and the outputs' largest error over their largest element"
)


def verify_passes(
    output: Output,
    model: str,
    feeding: Feeding,
    devices: Sequence[str],
    skip: Sequence[str],
    tolerance: float | None,
) -> int:
    """Check the passes on a model and say what came of it; the exit status."""
    graph, feeds = prepare(model, load_model(model), feeding, output.note)
    with output.progress("verifying") as tick, about(model):
        report = check_passes(
            graph,
            feeds,
            pass_check.on_devices(devices or "auto"),
            skip=skip,
            tolerance=tolerance,
            progress=lambda text: tick(text, 0, 1),
        )
    columns = ("pass", ">changed", ">ops", ">time", ">GFLOP", ">MB", ">predicted", ">error")
    table = make_table(short(model, 60), columns)
    for row in report.rows:
        add_row(table, _cells(row, report.tolerance))
    output.table(table, NOTE)
    culprit = report.culprit
    said = f"compared with {report.reference}; up to {report.tolerance:.0e} is rounding"
    if culprit is None:
        output.line(("every pass keeps the answer", "bold green"), f": {said}")
    else:
        output.line(("WRONG ", "bold red"), str(culprit))
        output.line(said)
    output.json(_data(model, devices, report))
    return 0 if culprit is None else 1


def _cells(row: Row, tolerance: float) -> tuple[Any, ...]:
    return (
        (row.name or "(none)", "bold"),
        str(row.changed) if row.name else "",
        str(row.ops),
        seconds(row.seconds) if row.name else "",
        f"{row.work.flops / 1e9:.3f}",
        f"{row.work.bytes / 1e6:.2f}",
        seconds(row.predicted),
        (f"{row.error:.2e}", "bold red" if row.error > tolerance else "green"),
    )


def _data(model: str, devices: Sequence[str], report: Report) -> dict[str, Any]:
    return {
        "schema": "crossdock-passes/1",
        "model": model,
        "devices": list(devices) or "auto",
        "reference": report.reference,
        "tolerance": report.tolerance,
        "passes": [dataclasses.asdict(row) for row in report.rows],
        "culprit": None if report.culprit is None else dataclasses.asdict(report.culprit),
    }
