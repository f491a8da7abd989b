"""``crossdock plan diff``: what differs between two saved plans."""

from __future__ import annotations

import click

from crossdock.runtime import plan_diff as diffs
from crossdock.runtime.cli import options
from crossdock.runtime.cli.output import Output, add_row, make_table
from crossdock.runtime.cli.text import millis, seconds, short, size
from crossdock.runtime.errors import PlanError
from crossdock.runtime.files import read_record
from crossdock.runtime.plan import Plan
from crossdock.runtime.plan_diff import PlanDiff

SLOWEST = 20
"""Ops that are listed with their seconds before and after, those that changed most."""


@click.command(name="plan diff")
@click.argument("before", metavar="A")
@click.argument("after", metavar="B")
@options.json_option
def plan_diff(before: str, after: str, json_to: str | None) -> None:
    """Say what differs between the plans in files A and B (plan MODEL --save FILE)."""
    output = Output(json_to)
    found = diffs.diff(read_plan(before), read_plan(after))
    _report(found, output)
    output.json(found.to_json())


def read_plan(path: str) -> Plan:
    """A plan from a file; raises PlanError or LoadError naming the file."""
    try:
        return Plan.loads(read_record(path, "plan"))
    except PlanError as error:
        raise PlanError(f"{path}: {error}") from error


def _report(found: PlanDiff, output: Output) -> None:
    a, b = found.predicted
    if found.same:
        output.line("the same plan: predicted ", (millis(a), "bold"))
        return
    output.line("predicted ", (millis(a), "bold"), " -> ", (millis(b), "bold"), _ratio(a, b))
    for what, said in found.stale.items():
        output.line((f"{what}: ", "yellow"), short(said, 160))
    for link, (x, y) in found.links.items():
        output.line(f"moves {size(x)} -> {size(y)} {link}")
    for title, rows in (("Moved", found.moved), ("Other kernels", found.kernels)):
        table = make_table(f"{title}: {len(rows)}", ("op", "name", "before", "after"))
        for row in rows:
            add_row(table, ((row.op, "bold"), short(row.name, 60), row.before, row.after))
        if rows:
            output.table(table)
    for what, names in (("only in A", found.removed), ("only in B", found.added)):
        if names:
            output.line(f"{len(names)} ops {what}: ", short(", ".join(names), 400))
    _seconds(found, output)


def _ratio(a: float, b: float) -> str:
    return f" ({b / a:.3g} x)" if a > 0 else ""


def _seconds(found: PlanDiff, output: Output) -> None:
    most = sorted(found.seconds.items(), key=lambda item: -abs(item[1][1] - item[1][0]))
    if not most:
        return
    title = f"Predicted otherwise: {len(most)}, those that changed most"
    table = make_table(title, ("op", ">before", ">after", ">ratio"))
    for name, (x, y) in most[:SLOWEST]:
        add_row(table, (short(name, 60), seconds(x), seconds(y), f"{y / x:.3g}" if x > 0 else "-"))
    output.table(table)
