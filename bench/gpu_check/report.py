"""Figures beside their targets: rows that are kept as they come, and the table of them."""

from __future__ import annotations

import dataclasses
import json
import operator
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COMPARE: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "==": operator.eq,
}
NOT_RUN, FAILED, MISSED, MET, NOTED = "not run", "FAILED", "MISSED", "met", ""


@dataclass(frozen=True)
class Row:
    """One figure, or one check.

    ``target`` is a comparison such as "<= 1.05", or empty where a figure is only noted; ``state``
    follows from both ("met", "MISSED", ""), or says that the figure is "not run" or "FAILED", with
    the reason in ``note``.
    """

    section: str
    what: str
    value: float | None
    unit: str = ""
    target: str = ""
    state: str = NOTED
    note: str = ""

    @property
    def bad(self) -> bool:
        """Whether the run as a whole has failed for this row."""
        return self.state in (FAILED, MISSED)


def judged(value: float, target: str) -> str:
    """The state of a figure with a target such as ">= 0.8"."""
    if not target:
        return NOTED
    sign, _, bound = target.partition(" ")
    return MET if COMPARE[sign](value, float(bound)) else MISSED


class Report:
    """Rows of one section, each on disk as soon as it is there: a crash loses none before it."""

    def __init__(self, section: str, path: Path, *, rehearsal: bool = False) -> None:
        """``rehearsal``: what was measured means nothing, and is not held against its target."""
        self.section = section
        self.path = path
        self.rehearsal = rehearsal

    def figure(
        self, what: str, value: float, unit: str = "", target: str = "", note: str = ""
    ) -> None:
        """Add a figure that hangs on how fast something is."""
        state = NOTED if self.rehearsal else judged(value, target)
        self._add(Row(self.section, what, value, unit, target, state, note))

    def bound(self, what: str, value: float, target: str, unit: str = "", note: str = "") -> None:
        """Add an error or a count, which has to keep to its target everywhere."""
        self._add(Row(self.section, what, value, unit, target, judged(value, target), note))

    def check(self, what: str, passed: bool, note: str = "") -> None:
        """Add something that either holds or does not."""
        state = MET if passed else FAILED
        self._add(Row(self.section, what, float(passed), "", "== 1", state, note))

    def not_run(self, what: str, reason: str) -> None:
        """Add something that cannot be had here, with the reason."""
        self._add(Row(self.section, what, None, state=NOT_RUN, note=reason))

    def failed(self, what: str, reason: str) -> None:
        """Add something that went wrong."""
        self._add(Row(self.section, what, None, state=FAILED, note=reason))

    def _add(self, row: Row) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(dataclasses.asdict(row)) + "\n")
            file.flush()
            os.fsync(file.fileno())


def read_rows(path: Path) -> list[Row]:
    """The rows that a section left; a last line that was cut off is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [Row(**json.loads(line)) for line in lines if line.endswith("\n")]


def brief(value: float) -> str:
    """A figure with four digits."""
    if value == int(value) and abs(value) < 1e7:
        return str(int(value))
    return f"{value:.4g}"


def table(rows: Iterable[Row], width: int = 100) -> str:
    """The rows as text in columns, a heading a section; notes are cut to ``width`` columns."""
    shown = list(rows)
    cells = [_cells(row) for row in shown]
    widths = [max((len(c[i]) for c in cells), default=0) for i in range(4)]
    lines: list[str] = []
    section = ""
    for row, (what, value, target, state) in zip(shown, cells, strict=True):
        if row.section != section:
            section = row.section
            lines.append(f"\n{section}")
        line = (
            f"  {what:<{widths[0]}}  {value:>{widths[1]}}  {target:<{widths[2]}}  "
            f"{state:<{widths[3]}}  "
        )
        lines.append((line + row.note)[: max(width, len(line))].rstrip())
    return "\n".join(lines)


def _cells(row: Row) -> tuple[str, str, str, str]:
    value = "-" if row.value is None else f"{brief(row.value)} {row.unit}".strip()
    if row.target == "== 1" and row.value is not None:
        value = "yes" if row.value == 1 else "no"
        return row.what, value, "", row.state
    return row.what, value, row.target, row.state


def summary(rows: Sequence[Row]) -> str:
    """How many rows there are of each state, in one line."""
    counts = {state: sum(row.state == state for row in rows) for state in (MET, MISSED, FAILED)}
    said = ", ".join(f"{count} {state.lower()}" for state, count in counts.items())
    noted = sum(row.state == NOTED for row in rows)
    return f"{said}, {noted} noted, {sum(row.state == NOT_RUN for row in rows)} not run"


def write_json(path: Path, facts: dict[str, Any], rows: Iterable[Row]) -> None:
    """Write everything that is known so far, in one step."""
    data = {
        "schema": "crossdock-gpu-check/1",
        **facts,
        "rows": [dataclasses.asdict(r) for r in rows],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    part.replace(path)
