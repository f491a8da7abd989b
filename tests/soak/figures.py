"""What a soak test found: figures, each with the most that it may be."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Figure:
    """One figure; ``most`` is the bar, in the same unit."""

    test: str
    what: str
    value: float
    most: float
    unit: str = ""

    @property
    def passed(self) -> bool:
        """Whether it is within its bar."""
        return self.value <= self.most

    def line(self) -> str:
        """For a table."""
        found, bar = f"{self.value:,.6g} {self.unit}", f"at most {self.most:,.6g}"
        return f"{'ok  ' if self.passed else 'FAIL'} {self.test:8} {self.what:58} {found:>16} {bar}"


def save(figures: Sequence[Figure], path: Path) -> None:
    """Write the figures as JSON."""
    rows = [
        {**{n: getattr(f, n) for n in ("test", "what", "value", "most", "unit")}, "ok": f.passed}
        for f in figures
    ]
    path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def assert_passed(figures: Sequence[Figure], slack: float = 20.0) -> None:
    """For the short form of a test: seconds may be more, since other tests run beside it."""
    assert figures
    failed = [f.line() for f in figures if f.value > f.most * (slack if f.unit == "s" else 1.0)]
    assert not failed, "\n".join(failed)
