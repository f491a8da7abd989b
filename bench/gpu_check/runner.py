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
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from bench.gpu_check import layout
from bench.gpu_check.report import Report, Row, read_rows, summary, table, write_json

ROOT = Path(__file__).resolve().parents[2]
NO_CARD = 3
WHOLE = 570.0
"""Seconds of a whole run; given more of them, sections take more in proportion."""
GRACE = 5.0
"""Seconds that a section may take beyond its limit to end by itself."""


@dataclass(frozen=True)
class Section:
    """A section: its module's name, its seconds, and whether it calls the card itself.

    In a rehearsal without the fake cupy, those run that do not, on the processor.
    """

    name: str
    seconds: float
    card: bool = False


SECTIONS = (
    Section("conformance", 45, card=True),
    Section("operators", 75),
    Section("models", 50),
    Section("faults", 20, card=True),
    Section("copies", 20, card=True),
    Section("overlap", 20, card=True),
    Section("overhead", 20),
    Section("placement", 60),
    Section("cold", 50),
    Section("networks", 200),
)
"""In the order in which they run: proof first, then figures, the longest last."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the check; returns the exit status."""
    args = _parser().parse_args(argv)
    layout.importable()
    if args.child:
        return _child(args)
    from bench.gpu_check import needs

    lacking = needs.missing(card=not args.rehearse)
    for need in lacking:
        print(need, flush=True)
    if any(need.vital for need in lacking):
        return NO_CARD
    facts = {
        **needs.facts("cpu:0" if args.rehearse else "cuda:0"),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "rehearsal": args.rehearse,
        "missing": [str(need) for need in lacking],
    }
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


def _run_all(args: argparse.Namespace, facts: dict[str, object]) -> tuple[list[Row], float]:
    """The rows of every section wanted, and the seconds that they took."""
    unknown = set(args.sections) - {section.name for section in SECTIONS}
    if unknown:
        _parser().error(f"no section {', '.join(sorted(unknown))}")
    begun = time.monotonic()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for section in SECTIONS:
            if args.sections and section.name not in args.sections:
                continue
            left = args.seconds - (time.monotonic() - begun) - GRACE
            path = Path(folder) / f"{section.name}.jsonl"
            more = max(1.0, args.seconds / WHOLE)
            rows += _run_one(section, path, left, more=more, rehearse=args.rehearse)
            seconds = time.monotonic() - begun
            write_json(_target(args, facts), {**facts, "seconds": round(seconds, 1)}, rows)
            print(f"{section.name}: {seconds:.0f} s so far", flush=True)
    return rows, time.monotonic() - begun


def _run_one(
    section: Section, path: Path, left: float, *, more: float, rehearse: bool
) -> list[Row]:
    """Run a section in a child; what it did not live to say is said for it.

    ``left`` seconds are left of the whole run; ``more`` times its own may the section take.
    """
    report = Report(section.name, path)
    limit = min(section.seconds * more, left)
    if limit < 1:
        report.not_run("the section", "the time for the whole run is over")
        return read_rows(path)
    command = [
        sys.executable, "-m", "bench.gpu_check", "--child", section.name,
        "--rows", str(path), "--seconds", str(limit), *(["--rehearse"] if rehearse else []),
    ]  # fmt: skip
    child = subprocess.Popen(
        command, cwd=ROOT, env=layout.environment(), stdout=2, start_new_session=True
    )
    try:
        status = child.wait(limit + GRACE)
    except subprocess.TimeoutExpired:
        report.failed("the section", f"not done after {limit:.0f} s; its rows so far stand")
        status = 0
    finally:
        _end(child)
    if status:
        died = f"signal {-status}" if status < 0 else f"status {status}"
        report.failed("the section", f"its process ended with {died}; its output is above")
    return read_rows(path)


def _end(child: subprocess.Popen[bytes]) -> None:
    """End a child that is left, and what it started."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    finally:
        child.wait()


def _child(args: argparse.Namespace) -> int:
    """Run one section in this process."""
    from bench.gpu_check.place import CARD, HOST, Place, pretend_card
    from crossdock.runtime.errors import Error

    section = next(s for s in SECTIONS if s.name == args.child)
    report = Report(section.name, args.rows)
    faked = args.rehearse and pretend_card()
    if args.rehearse and section.card and not faked:
        report.not_run("the section", "the fake cupy runs kernels on PoCL, which is absent")
        return 0
    place = Place(CARD if faked or not args.rehearse else HOST, args.rehearse, args.seconds)
    module = importlib.import_module(f"bench.gpu_check.sections.{section.name}")
    try:
        module.run(place, report)
    except Error as error:
        traceback.print_exc()
        report.failed("the section", str(error))
    return 0


def _target(args: argparse.Namespace, facts: dict[str, object]) -> Path:
    """The JSON file: bench/results/CARD-DATE.json."""
    card = re.sub(r"[^a-z0-9]+", "-", str(facts["device"]).lower()).strip("-")
    day = str(facts["created"])[:10]
    name = f"{'rehearsal-' if facts['rehearsal'] else ''}{card}-{day}.json"
    return Path(args.out) / name
