"""Everything on one device: the plans that any other has to beat."""

from __future__ import annotations

import numpy as np

from crossdock.runtime.errors import NoPlacement
from crossdock.scheduler.decode import decode
from crossdock.scheduler.drafts import Draft, place_fixed
from crossdock.scheduler.limits import Limits
from crossdock.scheduler.problem import Ints, Problem
from crossdock.scheduler.result import Links


def single_drafts(problem: Problem, links: Links, order: Ints) -> dict[str, Draft]:
    """By device id, for devices that can run something: all on it, the rest by least added cost.

    ``order`` is a topological order of the tasks.

    Raises:
        NoPlacement: no single device works, even with the fallback.
    """
    drafts: dict[str, Draft] = {}
    for d, name in enumerate(problem.device_ids):
        able = np.isfinite(problem.cost[:, d])
        if problem.n and not able.any():
            continue
        where = single_placement(problem, d)
        label = f"best_single:{name}"
        if able.all():
            drafts[name] = Draft(label, where, decode(problem, order, where, links))
            continue
        draft = place_fixed(problem, links, Limits.none(problem), order, where, label)
        if draft is not None:
            drafts[name] = draft
    if not drafts:
        raise NoPlacement("no single device reaches every task, even with fallback; add links")
    return drafts


def single_placement(problem: Problem, device: int) -> Ints:
    """Device of every task, int64 (n,): ``device`` where it can, else the cheapest there.

    A fallback's price is its cost plus the transfers of its edges to and from ``device``.
    """
    where = np.full(problem.n, device, np.int64)
    for t in np.flatnonzero(~np.isfinite(problem.cost[:, device])).tolist():
        price = problem.cost[t].copy()
        for near, back in ((problem.preds, False), (problem.succs, True)):
            for k in range(int(near.ptr[t]), int(near.ptr[t + 1])):
                size = float(problem.edge_bytes[near.edge[k]])
                for d in range(problem.m):
                    pair = (d, device) if back else (device, d)
                    price[d] += problem.transfer_s(size, *pair)
        where[t] = int(price.argmin())
    return where
