"""Tables of benchmarks: ours beside the peers, and the last run beside those before it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from crossdock.runtime.cli.bench_history import Entry, Trend, geometric_mean, trends
from crossdock.runtime.cli.output import Output, add_row, make_table
from crossdock.runtime.cli.text import millis, seconds, short

WIDTH = 60
"""Columns of a case's name."""
PEERS_NOTE = (
    "medians of runs by turns; the ratio is the fastest peer's over ours: above 1 we are ahead"
)
HISTORY_NOTE = (
    "ratio: the last run over the median of the earlier ones, above 1 slower; beside peers, of our "
    "time over theirs in the same run. A change within the noise is none"
)


def show_peers(output: Output, found: Sequence[Entry]) -> None:
    """Ours and every peer's median by case, the ratio to the fastest, and the ratios' mean."""
    beside = [entry for entry in found if entry.peers]
    names = list(dict.fromkeys(name for entry in beside for name in entry.peers))
    if not beside:
        return
    table = make_table(
        "Beside the peers", ("case", ">crossdock", *(f">{n}" for n in names), ">ratio")
    )
    ratios: dict[str, list[float]] = {}
    for entry in beside:
        ratio = min(entry.peers.values()) / entry.median
        ratios.setdefault(entry.group, []).append(ratio)
        add_row(
            table,
            (
                (short(entry.case, WIDTH), "bold"),
                millis(entry.median),
                *(millis(entry.peers.get(name)) for name in names),
                (f"{ratio:.2f}", "green" if ratio >= 1.0 else "bold red"),
            ),
        )
    output.table(table, PEERS_NOTE)
    _means(output, ratios)


def _means(output: Output, ratios: Mapping[str, Sequence[float]]) -> None:
    """The geometric mean of each group's ratios, and of all where there are several."""
    every = [ratio for group in ratios.values() for ratio in group]
    for name, group in {**ratios, **({"all": every} if len(ratios) > 1 else {})}.items():
        behind = sum(ratio < 1.0 for ratio in group)
        output.line(
            f"{name or 'ungrouped'}: geometric mean of {len(group)} ratios ",
            (f"{geometric_mean(group):.2f}", "bold"),
            f", least {min(group):.2f}, {behind} below 1",
        )
    output.line()


def show_history(output: Output, history: Sequence[Entry], suite: str | None) -> None:
    """Each case of the machine that the newest entry is of, of a suite or all."""
    if not history:
        output.line("no benchmark has run here yet: `crossdock bench` keeps its figures")
        output.json({"schema": "crossdock-bench-history/1", "machine": None, "cases": []})
        return
    machine = history[-1].machine
    found = trends(history, machine, suite)
    table = make_table(
        short(machine, 80),
        ("suite", "case", ">runs", ">last", ">best", ">earlier", ">ratio", ">noise", "control",
         ">peer/ours", "verdict"),
    )  # fmt: skip
    for trend in found:
        add_row(table, _cells(trend))
    output.table(table, HISTORY_NOTE)
    slower = [trend for trend in found if trend.verdict == "REGRESSION"]
    style = "bold red" if slower else "bold green"
    output.line((f"{len(slower)} regressions", style), f" among {len(found)} cases")
    ratios: dict[str, list[float]] = {}
    for trend in found:
        if trend.better is not None:
            ratios.setdefault(trend.group, []).append(trend.better)
    if ratios:
        output.line("the fastest peer's time over ours, in the last runs:")
        _means(output, ratios)
    output.json(
        {
            "schema": "crossdock-bench-history/1",
            "machine": machine,
            "cases": [{**dataclasses.asdict(t), "verdict": t.verdict} for t in found],
        }
    )


def _cells(trend: Trend) -> tuple[object, ...]:
    slower = trend.verdict == "REGRESSION"
    return (
        trend.suite,
        (short(trend.case, WIDTH), "bold"),
        str(trend.runs),
        seconds(trend.last),
        seconds(trend.best),
        seconds(trend.earlier),
        "-" if trend.ratio is None else f"{trend.ratio:.2f}",
        "" if trend.ratio is None else f"{trend.noise:.0%}",
        ", ".join(trend.control),
        "" if trend.better is None else f"{trend.better:.2f}",
        (trend.verdict, "bold red" if slower else "green"),
    )
