"""Whole-text matching of patterns in RE2's syntax, in time linear in the text.

Thompson's construction and simulation (Thompson 1968; Cox, "Regular Expression Matching Can Be
Simple And Fast", 2007): no pattern makes it backtrack. Steps are remembered, as by a lazy DFA.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from crossdock.runtime.loaders.onnx_regex_parse import (
    Assertion,
    Chars,
    Choice,
    Parser,
    PatternError,
    PatternLimit,
    Repeat,
    Sequence,
    Tree,
)

MAX_STATES = 20_000
"""States that a pattern may unfold to."""

_REMEMBERED = 100_000
_CHECKED = 256
"""States in the steps remembered, and characters between two looks at the deadline."""

_WORD = frozenset("0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_")

__all__ = ["MAX_STATES", "PatternError", "PatternLimit", "Regex"]


def _nothing() -> None:
    """No deadline."""


@dataclass(frozen=True, slots=True)
class State:
    """What must come (None: nothing), and the states after it."""

    need: Chars | Assertion | None
    after: tuple[int, ...]


class Regex:
    """A compiled pattern; state 0 is its end."""

    def __init__(self, pattern: str) -> None:
        self._states: list[State] = [State(None, ())]
        self._start = frozenset([self._add(Parser(pattern).parse(), 0)])
        self._steps: dict[tuple[frozenset[int], str, str], frozenset[int]] = {}
        self._held = 0

    def matches(self, text: str, check: Callable[[], None] = _nothing) -> bool:
        """True where the pattern matches the whole text; calls ``check`` now and then."""
        now, before = self._start, ""
        for place, char in enumerate(text):
            if place % _CHECKED == 0:
                check()
            key = (now, before, char)
            after = self._steps.get(key)
            if after is None:
                check()
                after = self._step(now, before, char)
                self._remember(key, after)
            if not after:
                return False
            now, before = after, char
        return 0 in self._entered(now, before, "")

    def _remember(self, key: tuple[frozenset[int], str, str], after: frozenset[int]) -> None:
        """Keep a step; all are dropped where they would hold too many states, as in RE2."""
        self._held += len(after) + 1
        if self._held > _REMEMBERED:
            self._steps.clear()
            self._held = len(after) + 1
        self._steps[key] = after

    def _new(self, need: Chars | Assertion | None, *after: int) -> int:
        if len(self._states) >= MAX_STATES:
            raise PatternLimit(f"unfolding to more than {MAX_STATES:,} states")
        self._states.append(State(need, after))
        return len(self._states) - 1

    def _add(self, tree: Tree, after: int) -> int:
        """Add a tree's states in front of a state; the first of them."""
        if isinstance(tree, Chars | Assertion):
            return self._new(tree, after)
        if isinstance(tree, Sequence):
            for item in reversed(tree.items):
                after = self._add(item, after)
            return after
        if isinstance(tree, Choice):
            return self._new(None, *[self._add(item, after) for item in tree.items])
        return self._repeat(tree, after)

    def _repeat(self, tree: Repeat, after: int) -> int:
        if tree.high is None:
            loop = self._new(None)
            self._states[loop] = State(None, (self._add(tree.item, loop), after))
            after = loop
        else:
            end = after
            for _ in range(tree.high - tree.low):
                after = self._new(None, self._add(tree.item, after), end)
        for _ in range(tree.low):
            after = self._add(tree.item, after)
        return after

    def _step(self, now: frozenset[int], before: str, char: str) -> frozenset[int]:
        """The states after a character."""
        found: set[int] = set()
        for index in self._entered(now, before, char):
            state = self._states[index]
            if isinstance(state.need, Chars) and state.need.has(char):
                found.update(state.after)
        return frozenset(found)

    def _entered(self, states: Iterable[int], before: str, char: str) -> set[int]:
        """States that are reached without a character, between ``before`` and ``char``."""
        seen, left = set(states), list(states)
        while left:
            state = self._states[left.pop()]
            need = state.need
            if isinstance(need, Chars):
                continue
            if need is None or _holds(need.kind, before, char):
                left += [index for index in state.after if index not in seen]
                seen.update(state.after)
        return seen


def _holds(kind: str, before: str, char: str) -> bool:
    """True where an assertion holds between two characters ("": an end of the text)."""
    if kind == "A":
        return not before
    if kind == "z":
        return not char
    if kind == "^":
        return before in ("", "\n")
    if kind == "$":
        return char in ("", "\n")
    boundary = (before in _WORD) is not (char in _WORD)
    return boundary is (kind == "b")
