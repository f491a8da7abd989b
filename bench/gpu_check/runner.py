"""Every section in a process of its own with a time limit; then the table and the JSON file.

A section that crashes, hangs or loses the card costs only itself: its rows so far are kept, and the
JSON file is written anew after each section, so that a run that is cut short leaves what it has.

=====  ===========================================================================
0      everything was met
1      a check failed, a target was missed, or a section came to no end
2      bad usage
3      there is no card; a line each says what is missing
=====  ===========================================================================
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from bench.gpu_check import layout
from bench.gpu_check.report import Report, Row, read_rows, summary, table, write_json

ROOT = Path(__file__).resolve().parents[2]
NO_CARD = 3
WHOLE = 570.0
"""Seconds of a whole run; given more of them, sections take more in proportion."""
PREFLIGHT = 120.0
"""Seconds for importing packages for the first time and asking the driver."""
SLOWER = 3.0
"""Times a section's own seconds that a rehearsal may take: a pretended card is slow."""
SAVING = 3.0
"""Seconds between two looks at what a section has found so far."""
MOST_AHEAD, CORES_AHEAD = 3, 4
"""Processes that compile ahead, and the cores that there are for each: sections need some, too."""
GRACE = 5.0
"""Seconds that a section may take beyond its limit to end by itself."""


@dataclass(frozen=True)
class Section:
    """A section: its module's name, its seconds, and whether it calls the card itself.

    In a rehearsal without the fake cupy, those run that do not, on the processor. Beside those that
    are not ``timed`` others may use the machine.
    """

    name: str
    seconds: float
    card: bool = False
    timed: bool = True


