"""Plans as tables: devices, steps, and what was considered for an op."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from crossdock.runtime.cli.output import add_row, make_table, styled
from crossdock.runtime.cli.text import millis, percent, seconds, short, size
from crossdock.runtime.plan import Plan, Step

NAME = 48
"""Characters of a node's or value's name in a table."""

SOURCES = {"measured": "", "fitted": "yellow", "roofline": "yellow", "unknown": "red"}


def headline(plan: Plan) -> tuple[tuple[str, str] | str, ...]:
    """What a plan promises, in a line."""
    return (
        f"{plan.graph_name}: predicted ",
        (millis(plan.predicted), "bold"),
        f" ({millis(plan.low)} to {millis(plan.high)}), {plan.comparison()}, "
        f"{len(plan.launches())} ops and {len(plan.copies())} copies, policy {plan.policy}",
    )


def promises(plan: Plan) -> tuple[str, ...]:
    """What else a plan says as a whole, a line each: what it was made for, and within what."""
    return (
        plan.goal.said(plan.predicted),
        plan.horizon.said(plan.expected_runs),
        *(str(rung) for rung in plan.rungs),
        *((plan.rounding,) if plan.rounding else ()),
    )


def devices_table(plan: Plan) -> Table:
    """A row a device: share of the ops, time were it alone, bytes."""
    table = make_table(
        "Devices", ("device", "name", ">ops", ">alone", ">arena", ">scratch", ">weights")
    )
    shares = plan.shares()
    for part in plan.devices:
        add_row(
            table,
            (
                (part.id, "bold"),
                short(part.name, NAME),
                percent(shares[part.id]),
                millis(part.single_seconds),
                size(part.arena_bytes),
                size(part.scratch_bytes),
                size(part.fixed_bytes),
            ),
        )
    return table


def steps_table(plan: Plan) -> Table:
    """A row a step, in order, with its reason."""
    columns = (">#", "queue", "step", "kernel", "waits", ">start", ">takes", "source", "why")
    table = make_table("Steps", columns)
    for step in plan.steps:
        add_row(
            table,
            (
                step.index,
                step.queue,
                _what(step),
                step.kernel,
                ",".join(str(w) for w in step.waits),
                millis(step.start),
                seconds(step.seconds),
                (step.source, SOURCES.get(step.source, "")),
                step.reason,
            ),
            style="dim" if step.kind == "copy" else "",
        )
    return table


def _what(step: Step) -> Text:
    name = short(step.name, NAME)
    if step.kind == "copy":
        where = f"{step.src}->{step.dst}" if step.src != step.dst else f"on {step.dst}"
        how = f" {step.detail}" if step.src == step.dst and step.detail else ""
        return styled(f"{step.moves} {name} {where} {size(step.nbytes)}{how}")
    return styled((step.op, "bold"), f" {name}" if name != step.op else "")
