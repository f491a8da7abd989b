"""Static arenas: an offset for every tensor of a plan on a device.

Two tensors may share bytes where every use of one happens before the other is first written.
Order is that of the plan: queues run in order, and a wait orders across queues; it is handed over
as *clocks* (how far each queue is known to be when a step starts), so tensors on asynchronous
queues are never reused too early. Offsets are assigned largest first at the lowest free place
(Pisarchyk and Lee, "Efficient Memory Management for Deep Neural Net Inference", 2020, section 5),
and then in other orders where that leaves gaps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from crossdock.runtime.tensor import Array

TRIES = 32
"""Orders in which the tensors of an arena are placed, at most."""
FEW = 64
"""Neighbours that are gone through one by one: arrays pay from so many on."""


@dataclass(frozen=True)
class Tenant:
    """A tensor (or scratch) that needs a place.

    ``born`` is the clock of the step that first writes it: for each queue, the number of its steps
    surely done by then. ``last`` holds for each queue one more than the position of the last step
    that touches it (0: none).
    """

    name: str
    nbytes: int
    born: tuple[float, ...]
    last: tuple[float, ...]


@dataclass(frozen=True)
class Arena:
    """Offsets in bytes by tenant, the arena's size, and the largest sum of live bytes."""

    offsets: Mapping[str, int]
    nbytes: int
    live_bytes: int


def conflicts(tenants: Sequence[Tenant]) -> Array:
    """Boolean matrix: True where two tenants may be alive at the same time."""
    if not tenants:
        return np.zeros((0, 0), dtype=bool)
    born = np.array([t.born for t in tenants], dtype=float).reshape(len(tenants), -1)
    last = np.array([t.last for t in tenants], dtype=float).reshape(len(tenants), -1)
    before = np.ones((len(tenants), len(tenants)), dtype=bool)
    for queue in range(born.shape[1]):
        before &= last[:, None, queue] <= born[None, :, queue]
    both: Array = ~(before | before.T)
    np.fill_diagonal(both, val=False)
    return both


def plan_arena(tenants: Sequence[Tenant], alignment: int = 64) -> Arena:
    """Assign offsets, multiples of ``alignment``; no two conflicting tenants overlap.

    Where the first try takes more than what is alive at once, whoever ended up on top is placed
    first in the next one, and the smallest of ``TRIES`` is taken.
    """
    if not tenants:
        return Arena({}, 0, 0)
    sizes = [_round_up(max(t.nbytes, 1), alignment) for t in tenants]
    both = conflicts(tenants)
    live = _live(tenants, sizes, both)
    clash = [np.flatnonzero(row) for row in both]
    order = sorted(range(len(tenants)), key=lambda i: (-sizes[i], i))
    best: list[int] = []
    least = math.inf
    for _ in range(TRIES):
        offsets = _placed(order, sizes, clash)
        total = max(o + s for o, s in zip(offsets, sizes, strict=True))
        if total < least:
            best, least = offsets, total
        if total <= live:
            break
        top = [i for i in order if offsets[i] + sizes[i] == total]
        order = [*top, *(i for i in order if i not in top)]
    return Arena({t.name: o for t, o in zip(tenants, best, strict=True)}, int(least), live)


def _placed(order: Sequence[int], sizes: Sequence[int], clash: Sequence[Array]) -> list[int]:
    """Offsets when each tenant in turn takes the lowest place that is free."""
    starts, widths = np.full(len(sizes), -1, np.int64), np.array(sizes, np.int64)
    for i in order:
        there = clash[i][starts[clash[i]] >= 0]
        if not there.size:
            starts[i] = 0
        elif there.size < FEW:
            taken = zip(starts[there].tolist(), widths[there].tolist(), strict=True)
            starts[i] = _lowest_gap(sorted((at, at + size) for at, size in taken), sizes[i])
        else:
            there = there[np.argsort(starts[there], kind="stable")]
            ends = np.maximum.accumulate(starts[there] + widths[there])
            gaps = starts[there[1:]] - ends[:-1] >= sizes[i]
            first = int(np.argmax(gaps)) if gaps.any() else -1
            starts[i] = 0 if starts[there[0]] >= sizes[i] else ends[first]
    made: list[int] = starts.tolist()
    return made


def _live(tenants: Sequence[Tenant], sizes: Sequence[int], both: Array) -> int:
    """The largest sum of bytes alive when a tenant is born, those born before it included."""
    births = np.array([sum(t.born) for t in tenants], dtype=float)
    rank = np.empty(len(tenants), np.int64)
    rank[np.argsort(births, kind="stable")] = np.arange(len(tenants))
    widths = np.array(sizes, np.int64)
    return max(size + int(widths[both[i] & (rank < rank[i])].sum()) for i, size in enumerate(sizes))


def _round_up(n: int, to: int) -> int:
    return -(-n // to) * to


def _lowest_gap(taken: Sequence[tuple[int, int]], size: int) -> int:
    at = 0
    for start, end in taken:
        if start - at >= size:
            return at
        at = max(at, end)
    return at
