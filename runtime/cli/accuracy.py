"""``crossdock accuracy``: predicted against measured time, op by op and for the whole graph."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click

from crossdock.devices import registry
from crossdock.runtime.accuracy import Measurement, measure_accuracy
from crossdock.runtime.cli import options
from crossdock.runtime.cli.calibrate import calibrate_missing
from crossdock.runtime.cli.compiling import compiled, placed
from crossdock.runtime.cli.inputs import about, load_model, only_for, others_alone, prepare
from crossdock.runtime.cli.options import Feeding, Placing
from crossdock.runtime.cli.output import Output, add_row, make_table
from crossdock.runtime.cli.text import millis, percent, seconds, short
from crossdock.runtime.config import Progress
from crossdock.runtime.errors import PlanError
from crossdock.runtime.graph import Graph
from crossdock.runtime.metrics import Metrics, Pair, metrics, spearman
from crossdock.runtime.tensor import Array

WORST = 10
NOTE = (
    "seen: from times of these shapes within this graph; composed: the sum of its ops; unseen: as "
    "if no shape of the model had ever been measured; pace: of the processor meanwhile, 1 is usual"
)
OPS_NOTE = (
    "ops: each op timed within the graph; rank: Spearman's correlation of predicted and measured; "
    "of the intervals, 80 % are to hold"
)


@dataclass(frozen=True)
class Row:
    """A model on a set of devices."""

    model: str
    devices: tuple[str, ...]
    made: Measurement

    @property
    def seen(self) -> Metrics | None:
        """Of the ops, from what is known of them."""
        return metrics([op.pair for op in self.made.ops])

    @property
    def unseen(self) -> Metrics | None:
        """Of the ops, as if their shapes had never been measured."""
        return metrics([op.unseen for op in self.made.ops if op.unseen is not None])


@click.command()
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@options.feeding
@options.placing
@click.option(
    "--repeat",
    type=click.IntRange(1),
    metavar="N",
    default=10,
    show_default=True,
    help="Timed runs of each kind.",
)
@click.option(
    "--worst",
    type=click.IntRange(0),
    metavar="N",
    default=WORST,
    show_default=True,
    help="Ops to list: those whose prediction was off by the longest time.",
)
@click.option(
    "--calibrate/--no-calibrate",
    "learn",
    default=True,
    show_default=True,
    help="Calibrate devices first that never were (at most a minute each).",
)
@options.json_option
def accuracy(
    models: tuple[str, ...],
    feeding: Feeding,
    placing: Placing,
    repeat: int,
    worst: int,
    learn: bool,
    json_to: str | None,
) -> None:
    """Compare predicted with measured times of MODELs: on each device alone, and on all.

    Options for inputs that a model does not have are left out for that model.
    """
    output = Output(json_to)
    ids = list(dict.fromkeys(placing.devices)) or [info.id for info in registry.devices()]
    sets = [(name,) for name in ids] + ([tuple(ids)] if len(ids) > 1 else [])
    loaded = [(path, load_model(path)) for path in models]
    if learn:
        calibrate_missing(ids, placing.threads, output)
    rows: list[Row] = []
    skipped: list[dict[str, Any]] = []
    for path, graph in loaded:
        graphs = [g for _, g in loaded]
        own, where = only_for(graph, feeding, graphs), placing.besides(others_alone(graph, graphs))
        bound, feeds = prepare(path, graph, own, output.note)
        for chosen in sets:
            try:
                with output.progress(f"{path} on {' '.join(chosen)}") as tick, about(path):
                    made = measure(bound, feeds, where, chosen, repeat, tick)
                rows.append(Row(path, chosen, made))
            except PlanError as error:
                output.note(f"{path} on {', '.join(chosen)}: left out: {error}")
                skipped.append({"model": path, "devices": list(chosen), "reason": str(error)})
    if not rows:
        raise PlanError(f"nothing was measured: {skipped[0]['reason']}")
    _show(rows, worst, output)
    output.json(
        {
            "schema": "crossdock-accuracy/2",
            "rows": [_json(row) for row in rows],
            "by_devices": {name: _summary_json(found) for name, found in _groups(rows).items()},
            "placements": _placements(rows),
            "skipped": skipped,
        }
    )


def measure(
    graph: Graph,
    feeds: Mapping[str, Array],
    placing: Placing,
    devices: Sequence[str],
    repeat: int,
    progress: Progress | None = None,
) -> Measurement:
    """Run a model on a set of devices, whole and with every step timed."""
    with compiled(graph, placing, progress, devices=devices) as session:
        return measure_accuracy(session, placed(session, feeds), repeat)


def _show(rows: Sequence[Row], worst: int, output: Output) -> None:
    table = make_table(
        "Whole runs, predicted against measured",
        ("model", "devices", ">measured", ">seen", ">error", ">composed", ">error", ">unseen",
         ">error", ">pace"),
    )  # fmt: skip
    for row in rows:
        made = row.made
        pairs = (made.whole, made.composed, made.unseen)
        cells = [cell for pair in pairs for cell in _cells(pair)]
        add_row(
            table,
            (
                (short(row.model, 48), "bold"),
                " ".join(row.devices),
                millis(made.whole.measured),
                *cells,
                f"{made.pace:.2f}",
            ),
        )
    output.table(table, NOTE)
    _ops_table("Ops of shapes seen in this graph", rows, lambda row: row.seen, output)
    _ops_table("Ops as if never seen", rows, lambda row: row.unseen, output)
    found = _placements(rows)
    if found is not None:
        output.line(f"rank correlation of placements, mean over the models: {found:.3f}")
    if worst:
        output.table(_worst(rows, worst))


def _cells(pair: Pair | None) -> tuple[str, str]:
    return ("-", "-") if pair is None else (millis(pair.predicted), _signed(pair.error))


def _ops_table(
    title: str, rows: Sequence[Row], get: Callable[[Row], Metrics | None], output: Output
) -> None:
    table = make_table(
        title,
        ("model", "devices", ">ops", ">MAPE", ">median error", ">within 10 %", ">within 15 %",
         ">in interval", ">rank"),
    )  # fmt: skip
    made = [(row.model, " ".join(row.devices), get(row)) for row in rows]
    groups = _groups(rows)
    seen = title == "Ops of shapes seen in this graph"
    made += [("all", name, _all(found, seen=seen)) for name, found in groups.items()]
    for model, devices, q in made:
        if q is not None:
            numbers = (q.mape, q.median_ape, q.within_10, q.within_15, q.coverage)
            add_row(
                table,
                (
                    (short(model, 48), "bold"),
                    devices,
                    q.count,
                    *map(percent, numbers),
                    "-" if q.rank is None else f"{q.rank:.3f}",
                ),
            )
    output.table(table, OPS_NOTE)


def _groups(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by set of devices."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(" ".join(row.devices), []).append(row)
    return found


def _all(rows: Sequence[Row], *, seen: bool) -> Metrics | None:
    """Of the ops of all models."""
    pairs = [op.pair if seen else op.unseen for row in rows for op in row.made.ops]
    return metrics([pair for pair in pairs if pair is not None])


def _placements(rows: Sequence[Row]) -> float | None:
    """How well predictions order the device sets of a model: mean of Spearman's correlations."""
    by_model: dict[str, list[Pair]] = {}
    for row in rows:
        by_model.setdefault(row.model, []).append(row.made.whole)
    found = [
        rank
        for pairs in by_model.values()
        if (rank := spearman([p.predicted for p in pairs], [p.measured for p in pairs])) is not None
    ]
    return sum(found) / len(found) if found else None


