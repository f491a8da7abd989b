"""What a change does to a plan, as tables: latency, peak memory, and the ops that move."""

from __future__ import annotations

from rich.table import Table

from crossdock.runtime.cli.output import Output, add_row, make_table
from crossdock.runtime.cli.planning import Planned
from crossdock.runtime.cli.tables import NAME
from crossdock.runtime.cli.text import millis, percent, seconds, short, size
from crossdock.runtime.whatif import Comparison


def show(made: Planned, output: Output) -> None:
    """Print what was changed; nothing for a plan of the target as it is."""
    if made.unplanned:
        output.line(f"unchanged, there is no plan: {made.unplanned}")
    found = made.comparison
    if found is None:
        return
    before, after = found.before.predicted, found.after.predicted
    factor = after / before if before > 0 else 1.0
    output.line(
        "unchanged, it is predicted to take ",
        (millis(before), "bold"),
        f": the change makes it {factor:.2f} times that; {len(found.moves)} of "
        f"{len(found.before.launches())} ops move",
    )
    output.line()
    output.table(_devices(found))
    if found.moves:
        output.table(_moves(found))


def _devices(found: Comparison) -> Table:
    """A row a device of either plan."""
    columns = ("device", ">ops before", ">after", ">peak memory before", ">after")
    table = make_table("Changed", columns)
    before, after = found.before, found.after
    peaks = [{d.id: d.peak_bytes for d in plan.devices} for plan in (before, after)]
    for name in dict.fromkeys((*before.device_ids(), *after.device_ids())):
        shares = (plan.shares().get(name) for plan in (before, after))
        was, now = (percent(s) for s in shares)
        add_row(
            table, ((name, "bold"), was, now, size(peaks[0].get(name)), size(peaks[1].get(name)))
        )
    return table


def _moves(found: Comparison) -> Table:
    table = make_table("Moved", ("op", "from", "to", ">took", ">takes", "why", ""))
    for move in found.moves:
        name = short(move.name, NAME)
        what = move.op if name == move.op else f"{move.op} {name}"
        took, takes = seconds(move.before), seconds(move.after)
        why = (move.why.value, "bold")
        add_row(table, (what, move.src, move.dst, took, takes, why, move.detail))
    return table
