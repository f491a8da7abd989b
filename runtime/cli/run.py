"""``crossdock run``: run a model, and say what came out, where it ran and how long it took."""

from __future__ import annotations

import json
import re
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from crossdock.runtime.cli import options
from crossdock.runtime.cli.compiling import compiled, on_host, placed
from crossdock.runtime.cli.inputs import about, load_model, prepare
from crossdock.runtime.cli.options import Feeding, Placing
from crossdock.runtime.cli.output import (
    Output,
    add_row,
    check_place,
    finite,
    make_table,
    write_text,
)
from crossdock.runtime.cli.page import page
from crossdock.runtime.cli.plan_diff import read_plan
from crossdock.runtime.cli.text import clean, millis, percent, short, size
from crossdock.runtime.cli.trace_view import run_trace
from crossdock.runtime.device_array import DeviceArray
from crossdock.runtime.errors import LoadError, PlanError
from crossdock.runtime.executor import Outcome
from crossdock.runtime.plan import HOST
from crossdock.runtime.receipt import Receipt
from crossdock.runtime.residency import Residency
from crossdock.runtime.session import Session
from crossdock.runtime.tensor import Array

NOTES = 10
"""Notes of a receipt that are printed."""


@dataclass(frozen=True)
class _Result:
    """What the runs gave: outputs on the host, and where those are that stayed on a device."""

    outputs: dict[str, Any]
    stayed: dict[str, str]
    runs: list[float]
    receipt: Receipt

    @property
    def median(self) -> float:
        return statistics.median(self.runs)


@click.command()
@click.argument("model")
@options.feeding
@options.placing
@click.option(
    "--repeat",
    type=click.IntRange(1),
    metavar="N",
    default=5,
    show_default=True,
    help="Timed runs, after one that is not.",
)
@click.option(
    "--trace",
    metavar="F.json",
    help="Write a trace of one more run, every step timed, for ui.perfetto.dev.",
)
@click.option("--html", metavar="FILE", help="Write the plan as a page, with one more run's times.")
@click.option(
    "--plan",
    "given",
    metavar="FILE",
    help="Run a saved plan instead of planning; inputs lie, and outputs stay, where it has them.",
)
@click.option("--output", "folder", metavar="DIR", help="Write the outputs as npy files.")
@options.json_option
def run(
    model: str,
    feeding: Feeding,
    placing: Placing,
    repeat: int,
    trace: str | None,
    html: str | None,
    given: str | None,
    folder: str | None,
    json_to: str | None,
) -> None:
    """Run MODEL on the devices of this machine."""
    output = Output(json_to)
    check_place(trace, html)
    plan = None if given is None else read_plan(given)
    graph, feeds = prepare(model, load_model(model), feeding, output.note)
    with output.progress("compiling") as tick, about(model):
        session = compiled(graph, placing, tick, plan=plan)
    with session:
        _check_printed(session)
        feeds = placed(session, feeds)
        result = _runs(session, feeds, repeat)
        _report(session, result, output)
        if folder is not None:
            output.note(f"wrote {', '.join(save(result.outputs, folder))}")
        if trace is not None or html is not None:
            session.profile(feeds)
            outcome = session.profile(feeds)
            if trace is not None:
                _write_trace(trace, model, session, outcome, output)
            if html is not None:
                known = graph if graph.staged else session.ready().program.graph
                write_text(html, page(session.plan, known, outcome=outcome))
                output.note(f"wrote {html}")
        output.json(_json(model, session, result))


def _check_printed(session: Session) -> None:
    """Raise PlanError for an output that may not be on the host, where it is printed from."""
    labels = session.config.constraints.residency
    if labels and session.graph.staged is None:
        for name, said in Residency(labels, session.ready().graph).off_host.items():
            raise PlanError(f"{said}, and run prints output {name!r}: add {HOST} to the label")


def _runs(session: Session, feeds: Mapping[str, Any], repeat: int) -> _Result:
    outputs = session.run(feeds)
    runs = []
    for _ in range(repeat):
        outputs.clear()  # what stayed on a device is given up before the next run is timed
        begin = time.perf_counter()
        outputs = session.run(feeds)
        runs.append(time.perf_counter() - begin)
    stayed = {n: v.device for n, v in outputs.items() if isinstance(v, DeviceArray)}
    return _Result(on_host(outputs), stayed, runs, session.receipt)


