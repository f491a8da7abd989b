"""Judging every fitting kernel of op cases on devices against the float64 reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from crossdock.devices.base import Device
from crossdock.runtime import costing
from crossdock.runtime.cases import Case
from crossdock.runtime.cases.kit import fast_part, largest, smallest_normal
from crossdock.runtime.cli.kernel_run import Fits, errors, fits, run_kernel
from crossdock.runtime.errors import Declined, Error
from crossdock.runtime.tensor import Array

if TYPE_CHECKING:  # it needs rich, and a check of a card may have to do without
    from crossdock.runtime.cli.output import Tick

FAILURES = (Error, RuntimeError, ValueError, ArithmeticError, MemoryError, OSError)
"""What a driver's binding raises, beside our own errors: a finding each, and the rest goes on."""


@dataclass(frozen=True)
class Finding:
    """One kernel on one case and device.

    ``error`` is the largest difference from the float64 reference over what the case allows (1: at
    the limit), ``off`` that difference itself; both are None where the kernel did not run.
    ``flushes``: it is right if zeros stand for the denormal numbers, and not otherwise.
    """

    op: str
    case: str
    device: str
    kernel: str
    passed: bool
    error: float | None
    off: float | None
    message: str = ""
    flushes: bool = False


@dataclass(frozen=True)
class Missing:
    """A case that a device has no kernel for, or that a library has none for."""

    op: str
    case: str
    device: str
    reason: str


def check(
    cases: Sequence[Case], devices: Sequence[Device], tick: Tick
) -> tuple[list[Finding], list[Missing]]:
    """Run every fitting kernel of every case; what a driver refuses or loses is a finding."""
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
            made, declined = _findings(case, device, found, fed, wanted)
            findings, missing = findings + made, missing + declined
    return findings, missing


def _operand(value: str, constants: Mapping[str, Any], feeds: Mapping[str, Any]) -> Any:
    return constants[value] if value in constants else feeds[value]


def _findings(
    case: Case, device: Device, found: Fits, fed: Sequence[Any], wanted: Sequence[Any]
) -> tuple[list[Finding], list[Missing]]:
    made, declined = [], []
    for kernel in found.kernels:
        where = (case.op, case.id, device.info.id, kernel.name)
        try:
            got = run_kernel(device, kernel, found.call, fed)
        except Declined as failure:  # a run goes on with the next candidate
            declined.append(Missing(*where[:3], f"{kernel.name}: {failure}"))
            continue
        except FAILURES as failure:
            said = str(failure) or type(failure).__name__
            made.append(Finding(*where, passed=False, error=None, off=None, message=said))
            continue
        specs = [spec.dtype for spec in found.call.outputs]
        over, off, flushes = judge(
            case, got, wanted, specs, exact=kernel.exact, rounds=kernel.rounds
        )
        made.append(Finding(*where, passed=over <= 1.0, error=over, off=off, flushes=flushes))
    return made, declined


def judge(
    case: Case,
    got: Sequence[Array],
    wanted: Sequence[Array],
    dtypes: Sequence[str],
    *,
    exact: bool = True,
    rounds: str = "",
) -> tuple[float, float, bool]:
    """The largest error over the one allowed, that error, and whether denormals were flushed.

    A fast algorithm is not ``exact``; ``rounds`` is the format that a kernel rounds operands to.

    Elements that are wrong may be right where zeros stand for the denormal operands and results:
    IEEE 754 asks for denormal numbers, but neither OpenCL nor WebNN does.
    """
    worst_over, worst_off, flushes = 0.0, 0.0, False
    for i, (have, want, dtype) in enumerate(zip(got, wanted, dtypes, strict=True)):
        rtol, atol = case.tolerance(dtype, rounds)
        atol += 0.0 if exact else fast_part(dtype) * largest(want)
        over, off = errors(have, want, rtol, atol)
        if case.special and over.size and over.max() > 1.0:
            zeroed = list(case.flushed_reference().values())[i]
            slack = smallest_normal(dtype)
            for reference in (zeroed, want):
                other, distance = errors(have, reference, rtol, atol + slack)
                better = (over > 1.0) & (other <= 1.0)
                flushes |= bool(better.any())
                over, off = np.where(better, other, over), np.where(better, distance, off)
        if over.size:
            worst_over, worst_off = max(worst_over, over.max()), max(worst_off, off.max())
    return float(worst_over), float(worst_off), flushes
