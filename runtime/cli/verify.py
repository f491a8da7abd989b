"""``crossdock verify``: every fitting kernel of every op case on every device, against float64."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from crossdock.devices import registry
from crossdock.devices.base import Device
from crossdock.runtime import costing
from crossdock.runtime.cases import CASES, Case
from crossdock.runtime.cli import options
from crossdock.runtime.cli.kernel_run import Fits, fits, run_kernel, worst
from crossdock.runtime.cli.output import Output, Tick, add_row, make_table, styled
from crossdock.runtime.cli.text import short
from crossdock.runtime.errors import Error, UnsupportedOp

SHOWN = 20
"""Failures listed in full on the screen; the JSON holds all."""
NOTE = (
    "runs of kernels that passed, and the largest error over the one allowed; ops that are views "
    "of their input need no kernel"
)


@dataclass(frozen=True)
class Finding:
    """One kernel on one case and device.

    ``error`` is the largest difference from the float64 reference over what the case allows (1: at
    the limit), ``off`` that difference itself; both are None where the kernel did not run.
    """

    op: str
    case: str
    device: str
    kernel: str
    passed: bool
    error: float | None
    off: float | None
    message: str = ""


@dataclass(frozen=True)
class Missing:
    """A case that a device has no kernel for."""

    op: str
    case: str
    device: str
    reason: str


@click.command()
@click.option("--device", "only_devices", metavar="ID", multiple=True, help="A device to verify.")
@click.option("--op", "only_ops", metavar="NAME", multiple=True, help="An op to verify.")
@options.json_option
@click.pass_context
def verify(
    ctx: click.Context,
    only_devices: tuple[str, ...],
    only_ops: tuple[str, ...],
    json_to: str | None,
) -> None:
    """Check every kernel on every device against a float64 reference; exit status 1 if one fails.

    Each op has cases of several shapes, types and options; each kernel that fits a case runs it.
    """
    output = Output(json_to)
    cases = _chosen(only_ops)
    ids = list(only_devices) or [info.id for info in registry.devices()]
    devices = [registry.open_device(name) for name in ids]
    with output.progress("verifying") as tick:
        findings, missing = check(cases, devices, tick)
    output.table(_table(findings, missing, ids), NOTE)
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


def _chosen(ops: Sequence[str]) -> list[Case]:
    there = dict.fromkeys(case.op for case in CASES)
    for name in ops:
        if name not in there:
            near = [op for op in there if name in op or op in name]
            raise UnsupportedOp(f"--op {name}: no such op; {_near(near, there)}")
    return [case for case in CASES if not ops or case.op in ops]


def _near(near: Sequence[str], there: Iterable[str]) -> str:
    return f"did you mean {', '.join(near)}?" if near else f"there are {', '.join(sorted(there))}"


def check(
    cases: Sequence[Case], devices: Sequence[Device], tick: Tick
) -> tuple[list[Finding], list[Missing]]:
    """Run every fitting kernel of every case; op after op, so that its failures stand together."""
    findings: list[Finding] = []
    missing: list[Missing] = []
    for i, case in enumerate(cases):
        tick(f"verifying {case}", i, len(cases))
        graph, feeds = case.build()
        (node,) = graph.nodes
        if costing.is_alias(node):
            continue
        call = costing.op_calls(graph)[node.name]
        fed = [None if v is None else _operand(v, graph.constants, feeds) for v in node.inputs]
        wanted = list(case.reference().values())
        for device in devices:
            found = fits(call, device)
            if not found.kernels:
                missing.append(Missing(case.op, case.id, device.info.id, found.reason))
            findings += _findings(case, device, found, fed, wanted)
    return findings, missing


def _operand(value: str, constants: Mapping[str, Any], feeds: Mapping[str, Any]) -> Any:
    return constants[value] if value in constants else feeds[value]


def _findings(
    case: Case, device: Device, found: Fits, fed: Sequence[Any], wanted: Sequence[Any]
) -> list[Finding]:
    made = []
    for kernel in found.kernels:
        where = (case.op, case.id, device.info.id, kernel.name)
        try:
            got = run_kernel(device, kernel, found.call, fed)
        except Error as failure:
            made.append(Finding(*where, passed=False, error=None, off=None, message=str(failure)))
            continue
        error, off = 0.0, 0.0
        for have, want, spec in zip(got, wanted, found.call.outputs, strict=True):
            one, distance = worst(have, want, *case.tolerance(spec.dtype))
            error, off = max(error, one), max(off, distance)
        made.append(Finding(*where, passed=error <= 1.0, error=error, off=off))
    return made


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
