"""``crossdock explain``: every candidate of every op, why one won, and what would move it."""

from __future__ import annotations

from collections.abc import Sequence

import click
from rich.table import Table
from rich.text import Text

from crossdock.runtime import explain as explaining
from crossdock.runtime.cli import options, tables
from crossdock.runtime.cli.inputs import about
from crossdock.runtime.cli.model import plan_file
from crossdock.runtime.cli.options import Feeding, Placing
from crossdock.runtime.cli.output import (
    Output,
    add_row,
    check_place,
    make_table,
    styled,
    write_text,
)
from crossdock.runtime.cli.page import page
from crossdock.runtime.cli.planning import Asked
from crossdock.runtime.cli.supposing import supposing
from crossdock.runtime.cli.text import millis, percent, seconds, short, size
from crossdock.runtime.explanation import Candidate, Explanation
from crossdock.runtime.plan import Plan, Step

MARKS = {"measured": "", "fitted": "~", "roofline": "~~", "unknown": "?"}
"""How sure a number is, in a table of many."""
NOTE = (
    "bold: chosen; ~ fitted, ~~ roofline, ? unknown, - cannot run there; margin: how much later "
    "the run would end with the op on the best other device, with all planned anew (* the op "
    "itself, all else as planned; + by the device's other kernel); sure: probability that the "
    "winner stays the winner"
)
LESS_SURE = {"local": "*", "kernel": "+"}
CODES = (
    "launch and compute: of the kernel; in: how much later than they are made its inputs are "
    "there; waits: for the device; run: predicted for the whole run, planned anew with the op "
    "there; free: memory then left on the device"
)


@click.command()
@click.argument("model")
@click.argument("op", required=False)
@options.feeding
@options.placing
@supposing
@click.option("--html", metavar="FILE", help="Write the plan as a page, with what is said here.")
@click.option(
    "--seconds",
    "budget",
    type=click.FloatRange(0),
    metavar="S",
    help="Time for planning anew what would move an op [default: 5, for all ops 20].",
)
@options.json_option
def explain(
    model: str,
    op: str | None,
    feeding: Feeding,
    placing: Placing,
    machine: str | None,
    asked: Asked,
    html: str | None,
    budget: float | None,
    json_to: str | None,
) -> None:
    """Explain the placement of MODEL's ops, or of one OP (a node's name, or an output's)."""
    output = Output(json_to)
    check_place(html)
    made = plan_file(model, placing, feeding, asked, machine, output)
    plan = made.plan
    if op is not None:
        with about(model):
            step = plan.find(made.graph.outputs.get(op, op))
        given = explaining.BUDGET_S if budget is None else budget
        found = [explaining.explain_op(plan, step.name, given)]
        _explain_one(step, found[0], output)
    else:
        given = 4 * explaining.BUDGET_S if budget is None else budget
        found = list(explaining.explain_all(plan, given))
        _explain_all(plan, found, output)
    if html is not None:
        write_text(html, page(plan, made.graph, made.target.capacity, explained=found))
        output.note(f"wrote {html}")
    output.json(
        {
            "schema": "crossdock-explain/2",
            "graph_name": plan.graph_name,
            "plan": plan.digest(),
            "predicted": plan.predicted,
            "lower_bound": plan.lower_bound,
            "replays": plan.replays,
            "ops": [{**e.to_json(), "replay": plan.find(e.name).replay} for e in found],
        }
    )


def _explain_all(plan: Plan, found: Sequence[Explanation], output: Output) -> None:
    output.line(*tables.headline(plan))
    for said in tables.promises(plan):
        output.line(said)
    if plan.replays:
        output.line(plan.replays)
    output.line()
    output.table(tables.devices_table(plan))
    output.table(_table(plan, found), NOTE)


def _table(plan: Plan, found: Sequence[Explanation]) -> Table:
    """A row an op, a column a device: the cost there, the winner's in bold."""
    devices = [f">{d.id}" for d in plan.devices]
    columns = (">#", "op", *devices, ">margin", ">sure", "would move it", "why")
    table = make_table("Candidates", columns)
    for step, said in zip(plan.launches(), found, strict=True):
        by_device = {c.device: c for c in step.choices}
        cells = []
        for part in plan.devices:
            choice = by_device.get(part.id)
            if choice is None or choice.seconds is None:
                cells.append(Text("-" if choice is None else choice.cause, style="dim"))
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
                f"{seconds(said.margin)}{LESS_SURE.get(said.scope, '')}",
                percent(said.confidence) if said.confidence is not None else "-",
                "; ".join(f.brief for f in said.flips if f.value is not None and f.device),
                step.reason,
            ),
        )
    return table


def _explain_one(step: Step, found: Explanation, output: Output) -> None:
    output.table(_candidates(found), CODES)
    output.line(
        "placed on ", (step.device, "bold"), f" as step #{step.index} of {step.queue}: ",
        step.reason or "no reason was kept",
    )  # fmt: skip
    if step.detail:
        output.line("fuses ", step.detail)
    if step.replay:
        output.line("launches ", step.replay)
    output.line(
        f"starts {millis(step.start)} into the run"
        + (f", after steps {', '.join(f'#{w}' for w in step.waits)}" if step.waits else "")
    )
    if found.margin is not None:
        output.line(*_margin(found))
    if found.objective != "latency":
        output.line(f"placed for {found.objective}: a margin of latency does not decide alone")
    for flip in found.flips:
        output.line(("to move it: ", "bold"), str(flip))


def _candidates(found: Explanation) -> Table:
    """A row a kernel of each device: what it costs, or the code of what keeps it out."""
    columns = ("", "device", "kernel", "code", ">launch", ">compute", ">at least", ">at most",
               "source", ">in", ">waits", ">would end", ">run", ">free", "reason")  # fmt: skip
    table = make_table(f"{found.op} {found.name}", columns)
    for row in found.candidates:
        style = "" if row.seconds is not None else "dim"
        add_row(table, _cells(row), style=style)
    return table


def _cells(row: Candidate) -> tuple[object, ...]:
    return (
        "->" if row.chosen else "",
        (row.device, "bold"),
        row.kernel,
        row.cause,
        seconds(row.launch),
        seconds(row.compute),
        seconds(row.low),
        seconds(row.high),
        (row.source, tables.SOURCES.get(row.source, "")) if row.seconds is not None else "",
        seconds(row.transfer_in),
        seconds(row.queue_wait),
        millis(row.finish),
        millis(row.whole),
        size(row.head_room),
        row.reason,
    )


def _margin(found: Explanation) -> tuple[str, ...]:
    assert found.margin is not None
    what = {
        "whole": "the run would end",
        "local": "it would end (all else as planned)",
        "kernel": "it would take",
    }[found.scope]
    later = "later" if found.scope != "kernel" else "longer"
    sooner = "sooner, but the whole would end later" if found.scope == "local" else "sooner"
    return (
        f"on the best other, {found.runner_up}, {what} {seconds(abs(found.margin))} ",
        later if found.margin >= 0 else sooner,
        f": {found.sigmas or 0:.1f} sigma; the winner stays the winner with "
        f"{percent(found.confidence or 0)}",
    )
