"""What the commands that plan a model have in common."""

from __future__ import annotations

from pathlib import Path

from crossdock.devices import machines
from crossdock.devices.machine import Machine
from crossdock.runtime.cli.inputs import about, load_model, prepare
from crossdock.runtime.cli.options import Feeding, Placing
from crossdock.runtime.cli.output import Output
from crossdock.runtime.cli.planning import Asked, Planned, plan_model
from crossdock.runtime.cli.stages import plan_stages
from crossdock.runtime.errors import LoadError
from crossdock.runtime.files import read_json


def plan_file(
    path: str,
    placing: Placing,
    feeding: Feeding,
    asked: Asked,
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
            made = plan_stages(graph, graph.staged, feeds, placing, asked, profile, tick)
        else:
            made = plan_model(graph, placing, asked, profile, tick, source=source)
    if profile is not None:
        output.line(*origin(machine, profile))
    return made


def origin(name: str | None, machine: Machine) -> tuple[str | tuple[str, str], ...]:
    """Where a profile's figures are from, in a line."""
    return (str(name), "bold"), f": {machine.origin.partition(';')[0]}"


def read_machine(place: str) -> Machine:
    """Read a machine profile from a file, or one that is shipped by its name.

    Raises:
        LoadError: names the file and the field, or the names there are.
    """
    if not Path(place).exists() and place in machines.names():
        return machines.read(place)
    if not Path(place).exists() and not Path(place).suffix:
        raise LoadError(
            f"--machine {place}: there is no such file, and no machine of that name is shipped; "
            f"those are {', '.join(machines.names())}"
        )
    form = read_json(place, "machine profile")
    try:
        return Machine.from_json(form)
    except LoadError as error:
        raise LoadError(f"{place}: {error}") from error
