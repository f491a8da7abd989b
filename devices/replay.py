"""Which launches of a command buffer are replayed as graphs, where a driver has such.

A launch costs the host some microseconds, a node of a graph that was captured well under one. What
may allocate, as array calls do, cannot be captured: it parts the launches.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

FEWEST = 2
"""Launches that are worth a graph."""


def stretches(launches: Sequence[bool]) -> list[range]:
    """Where neighbouring launches stand, from the flags of calls that are launches or are not."""
    found = []
    for is_launch, group in itertools.groupby(range(len(launches)), launches.__getitem__):
        if is_launch:
            places = list(group)
            found.append(range(places[0], places[-1] + 1))
    return found


def graphs(launches: Sequence[bool]) -> list[range]:
    """The stretches that are long enough to be replayed."""
    return [found for found in stretches(launches) if len(found) >= FEWEST]
