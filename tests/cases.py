"""The one op table of cases, and a short way to make inputs.

The cases ship, because ``crossdock verify`` runs them: see runtime/cases.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from crossdock.runtime.builder import GraphBuilder, Operand
from crossdock.runtime.cases import CASES, Case, Feed, of_op

__all__ = ["CASES", "Case", "Feed", "Make", "by_op", "naming", "of_op"]


def by_op(cases: Iterable[Case]) -> list[Any]:
    """A list of cases for each op: where one takes a millisecond, a test for each takes longer."""
    groups: dict[str, list[Case]] = {}
    for case in cases:
        groups.setdefault(case.op, []).append(case)
    return [pytest.param(group, id=op) for op, group in groups.items()]


@contextmanager
def naming(case: object) -> Iterator[None]:
    """Have what is raised say which case it is of."""
    try:
        yield
    except Exception as error:
        error.add_note(f"This is case {case}.")
        raise


class Make:
    """Inputs by shape, so that a broken call fits on a line."""

    def __init__(self) -> None:
        self.b = GraphBuilder()
        self._count = 0

    def __call__(self, *shape: Any, dtype: str = "float32") -> Operand:
        self._count += 1
        return self.b.input(f"x{self._count}", shape, dtype)
