"""Traces in Chrome's JSON format, which Perfetto (ui.perfetto.dev) and chrome://tracing read.

A trace is a list of slices: what ran from when to how long on which track. Tracks are named by a
process and a thread; slices of one track that overlap are laid on further tracks of that name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

NANOSECOND = 1e-9


@dataclass(frozen=True, slots=True)
class Slice:
    """Something that took time.

    Attributes:
        process, thread: the track; both are shown, in order of first appearance.
        name: what it is labelled with.
        start, seconds: on one clock for the whole trace.
        category: what to filter by, such as "launch" or "copy".
        args: shown when the slice is selected; JSON data.
        id: names the slice for ``after``; empty for none.
        after: ids of slices that an arrow leads from.
    """

    process: str
    thread: str
    name: str
    start: float
    seconds: float
    category: str = ""
    args: Mapping[str, Any] = field(default_factory=dict)
    id: str = ""
    after: tuple[str, ...] = ()


def chrome_trace(
    slices: Iterable[Slice], metadata: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the trace as JSON data: ``traceEvents`` in microseconds, and ``otherData``.

    Format: "Trace Event Format" of the Chromium project; complete events (``ph`` X), metadata
    events (M) that name and order the tracks, and flow events (s, f) for the arrows.
    """
    laid = _lay(list(slices))
    events: list[dict[str, Any]] = []
    tracks = {(pid, tid): bar for bar, pid, tid in reversed(laid)}
    for (pid, tid), first in sorted(tracks.items()):
        if tid == 1:
            events += _names("process", first.process, pid, tid)
        events += _names("thread", first.thread, pid, tid)
    for bar, pid, tid in laid:
        events.append(
            {
                "ph": "X",
                "name": bar.name,
                "cat": bar.category or "step",
                "pid": pid,
                "tid": tid,
                "ts": _micros(bar.start),
                "dur": _micros(bar.seconds),
                "args": dict(bar.args),
            }
        )
    events += _arrows(laid)
    return {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": dict(metadata or {}),
    }


def _lay(slices: Sequence[Slice]) -> list[tuple[Slice, int, int]]:
    """Give each slice a process and a track number, by start time."""
    processes: dict[str, int] = {}
    rows: dict[tuple[str, str], int] = {}
    for bar in slices:
        processes.setdefault(bar.process, len(processes) + 1)
        rows.setdefault((bar.process, bar.thread), len(rows))
    lanes: dict[tuple[str, str], list[float]] = {key: [] for key in rows}
    placed = []
    for bar in sorted(slices, key=lambda s: s.start):
        ends = lanes[bar.process, bar.thread]
        lane = _free_lane(ends, bar.start)
        ends[lane] = max(ends[lane], bar.start + bar.seconds)
        placed.append((bar, lane))
    track: dict[tuple[str, str, int], tuple[int, int]] = {}
    count: dict[int, int] = {}
    for process, thread in rows:
        pid = processes[process]
        for lane in range(len(lanes[process, thread])):
            count[pid] = count.get(pid, 0) + 1
            track[process, thread, lane] = (pid, count[pid])
    return [(bar, *track[bar.process, bar.thread, lane]) for bar, lane in placed]


def _free_lane(ends: list[float], start: float) -> int:
    """The first lane that is free at ``start`` (rounding forgiven), a new one where none is."""
    for lane, end in enumerate(ends):
        if end <= start + NANOSECOND:
            return lane
    ends.append(start)
    return len(ends) - 1


def _names(kind: str, name: str, pid: int, tid: int) -> list[dict[str, Any]]:
    order = pid if kind == "process" else tid
    common = {"ph": "M", "pid": pid, "tid": tid}
    return [
        {**common, "name": f"{kind}_name", "args": {"name": name}},
        {**common, "name": f"{kind}_sort_index", "args": {"sort_index": order}},
    ]


def _arrows(laid: Sequence[tuple[Slice, int, int]]) -> list[dict[str, Any]]:
    at = {bar.id: (bar, pid, tid) for bar, pid, tid in laid if bar.id}
    events: list[dict[str, Any]] = []
    for bar, pid, tid in laid:
        for source in bar.after:
            if source not in at:
                continue
            before, before_pid, before_tid = at[source]
            common = {"name": "wait", "cat": "wait", "id": f"{source}>{bar.id}"}
            # An arrow's ends belong to the slices that enclose them in time.
            leave = before.start + before.seconds / 2
            events.append(
                {**common, "ph": "s", "pid": before_pid, "tid": before_tid, "ts": _micros(leave)}
            )
            events.append(
                {**common, "ph": "f", "bp": "e", "pid": pid, "tid": tid, "ts": _micros(bar.start)}
            )
    return events


def _micros(seconds: float) -> float:
    return round(seconds * 1e6, 3)