def _worst(rows: Sequence[Row], count: int) -> Any:
    table = make_table(
        "Ops whose prediction was off by the longest time",
        ("model", "devices", "op", "name", "on", "kernel", ">predicted", ">measured", ">error",
         "source"),
    )  # fmt: skip
    every = [(row, op) for row in rows for op in row.made.ops]
    for row, op in sorted(every, key=lambda pair: -pair[1].missed)[:count]:
        add_row(
            table,
            (
                short(row.model, 32),
                " ".join(row.devices),
                (op.step.op, "bold"),
                short(op.step.name, 36),
                op.step.device,
                op.step.kernel,
                seconds(op.pair.predicted),
                seconds(op.pair.measured),
                _signed(op.pair.error),
                op.step.source,
            ),
        )
    return table


def _signed(error: float) -> str:
    return f"{error:+.0%}"


def _dict(value: Any) -> Any:
    return None if value is None else dataclasses.asdict(value)


def _summary_json(rows: Sequence[Row]) -> dict[str, Any]:
    return {
        "seen": _dict(_all(rows, seen=True)),
        "unseen": _dict(_all(rows, seen=False)),
        "whole": _dict(metrics([row.made.whole for row in rows])),
        "whole_composed": _dict(metrics([row.made.composed for row in rows])),
        "whole_unseen": _dict(metrics([r.made.unseen for r in rows if r.made.unseen is not None])),
    }


def _json(row: Row) -> dict[str, Any]:
    made = row.made
    return {
        "model": row.model,
        "devices": list(row.devices),
        "whole": _dict(made.whole),
        "composed": _dict(made.composed),
        "unseen": _dict(made.unseen),
        "pace": made.pace,
        "metrics": _dict(row.seen),
        "metrics_unseen": _dict(row.unseen),
        "ops": [
            {
                "name": op.step.name,
                "op": op.step.op,
                "device": op.step.device,
                "kernel": op.step.kernel,
                "source": op.step.source,
                **_dict(op.pair),
                "unseen": _dict(op.unseen),
            }
            for op in made.ops
        ],
    }
