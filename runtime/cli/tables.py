"""Plans as tables: devices, steps, and what was considered for an op."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from crossdock.runtime.cli.output import add_row, make_table, styled
from crossdock.runtime.cli.text import millis, percent, seconds, short, size
from crossdock.runtime.errors import PlanError
from crossdock.runtime.plan import Choice, Plan, Step

NAME = 48
"""Characters of a node's or value's name in a table."""

SOURCES = {"measured": "", "fitted": "yellow", "roofline": "yellow", "unknown": "red"}


def headline(plan: Plan) -> tuple[tuple[str, str] | str, ...]:
    """What a plan promises, in a line."""
    return (
        f"{plan.graph_name}: predicted ",
        (millis(plan.predicted), "bold"),
        f" ({millis(plan.low)} to {millis(plan.high)}), lower bound {millis(plan.lower_bound)}, "
        f"{len(plan.launches())} ops and {len(plan.copies())} copies, policy {plan.policy}\n",
        plan.goal.said(plan.predicted),
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
        return styled(f"copy {name} {step.src}->{step.dst} {size(step.nbytes)}")
    return styled((step.op, "bold"), f" {name}" if name != step.op else "")


def candidates_table(step: Step) -> Table:
    """A row a device that was considered for an op: its cost, its finish, or why it cannot."""
    columns = ("", "device", "kernel", ">takes", ">at least", ">at most", "source",
               ">would end", ">later by", "reason")  # fmt: skip
    table = make_table(f"{step.op} {step.name}", columns)
    winner = chosen(step)
    for choice in step.choices:
        own = choice is winner
        add_row(
            table,
            (
                "->" if own else "",
                (choice.device, "bold"),
                choice.kernel,
                seconds(choice.seconds),
                seconds(choice.low),
                seconds(choice.high),
                (choice.source, SOURCES.get(choice.source, "")),
                millis(choice.finish),
                "" if own else _later(choice, winner),
                choice.reason,
            ),
            style="" if choice.seconds is not None else "dim",
        )
    return table


def chosen(step: Step) -> Choice | None:
    """The candidate that won."""
    return next((c for c in step.choices if c.device == step.device), None)


def margin(step: Step) -> float | None:
    """How much later the best other device would have ended the op, in seconds."""
    winner = chosen(step)
    if winner is None or winner.finish is None:
        return None
    others = [c.finish for c in step.choices if c.device != step.device and c.finish is not None]
    return min(others) - winner.finish if others else None


def _later(choice: Choice, winner: Choice | None) -> str:
    if winner is None or winner.finish is None or choice.finish is None:
        return ""
    return seconds(choice.finish - winner.finish)


def find_op(plan: Plan, name: str) -> Step:
    """The step of an op by node name or by a value it makes; raises PlanError with near ones."""
    for step in plan.launches():
        if step.name == name or name in step.outputs:
            return step
    plan.explain_op(name)  # raises, with the names that come close
    raise PlanError(f"no op {name!r} in the plan of {plan.graph_name!r}")
