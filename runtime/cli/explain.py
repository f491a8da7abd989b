"""``crossdock explain``: every candidate of every op, and why the winner won."""

from __future__ import annotations

import dataclasses

import click
from rich.table import Table
from rich.text import Text

from crossdock.runtime.cli import options, tables
from crossdock.runtime.cli.inputs import about
from crossdock.runtime.cli.model import plan_file
from crossdock.runtime.cli.options import Feeding, Placing
from crossdock.runtime.cli.output import Output, add_row, make_table, styled
from crossdock.runtime.cli.plan import target_options
from crossdock.runtime.cli.planning import Asked
from crossdock.runtime.cli.text import millis, seconds, short
from crossdock.runtime.plan import Plan, Step

MARKS = {"measured": "", "fitted": "~", "roofline": "~~", "unknown": "?"}
"""How sure a number is, in a table of many."""
NOTE = (
    "bold: chosen; ~ fitted, ~~ roofline, ? unknown, - cannot run there; margin: how much later "
    "the op would end on the best other device"
)


@click.command()
@click.argument("model")
@click.argument("op", required=False)
@options.feeding
@options.placing
@target_options
@options.json_option
def explain(
    model: str,
    op: str | None,
    feeding: Feeding,
    placing: Placing,
    machine: str | None,
    without: tuple[str, ...],
    link: list[tuple[str, float]],
    memory: list[tuple[str, int]],
    cores: int | None,
    json_to: str | None,
) -> None:
    """Explain the placement of MODEL's ops, or of one OP (a node's name, or an output's)."""
    output = Output(json_to)
    asked = Asked(without, link, dict(memory), cores)
    made = plan_file(model, placing, feeding, asked, machine, output)
    plan = made.plan
    if op is not None:
        with about(model):
            step = tables.find_op(plan, made.graph.outputs.get(op, op))
        _explain_one(step, output)
        output.json({"schema": "crossdock-explain/1", "step": dataclasses.asdict(step)})
        return
    output.line(*tables.headline(plan))
    output.line()
    output.table(tables.devices_table(plan))
    output.table(_table(plan), NOTE)
    output.json(plan.to_json())


def _table(plan: Plan) -> Table:
    """A row an op, a column a device: the cost there, the winner's in bold."""
    devices = [f">{d.id}" for d in plan.devices]
    table = make_table("Candidates", (">#", "op", *devices, ">margin", "why"))
    for step in plan.launches():
        by_device = {c.device: c for c in step.choices}
        cells = []
        for part in plan.devices:
            choice = by_device.get(part.id)
            if choice is None or choice.seconds is None:
                cells.append(Text("-", style="dim"))
                continue
            text = f"{MARKS.get(choice.source, '')}{seconds(choice.seconds)}"
            cells.append(styled((text, "bold" if part.id == step.device else "")))
        name = short(step.name, tables.NAME)
        add_row(
            table,
            (
                step.index,
                styled((step.op, "bold"), f" {name}" if name != step.op else ""),
                *cells,
                seconds(tables.margin(step)),
                step.reason,
            ),
        )
    return table


def _explain_one(step: Step, output: Output) -> None:
    output.table(tables.candidates_table(step))
    output.line(
        "placed on ", (step.device, "bold"), f" as step #{step.index} of {step.queue}: ",
        step.reason or "no reason was kept",
    )  # fmt: skip
    if step.detail:
        output.line("fuses ", step.detail)
    output.line(
        f"starts {millis(step.start)} into the run"
        + (f", after steps {', '.join(f'#{w}' for w in step.waits)}" if step.waits else "")
    )
    gap = tables.margin(step)
    if gap is not None:
        output.line(*_what_would_change(gap))


def _what_would_change(gap: float) -> tuple[str, ...]:
    if gap >= 0:
        return (
            f"the best other device would end it {seconds(gap)} later: being faster by more than "
            "that, inputs included, would win it",
        )
    return (
        f"the best other device would end it {seconds(-gap)} earlier, but the whole would end "
        "later: what depends on it, or its neighbours, are better off like this",
    )
