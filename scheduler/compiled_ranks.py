"""Compiled priorities of list schedulers, and the orders they give.

Ranks: mean, middle and least cost (HEFT variants, Topcuoglu et al. 2002) and the mean optimistic
tail (PEFT: H. Arabnejad, J. Barbosa, IEEE TPDS 25(3), 2014).
"""

from __future__ import annotations

import numpy as np

from crossdock.scheduler.compiled_core import (
    BIG,
    NONE,
    Graph,
    Net,
    Wires,
    kernel,
    leaf,
    part,
    zeros,
)
from crossdock.scheduler.problem import Floats, Ints

MEAN, MIDDLE, OPTIMISTIC, LEAST = range(4)


@kernel
def mean_link(wires: Wires) -> tuple[float, float]:
    """Mean latency and inverse bandwidth over the reachable pairs."""
    m = len(wires.latency)
    latency, inv_bw, pairs = 0.0, 0.0, 0
    for a in range(m):
        for b in range(m):
            if a != b and wires.latency[a, b] < BIG:
                latency += wires.latency[a, b]
                inv_bw += wires.inv_bw[a, b]
                pairs += 1
    if pairs == 0:
        return 0.0, 0.0
    return latency / pairs, inv_bw / pairs


@kernel
def fill_weights(cost: Floats, tail: Floats, mode: int, rank: Floats) -> None:
    """Fill ``rank`` (n,) with the weight of a task itself, over the devices that can run it."""
    for t in range(len(rank)):
        total, least, count = 0.0, BIG, 0
        for d in range(cost.shape[1]):
            c = cost[t, d] + (tail[t, d] if mode == OPTIMISTIC else 0.0)
            if c < BIG:
                total += c
                least = min(least, c)
                count += 1
        rank[t] = total / max(1, count)
        if mode == MIDDLE:
            rank[t] = 0.5 * (rank[t] + least)
        elif mode == LEAST:
            rank[t] = least


@kernel
def add_paths(net: Net, topo: Ints, latency: float, inv_bw: float, rank: Floats) -> None:
    """Add to every task's weight the heaviest path that follows, transfers included."""
    for q in range(len(topo) - 1, -1, -1):
        t = topo[q]
        best = 0.0
        for k in range(net.succ_ptr[t], net.succ_ptr[t + 1]):
            best = max(best, latency + net.succ_bytes[k] * inv_bw + rank[net.succ[k]])
        rank[t] += best


def ranks(g: Graph, mode: int) -> Floats:
    """Priority of every task, larger first; float64 (n,)."""
    rank = np.zeros(len(g.topo))
    fill_weights(g.cost, g.tail, mode, rank)
    if mode != OPTIMISTIC:
        latency, inv_bw = mean_link(g.wires)
        share = 0.5 if mode == MIDDLE else 1.0
        add_paths(g.net, g.topo, share * latency, share * inv_bw, rank)
    return rank


def order_by(net: Net, priority: Floats) -> Ints:
    """Topological order, of the ready tasks always the one of the largest priority."""
    n = len(priority)
    order = zeros(n)
    fill_order(net, priority, zeros(n), zeros(n), order)
    return order


@kernel
def fill_order(net: Net, priority: Floats, waits: Ints, heap: Ints, order: Ints) -> None:
    """Fill ``order`` as of ``order_by``; ``waits`` and ``heap`` (n,) are scratch."""
    size = NONE
    for t in range(len(order)):
        waits[t] = net.pred_ptr[t + 1] - net.pred_ptr[t]
        if waits[t] == 0:
            size = push(heap, size, priority, t)
    for q in range(len(order)):
        t = heap[0]
        order[q] = t
        size = pop(heap, size, priority)
        for k in range(net.succ_ptr[t], net.succ_ptr[t + 1]):
            c = net.succ[k]
            waits[c] -= 1
            if waits[c] == 0:
                size = push(heap, size, priority, c)


@leaf
def ahead(priority: Floats, t: int, u: int) -> bool:
    """Whether ``t`` comes before ``u``: larger priority, then smaller index."""
    return priority[t] > priority[u] or (priority[t] == priority[u] and t < u)


@part
def push(heap: Ints, size: int, priority: Floats, t: int) -> int:
    """Add a task to a binary heap; returns the new size."""
    i = size
    while i > 0 and ahead(priority, t, heap[(i - 1) // 2]):
        heap[i] = heap[(i - 1) // 2]
        i = (i - 1) // 2
    heap[i] = t
    return size + 1


@part
def pop(heap: Ints, size: int, priority: Floats) -> int:
    """Remove the first task of a binary heap; returns the new size."""
    size -= 1
    t = heap[size]
    i = 0
    while 2 * i + 1 < size:
        child = 2 * i + 1
        if child + 1 < size and ahead(priority, heap[child + 1], heap[child]):
            child += 1
        if ahead(priority, t, heap[child]):
            break
        heap[i] = heap[child]
        i = child
    heap[i] = t
    return size


def order_by_start(g: Graph, device: Ints, start: Floats) -> Ints:
    """Tasks by start, then finish, then topology: a topological order, int64 (n,)."""
    begin = start[g.topo]
    end = begin + g.cost[g.topo, device[g.topo]]
    return g.topo[np.lexsort((end, begin))]
