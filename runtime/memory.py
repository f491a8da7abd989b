"""Static arenas: an offset for every tensor of a plan on a device.

Two tensors may share bytes where every use of one happens before the other is first written.
Order is that of the plan: queues run in order, and a wait orders across queues; it is handed over
as *clocks* (how far each queue is known to be when a step starts), so tensors on asynchronous
queues are never reused too early. Offsets are assigned largest first at the lowest free place:
Pisarchyk and Lee, "Efficient Memory Management for Deep Neural Net Inference", 2020, section 5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from crossdock.runtime.tensor import Array


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
    """Assign offsets, multiples of ``alignment``; no two conflicting tenants overlap."""
    if not tenants:
        return Arena({}, 0, 0)
    sizes = [_round_up(max(t.nbytes, 1), alignment) for t in tenants]
    clash = conflicts(tenants)
    offsets = [-1] * len(tenants)
    order = sorted(range(len(tenants)), key=lambda i: (-sizes[i], i))
    for i in order:
        taken = sorted(
            (offsets[j], offsets[j] + sizes[j]) for j in np.flatnonzero(clash[i]) if offsets[j] >= 0
        )
        offsets[i] = _lowest_gap(taken, sizes[i])
    total = max(o + s for o, s in zip(offsets, sizes, strict=True))
    live = max(
        size + sum(sizes[j] for j in np.flatnonzero(clash[i]) if _alive_at(tenants, i, int(j)))
        for i, size in enumerate(sizes)
    )
    return Arena({t.name: o for t, o in zip(tenants, offsets, strict=True)}, total, live)


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