def _report(session: Session, result: _Result, output: Output) -> None:
    table = make_table("Outputs", ("output", "type", ">min", ">mean", ">max", "note"))
    for name, array in result.outputs.items():
        row = describe(array)
        where = f"stayed on {result.stayed[name]}" if name in result.stayed else ""
        row["note"] = ", ".join(filter(None, (row["note"], where)))
        cells = [f"{row[k]:.6g}" if row[k] is not None else "-" for k in ("min", "mean", "max")]
        add_row(table, ((short(name, 60), "bold"), row["type"], *cells, row["note"]))
    output.table(table)
    plan = session.plan
    columns = ("device", "name", "physical device", ">ops", ">peak memory")
    table = make_table("Placement", columns)
    for part in plan.devices:
        share = plan.shares()[part.id]
        add_row(
            table,
            (
                (part.id, "bold"),
                short(part.name, 48),
                short(part.physical_id, 40),
                percent(share),
                size(part.peak_bytes),
            ),
        )
    output.table(table)
    for name, link in result.receipt.transfers.items():
        output.line(
            f"moved {size(link.nbytes)} {name} in {link.copies} copies, predicted "
            f"{millis(link.predicted)}"
        )
    output.line(f"plan {result.receipt.plan[:12]}")
    if plan.rounding:
        output.line(plan.rounding)
    output.line(
        "predicted ", (millis(plan.predicted), "bold"),
        f" ({millis(plan.low)} to {millis(plan.high)}), measured ",
        (millis(result.median), "bold"),
        f" (median of {len(result.runs)}, fastest {millis(min(result.runs))})",
    )  # fmt: skip
    notes = result.receipt.notes
    for note in notes[:NOTES]:
        output.line(("note: ", "yellow"), note)
    if len(notes) > NOTES:
        output.line(("note: ", "yellow"), f"{len(notes) - NOTES} more; --json lists them all")


def describe(value: Any) -> dict[str, Any]:
    """Type, and least, mean and greatest element; NaN is left out and counted in the note."""
    found: dict[str, Any] = {"min": None, "mean": None, "max": None, "note": ""}
    if not isinstance(value, np.ndarray):
        what = "an empty optional" if value is None else f"a sequence of {len(value)}"
        return {**found, "type": what}
    found["type"] = f"{type_name(value)}[{','.join(map(str, value.shape))}]"
    if value.size == 0:
        return {**found, "note": "empty"}
    if value.dtype == object:
        return {**found, "note": f"first {short(str(value.reshape(-1)[0]), 40)!r}"}
    values = np.abs(value) if value.dtype.kind == "c" else np.asarray(value, np.float64)
    bad = int(np.isnan(values).sum())
    found["note"] = f"{bad} of {values.size} are NaN" if bad else ""
    if bad == values.size:
        return found
    kept = values[~np.isnan(values)]
    extremes = {"min": float(kept.min()), "mean": float(kept.mean()), "max": float(kept.max())}
    return {**found, **extremes}


def type_name(array: Array) -> str:
    """An array's element type."""
    return "string" if array.dtype == object else array.dtype.name


def flat(outputs: Mapping[str, Any]) -> dict[str, Array]:
    """The arrays among the outputs, elements of sequences numbered; strings of fixed width."""
    found: dict[str, Array] = {}
    for name, value in outputs.items():
        items = (
            {f"{name}.{i}": v for i, v in enumerate(value)}
            if isinstance(value, list)
            else {name: value}
        )
        for key, item in items.items():
            if isinstance(item, np.ndarray):
                found[key] = item.astype(np.str_) if item.dtype == object else item
    return found


def save(outputs: Mapping[str, Any], folder: str) -> list[str]:
    """Write each output as an npy file; returns the paths.

    A name comes from the model, so only its harmless characters go into the file's name.
    """
    written: list[str] = []
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name, array in flat(outputs).items():
            stem = re.sub(r"[^A-Za-z0-9._-]+", "_", name).lstrip(".")[:120] or "output"
            path = Path(folder) / f"{stem}.npy"
            number = 2
            while str(path) in written:
                path = Path(folder) / f"{stem}_{number}.npy"
                number += 1
            np.save(path, array, allow_pickle=False)
            written.append(str(path))
    except OSError as error:
        raise LoadError(
            f"--output {folder}: cannot be written: {error.strerror or error}; name another folder"
        ) from error
    return written


def _write_trace(path: str, model: str, session: Session, outcome: Outcome, output: Output) -> None:
    data = run_trace(session.plan, outcome.spans, outcome.began, {"model": clean(model)})
    write_text(path, json.dumps(finite(data)))
    output.note(f"wrote {path}; open it in ui.perfetto.dev")


def _json(model: str, session: Session, result: _Result) -> dict[str, Any]:
    plan = session.plan
    return {
        "schema": "crossdock-run/1",
        "model": model,
        "feeds_on": dict(session.config.sites.feeds),
        "outputs": [
            {
                "name": name,
                "dtype": type_name(value) if isinstance(value, np.ndarray) else None,
                "shape": list(value.shape) if isinstance(value, np.ndarray) else None,
                **describe(value),
                "stayed_on": result.stayed.get(name),
            }
            for name, value in result.outputs.items()
        ],
        "placement": plan.shares(),
        "predicted_s": plan.predicted,
        "low_s": plan.low,
        "high_s": plan.high,
        "measured_s": result.median,
        "runs_s": result.runs,
        "receipt": result.receipt.to_json(),
    }
