"""Busy intervals of an exclusive resource or link direction, with earliest-gap queries."""

from __future__ import annotations

from bisect import bisect_right


class Timeline:
    """Disjoint busy intervals, sorted; the basis of insertion-based list scheduling."""

    __slots__ = ("finishes", "starts")

    def __init__(self) -> None:
        """Start idle."""
        self.starts: list[float] = []
        self.finishes: list[float] = []

    def earliest(self, ready: float, duration: float) -> tuple[float, int]:
        """First start >= ``ready`` where ``duration`` fits, and the index to insert at."""
        starts, finishes = self.starts, self.finishes
        begin = ready
        for i in range(bisect_right(finishes, ready), len(starts)):
            if begin + duration <= starts[i]:
                return begin, i
            if finishes[i] > begin:
                begin = finishes[i]
        return begin, len(starts)

    def insert(self, index: int, start: float, finish: float) -> None:
        """Occupy ``[start, finish]`` at the index that ``earliest`` gave."""
        self.starts.insert(index, start)
        self.finishes.insert(index, finish)

    def remove(self, index: int) -> None:
        """Undo the insertion at ``index``; later insertions must be undone first."""
        del self.starts[index]
        del self.finishes[index]
