"""``crossdock sweep``: predicted latency and throughput over batches and device sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import click
from rich.table import Table

from crossdock.devices.machine import Machine
from crossdock.runtime import whatif
from crossdock.runtime.cli import options
from crossdock.runtime.cli.inputs import about, bind, load_model
from crossdock.runtime.cli.model import origin, read_machine
from crossdock.runtime.cli.options import Feeding, Placing
from crossdock.runtime.cli.output import Output, add_row, check_place, make_table, write_text
from crossdock.runtime.cli.page import SWEEP, render
from crossdock.runtime.cli.planning import Asked, options_of, scene_of
from crossdock.runtime.cli.supposing import supposing
from crossdock.runtime.cli.text import millis, percent, short
from crossdock.runtime.config import Progress
from crossdock.runtime.errors import FeedError
from crossdock.runtime.graph import Graph
from crossdock.runtime.prepare import simplify
from crossdock.runtime.sweep import BreakEven, Devices, Plans, Point, Sweep, Sweeper
from crossdock.runtime.target import Target


def _ids(_ctx: click.Context, _param: click.Parameter, given: Sequence[str]) -> tuple[Devices, ...]:
    sets = tuple(tuple(i.strip() for i in text.split(",") if i.strip()) for text in given)
    if not all(sets):
        raise click.BadParameter("a set is one id or more, with commas between them")
    return sets


def _batches(_ctx: click.Context, _param: click.Parameter, text: str) -> tuple[int, ...]:
    try:
        sizes = options.dims(text)
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise click.BadParameter(f"{text!r} is not of the form 1,8,64")
    return sizes


@click.command()
@click.argument("model")
@click.option(
    "--batch", "batches", metavar="1,8,64", required=True, callback=_batches, help="Batch sizes."
)
@click.option(
    "--batch-dim",
    metavar="NAME",
    help="The open dimension that is the batch (default: the first dimension of an "
    "input that is open).",
)
@click.option(
    "--set",
    "sets",
    metavar="ID,ID",
    multiple=True,
    callback=_ids,
    help="A device set; may be given several times (default: each device alone, and all together).",
)
@options.feeding
@options.placing
@supposing
@click.option("--html", metavar="FILE", help="Write a page with the curves.")
@options.json_option
def sweep(
    model: str,
    batches: tuple[int, ...],
    batch_dim: str | None,
    sets: tuple[Devices, ...],
    feeding: Feeding,
    placing: Placing,
    machine: str | None,
    asked: Asked,
    html: str | None,
    json_to: str | None,
) -> None:
    """Predict MODEL's latency for each batch and device set, and where a set breaks even."""
    output = Output(json_to)
    check_place(html)
    profile = None if machine is None else read_machine(machine)
    graph = load_model(model)
    with output.progress("planning") as tick, about(model):
        source = _Source(graph, batch_dim, feeding, placing, asked, profile, tick)
        plans = options_of(placing, placing.constraints(), placing.sites(graph))
        made = Sweeper(source.at, plans).sweep(batches, sets)
    if profile is not None:
        output.line(*origin(machine, profile))
    output.table(_table(made))
    if made.break_even:
        output.table(_break_even(made))
    form = {"model": graph.name, **made.to_json()}
    if html is not None:
        data = {**form, "name": graph.name, "devices": [{"id": name} for name in _names(made)]}
        write_text(html, render(data, f"{graph.name} - crossdock sweep", SWEEP))
        output.note(f"wrote {html}")
    output.json(form)


