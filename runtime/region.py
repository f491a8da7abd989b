"""Places in a region of memory that loads pass through one after the other, each for a while.

A load is brought while those before it are in use, and lies in the region until its user is done.
It may be brought once the users of all that lay where it goes are done; the later the last of these
comes, the longer the load has to wait.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

Layout = Callable[[Sequence[int], int], list[int]]
"""Offsets of loads of given sizes, in order, in a region of so many bytes."""


def two_ends(sizes: Sequence[int], nbytes: int) -> list[int]:
    """Every other load at the bottom, the others at the top: the smallest double buffer.

    It takes ``pair(sizes)`` bytes, whatever the sizes.
    """
    return [0 if i % 2 == 0 else nbytes - size for i, size in enumerate(sizes)]


def ring(sizes: Sequence[int], nbytes: int) -> list[int]:
    """Each load behind the one before it, or at the bottom where it does not fit there."""
    made: list[int] = []
    at = 0
    for size in sizes:
        at = at if at + size <= nbytes else 0
        made.append(at)
        at += size
    return made


LAYOUTS: tuple[Layout, ...] = (two_ends, ring)


def pair(sizes: Sequence[int]) -> int:
    """The least bytes in which a load can be brought while the one before it is in use."""
    return max((sum(sizes[i : i + 2]) for i in range(len(sizes))), default=0)


def before(offsets: Sequence[int], sizes: Sequence[int]) -> list[int | None]:
    """For each load the last earlier one that lay where it goes; None where none did."""
    starts, stops = np.array(offsets), np.array(offsets) + np.array(sizes)
    found: list[int | None] = []
    for i in range(len(sizes)):
        over = np.flatnonzero((starts[:i] < stops[i]) & (stops[:i] > starts[i]))
        found.append(int(over[-1]) if over.size else None)
    return found
