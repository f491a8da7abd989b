"""``crossdock plan``: what would run where, here or on a machine that is not here."""

from __future__ import annotations

import click

from crossdock.runtime.cli import changes, options, tables
from crossdock.runtime.cli.model import plan_file
from crossdock.runtime.cli.options import Feeding, Placing
from crossdock.runtime.cli.output import Output, check_place, write_text
from crossdock.runtime.cli.page import page
from crossdock.runtime.cli.planning import Asked
from crossdock.runtime.cli.supposing import supposing
from crossdock.runtime.errors import PlanError


@click.command()
@click.argument("model")
@options.feeding
@options.placing
@supposing
@click.option(
    "--compare",
    metavar="FILE",
    help="Write what the changes do to the plan as JSON; - for stdout alone.",
)
@click.option("--html", metavar="FILE", help="Write the plan as a page: timeline and graph.")
@click.option("--save", metavar="FILE", help="Write the plan itself: equal plans, equal bytes.")
@options.json_option
def plan(
    model: str,
    feeding: Feeding,
    placing: Placing,
    machine: str | None,
    asked: Asked,
    compare: str | None,
    html: str | None,
    save: str | None,
    json_to: str | None,
) -> None:
    """Plan MODEL: where each op runs, when, and why there."""
    output, other = Output(json_to), Output(compare)
    output.quiet = output.quiet or other.quiet
    check_place(html, save)
    made = plan_file(model, placing, feeding, asked, machine, output)
    # Before the tables: a reader such as head may close the pipe and so end the command.
    if html is not None:
        write_text(html, page(made.plan, made.graph, made.target.capacity))
        output.note(f"wrote {html}")
    if save is not None:
        write_text(save, made.plan.dumps())
        output.note(f"wrote {save}")
    output.line(*tables.headline(made.plan))
    for said in tables.promises(made.plan):
        output.line(said)
    output.line()
    output.table(tables.devices_table(made.plan))
    changes.show(made, output)
    output.table(tables.steps_table(made.plan))
    output.json(made.plan.to_json())
    if made.comparison is not None:
        other.json(made.comparison.to_json())
    elif compare is not None:
        raise PlanError(
            made.unplanned
            or "--compare: nothing is changed; give --without, --link, --memory or --cores"
        )
