"""Incremental evaluation of (topological order, device vector) for the compiled search.

A trial changes devices and shifts tasks in the order. It is decoded from the first position that
changes; tasks that nothing new reaches keep their times, and decoding ends when the trial can no
longer be accepted or meets the current solution again (same lanes, same links, nothing pending).
"""

from __future__ import annotations

import numpy as np

from crossdock.scheduler.compiled_core import (
    BIG,
    NONE,
    NOWHERE,
    Graph,
    Net,
    Wires,
    copy_into,
    hop,
    kernel,
    leaf,
    zeros,
)
from crossdock.scheduler.compiled_state import (
    BEST,
    CURRENT,
    FIRST,
    LAST,
    LOGGED,
    NEW_TOTAL,
    NUMBER,
    STRIDE,
    TOTAL,
    TOUCHED,
    Back,
    Copies,
    Front,
    Plan,
    State,
    Trial,
)
from crossdock.scheduler.problem import Ints


def new_state(g: Graph, order: Ints, device: Ints) -> State:
    """State of a starting solution; ``order`` must be topological."""
    s = empty_state(g)
    load(g, s, order, device)
    return s


def empty_state(g: Graph) -> State:
    """Arrays of a state, for ``load`` to fill."""
    n, m = g.cost.shape
    tensors, rows, pairs = (g.tensors, n // STRIDE + 1, m * m) if g.serial else (0, 0, 0)
    plan = Plan(zeros(n), zeros(n), zeros(n), np.zeros(n), np.zeros(n), zeros(n), zeros(n))
    trial = Trial(zeros(n), zeros(n), np.zeros(n), np.zeros(n), zeros(n), zeros(n), zeros(3))
    copies = Copies(
        np.zeros((tensors, m)),
        zeros(tensors, m),
        np.zeros((tensors, m)),
        zeros(tensors, m),
        zeros(tensors * m + 1, 3),
        np.zeros(pairs),
        np.zeros((rows, pairs)),
        zeros(len(g.net.pred)),
    )
    front = Front(np.zeros(g.lanes), np.zeros((n + 1, g.lanes)), np.zeros(n + 1), np.zeros(n + 1))
    back = Back(np.zeros(n), np.zeros((n + 1, g.lanes)), zeros(n), zeros(2))
    return State(plan, trial, copies, front, back, np.zeros(m), np.zeros(4), zeros(n), zeros(n))


@kernel
def load(g: Graph, s: State, order: Ints, device: Ints) -> float:
    """Make a solution the current and best one; returns its makespan."""
    net, plan, trial, n = g.net, s.plan, s.trial, len(order)
    copy_into(s.room, g.room)
    for q in range(n):
        t = order[q]
        plan.order[q] = trial.order[q] = s.best_order[q] = t
        plan.position[t] = q
        plan.device[t] = trial.device[t] = s.best_device[t] = device[t]
        plan.finish[t], plan.sends[t], plan.last_use[t] = 0.0, 0, 0
        s.room[device[t]] -= g.held[t]
        for k in range(net.pred_ptr[t], net.pred_ptr[t + 1]):
            plan.last_use[net.pred[k]] = q
    for x in range(len(s.copies.sent_at)):
        for d in range(len(s.room)):
            s.copies.sent_at[x, d] = n
    s.value[TOTAL] = 0.0
    s.back.stale[LAST], s.back.stale[FIRST] = n - 1, 0
    begin_trial(trial)
    stop, _ = evaluate(g, s, NONE, n, n, n, BIG * 1e6)
    commit(g, s, NONE, stop, NONE, NOWHERE)
    s.value[BEST] = s.value[CURRENT]
    return s.value[CURRENT]


@leaf
def begin_trial(trial: Trial) -> None:
    """Start a trial that equals the current solution."""
    trial.counts[NUMBER] += 1
    trial.counts[TOUCHED] = 0
    trial.counts[LOGGED] = 0


@leaf
def touch_all(net: Net, trial: Trial, p: int) -> None:
    """Mark the consumers of task ``p`` as reached by the trial."""
    for k in range(net.succ_ptr[p], net.succ_ptr[p + 1]):
        trial.dirty[net.succ[k]] = trial.counts[NUMBER]


@leaf
def touch_copy(net: Net, trial: Trial, p: int, x: int, d: int) -> None:
    """Mark the consumers of tensor ``x`` of task ``p`` on device ``d`` as reached."""
    for k in range(net.succ_ptr[p], net.succ_ptr[p + 1]):
        if net.succ_tensor[k] == x and trial.device[net.succ[k]] == d:
            trial.dirty[net.succ[k]] = trial.counts[NUMBER]


@leaf
def free_ready(net: Net, wires: Wires, trial: Trial, t: int, d: int, ready: float) -> float:
    """Arrival of the inputs of ``t`` on ``d`` under free links, at least ``ready``."""
    for k in range(net.pred_ptr[t], net.pred_ptr[t + 1]):
        p = net.pred[k]
        a = trial.device[p]
        at = trial.finish[p]
        if a != d:
            at += hop(wires, net.pred_bytes[k], a, d)
        ready = max(ready, at)
    return ready


@leaf
def serial_ready(
    net: Net, wires: Wires, plan: Plan, trial: Trial, c: Copies, t: int, q: int, lo: int, reach: int
) -> tuple[float, int]:
    """(arrival, reach) of the inputs of ``t`` under serial links.

    Sends what is missing on its device, first finished first. ``reach``: last position that what
    differs from the current solution can touch directly.
    """
    d = trial.device[t]
    ready, missing = 0.0, 0
    for k in range(net.pred_ptr[t], net.pred_ptr[t + 1]):
        p = net.pred[k]
        at = trial.finish[p]
        if trial.device[p] != d:
            x = net.pred_tensor[k]
            if c.sent_at[x, d] < lo:
                at = c.sent[x, d]
            elif c.stamp[x, d] == trial.counts[NUMBER]:
                at = c.new_sent[x, d]
            else:
                i = missing
                while i > 0 and trial.finish[net.pred[c.pending[i - 1]]] > at:
                    c.pending[i] = c.pending[i - 1]
                    i -= 1
                c.pending[i] = k
                missing += 1
                continue
        ready = max(ready, at)
    for i in range(missing):
        k = c.pending[i]
        x = net.pred_tensor[k]
        if c.stamp[x, d] != trial.counts[NUMBER] and send(net, wires, trial, c, k, d, q):
            reach = max(reach, plan.last_use[net.pred[k]])
            touch_copy(net, trial, net.pred[k], x, d)
        ready = max(ready, c.new_sent[x, d])
    return ready, reach


@leaf
def send(net: Net, wires: Wires, trial: Trial, c: Copies, k: int, d: int, q: int) -> bool:
    """Send the tensor of predecessor edge ``k`` to ``d``; whether that is new or at a new time."""
    p, x = net.pred[k], net.pred_tensor[k]
    a = trial.device[p]
    size = net.pred_bytes[k]
    if net.mixed[x]:
        for i in range(net.succ_ptr[p], net.succ_ptr[p + 1]):
            if net.succ_tensor[i] == x and trial.device[net.succ[i]] == d:
                size = max(size, net.succ_bytes[i])
    channel = a * len(wires.latency) + d
    at = max(trial.finish[p], c.link_now[channel]) + hop(wires, size, a, d)
    c.link_now[channel] = at
    c.new_sent[x, d] = at
    c.stamp[x, d] = trial.counts[NUMBER]
    i = trial.counts[LOGGED]
    c.log[i, 0], c.log[i, 1], c.log[i, 2] = x, d, q
    trial.counts[LOGGED] = i + 1
    return c.sent_at[x, d] != q or c.sent[x, d] != at


@leaf
def same_front(front: Front, c: Copies, q: int, serial: bool) -> bool:
    """Whether lanes and links are as in the current solution before position ``q``."""
    for r in range(len(front.lane_now)):
        if front.lane_now[r] != front.lane_free[q, r]:
            return False
    if serial:
        if q % STRIDE != 0:
            return False
        for i in range(len(c.link_now)):
            if c.link_now[i] != c.link_free[q // STRIDE, i]:
                return False
    return True


@leaf
def evaluate(
    g: Graph, s: State, lo: int, shifted: int, settled: int, reach: int, limit: float
) -> tuple[int, float]:
    """Decode the trial from position ``lo``; returns (position reached, makespan or BIG).

    ``shifted``: last position whose task may differ from the current order. ``settled``: last
    position with another task or device, after which the ``rest`` of the current solution holds.
    ``reach``: last position that the changes touch directly. BIG: the makespan exceeds ``limit``;
    the trial's times are then only partly filled.
    """
    net, wires, lane, cost, tail = g.net, g.wires, g.lane, g.cost, g.tail
    plan, trial, copies, front, value = s.plan, s.trial, s.copies, s.front, s.value
    number, n, rest = trial.counts[NUMBER], len(plan.order), s.back.rest
    copy_into(front.lane_now, front.lane_free[lo])
    if g.serial:
        links_before(net, plan, copies, lo)
    makespan, gain = front.prefix[lo], 0.0
    for q in range(lo, n):
        if q > reach and q > shifted and same_front(front, copies, q, g.serial):
            makespan = max(makespan, front.suffix[q])
            value[NEW_TOTAL] = value[TOTAL] + gain
            return q, (makespan if makespan <= limit else BIG)
        t = trial.order[q]
        d = trial.device[t]
        ready = front.lane_now[lane[d]]
        kept = trial.dirty[t] != number and plan.sends[t] == 0
        if kept and q > shifted and ready == front.lane_free[q, lane[d]]:
            front.lane_now[lane[d]] = plan.finish[t]
            makespan = max(makespan, plan.finish[t])
            continue
        if g.serial:
            at, reach = serial_ready(net, wires, plan, trial, copies, t, q, lo, reach)
            ready = max(ready, at)
        else:
            ready = free_ready(net, wires, trial, t, d, ready)
        end = ready + cost[t, d]
        front.lane_now[lane[d]] = end
        if end != plan.finish[t]:
            reach = max(reach, plan.last_use[t])
            gain += end - plan.finish[t]
            touch_all(net, trial, t)
        record(trial, t, ready, end)
        after = tail[t, d] if q <= settled else rest[t] - cost[t, d]
        if end + after > limit:
            return q + 1, BIG
        makespan = max(makespan, end)
    value[NEW_TOTAL] = value[TOTAL] + gain
    return n, makespan


@leaf
def record(trial: Trial, t: int, begin: float, end: float) -> None:
    """Set the trial's times of a task."""
    trial.touched[trial.counts[TOUCHED]] = t
    trial.counts[TOUCHED] += 1
    trial.start[t] = begin
    trial.finish[t] = end


@leaf
def links_before(net: Net, plan: Plan, c: Copies, q: int) -> None:
    """Set ``link_now`` to the link directions of the current solution before ``q``."""
    copy_into(c.link_now, c.link_free[q // STRIDE])
    for i in range(q // STRIDE * STRIDE, q):
        add_sends(net, plan, c, i)


@leaf
def add_sends(net: Net, plan: Plan, c: Copies, q: int) -> None:
    """Advance ``link_now`` by what the current solution sends at position ``q``."""
    t = plan.order[q]
    if plan.sends[t] == 0:
        return
    d, m = plan.device[t], c.sent.shape[1]
    for k in range(net.pred_ptr[t], net.pred_ptr[t + 1]):
        x = net.pred_tensor[k]
        if c.sent_at[x, d] == q:
            channel = plan.device[net.pred[k]] * m + d
            c.link_now[channel] = max(c.link_now[channel], c.sent[x, d])


@leaf
def commit(g: Graph, s: State, lo: int, stop: int, first: int, last: int) -> None:
    """Make an evaluated trial current; ``first``..``last``: positions whose task changed."""
    net, plan, trial = g.net, s.plan, s.trial
    if g.serial:
        commit_sends(net, plan, trial, s.copies)
    for q in range(first, last + 1):
        t = trial.order[q]
        plan.order[q] = t
        plan.position[t] = q
        for k in range(net.pred_ptr[t], net.pred_ptr[t + 1]):
            plan.last_use[net.pred[k]] = max(plan.last_use[net.pred[k]], q)
    for i in range(trial.counts[TOUCHED]):
        t = trial.touched[i]
        plan.device[t] = trial.device[t]
        plan.start[t] = trial.start[t]
        plan.finish[t] = trial.finish[t]
    snapshot(plan, s.front, g.lane, lo, stop)
    if g.serial:
        links_before(net, plan, s.copies, lo)
        for q in range(lo, stop):
            add_sends(net, plan, s.copies, q)
            if (q + 1) % STRIDE == 0:
                copy_into(s.copies.link_free[(q + 1) // STRIDE], s.copies.link_now)
    s.value[CURRENT] = s.front.prefix[len(plan.order)]
    s.value[TOTAL] = s.value[NEW_TOTAL]


@leaf
def commit_sends(net: Net, plan: Plan, trial: Trial, c: Copies) -> None:
    """Replace the current sends of the touched tasks by the trial's."""
    n, number = len(plan.order), trial.counts[NUMBER]
    for i in range(trial.counts[TOUCHED]):
        t = trial.touched[i]
        d = plan.device[t]
        if plan.sends[t] == 0:
            continue
        plan.sends[t] = 0
        for k in range(net.pred_ptr[t], net.pred_ptr[t + 1]):
            x = net.pred_tensor[k]
            if c.sent_at[x, d] == plan.position[t] and c.stamp[x, d] != number:
                c.sent_at[x, d] = n
    for i in range(trial.counts[LOGGED]):
        x, d, q = c.log[i, 0], c.log[i, 1], c.log[i, 2]
        c.sent[x, d] = c.new_sent[x, d]
        c.sent_at[x, d] = q
        plan.sends[trial.order[q]] += 1


@leaf
def snapshot(plan: Plan, front: Front, lane: Ints, lo: int, stop: int) -> None:
    """Bring what holds before and from every position up to date from ``lo`` to ``stop``."""
    n = len(plan.order)
    copy_into(front.lane_now, front.lane_free[lo])
    for q in range(lo, stop):
        t = plan.order[q]
        front.lane_now[lane[plan.device[t]]] = plan.finish[t]
        copy_into(front.lane_free[q + 1], front.lane_now)
        front.prefix[q + 1] = max(front.prefix[q], plan.finish[t])
    for q in range(stop, n):
        largest = max(front.prefix[q], plan.finish[plan.order[q]])
        if largest == front.prefix[q + 1]:
            break
        front.prefix[q + 1] = largest
    for q in range(stop - 1, -1, -1):
        largest = max(front.suffix[q + 1], plan.finish[plan.order[q]])
        if q < lo and largest == front.suffix[q]:
            break
        front.suffix[q] = largest


@leaf
def reject(plan: Plan, trial: Trial, first: int, last: int) -> None:
    """Undo an evaluated trial; devices are the caller's to restore."""
    for i in range(trial.counts[TOUCHED]):
        t = trial.touched[i]
        trial.finish[t] = plan.finish[t]
    for q in range(first, last + 1):
        trial.order[q] = plan.order[q]
