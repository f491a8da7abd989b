"""``crossdock ops``: for each op and element type, how each device runs it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import click
from rich.text import Text

from crossdock.devices import registry
from crossdock.kernels import table
from crossdock.runtime.cli import options
from crossdock.runtime.cli.output import Output, add_row, make_table, styled
from crossdock.runtime.errors import UnsupportedOp
from crossdock.runtime.support import Level, Support, listed_ops, supports
from crossdock.runtime.tensor import DTYPES, WEBNN_DTYPES

SHORT = {
    "float32": "f32", "float16": "f16", "int32": "i32", "uint32": "u32", "int64": "i64",
    "uint64": "u64", "int8": "i8", "uint8": "u8", "float64": "f64", "bfloat16": "bf16",
    "bool": "bool", "int16": "i16", "uint16": "u16",
}  # fmt: skip
STYLES = {Level.NATIVE: "green", Level.EMULATED: "yellow", Level.FALLBACK: "red"}
NOTE = (
    "native: a kernel of its own; emulated: through kernels of other ops; fallback: only the host "
    "runs it. Types that an op's rules forbid are left out; * marks ops beyond WebNN"
)


@click.command()
@click.option("--device", "only_devices", metavar="ID", multiple=True, help="A device to ask.")
@click.option("--op", "only_ops", metavar="NAME", multiple=True, help="An op to ask for.")
@click.option("--all-types", is_flag=True, help="Types beyond WebNN's eight too.")
@options.json_option
def ops(
    only_devices: tuple[str, ...],
    only_ops: tuple[str, ...],
    all_types: bool,
    json_to: str | None,
) -> None:
    """List how each device runs each op and element type: native, emulated, fallback, and why."""
    output = Output(json_to)
    ids = list(only_devices) or [info.id for info in registry.devices()]
    infos = [registry.open_device(name).info for name in ids]
    names = _chosen(only_ops)
    dtypes = DTYPES if all_types else WEBNN_DTYPES
    found = [s for name in names for info in infos for s in supports(info, [name], dtypes)]
    view = make_table("Operators", ("op", *ids))
    for name in names:
        mark = "*" if table.op(name).extension else ""
        cells = [_cell([s for s in found if (s.op, s.device) == (name, i)]) for i in ids]
        add_row(view, ((name + mark, "bold"), *cells))
    output.table(view, NOTE)
    if only_ops:
        _reasons(found, output)
    output.json(
        {
            "schema": "crossdock-ops/1",
            "devices": ids,
            "ops": [dataclasses.asdict(s) for s in found],
        }
    )


def _chosen(only: Sequence[str]) -> list[str]:
    there = listed_ops()
    for name in only:
        if name not in there:
            near = [op for op in there if name in op or op in name]
            hint = f"did you mean {', '.join(near)}?" if near else "`crossdock ops` lists them all"
            raise UnsupportedOp(f"--op {name}: no such op; {hint}")
    return [op for op in there if not only or op in only]


def _cell(found: Sequence[Support]) -> Text:
    """The types of each level, and what an emulation goes through."""
    parts: list[tuple[str, str]] = []
    for level, style in STYLES.items():
        of = [s for s in found if s.level is level]
        if of:
            through = dict.fromkeys(op for s in of for op in s.through)
            via = f" via {', '.join(through)}" if through else ""
            parts.append((f"{level} {' '.join(SHORT[s.dtype] for s in of)}{via} ", style))
    return styled(*parts)


def _reasons(found: Sequence[Support], output: Output) -> None:
    """Why, for the ops that were asked for by name."""
    for s in found:
        if s.level is not Level.NATIVE:
            output.line((f"{s.op} {s.dtype} on {s.device}: {s.level}", "bold"), f": {s.reason}")
        elif s.kernels:
            output.line(f"{s.op} {s.dtype} on {s.device}: {', '.join(s.kernels)}")
