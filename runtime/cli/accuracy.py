"""``crossdock accuracy``: predicted against measured time, op by op and for the whole graph."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click

from crossdock.devices import registry
from crossdock.runtime import session as sessions
from crossdock.runtime.cli import options
from crossdock.runtime.cli.inputs import about, load_model, only_for, prepare
from crossdock.runtime.cli.metrics import Metrics, Pair, metrics
from crossdock.runtime.cli.options import Feeding, Placing
from crossdock.runtime.cli.output import Output, add_row, make_table
from crossdock.runtime.cli.text import millis, percent, seconds, short
from crossdock.runtime.cli.trace_view import measured_steps
from crossdock.runtime.errors import PlanError
from crossdock.runtime.graph import Graph
from crossdock.runtime.plan import Step
from crossdock.runtime.session import Session
from crossdock.runtime.tensor import Array

WORST = 10
NOTE = (
    "ops: each op timed by itself; rank: Spearman's correlation of predicted and measured; of the "
    "intervals, 80 % are to hold"
)


@dataclass(frozen=True)
class Op:
    """An op of a run: its step, and predicted next to measured."""

    step: Step
    pair: Pair

    @property
    def missed(self) -> float:
        """Seconds by which the prediction was off."""
        return abs(self.pair.predicted - self.pair.measured)


@dataclass(frozen=True)
class Row:
    """A model on a set of devices."""

    model: str
    devices: tuple[str, ...]
    whole: Pair
    ops: tuple[Op, ...]
    quality: Metrics | None


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
@options.json_option
def accuracy(
    models: tuple[str, ...],
    feeding: Feeding,
    placing: Placing,
    repeat: int,
    worst: int,
    json_to: str | None,
) -> None:
    """Compare predicted with measured times of MODELs: on each device alone, and on all.

    Options for inputs that a model does not have are left out for that model.
    """
    output = Output(json_to)
    ids = list(dict.fromkeys(placing.devices)) or [info.id for info in registry.devices()]
    sets = [(name,) for name in ids] + ([tuple(ids)] if len(ids) > 1 else [])
    loaded = [(path, load_model(path)) for path in models]
    rows: list[Row] = []
    skipped: list[dict[str, Any]] = []
    for path, graph in loaded:
        own = only_for(graph, feeding, [g for _, g in loaded])
        bound, feeds = prepare(path, graph, own, output.note)
        for chosen in sets:
            try:
                with output.progress(f"{path} on {' '.join(chosen)}") as tick, about(path):
                    rows.append(measure(path, bound, feeds, placing, chosen, repeat, tick))
            except PlanError as error:
                output.note(f"{path} on {', '.join(chosen)}: left out: {error}")
                skipped.append({"model": path, "devices": list(chosen), "reason": str(error)})
    _show(rows, worst, output)
    output.json(
        {
            "schema": "crossdock-accuracy/1",
            "rows": [_json(row) for row in rows],
            "skipped": skipped,
        }
    )


def measure(
    path: str,
    graph: Graph,
    feeds: Mapping[str, Array],
    placing: Placing,
    devices: Sequence[str],
    repeat: int,
    progress: sessions.Progress | None = None,
) -> Row:
    """Run a model on a set of devices, whole and with every step timed."""
    session = sessions.compile(
        graph,
        devices=devices,
        policy=placing.policy,
        constraints=placing.constraints(),
        expected_runs=placing.expected_runs,
        threads=placing.threads,
        measure=placing.budget,
        progress=progress,
    )
    with session:
        session.run(feeds)
        plan = session.plan
        runs = []
        for _ in range(repeat):
            begin = time.perf_counter()
            session.run(feeds)
            runs.append(time.perf_counter() - begin)
        ops = _ops(session, feeds, repeat)
    whole = Pair(plan.predicted, plan.low, plan.high, statistics.median(runs))
    return Row(path, tuple(devices), whole, ops, metrics([op.pair for op in ops]))


def _ops(session: Session, feeds: Mapping[str, Array], repeat: int) -> tuple[Op, ...]:
    """The ops with their median time over profiled runs."""
    plan = session.plan
    found: dict[int, list[float]] = {}
    session.profile(feeds)
    for _ in range(repeat):
        once: dict[int, float] = {}
        outcome = session.profile(feeds)
        for queue, spans in outcome.spans.items():
            for step, span in measured_steps(plan, queue, spans):
                once[step.index] = once.get(step.index, 0.0) + span.end - span.start
        for index, took in once.items():
            found.setdefault(index, []).append(took)
    return tuple(
        Op(s, Pair(s.seconds, s.low, s.high, statistics.median(found[s.index])))
        for s in plan.launches()
        if s.index in found
    )


def _show(rows: Sequence[Row], worst: int, output: Output) -> None:
    table = make_table(
        "Predicted against measured",
        ("model", "devices", ">predicted", ">measured", ">error", ">ops", ">MAPE",
         ">median error", ">within 10 %", ">within 15 %", ">in interval", ">rank"),
    )  # fmt: skip
    for row in rows:
        q = row.quality
        add_row(
            table,
            (
                (short(row.model, 48), "bold"),
                " ".join(row.devices),
                millis(row.whole.predicted),
                millis(row.whole.measured),
                _signed(row.whole.error),
                len(row.ops),
                *(
                    percent(getattr(q, name)) if q else "-"
                    for name in ("mape", "median_ape", "within_10", "within_15", "coverage")
                ),
                "-" if q is None or q.rank is None else f"{q.rank:.3f}",
            ),
        )
    output.table(table, NOTE)
    if worst:
        output.table(_worst(rows, worst))


def _worst(rows: Sequence[Row], count: int) -> Any:
    table = make_table(
        "Ops whose prediction was off by the longest time",
        ("model", "devices", "op", "name", "on", "kernel", ">predicted", ">measured", ">error",
         "source"),
    )  # fmt: skip
    every = [(row, op) for row in rows for op in row.ops]
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


def _json(row: Row) -> dict[str, Any]:
    return {
        "model": row.model,
        "devices": list(row.devices),
        "whole": dataclasses.asdict(row.whole),
        "metrics": None if row.quality is None else dataclasses.asdict(row.quality),
        "ops": [
            {
                "name": op.step.name,
                "op": op.step.op,
                "device": op.step.device,
                "kernel": op.step.kernel,
                "source": op.step.source,
                **dataclasses.asdict(op.pair),
            }
            for op in row.ops
        ],
    }
