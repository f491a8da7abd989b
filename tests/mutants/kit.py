"""What a mutant is: a guard of the code, the change that removes it, and the tests that fail then.

The rows are those of the table of threats and faults that crossdock is held to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]

ROWS = {
    "file": "truncated, bit-flipped, wrong file kind",
    "huge": "over 2 GB, or sparse",
    "nesting": "deep nesting, recursive functions, billion laughs",
    "graph": "cycle, undefined, duplicate and shadowed names",
    "dims": "dimensions: negative, overflowing, huge, too many",
    "tensor": "wrong type, length, or two data fields",
    "external": "external data: outside, links, pipes, devices, spans",
    "archive": "zip bomb, lying sizes, duplicates, objects",
    "loop": "loops: endless, nested, growing",
    "bomb": "op bombs",
    "finite": "NaN, infinity, denormals",
    "integer": "integer /0, MIN/-1, shift >= width, index out of range",
    "source": "source injection by name, attribute, dimension, op type",
    "names": "names that are equal once cleaned",
    "errors": "errors: of our types, one line, names escaped and cut",
    "memory": "device out of memory",
    "build": "kernel build failure",
    "sticky": "queue or launch error, sticky error",
    "lost": "device disappears",
    "hang": "hang",
    "verify": "device lies, transfer corrupted",
    "worker": "worker killed",
    "disk": "disk full, read-only cache",
    "damage": "damaged cache or profile",
    "plan": "damaged or made-up plan",
    "shared": "several processes, one cache",
    "threads": "concurrent run() on one session",
    "cancel": "cancel, timeout, Ctrl-C",
    "fork": "fork after use",
    "exit": "exit with work in flight",
    "leak": "leak",
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """A guard that is removed: ``text``, which stands once in ``file``, becomes ``instead``.

    ``tests`` are the ids of tests of which one has to fail then, those of `make test` unless
    ``slow`` is set. ``seconds`` are what they may take; a mutant that hangs, or that takes all
    memory, is found, too.
    """

    row: str
    name: str
    file: str
    text: str
    instead: str
    tests: tuple[str, ...]
    seconds: int = 120
    slow: bool = False

    @property
    def id(self) -> str:
        """Row and name."""
        return f"{self.row}/{self.name}"

    def changed(self, content: str) -> str:
        """What the file becomes."""
        assert content.count(self.text) == 1, self.id
        return content.replace(self.text, self.instead)


def mutants() -> list[Mutant]:
    """All of them, in the order of the rows."""
    from tests.mutants import caches, devices, models, numbers, plans, runs

    made = [m for part in (models, numbers, devices, caches, plans, runs) for m in part.MUTANTS]
    return sorted(made, key=lambda m: list(ROWS).index(m.row))


def named(made: Sequence[Mutant]) -> list[str]:
    """Every test that is named, once."""
    return list(dict.fromkeys(test for mutant in made for test in mutant.tests))
