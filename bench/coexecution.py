"""Graphs shared by two one-core devices against each device alone; prints JSON."""

from __future__ import annotations

import json
import sys
from functools import partial
from typing import Any

from pinned import pinned  # first: it sets what PoCL and BLAS read

# isort: split

from coexecution_graphs import GRAPHS
from timing import feeds_of, interleaved, opencl, same

import crossdock as xd


def measure(name: str) -> dict[str, Any]:
    """Medians of interleaved runs, predictions, and the distance from the plan's lower bound.

    ``allowed`` is the speed-up at the plan's lower bound, over the best single device as the same
    plan predicts it.
    """
    graph, other = GRAPHS[name](), opencl()
    feeds = feeds_of(graph)
    sets = {"cpu": ["cpu:0"], "opencl": [other], "both": ["cpu:0", other]}
    for ids in sets.values():  # makes the devices' threads, which are then given their cores
        xd.compile(graph, ids, threads=1, measure=False).run(feeds)
    with pinned():
        sessions = {k: xd.compile(graph, v, threads=1, search=True) for k, v in sets.items()}
        same({k: s.run(feeds) for k, s in sessions.items()})
        measured = interleaved({k: partial(s.run, feeds) for k, s in sessions.items()})
    predicted = {k: s.estimate().seconds for k, s in sessions.items()}
    plan = sessions["both"].plan
    single = min(measured["cpu"], measured["opencl"])
    alone = min(d.single_seconds for d in plan.devices if d.single_seconds)
    allowed = alone / plan.lower_bound
    return {
        "graph": name,
        "measured": measured,
        "predicted": predicted,
        "speedup": single / measured["both"],
        "allowed": allowed,
        "ratio": single / measured["both"] / allowed,
        "lower_bound": plan.lower_bound,
        "gap": plan.predicted / plan.lower_bound - 1.0,
        "splits": [str(s) for s in plan.splits if s.taken],
        "shares": plan.shares(),
    }


if __name__ == "__main__":
    print(json.dumps([measure(name) for name in sys.argv[1:] or GRAPHS]))
