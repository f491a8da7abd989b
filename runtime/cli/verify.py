"""``crossdock verify``: every fitting kernel of every op case on every device, against float64."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import click
from rich.table import Table
from rich.text import Text

from crossdock.devices import registry
from crossdock.devices.base import Device, DeviceInfo
from crossdock.runtime.cli import options
from crossdock.runtime.cli.options import Feeding
from crossdock.runtime.cli.output import Output, add_row, make_table, styled
from crossdock.runtime.cli.text import short
from crossdock.runtime.cli.verify_cases import chosen
from crossdock.runtime.cli.verify_check import Finding, Missing, check
from crossdock.runtime.cli.verify_graphs import verify_graphs
from crossdock.runtime.cli.verify_passes import verify_passes
from crossdock.runtime.pass_check import COARSE, TOLERANCE

SHOWN = 20
"""Failures listed in full on the screen; the JSON holds all."""
NOTE = (
    "runs of kernels that passed, and the largest error over the one allowed; ops that are views "
    "of their input need no kernel"
)


@click.command()
@click.option("--device", "only_devices", metavar="ID", multiple=True, help="A device to verify.")
@click.option("--op", "only_ops", metavar="NAME", multiple=True, help="An op to verify.")
@click.option("--quick", is_flag=True, help="Each op's first case, and the special values.")
@click.option("--graphs", metavar="N", type=click.IntRange(1), help="Run N random graphs instead.")
@click.option("--passes", "model", metavar="MODEL", help="Check the graph passes on MODEL instead.")
@options.no_pass
@click.option(
    "--tolerance",
    metavar="ERROR",
    type=options.Seconds(0, min_open=True),
    help="Error over an output's largest element that --passes allows "
    f"(default: {TOLERANCE:g}, or {COARSE:g} for 16-bit and quantised models).",
)
@options.feeding
@click.option(
    "--every",
    metavar="K",
    type=click.IntRange(1),
    default=1,
    help="Run one graph of K on other devices than the processor, too.",
)
@click.option(
    "--keep",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Shrink the graphs that fail and write them here.",
)
@options.json_option
@click.pass_context
def verify(
    ctx: click.Context,
    only_devices: tuple[str, ...],
    only_ops: tuple[str, ...],
    quick: bool,
    graphs: int | None,
    model: str | None,
    no_pass: tuple[str, ...],
    tolerance: float | None,
    feeding: Feeding,
    every: int,
    keep: Path | None,
    json_to: str | None,
) -> None:  # fmt: skip
    """Check every kernel on every device against a float64 reference; exit status 1 if one fails.

    Each op has cases of several shapes, layouts, types, options and special values (NaN,
    infinities, denormal numbers, the limits of integers); each kernel that fits a case runs it.

    With --graphs, random graphs over all ops are run on every device, over several at once, in
    parts, and where ONNX has the ops by onnxruntime; each is held against the reference. --seed is
    the first's.

    With --passes, MODEL is run before the graph passes and after each of them; the first pass that
    makes its answer wrong is named, and the op where it does.
    """
    output = Output(json_to)
    if model is not None:
        if graphs is not None:
            raise click.UsageError("--passes checks one model, --graphs random ones; give one")
        ctx.exit(verify_passes(output, model, feeding, only_devices, no_pass, tolerance))
    if graphs is not None:
        found = list(only_devices) or [info.id for info in registry.devices()]
        seeds = range(feeding.seed, feeding.seed + graphs)
        ctx.exit(verify_graphs(output, seeds, found, every=every, keep=keep))
    cases = chosen(only_ops, quick=quick)
    ids = list(only_devices) or [info.id for info in registry.devices()]
    devices = [registry.open_device(name) for name in ids]
    with output.progress("verifying") as tick:
        findings, missing = check(cases, devices, tick)
    output.table(_table(findings, missing, ids), NOTE)
    output.table(_summary(findings, missing, devices))
    _list_missing(missing, output)
    _list_failures(findings, output)
    failed = sum(not f.passed for f in findings)
    style = "bold red" if failed else "bold green"
    output.line(
        (f"{failed} of {len(findings)} failed", style),
        f": {len({f.kernel for f in findings})} kernels, {len(cases)} cases, "
        f"{len({c.op for c in cases})} ops, {len(ids)} devices",
    )
    output.json(
        {
            "schema": "crossdock-verify/1",
            "devices": ids,
            "findings": [dataclasses.asdict(f) for f in findings],
            "missing": [dataclasses.asdict(m) for m in missing],
        }
    )
    ctx.exit(1 if failed else 0)


def _table(findings: Sequence[Finding], missing: Sequence[Missing], ids: Sequence[str]) -> Table:
    """A row an op, a column a device."""
    table = make_table("Verified", ("op", *ids))
    by_cell: dict[tuple[str, str], list[Finding]] = {}
    for finding in findings:
        by_cell.setdefault((finding.op, finding.device), []).append(finding)
    lacking: dict[tuple[str, str], int] = {}
    for gap in missing:
        lacking[gap.op, gap.device] = lacking.get((gap.op, gap.device), 0) + 1
    ops = [finding.op for finding in findings] + [gap.op for gap in missing]
    for op in dict.fromkeys(ops):
        cells = [_cell(by_cell.get((op, d), []), lacking.get((op, d), 0)) for d in ids]
        add_row(table, ((op, "bold"), *cells))
    return table


def _summary(
    findings: Sequence[Finding], missing: Sequence[Missing], devices: Sequence[Device]
) -> Table:
    """A row a device: what ran on it, and how."""
    columns = ("device", "name", ">passed", ">failed", ">not supported", ">worst", "denormals")
    table = make_table("Devices", columns)
    for device in devices:
        mine = [f for f in findings if f.device == device.info.id]
        lacking = sum(m.device == device.info.id for m in missing)
        failed = sum(not f.passed for f in mine)
        worst = max((f.error for f in mine if f.passed and f.error is not None), default=0.0)
        name = f"{device.info.name}, {device.info.driver}"
        counts = (str(len(mine) - failed), (str(failed), "bold red" if failed else ""))
        cells = (device.info.id, name, *counts, str(lacking), f"{worst:.2g}")
        add_row(table, (*cells, _denormals(mine, device.info)))
    return table


def _denormals(mine: Sequence[Finding], info: DeviceInfo) -> str:
    """Whether denormal numbers were kept, beside what the driver says."""
    flushing = [f for f in mine if f.flushes]
    claimed = info.details.get("denormals", "")
    says = f" (its driver says {claimed})" if claimed else ""
    if not flushing:
        return f"kept{says}"
    return f"flushed by {len(flushing)} kernel runs, {flushing[0].op} first{says}"


def _list_missing(missing: Sequence[Missing], output: Output) -> None:
    """The reasons for cases without a kernel, each once a device and op."""
    seen: dict[tuple[str, str, str], int] = {}
    for gap in missing:
        key = (gap.device, gap.op, gap.reason)
        seen[key] = seen.get(key, 0) + 1
    for (device, op, reason), count in list(seen.items())[:SHOWN]:
        output.line(
            ("not supported ", "dim"), f"{op} on {device}, {count} cases: {short(reason, 200)}"
        )
    if len(seen) > SHOWN:
        output.line(f"... and {len(seen) - SHOWN} more reasons; --json lists them all")
    if seen:
        output.line()


def _cell(found: Sequence[Finding], lacking: int) -> Text:
    failed = [f for f in found if not f.passed]
    parts: list[tuple[str, str]] = []
    if failed:
        parts.append((f"{len(failed)} FAILED ", "bold red"))
    if len(found) > len(failed):
        parts.append((f"{len(found) - len(failed)} passed ", "green"))
    errors = [f.error for f in found if f.error is not None]
    if errors:
        parts.append((f"({max(errors):.2g}) ", "" if max(errors) <= 1 else "red"))
    if lacking:
        parts.append((f"{lacking} without a kernel", "dim"))
    return styled(*parts)


def _list_failures(findings: Sequence[Finding], output: Output) -> None:
    failed = [f for f in findings if not f.passed]
    for f in failed[:SHOWN]:
        off = "" if f.error is None else f"off by {f.off:.3g}, {f.error:.3g} times what is allowed"
        output.line(
            ("FAILED ", "bold red"),
            f"{f.op}-{f.case} on {f.device} with {f.kernel}: {off}{short(f.message, 300)}",
        )
    if len(failed) > SHOWN:
        output.line(f"... and {len(failed) - SHOWN} more; --json lists them all")
    if failed:
        output.line()
