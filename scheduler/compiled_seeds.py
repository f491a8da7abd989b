"""A list schedule and its exact evaluation in one call: entering a kernel costs more than both."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from crossdock.scheduler.compiled_core import BIG, Graph, kernel, zeros
from crossdock.scheduler.compiled_evaluate import load
from crossdock.scheduler.compiled_lists import Partial, insert_all
from crossdock.scheduler.compiled_ranks import fill_order
from crossdock.scheduler.compiled_state import State
from crossdock.scheduler.problem import Floats, Ints


class Sorting(NamedTuple):
    """Scratch of an order by start; (n,) each."""

    priority: Floats
    waits: Ints
    heap: Ints
    order: Ints


def new_sorting(n: int) -> Sorting:
    """Empty scratch."""
    return Sorting(np.zeros(n), zeros(n), zeros(n), zeros(n))


@kernel
def list_seed(g: Graph, p: Partial, s: State, w: Sorting, order: Ints, share: float) -> float:
    """Insertion list schedule into ``s``, devices by finish plus ``share`` of the least way after.

    Returns the makespan, BIG where a task found no device.
    """
    if insert_all(g, p, order, g.tail, share) >= BIG:
        return BIG
    for t in range(len(order)):
        w.priority[t] = -p.placed.start[t]
    fill_order(g.net, w.priority, w.waits, w.heap, w.order)
    return load(g, s, w.order, p.placed.device)
