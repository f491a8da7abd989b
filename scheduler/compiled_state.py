"""Incremental evaluation of (topological order, device vector) for the compiled search.

A trial changes devices and shifts one task in the order; only the positions from the first change
are decoded again, until the trial can no longer be accepted or meets the current solution (same
lanes, same link directions, nothing pending that differs).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from crossdock.scheduler.compiled_core import BIG, Graph, compiled, copy_into, kernel
from crossdock.scheduler.problem import Floats, Ints

STRIDE = 8  # positions between snapshots of the link directions


class State(NamedTuple):
    """Current solution, trial and best; ``new_`` arrays equal the current ones between trials."""

    order: Ints  # (n,)
    new_order: Ints
    position: Ints  # (n,) of the current order
    device: Ints  # (n,)
    new_device: Ints
    start: Floats  # (n,)
    new_start: Floats
    finish: Floats
    new_finish: Floats
    last_use: Ints  # (n,) at least the position of the task's last consumer
    lane_free: Floats  # (n + 1, lanes) before every position
    link_free: Floats  # (n // STRIDE + 1, m * m) before every STRIDE-th; serial links only
    prefix: Floats  # (n + 1,) largest finish before a position
    suffix: Floats  # (n + 1,) largest finish from a position on
    sent: Floats  # (tensors, m) arrivals of the current solution
    sent_at: Ints  # (tensors, m) position of the send, n where there is none
    new_sent: Floats
    stamp: Ints  # (tensors, m) trial in which new_sent was set
    trial: Ints  # (1,) number of the trial
    log: Ints  # (k, 3) sends of the trial: tensor, device, position
    logged: Ints  # (1,)
    lane_now: Floats  # (lanes,) of the trial
    link_now: Floats  # (m * m,)
    pending: Ints  # (largest in-degree,) scratch
    room: Floats  # (m,) bytes left for parameters
    value: Floats  # current and best makespan
    best_order: Ints
    best_device: Ints


@compiled
def new_state(g: Graph, order: Ints, device: Ints) -> State:
    """State of a starting solution; ``order`` must be topological."""
    n, m = g.cost.shape
    tensors, rows, pairs = 0, 0, 0
    if g.serial:
        tensors, rows, pairs = g.tensors, n // STRIDE + 1, m * m
    s = State(
        order.copy(),
        order.copy(),
        np.empty(n, np.int64),
        device.copy(),
        device.copy(),
        np.zeros(n),
        np.zeros(n),
        np.zeros(n),
        np.zeros(n),
        np.zeros(n, np.int64),
        np.zeros((n + 1, g.lanes)),
        np.zeros((rows, pairs)),
        np.zeros(n + 1),
        np.zeros(n + 1),
        np.zeros((tensors, m)),
        np.full((tensors, m), n, np.int64),
        np.zeros((tensors, m)),
        np.full((tensors, m), -1, np.int64),
        np.zeros(1, np.int64),
        np.empty((tensors * m + 1, 3), np.int64),
        np.zeros(1, np.int64),
        np.zeros(g.lanes),
        np.zeros(pairs),
        np.empty(len(g.pred), np.int64),
        g.room.copy(),
        np.zeros(6),
        order.copy(),
        device.copy(),
    )
    restart(g, s, order, device)
    s.value[1] = s.value[0]
    return s


@kernel
def restart(g: Graph, s: State, order: Ints, device: Ints) -> None:
    """Make ``order`` and ``device`` the current solution."""
    n = len(order)
    m = g.cost.shape[1]
    copy_into(s.room, g.room)
    for x in range(len(s.sent_at)):
        for d in range(m):
            s.sent_at[x, d] = n
    for q in range(n):
        t = order[q]
        s.order[q], s.new_order[q], s.position[t] = t, t, q
        s.new_device[t] = device[t]
        s.room[device[t]] -= g.held[t]
        s.finish[t] = 0.0
        s.new_finish[t] = 0.0
        s.last_use[t] = 0
    for t in range(n):
        for k in range(g.pred_ptr[t], g.pred_ptr[t + 1]):
            p = g.pred[k]
            s.last_use[p] = max(s.last_use[p], s.position[t])
    s.value[2] = 0.0
    stop, _ = evaluate(g, s, 0, n, n, BIG * 1e6)
    commit(g, s, 0, stop, 0, n - 1)


@kernel
def free_ready(g: Graph, s: State, t: int, d: int, ready: float) -> float:
    """Arrival of the inputs of ``t`` on ``d`` under free links, at least ``ready``."""
    for k in range(g.pred_ptr[t], g.pred_ptr[t + 1]):
        p = g.pred[k]
        a = s.new_device[p]
        at = s.new_finish[p]
        if a != d:
            at += g.latency[a, d] + g.pred_bytes[k] * g.inv_bw[a, d]
        ready = max(ready, at)
    return ready


@kernel
def serial_ready(g: Graph, s: State, t: int, d: int, ready: float, q: int, lo: int, reach: int):
    """(arrival, reach) under serial links; sends what is missing on ``d``, first finished first.

    ``reach``: last position that what differs from the current solution can touch directly.
    """
    missing = 0
    for k in range(g.pred_ptr[t], g.pred_ptr[t + 1]):
        p = g.pred[k]
        at = s.new_finish[p]
        if s.new_device[p] != d:
            x = g.pred_tensor[k]
            if s.sent_at[x, d] < lo:
                at = s.sent[x, d]
            elif s.stamp[x, d] == s.trial[0]:
                at = s.new_sent[x, d]
            else:
                i = missing
                while i > 0 and s.new_finish[g.pred[s.pending[i - 1]]] > at:
                    s.pending[i] = s.pending[i - 1]
                    i -= 1
                s.pending[i] = k
                missing += 1
                continue
        ready = max(ready, at)
    for i in range(missing):
        at, reach = send(g, s, s.pending[i], d, q, reach)
        ready = max(ready, at)
    return ready, reach


@kernel
def send(g: Graph, s: State, k: int, d: int, q: int, reach: int):
    """(arrival, reach) of sending the tensor of predecessor edge ``k`` to ``d``."""
    p, x = g.pred[k], g.pred_tensor[k]
    if s.stamp[x, d] == s.trial[0]:
        return s.new_sent[x, d], reach
    channel = s.new_device[p] * g.cost.shape[1] + d
    size = copy_bytes(g, s, p, x, d) if g.mixed[x] else g.pred_bytes[k]
    takes = g.latency[s.new_device[p], d] + size * g.inv_bw[s.new_device[p], d]
    at = max(s.new_finish[p], s.link_now[channel]) + takes
    s.link_now[channel] = at
    s.new_sent[x, d] = at
    s.stamp[x, d] = s.trial[0]
    i = s.logged[0]
    s.log[i, 0], s.log[i, 1], s.log[i, 2] = x, d, q
    s.logged[0] = i + 1
    if s.sent_at[x, d] != q or s.sent[x, d] != at:
        reach = max(reach, s.last_use[p])
    return at, reach


@kernel
def copy_bytes(g: Graph, s: State, p: int, x: int, d: int) -> float:
    """Size of tensor ``x`` of task ``p`` on ``d``: its largest edge there in the trial."""
    size = 0.0
    for k in range(g.succ_ptr[p], g.succ_ptr[p + 1]):
        if g.succ_tensor[k] == x and s.new_device[g.succ[k]] == d:
            size = max(size, g.succ_bytes[k])
    return size


@kernel
def same_front(g: Graph, s: State, q: int) -> bool:
    """Whether lanes and links are as in the current solution before position ``q``."""
    for r in range(g.lanes):
        if s.lane_now[r] != s.lane_free[q, r]:
            return False
    if g.serial:
        if q % STRIDE != 0:
            return False
        row = s.link_free[q // STRIDE]
        for i in range(len(row)):
            if s.link_now[i] != row[i]:
                return False
    return True


@kernel
def evaluate(g: Graph, s: State, lo: int, shifted: int, reach: int, limit: float):
    """Decode the trial from position ``lo``; returns (position reached, makespan or BIG).

    ``shifted``: last position whose task may differ from the current order. ``reach``: last
    position that the changes touch directly. BIG: the makespan exceeds ``limit``; the trial's
    times are then only partly filled.
    """
    n = len(s.order)
    s.trial[0] += 1
    s.logged[0] = 0
    copy_into(s.lane_now, s.lane_free[lo])
    if g.serial:
        links_before(g, s, lo)
    makespan = s.prefix[lo]
    gain = 0.0
    for q in range(lo, n):
        if q > reach and q > shifted and same_front(g, s, q):
            makespan = max(makespan, s.suffix[q])
            s.value[3] = s.value[2] + gain
            return q, (makespan if makespan <= limit else BIG)
        t = s.new_order[q]
        d = s.new_device[t]
        r = g.lane[d]
        if g.serial:
            begin, reach = serial_ready(g, s, t, d, s.lane_now[r], q, lo, reach)
        else:
            begin = free_ready(g, s, t, d, s.lane_now[r])
        end = begin + g.cost[t, d]
        s.new_start[t] = begin
        if end != s.finish[t]:
            s.new_finish[t] = end
            gain += end - s.finish[t]
            reach = max(reach, s.last_use[t])
        s.lane_now[r] = end
        if end + g.tail[t, d] > limit:
            return q + 1, BIG
        makespan = max(makespan, end)
    s.value[3] = s.value[2] + gain
    return n, makespan


@kernel
def commit(g: Graph, s: State, lo: int, stop: int, first: int, last: int) -> None:
    """Make an evaluated trial current; ``first``..``last``: positions whose task changed."""
    n = len(s.order)
    if g.serial:
        commit_sends(g, s, lo, stop)
    for q in range(first, last + 1):
        t = s.new_order[q]
        s.order[q] = t
        s.position[t] = q
        for k in range(g.pred_ptr[t], g.pred_ptr[t + 1]):
            p = g.pred[k]
            s.last_use[p] = max(s.last_use[p], q)
    m = g.cost.shape[1]
    copy_into(s.lane_now, s.lane_free[lo])
    if g.serial:
        links_before(g, s, lo)
    sends = 0
    for q in range(lo, stop):
        t = s.order[q]
        d = s.new_device[t]
        if s.device[t] != d:
            s.device[t] = d
        s.start[t] = s.new_start[t]
        s.finish[t] = s.new_finish[t]
        s.lane_now[g.lane[d]] = s.finish[t]
        copy_into(s.lane_free[q + 1], s.lane_now)
        s.prefix[q + 1] = max(s.prefix[q], s.finish[t])
        if g.serial:
            while sends < s.logged[0] and s.log[sends, 2] == q:
                x, e = s.log[sends, 0], s.log[sends, 1]
                s.link_now[tensor_source(g, s, t, x) * m + e] = s.sent[x, e]
                sends += 1
            if (q + 1) % STRIDE == 0:
                copy_into(s.link_free[(q + 1) // STRIDE], s.link_now)
    for q in range(stop, n):
        largest = max(s.prefix[q], s.finish[s.order[q]])
        if largest == s.prefix[q + 1]:
            break
        s.prefix[q + 1] = largest
    for q in range(stop - 1, -1, -1):
        largest = max(s.suffix[q + 1], s.finish[s.order[q]])
        if q < lo and largest == s.suffix[q]:
            break
        s.suffix[q] = largest
    s.value[0] = s.prefix[n]
    s.value[2] = s.value[3]


@kernel
def links_before(g: Graph, s: State, q: int) -> None:
    """Set ``s.link_now`` to the link directions of the current solution before ``q``."""
    m = g.cost.shape[1]
    copy_into(s.link_now, s.link_free[q // STRIDE])
    for i in range(q // STRIDE * STRIDE, q):
        t = s.order[i]
        d = s.device[t]
        for k in range(g.pred_ptr[t], g.pred_ptr[t + 1]):
            x = g.pred_tensor[k]
            if s.sent_at[x, d] == i:
                channel = s.device[g.pred[k]] * m + d
                s.link_now[channel] = max(s.link_now[channel], s.sent[x, d])


@kernel
def tensor_source(g: Graph, s: State, t: int, x: int) -> int:
    """Device that holds tensor ``x``, an input of ``t``."""
    for k in range(g.pred_ptr[t], g.pred_ptr[t + 1]):
        if g.pred_tensor[k] == x:
            return s.new_device[g.pred[k]]
    return -1


@kernel
def commit_sends(g: Graph, s: State, lo: int, stop: int) -> None:
    """Replace the current sends of positions ``lo``..``stop`` by the trial's."""
    n = len(s.order)
    for q in range(lo, stop):
        t = s.order[q]
        d = s.device[t]
        for k in range(g.pred_ptr[t], g.pred_ptr[t + 1]):
            x = g.pred_tensor[k]
            if s.sent_at[x, d] >= lo and s.stamp[x, d] != s.trial[0]:
                s.sent_at[x, d] = n
    for i in range(s.logged[0]):
        x, d = s.log[i, 0], s.log[i, 1]
        s.sent[x, d] = s.new_sent[x, d]
        s.sent_at[x, d] = s.log[i, 2]


@kernel
def reject(s: State, lo: int, stop: int, first: int, last: int) -> None:
    """Undo a trial that was evaluated up to ``stop``; devices are the caller's to restore."""
    for q in range(lo, stop):
        t = s.new_order[q]
        s.new_finish[t] = s.finish[t]
    for q in range(first, last + 1):
        s.new_order[q] = s.order[q]
