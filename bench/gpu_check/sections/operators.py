"""Every kernel that fits each op's first case and its special values, against float64."""

from __future__ import annotations

from bench.gpu_check.place import Place
from bench.gpu_check.report import Report
from crossdock.runtime.cli.verify_cases import chosen
from crossdock.runtime.cli.verify_check import check

SHOWN = 20
REHEARSED = ("relu", "softmax")
ENOUGH = 10.0
"""Seconds that an op's cases may take: none is begun with less."""


def run(place: Place, report: Report) -> None:
    """Counts; each failure by name; and the reasons for which cases have no kernel."""
    device = place.open()
    cases = chosen(REHEARSED if place.rehearsal else (), quick=True)
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
