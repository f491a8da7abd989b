"""Runs over three devices where every call may fail, in every way: none lost, none wrong.

``python -m tests.soak.faults [--runs N] [--seed N] [--chance P] [--json F]`` prints what was
injected and what became of the runs, and ends with status 1 where one was lost, ended twice, or was
wrong without an error.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import crossdock as xd
from crossdock.devices import registry
from crossdock.devices.faults import CALLS, Fault
from crossdock.kernels.reference import evaluate
from crossdock.runtime import refused
from tests.runtime.faults.graphs import GRAPHS
from tests.runtime.faults.machine import FaultyMachine
from tests.runtime.strategies import whole_feeds
from tests.soak.figures import Figure

BATCH, EPISODE = 4, 10
"""Runs in flight, and batches with one set of devices."""
PATIENCE = 120.0
"""Seconds after which a run counts as lost."""
WATCHDOG = 0.15
Counts = collections.Counter[str]


@dataclass
class Report:
    """What happened; ``sound`` is whether nothing did that must not."""

    runs: int = 0
    right: int = 0
    wrong: int = 0
    lost: int = 0
    twice: int = 0
    touched: int = 0
    recovered: int = 0
    seconds: float = 0.0
    injected: Counts = field(default_factory=Counts)
    actions: Counts = field(default_factory=Counts)
    errors: Counts = field(default_factory=Counts)
    said: dict[str, str] = field(default_factory=dict)

    @property
    def sound(self) -> bool:
        """No run lost, ended twice or wrong, and no device called after it failed for good."""
        ended = self.right + sum(self.errors.values())
        bad = self.wrong or self.lost or self.twice or self.touched
        return not bad and ended == self.runs

    def __str__(self) -> str:
        lines = [
            f"{self.runs} runs in {self.seconds:.0f} s: {self.right} right, of which "
            f"{self.recovered} recovered; {sum(self.errors.values())} ended with a typed error",
            f"  lost {self.lost}, ended twice {self.twice}, silently wrong {self.wrong}, calls of "
            f"failed devices {self.touched}",
            f"  injected {sum(self.injected.values())}: {_said(self.injected)}",
            f"  recoveries {sum(self.actions.values())}: {_said(self.actions)}",
            f"  errors: {_said(self.errors) or 'none'}",
            *(f"    {name}: {text}" for name, text in self.said.items()),
        ]
        return "\n".join(lines)


def _said(counts: Counts) -> str:
    return ", ".join(f"{name} {n}" for name, n in sorted(counts.items()))


def plan_of(chance: float) -> list[Fault]:
    """Every kind at every sort of call that it can happen at, ``chance`` a call in all."""
    sorts = collections.Counter(call for calls in CALLS.values() for call in calls)
    return [
        Fault(kind, probability=chance / sorts[call], call=call, **_times(kind))
        for kind, calls in CALLS.items()
        for call in calls
    ]


def _times(kind: str) -> dict[str, Any]:
    return {"slow": {"factor": 1.5}}.get(kind, {})


def soak(runs: int, seed: int, chance: float) -> Report:
    """Runs in batches, on devices that are opened anew now and then."""
    before = os.environ.get("CROSSDOCK_WATCHDOG")
    os.environ["CROSSDOCK_WATCHDOG"] = str(WATCHDOG)  # for weights, too, before the first run
    report, began = Report(), time.perf_counter()
    episode = 0
    try:
        while report.runs < runs:
            _episode(report, random.Random(f"{seed} {episode}"), chance, runs - report.runs)
            episode += 1
    finally:
        if before is None:
            del os.environ["CROSSDOCK_WATCHDOG"]
        else:
            os.environ["CROSSDOCK_WATCHDOG"] = before
    report.seconds = time.perf_counter() - began
    return report


def faults(runs: int, seed: int = 0, chance: float = 0.01) -> list[Figure]:
    """``soak`` with its figures; the counts of what was injected are in their names."""
    report = soak(runs, seed, chance)
    injected, errors = sum(report.injected.values()), sum(report.errors.values())
    told = f"of {report.runs:,} runs (seed {seed}, {injected:,} faults injected)"
    unaccounted = abs(report.runs - report.right - report.wrong - report.lost - errors)
    return [
        Figure("S5", f"lost {told}", report.lost, 0),
        Figure("S5", "ended twice", report.twice, 0),
        Figure("S5", "silently wrong", report.wrong, 0),
        Figure("S5", "calls of failed devices", report.touched, 0),
        Figure("S5", "not accounted for", unaccounted, 0),
        Figure("S5", "ended with a typed error", errors, report.runs // 10),
    ]


def _episode(report: Report, drawn: random.Random, chance: float, most: int) -> None:
    machine = FaultyMachine()
    made = {n: machine.add(n, *plan_of(chance), seed=drawn.getrandbits(32)) for n in "abc"}
    name = drawn.choice(sorted(GRAPHS))
    graph, places = GRAPHS[name]()
    devices = [*(device.info.id for device in made.values()), "cpu:0"]
    pins = {op: drawn.choice(devices) for op in places}
    options: dict[str, Any] = {"constraints": xd.Constraints(pin=pins), "measure": False}
    try:
        with xd.compile(graph, devices, verify="transfers,sample:1", **options) as session:
            for _ in range(EPISODE):
                if most <= 0:
                    break
                most -= BATCH
                _batch(report, session, graph, drawn)
                if drawn.random() < 0.5:
                    registry.rescan()
                    refused.forget()
    except xd.Error as error:  # no device was left to compile for
        report.runs += 1
        report.errors[type(error).__name__] += 1
    for device in machine.devices:
        report.injected.update(injected.kind for injected in device.faults.injected)
        report.touched += device.after
    machine.end()


def _batch(report: Report, session: xd.Session, graph: xd.Graph, drawn: random.Random) -> None:
    feeds = [whole_feeds(graph, drawn.getrandbits(32)) for _ in range(BATCH)]
    ends: Counts = Counts()
    futures = []
    for i, one in enumerate(feeds):
        future = session.submit(one)
        future.add_done_callback(lambda _, i=i: ends.update([str(i)]))  # type: ignore[misc]
        futures.append(future)
    report.runs += len(futures)
    for one, future in zip(feeds, futures, strict=True):
        try:
            got = future.result(PATIENCE)
        except TimeoutError:
            report.lost += 1
        except xd.Error as error:
            report.errors[type(error).__name__] += 1
            report.said.setdefault(type(error).__name__, str(error))
        else:
            want = evaluate(graph, one)
            same = all(np.asarray(got[k]).tobytes() == v.tobytes() for k, v in _flat(want))
            report.right += same
            report.wrong += not same
            if not same:
                told = f"of {one}: {got}, not {want}"
                report.said.setdefault("wrong", told.replace("\n", " "))
    report.twice += sum(n > 1 for n in ends.values())
    told = session.receipt.recoveries if session._receipt else ()
    report.recovered += bool(told)
    report.actions.update(one.action.split(" ")[0] for one in told)


def _flat(want: Any) -> list[tuple[str, Any]]:
    return [(name, np.ascontiguousarray(array)) for name, array in want.items()]


def main() -> int:
    """Run as a command."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak.faults", description=__doc__)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--chance", type=float, default=0.01)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    report = soak(args.runs, args.seed, args.chance)
    sys.stdout.write(f"{report}\n")
    if args.json is not None:
        data = {**vars(report), "sound": report.sound}
        args.json.write_text(json.dumps(data, indent=2) + "\n")
    return 0 if report.sound else 1


if __name__ == "__main__":
    sys.exit(main())
