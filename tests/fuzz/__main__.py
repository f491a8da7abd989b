"""``python -m tests.fuzz [--execs N] [--share X] [--only TARGET] [--json FILE]``: fuzz all readers.

Every target is fuzzed in processes of its own, which are started anew when one dies. What a run
found that it must not is made small and printed; exit status 1 where there is any. With atheris
(``pip install 'crossdock[fuzz]'``) inputs are led by the code that they reach.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.fuzz.watch import ROOT

EXECS = 1_000_000
RESTARTS = 30
"""Times that a target may die of what it is given before it is left alone."""


@dataclass
class Fuzzed:
    """What became of a target: executions, edges covered at first and at last, inputs kept."""

    target: str
    execs: int = 0
    seconds: float = 0.0
    covered: tuple[int, int] = (0, 0)
    corpus: int = 0
    died: int = 0
    said: str = ""
    findings: list[str] = field(default_factory=list)

    def line(self) -> str:
        """For a table."""
        grew = f"{self.covered[0]:,} -> {self.covered[1]:,} edges" if self.covered[1] else ""
        done = f"{self.target:9} {self.execs:>9,} executions {self.seconds:>6.0f} s"
        return f"{done} {grew:24} {self.corpus:>5,} inputs kept, {len(self.findings)} findings"


def fuzz(name: str, execs: int, restart: int, work: Path, seed: int, plain: bool) -> Fuzzed:
    """Fuzz a target in processes of at most ``restart`` executions each."""
    made, status = Fuzzed(name), work / f"status-{name}"
    status.unlink(missing_ok=True)
    log, began = work / f"log-{name}", time.monotonic()
    with log.open("w") as said:
        while made.execs < execs and made.died <= RESTARTS:
            count = min(restart, execs - made.execs)
            command = [sys.executable, "-m", "tests.fuzz.worker", name, "--work", str(work),
                       "--execs", str(count), "--seed", str(seed + made.execs)]  # fmt: skip
            command += ["--plain"] * plain
            done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=said,
                                  text=True, check=False)  # fmt: skip
            before, made.execs = made.execs, _count(status)
            made.said += done.stdout[-500:]
            if done.returncode or made.execs == before:
                made.died += 1
    made.seconds = time.monotonic() - began
    covered = re.findall(r"cov: (\d+) .*?corp: (\d+)", log.read_text(errors="replace"))
    if covered:
        made.covered = int(covered[0][0]), max(int(c) for c, _ in covered)
        made.corpus = int(covered[-1][1])
    made.findings = _findings(work, name)
    if made.said:
        made.findings.append(f"{name}: prints {made.said!r:.200}")
    if made.died > RESTARTS:
        made.findings.append(f"{name}: its process died {made.died} times; see {log}")
    return made


def _count(status: Path) -> int:
    return int.from_bytes(status.read_bytes(), "little") if status.exists() else 0


def _findings(work: Path, name: str) -> list[str]:
    """A line for each fault, and for each input that a process died or hung of."""
    folder = work / "findings"
    told: dict[str, str] = {}
    for path in sorted(folder.glob(f"{name}-*.json")):
        row = json.loads(path.read_text())
        mark = path.name.rsplit(".", 2)[0]
        told.setdefault(mark, f"{name}: {row['kind']} at {row['at'] or '?'}: {row['said']:.160} "
                              f"({path.with_suffix('.bin')})")  # fmt: skip
    died = [p for what in ("crash", "timeout", "oom") for p in folder.glob(f"{name}-{what}-*")]
    return [*told.values(), *(f"{name}: {p.name.split('-')[1]} ({p})" for p in sorted(died))]


def shrink(work: Path) -> None:
    """Make the first input of each finding small, beside it."""
    for path in sorted((work / "findings").glob("*.0.bin")):
        small = path.with_suffix(".small")
        if not small.exists():
            command = [sys.executable, "-m", "tests.fuzz.worker", path.name.partition("-")[0],
                       "--work", str(work), "--shrink", str(path)]  # fmt: skip
            subprocess.run(command, cwd=ROOT, timeout=600, check=False)


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--execs", type=int, default=EXECS, help=f"in all (default: {EXECS:,})")
    parser.add_argument("--share", type=float, default=1.0, help="of the executions")
    parser.add_argument("--only", default="", help="targets, with commas between")
    parser.add_argument("--work", type=Path, default=Path(".fuzz"), help="seeds, corpus, findings")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--plain", action="store_true", help="without atheris")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    given = parser.parse_args(argv)
    from tests.fuzz.targets import TARGETS

    plain = given.plain or importlib.util.find_spec("atheris") is None
    if plain:
        say("no atheris here: hypothesis draws the inputs, and coverage leads nothing; "
            "pip install 'crossdock[fuzz]'")  # fmt: skip
    work = given.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    wanted = set(given.only.split(",")) if given.only else set(TARGETS)
    if unknown := wanted - set(TARGETS):
        parser.error(f"no target {', '.join(unknown)}; there are {', '.join(TARGETS)}")
    found = []
    for name in TARGETS:
        if name in wanted:
            kind = TARGETS[name]
            count = max(1, round(given.execs * given.share * kind.share))
            found.append(fuzz(name, count, kind.restart, work, given.seed, plain))
            say(found[-1].line())
    shrink(work)
    lines = [line for made in found for line in made.findings]
    for line in lines:
        say(line)
    total = sum(made.execs for made in found)
    say(f"{total:,} executions of {len(found)} targets, {len(lines)} findings")
    if given.json:
        rows: dict[str, Any] = {"atheris": not plain, "targets": [asdict(made) for made in found]}
        given.json.write_text(json.dumps(rows, indent=1) + "\n")
    return int(bool(lines))


def say(line: str) -> None:
    """A line of the summary."""
    print(line, flush=True)  # noqa: T201 - the command's output


if __name__ == "__main__":
    sys.exit(main())
