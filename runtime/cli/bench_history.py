"""What benchmarks took before: a line of JSON a run and case, and what is slower now.

Figures are compared within a machine, suite and case. A machine that is shared or hot is slower as
a whole; where peers were timed beside a case in each of its runs, their figures take that out: what
is compared then is ours over theirs, a ratio of ratios. A peer counts as long as its version stays.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from crossdock.runtime.errors import LoadError
from crossdock.runtime.files import read_record

FILE = Path("results", "history.jsonl")
"""Within the ``bench`` folder; git ignores it, for it is of one machine."""
LEAST = 0.05
"""A change below this is none, however steady the runs were."""
UNSURE = 0.15
"""The same while there are fewer than ``ENOUGH`` earlier runs to tell the noise from."""
ENOUGH = 4


@dataclass(frozen=True)
class Entry:
    """A case in one run.

    ``median`` and ``spread`` (the quartiles' distance) are seconds, ``peers`` medians of peers in
    the same run; ``group`` is what its ratio is averaged with, ``versions`` are those of crossdock,
    its kernels and the packages.
    """

    created: str
    machine: str
    suite: str
    case: str
    median: float
    spread: float
    peers: Mapping[str, float] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    group: str = ""

    @property
    def key(self) -> tuple[str, str, str]:
        """What is compared with what."""
        return self.machine, self.suite, self.case


@dataclass(frozen=True)
class Trend:
    """A case's last run beside those before it.

    ``ratio`` is the last over the median of the earlier ones, above 1 slower: of seconds, or where
    ``control`` names peers of seconds over theirs. ``noise`` is how much of that is none.
    ``better`` is the fastest peer's seconds over ours in the last run.
    """

    suite: str
    case: str
    runs: int
    last: float
    best: float
    earlier: float | None
    ratio: float | None
    noise: float
    control: tuple[str, ...] = ()
    better: float | None = None
    group: str = ""

    @property
    def verdict(self) -> str:
        """In a word; empty where nothing changed, or there is nothing to compare with."""
        if self.ratio is None:
            return ""
        if self.ratio > 1.0 + self.noise:
            return "REGRESSION"
        return "faster" if self.ratio < 1.0 / (1.0 + self.noise) else ""


def entries(data: Mapping[str, Any], kernels: str) -> list[Entry]:
    """The cases of a ``crossdock-bench`` report; peers are those that are packages."""
    machine = data["machine"]
    place = f"{machine['cpu']}, {machine['cores']} cores, {machine['system']}"
    versions = {
        "crossdock": machine["crossdock"],
        "kernels": kernels,
        "python": machine["python"],
        **machine["packages"],
    }
    made = []
    for row in data["benchmarks"]:
        suite = Path(row["fullname"].partition("::")[0]).stem
        stats, extra = row["stats"], row.get("extra_info") or {}
        made.append(
            Entry(
                created=data["created"],
                machine=place,
                suite=suite.partition("_")[2] or suite,
                case=row["name"],
                median=stats["median"],
                spread=stats["iqr"],
                peers={n: s for n, s in (extra.get("peer_seconds") or {}).items() if n in versions},
                versions=versions,
                group=row.get("group") or "",
            )
        )
    return made


def append(file: Path, found: Iterable[Entry]) -> None:
    """Add entries to a history; raises LoadError where it cannot be written."""
    text = "".join(json.dumps(asdict(entry), sort_keys=True) + "\n" for entry in found)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a", encoding="utf-8") as out:
            out.write(text)
    except OSError as error:
        raise LoadError(
            f"{file}: the history cannot be written: {error.strerror or error}; the figures above "
            "are lost to it"
        ) from error


def read(file: Path) -> list[Entry]:
    """A history, oldest first; empty where there is none.

    Raises:
        LoadError: it cannot be read, or a line is no entry.
    """
    if not file.exists():
        return []
    found = []
    lines = read_record(file, "benchmark history").decode("utf-8", "replace").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            made = Entry(**json.loads(line))
            sound = made.median > 0 and all(s > 0 for s in made.peers.values())
        except (ValueError, TypeError, AttributeError, RecursionError):
            sound = False
        if not sound:
            raise LoadError(f"{file}: line {number} is no benchmark's figures; delete the line")
        found.append(made)
    return found


def trends(history: Sequence[Entry], machine: str, suite: str | None = None) -> list[Trend]:
    """Each case of a machine, of one suite or all, in the order of its first run."""
    cases: dict[tuple[str, str, str], list[Entry]] = {}
    for entry in history:
        if entry.machine == machine and suite in (None, entry.suite):
            cases.setdefault(entry.key, []).append(entry)
    return [_trend(runs) for runs in cases.values()]


def _trend(runs: Sequence[Entry]) -> Trend:
    last, earlier = runs[-1], runs[:-1]
    made = Trend(
        last.suite,
        last.case,
        len(runs),
        last.median,
        min(run.median for run in runs),
        statistics.median(run.median for run in earlier) if earlier else None,
        None,
        UNSURE,
        better=min(last.peers.values()) / last.median if last.peers else None,
        group=last.group,
    )
    if not earlier:
        return made
    peers = _control(last, earlier)
    comparable = [run for run in earlier if set(peers) <= set(run.peers)] if peers else earlier
    before = [_level(run, peers) for run in comparable]
    middle = statistics.median(before)
    ratio = math.exp(_level(last, peers) - middle)
    off = statistics.median(abs(level - middle) for level in before)
    noise = max(LEAST if len(before) >= ENOUGH else UNSURE, math.expm1(3 * 1.4826 * off))
    noise = max(noise, last.spread / last.median)
    return Trend(**{**asdict(made), "ratio": ratio, "noise": noise, "control": peers})


def _control(last: Entry, earlier: Sequence[Entry]) -> tuple[str, ...]:
    """The peers of the last run that an earlier one has had in the same version."""
    return tuple(
        name
        for name in sorted(last.peers)
        if any(
            name in run.peers and run.versions.get(name) == last.versions.get(name)
            for run in earlier
        )
    )


def _level(run: Entry, peers: Sequence[str]) -> float:
    """The logarithm of a run's seconds, over the geometric mean of the peers' where there are."""
    level = math.log(run.median)
    return level - statistics.fmean(math.log(run.peers[p]) for p in peers) if peers else level


def geometric_mean(values: Iterable[float]) -> float | None:
    """Of positive numbers; None of none."""
    found = [math.log(value) for value in values]
    return math.exp(statistics.fmean(found)) if found else None
