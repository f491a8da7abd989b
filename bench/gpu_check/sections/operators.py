"""Every kernel that fits each op's first case and its special values, against float64.

What libraries of a card compute comes from no text of ours that could be checked elsewhere: each of
their kernels runs on the first case that it takes of each element type, too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from bench.gpu_check.place import Place
from bench.gpu_check.report import Report
from crossdock.devices.base import DeviceInfo
from crossdock.kernels import table
from crossdock.runtime import costing
from crossdock.runtime.cases import CASES, Case
from crossdock.runtime.cli.verify_cases import chosen
from crossdock.runtime.cli.verify_check import check
from crossdock.runtime.errors import Unavailable

SHOWN = 20
LIBRARIES = ("cublas", "cudnn")
"""How names of kernels that call them begin."""
REHEARSED = ("relu", "softmax")
ENOUGH = 10.0
"""Seconds that an op's cases may take: none is begun with less."""


def run(place: Place, report: Report) -> None:
    """Counts; each failure by name; and the reasons for which cases have no kernel."""
    device = place.open()
    cases, _ = buildable(chosen(REHEARSED if place.rehearsal else (), quick=True))
    if not place.rehearsal:
        every, lacking_types = buildable(CASES)
        cases += [case for case in of_libraries(device.info, every) if case not in cases]
        for reason, count in lacking_types.items():
            report.not_run(f"{count} cases of a type that is not here", reason)
    findings, missing, late = [], [], set()
    for op in dict.fromkeys(case.op for case in cases):
        if place.left < ENOUGH:
            late.add(op)
            continue
        of_op = [case for case in cases if case.op == op]
        found, lacking = check(of_op, [device], lambda *_: None)
        findings += found
        missing += lacking
    failed = [f for f in findings if not f.passed]
    report.bound("kernels on cases: passed", len(findings) - len(failed), ">= 1", "runs")
    report.bound("kernels on cases: failed", len(failed), "== 0", "runs")
    worst = max((f.error for f in findings if f.passed and f.error is not None), default=0.0)
    report.bound("worst error over the one allowed", worst, "<= 1")
    for finding in failed[:SHOWN]:
        off = finding.message or f"off by {finding.off:.3g}"
        report.failed(f"{finding.op}-{finding.case}, {finding.kernel}", off)
    for reason in dict.fromkeys(f"{gap.op}: {gap.reason}" for gap in missing):
        report.not_run("an op without a kernel there", reason)
    if late:
        report.not_run(f"{len(late)} ops", f"out of time: {', '.join(sorted(late))}")


def buildable(cases: Iterable[Case]) -> tuple[list[Case], Counter[str]]:
    """The cases whose element types numpy has here, and how many others there are by reason."""
    found: list[Case] = []
    reasons: Counter[str] = Counter()
    for case in cases:
        try:
            case.build()
        except Unavailable as error:
            reasons[str(error)] += 1
        else:
            found.append(case)
    return found, reasons


def of_libraries(info: DeviceInfo, cases: Iterable[Case] = CASES) -> Iterator[Case]:
    """The first case of each kernel that calls a library and each element type."""
    seen: set[tuple[str, str, str]] = set()
    without: set[str] = set()
    for case in (case for case in cases if case.op not in without):
        for call in costing.op_calls(case.build()[0]).values():
            there = table.candidates(call, info)
            names = [*(k.name for k in there.fitting), *(name for name, _ in there.rejected)]
            if not any(name.startswith(LIBRARIES) for name in names):
                without.add(case.op)
            kind = next((spec.dtype for spec in call.inputs if spec is not None), "")
            fitting = (k.name for k in there.fitting if k.name.startswith(LIBRARIES))
            found = {(call.op, kind, name) for name in fitting}
            if found - seen:
                yield case
            seen |= found