SECTIONS = (
    Section("conformance", 45, card=True, timed=False),
    Section("operators", 100, timed=False),
    Section("models", 60, timed=False),
    Section("faults", 20, card=True, timed=False),
    Section("copies", 20, card=True),
    Section("cards", 20, card=True),
    Section("overlap", 20, card=True),
    Section("overhead", 20),
    Section("tiles", 20, card=True),
    Section("placement", 60),
    Section("cold", 50),
    Section("networks", math.inf),
)
"""In the order in which they run: proof first, then figures; the last takes all that is left."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the check; returns the exit status."""
    args = _parser().parse_args(argv)
    layout.importable()
    if args.rehearse:
        os.environ.setdefault("CROSSDOCK_WATCHDOG", "off")  # a pretended card may take its time
    if args.child:
        _child(args)
    if unknown := set(args.sections) - {section.name for section in SECTIONS}:
        there = ", ".join(section.name for section in SECTIONS)
        _parser().error(f"no section {', '.join(sorted(unknown))}; sections are {there}")
    facts = _preflight(args)
    for line in facts["missing"]:
        print(line, flush=True)
    if facts["device"] is None:
        return NO_CARD
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # ends children, too
    rows, seconds = _run_all(args, facts)
    print(table(rows, args.width))
    print(f"\n{facts['device']}: {summary(rows)}; {seconds:.0f} s; {_target(args, facts)}")
    return int(any(row.bad for row in rows))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu_check",
        description="Prove and measure a CUDA card: a table, and bench/results/CARD-DATE.json.",
    )
    names = [section.name for section in SECTIONS]
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(names))
    parser.add_argument("--rehearse", action="store_true", help="small, without a card")
    parser.add_argument("--seconds", type=float, default=WHOLE, help="for the whole run")
    parser.add_argument("--out", type=Path, default=ROOT / "bench/results", help="a folder")
    parser.add_argument("--width", type=int, default=160, help="columns of the table")
    parser.add_argument("--child", metavar="SECTION", help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    return parser


def _preflight(args: argparse.Namespace) -> dict[str, Any]:
    """The facts of the machine, from a process of its own: this one never opens the card."""
    command = [sys.executable, "-m", "bench.gpu_check.needs", *(["--rehearse"] * args.rehearse)]
    done = subprocess.run(
        command, cwd=ROOT, env=layout.environment(), stdout=subprocess.PIPE, check=True, text=True,
        timeout=PREFLIGHT,
    )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    created = datetime.now(UTC).isoformat(timespec="seconds")
    return {**found, "created": created, "rehearsal": args.rehearse}


def _run_all(args: argparse.Namespace, facts: dict[str, object]) -> tuple[list[Row], float]:
    """The rows of every section wanted, and the seconds that they took."""
    begun = time.monotonic()
    rows: list[Row] = []
    wanted = [s for s in SECTIONS if not args.sections or s.name in args.sections]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as beside:
        if not args.rehearse and facts["shared"]:
            for command in ahead(wanted):
                beside.callback(_end, _begun(command, subprocess.DEVNULL))
        for section in wanted:
            if section.timed:
                beside.close()
            left = args.seconds - (time.monotonic() - begun) - GRACE
            path = Path(folder) / f"{section.name}.jsonl"
            save = partial(_save, args, facts, tuple(rows), path, begun)
            _run_one(section, path, left, args, save)
            save()
            rows += read_rows(path)
            print(f"{section.name}: {time.monotonic() - begun:.0f} s so far", flush=True)
    return rows, time.monotonic() - begun


def ahead(wanted: Sequence[Section]) -> list[list[str]]:
    """Commands that compile torch's networks while sections prove the card; none without torch."""
    compared = any(section.name == "networks" for section in wanted)
    if not compared or wanted[0].timed or importlib.util.find_spec("torch") is None:
        return []
    parts = max(1, min(MOST_AHEAD, (os.cpu_count() or 1) // CORES_AHEAD))
    command = [sys.executable, "-m", "bench.gpu_check.ahead"]
    return [[*command, str(part), str(parts)] for part in range(parts)]


def _save(
    args: argparse.Namespace,
    facts: dict[str, object],
    rows: Sequence[Row],
    path: Path,
    begun: float,
) -> None:
    """Write the rows of the sections before, and those that the one at ``path`` has so far."""
    known = {**facts, "seconds": round(time.monotonic() - begun, 1)}
    write_json(_target(args, facts), known, [*rows, *read_rows(path)])


def _run_one(
    section: Section,
    path: Path,
    left: float,
    args: argparse.Namespace,
    save: Callable[[], None],
) -> None:
    """Run a section in a child; what it did not live to say is said for it.

    ``left`` seconds are left of the whole run; given more than its own, it takes more, too.
    """
    report = Report(section.name, path)
    more = SLOWER if args.rehearse else max(1.0, args.seconds / WHOLE)
    limit = min(section.seconds * more, left)
    if limit < 1:
        report.not_run("the section", "the time for the whole run is over")
        return
    command = [
        sys.executable, "-m", "bench.gpu_check", "--child", section.name,
        "--rows", str(path), "--seconds", str(limit), *(["--rehearse"] * args.rehearse),
    ]  # fmt: skip
    supervise(command, report, limit, save=save)


def supervise(
    command: Sequence[str],
    report: Report,
    limit: float,
    grace: float = GRACE,
    save: Callable[[], None] = lambda: None,
) -> None:
    """Run a section's process; where it hangs, crashes or fails, that becomes a row of its own.

    ``save`` is called now and then meanwhile: this process may be ended, too.
    """
    child = _begun(command)
    end = time.monotonic() + limit + grace
    try:
        while (status := _status(child, end - time.monotonic())) is None:
            save()
            if time.monotonic() >= end:
                report.failed("the section", f"not done after {limit:.0f} s; its rows so far stand")
                return
    finally:
        _end(child)
    if status:
        died = f"signal {-status}" if status < 0 else f"status {status}"
        report.failed("the section", f"its process ended with {died}; its output is above")


def _begun(command: Sequence[str], said: int = 2) -> subprocess.Popen[bytes]:
    """A process of its own group, whose output goes to ``said``."""
    return subprocess.Popen(
        command, cwd=ROOT, env=layout.environment(), stdout=said,
        stderr=None if said == 2 else said, start_new_session=True,
    )  # fmt: skip


def _status(child: subprocess.Popen[bytes], left: float) -> int | None:
    """How a child ended, or None where it is still running after some seconds."""
    try:
        return child.wait(max(0.0, min(left, SAVING)))
    except subprocess.TimeoutExpired:
        return None


def _end(child: subprocess.Popen[bytes]) -> None:
    """End a child that is left, and what it started."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    finally:
        child.wait()


def _child(args: argparse.Namespace) -> NoReturn:
    """Run one section in this process, and end it.

    It ends at once: a lost card may crash the libraries' own ends, and all rows are on disk.
    """
    try:
        _section(args)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _section(args: argparse.Namespace) -> None:
    from bench.gpu_check.place import CARD, HOST, Place, pretend_card

    section = next(s for s in SECTIONS if s.name == args.child)
    report = Report(section.name, args.rows, rehearsal=args.rehearse)
    try:
        faked = args.rehearse and pretend_card()
        if args.rehearse and section.card and not faked:
            report.not_run("the section", "the fake cupy runs kernels on PoCL, which is absent")
            return
        place = Place(CARD if faked or not args.rehearse else HOST, args.rehearse, args.seconds)
        importlib.import_module(f"bench.gpu_check.sections.{section.name}").run(place, report)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what the section found
        traceback.print_exc()
        report.failed("the section", f"{type(error).__name__}: {error}")


def _target(args: argparse.Namespace, facts: dict[str, object]) -> Path:
    """The JSON file: bench/results/CARD-DATE.json; a part of a run names its sections."""
    card = re.sub(r"[^a-z0-9]+", "-", str(facts["device"]).lower()).strip("-")
    parts = ["rehearsal"] * bool(facts["rehearsal"])
    parts += [card, str(facts["created"])[:10], *args.sections]
    return Path(args.out) / f"{'-'.join(parts)}.json"
