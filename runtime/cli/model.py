"""What the commands that plan a model have in common."""

from __future__ import annotations

from crossdock.devices.machine import Machine
from crossdock.runtime.cli.inputs import about, load_model, prepare
from crossdock.runtime.cli.options import Feeding, Placing
from crossdock.runtime.cli.output import Output, read_json
from crossdock.runtime.cli.planning import Changes, Planned, plan_model
from crossdock.runtime.cli.stages import plan_stages
from crossdock.runtime.errors import LoadError


def plan_file(
    path: str,
    placing: Placing,
    feeding: Feeding,
    changes: Changes,
    machine: str | None,
    output: Output,
) -> Planned:
    """Load, bind and plan a model file.

    One that runs in stages is evaluated on what it is fed, to see which stages there are.
    """
    profile = None if machine is None else read_machine(machine)
    source = load_model(path)
    graph, feeds = prepare(path, source, feeding, lambda _text: None)
    with output.progress("planning") as tick, about(path):
        if graph.staged is not None:
            return plan_stages(graph, graph.staged, feeds, placing, changes, profile, tick)
        return plan_model(graph, placing, changes, profile, tick, source=source)


def read_machine(path: str) -> Machine:
    """Read a machine profile; raises LoadError naming the file and the field."""
    form = read_json(path, "machine profile")
    try:
        return Machine.from_json(form)
    except LoadError as error:
        raise LoadError(f"{path}: {error}") from error
