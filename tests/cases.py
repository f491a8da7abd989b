"""The one op table of cases, and a short way to make inputs.

The cases ship, because ``crossdock verify`` runs them: see runtime/cases.
"""

from __future__ import annotations

from typing import Any

from crossdock.runtime.builder import GraphBuilder, Operand
from crossdock.runtime.cases import CASES, Case, Feed, of_op

__all__ = ["CASES", "Case", "Feed", "Make", "of_op"]


class Make:
    """Inputs by shape, so that a broken call fits on a line."""

    def __init__(self) -> None:
        self.b = GraphBuilder()
        self._count = 0

    def __call__(self, *shape: Any, dtype: str = "float32") -> Operand:
        self._count += 1
        return self.b.input(f"x{self._count}", shape, dtype)
