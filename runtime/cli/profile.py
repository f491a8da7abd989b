"""``crossdock profile``: each op's time, rates and share of its device's roofline."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import click

from crossdock.devices.machine import Rates
from crossdock.devices.probe import probe
from crossdock.runtime import roofline
from crossdock.runtime.cli import options
from crossdock.runtime.cli.compiling import compiled, placed
from crossdock.runtime.cli.inputs import about, load_model, prepare
from crossdock.runtime.cli.options import Feeding, Placing
from crossdock.runtime.cli.output import Output, add_row, make_table
from crossdock.runtime.cli.text import percent, rate, seconds, short
from crossdock.runtime.roofline import Timed

TOP = 20
NOTE = (
    "roofline: share of what the device reaches at best, by multiply-adds in registers (compute) "
    "or a copy of as many bytes (memory); bytes count once"
)


@click.command()
@click.argument("model")
@options.feeding
@options.placing
@click.option(
    "--repeat",
    type=click.IntRange(1),
    metavar="N",
    default=10,
    show_default=True,
    help="Runs, of which each op's median counts.",
)
@click.option(
    "--top",
    type=click.IntRange(1),
    metavar="N",
    default=TOP,
    show_default=True,
    help="Ops to print, the costliest first.",
)
@options.json_option
def profile(
    model: str, feeding: Feeding, placing: Placing, repeat: int, top: int, json_to: str | None
) -> None:
    """Time each op of MODEL within its runs, and set it beside its device's limits."""
    output = Output(json_to)
    graph, feeds = prepare(model, load_model(model), feeding, output.note)
    with output.progress("compiling") as tick, about(model):
        session = compiled(graph, placing, tick)
    with session, about(model):
        rates = _rates(sorted({s.device for s in session.plan.launches()}), placing, output)
        rows = roofline.profile(session, placed(session, feeds), repeat, rates)
    _show(model, rows, top, output)
    output.json({"schema": "crossdock-profile/1", "model": model, "ops": [_form(r) for r in rows]})


def _rates(ids: Sequence[str], placing: Placing, output: Output) -> dict[str, Rates]:
    """What the devices sustain: as kept by a probe, else measured now."""
    with output.progress("probing") as tick:
        machine = probe(
            quick=True,
            devices=ids,
            threads=placing.threads,
            progress=lambda text, fraction: tick(text, round(fraction * 1000), 1000),
        )
    return {d.id: d.rates for d in machine.devices if d.rates is not None}


def _show(model: str, rows: Sequence[Timed], top: int, output: Output) -> None:
    total = sum(row.seconds for row in rows)
    columns = (
        "op", "name", "device", "kernel", ">time", ">of all", ">FLOP/s", ">B/s", ">roofline",
        "bound by",
    )  # fmt: skip
    table = make_table(short(model, 60), columns)
    for row in sorted(rows, key=lambda r: -r.seconds)[:top]:
        add_row(
            table,
            (
                (row.op, "bold"),
                short(row.name, 32),
                row.device,
                row.kernel,
                seconds(row.seconds),
                percent(row.seconds / total),
                rate(row.flops, "FLOP"),
                rate(row.bandwidth, "B"),
                percent(row.share),
                "memory" if row.memory else "compute",
            ),
        )
    output.table(table, NOTE)
    limit = sum(row.bound or 0.0 for row in rows)
    output.line(
        f"{len(rows)} ops: {seconds(total)}, of which the rooflines allow {seconds(limit)} "
        f"({percent(limit / total if total else None)})"
    )


def _form(row: Timed) -> dict[str, Any]:
    return {
        **dataclasses.asdict(row),
        "flops_per_s": row.flops,
        "bytes_per_s": row.bandwidth,
        "share": row.share,
    }
