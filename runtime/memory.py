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
    clash = [np.flatnonzero(row).tolist() for row in conflicts(tenants)]
    live = max(
        size + sum(sizes[j] for j in clash[i] if _alive_at(tenants, i, j))
        for i, size in enumerate(sizes)
    )
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


def _placed(
    order: Sequence[int], sizes: Sequence[int], clash: Sequence[Sequence[int]]
) -> list[int]:
    """Offsets when each tenant in turn takes the lowest place that is free."""
    offsets = [-1] * len(sizes)
    for i in order:
        there = ((offsets[j], offsets[j] + sizes[j]) for j in clash[i] if offsets[j] >= 0)
        offsets[i] = _lowest_gap(sorted(there), sizes[i])
    return offsets


def _alive_at(tenants: Sequence[Tenant], i: int, j: int) -> bool:
    """True where tenant j is born no later than i (ties by index), so alive when i is born."""
    a, b = sum(tenants[i].born), sum(tenants[j].born)
    return b < a or (b == a and j < i)


def _round_up(n: int, to: int) -> int:
    return -(-n // to) * to


def _lowest_gap(taken: Sequence[tuple[int, int]], size: int) -> int:
    at = 0
    for start, end in taken:
        if start - at >= size:
            return at
        at = max(at, end)
    return at
