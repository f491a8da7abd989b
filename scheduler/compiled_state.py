"""What the compiled search knows about its current solution, its trial and its best.

All arrays are grouped by use, so that a kernel is given only what it works on.
"""

from __future__ import annotations

from typing import NamedTuple

from crossdock.scheduler.problem import Floats, Ints

STRIDE = 8  # positions between snapshots of the link directions
CURRENT, BEST, TOTAL, NEW_TOTAL = range(4)  # entries of State.value
NUMBER, TOUCHED, LOGGED = range(3)  # entries of Trial.counts
LAST, FIRST = range(2)  # entries of Back.stale


class Plan(NamedTuple):
    """The current solution; (n,) each."""

    order: Ints
    position: Ints
    device: Ints
    start: Floats
    finish: Floats
    last_use: Ints  # at least the position of the task's last consumer
    sends: Ints  # tensors that are sent for the task


class Trial(NamedTuple):
    """The solution under test; equal to the current one between trials. (n,) each."""

    order: Ints
    device: Ints
    start: Floats  # of touched tasks
    finish: Floats
    dirty: Ints  # number of the trial in which something new reaches the task
    touched: Ints  # tasks that the trial decoded
    counts: Ints  # (3,) number of the trial, tasks touched, sends logged


class Copies(NamedTuple):
    """Transfers under serial links; empty under free ones."""

    sent: Floats  # (tensors, m) arrivals of the current solution
    sent_at: Ints  # (tensors, m) position of the send, n where there is none
    new_sent: Floats
    stamp: Ints  # (tensors, m) number of the trial in which new_sent was set
    log: Ints  # (k, 3) sends of the trial: tensor, device, position
    link_now: Floats  # (m * m,) when a direction is free
    link_free: Floats  # (n // STRIDE + 1, m * m) that before every STRIDE-th position
    pending: Ints  # (e,) scratch


class Front(NamedTuple):
    """What holds before (or from) every position of the current solution."""

    lane_now: Floats  # (lanes,) of the trial
    lane_free: Floats  # (n + 1, lanes)
    prefix: Floats  # (n + 1,) largest finish before
    suffix: Floats  # (n + 1,) largest finish from there on


class Back(NamedTuple):
    """What follows in the current solution, transfers unhindered."""

    rest: Floats  # (n,) longest way from a task's start to the end
    lane_rest: Floats  # (n + 1, lanes) rest of the first task on a lane from a position on
    device: Ints  # (n,) that these hold for
    stale: Ints  # (2,) last and first position that changed since, or -1 and n


class State(NamedTuple):
    """All of a search's solution state."""

    plan: Plan
    trial: Trial
    copies: Copies
    front: Front
    back: Back
    room: Floats  # (m,) bytes left
    value: Floats  # makespans: current, best; sum of all finishes: current, trial
    best_order: Ints
    best_device: Ints