class _Source:
    """Binds the model to a batch, and says where it may run."""

    def __init__(
        self,
        graph: Graph,
        batch_dim: str | None,
        feeding: Feeding,
        placing: Placing,
        asked: Asked,
        profile: Machine | None,
        progress: Progress,
    ) -> None:
        self.graph, self.symbol = graph, batch_symbol(graph, batch_dim)
        self._feeding, self._placing = feeding, placing
        self._asked, self._profile, self._progress = asked, profile, progress

    def at(self, batch: int, measure: bool) -> tuple[Graph, Target, Plans]:
        """The graph after the passes, its target with the changes made, and what plans it."""
        bound = bind(self.graph, self._bound(batch))
        graph = simplify(bound, self._placing.constraints(), self._placing.skip_passes)
        placing = self._placing if measure else replace(self._placing, measure=0.0)
        sites = placing.sites(self.graph)
        scene = scene_of(graph, placing, self._profile, self._progress, sites)
        target = scene.target
        threads = None if self._profile is None else placing.threads
        changes = self._asked.resolve({d.id for d in target.devices}, threads)
        return graph, whatif.changed(target, changes) if changes else target, scene.plan

    def _bound(self, batch: int) -> Feeding:
        """The sizes asked for, with the batch in place of what shapes say of it."""
        shapes = dict(self._feeding.shapes or {})
        for name, spec in self.graph.inputs.items():
            if name in shapes and len(shapes[name]) == len(spec.shape):
                pairs = zip(shapes[name], spec.shape, strict=True)
                shapes[name] = tuple(batch if d == self.symbol else n for n, d in pairs)
        dims = {**(self._feeding.dims or {}), self.symbol: batch}
        return Feeding(shapes=shapes, dims=dims)


def batch_symbol(graph: Graph, wanted: str | None) -> str:
    """The open dimension that is the batch.

    Raises:
        FeedError: there is none, or none of the name that is wanted.
    """
    if graph.staged is not None:
        raise FeedError(
            f"{graph.name!r} runs in stages whose shapes hang on values, so its batch cannot be "
            "swept; plan it for one input with `crossdock plan`"
        )
    if wanted is not None:
        if wanted in graph.symbols:
            return wanted
        there = ", ".join(graph.symbols) or "none"
        raise FeedError(f"--batch-dim {wanted}: no such dimension (open dimensions: {there})")
    for spec in graph.inputs.values():
        if spec.shape and isinstance(spec.shape[0], str):
            return spec.shape[0]
    fixed = ", ".join(f"{name} is {spec}" for name, spec in graph.inputs.items())
    raise FeedError(
        f"the batch of {graph.name!r} is fixed ({fixed}); export the model with an open first "
        "dimension, or name another open one with --batch-dim"
    )


def label(devices: Devices) -> str:
    """A device set in a table."""
    return " + ".join(devices)


def _table(made: Sweep) -> Table:
    columns = (
        ">batch",
        "devices",
        ">latency",
        ">at least",
        ">at most",
        ">simulated",
        ">samples/s",
        "ops",
        "",
    )
    table = make_table("Predicted", columns)
    for point in made.points:
        fastest = min(
            (p for p in made.points if p.batch == point.batch and p.seconds is not None),
            key=lambda p: p.seconds or 0.0,
            default=None,
        )
        add_row(table, _row(point), style="bold" if point is fastest else "")
    return table


def _row(point: Point) -> tuple[str, ...]:
    shares = ", ".join(f"{d} {percent(s)}" for d, s in point.shares.items() if s > 0)
    rate = point.throughput
    return (
        str(point.batch),
        label(point.devices),
        millis(point.seconds),
        millis(point.low),
        millis(point.high),
        millis(point.simulated),
        "-" if rate is None else f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}",
        shares,
        short(point.reason, 120),
    )


def _break_even(made: Sweep) -> Table:
    table = make_table("Break-even", ("devices", "faster than", ">from batch", ""))
    for found in made.break_even:
        add_row(table, (label(found.devices), found.versus, *_said(found, made)))
    return table


def _said(found: BreakEven, made: Sweep) -> tuple[str, str]:
    if found.batch is None:
        return "-", f"not up to {made.batches[-1]}"
    return str(found.batch), "" if found.exact else "or less: the smallest batch swept"


def _names(made: Sweep) -> list[str]:
    """What has a colour: the sets, and the devices that are no set of their own."""
    sets = [label(s) for s in made.sets]
    return list(dict.fromkeys((*sets, *(name for s in made.sets for name in s))))
