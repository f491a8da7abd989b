"""Runs given up at a random moment: the caller is free at once, nothing is lost (S11)."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import CancelledError

import numpy as np

import crossdock as xd
from crossdock.runtime.errors import Cancelled, Timeout
from crossdock.runtime.graph import Graph
from crossdock.runtime.session import Session
from tests.soak import graphs
from tests.soak.figures import Figure

STEPS, SIZE = 40, 192
Late = list[float]


def long_graph(steps: int = STEPS) -> Graph:
    """Products in a row, some of them beside each other: tens of milliseconds."""
    b = xd.GraphBuilder()
    x = left = right = b.input("x", (SIZE, SIZE))
    for i in range(steps):
        left = b.tanh(b.matmul(left, x), label=f"left{i}")
        right = b.tanh(b.matmul(x, right), label=f"right{i}")
    return b.build({"y": b.add(left, right, label="join")})


def sessions(steps: int = STEPS) -> dict[str, Session]:
    """On the host, on an OpenCL device, and a branch on each."""
    graph = long_graph(steps)
    made = {"host": xd.compile(graph, "cpu:0", measure=False)}
    for device in graphs.opencl():
        made["opencl"] = xd.compile(graph, device, measure=False)
        pin = {"left*": "cpu:0", "right*": device, "join": "cpu:0"}
        both = ["cpu:0", device]
        made["both"] = xd.compile(
            graph, both, measure=False, constraints=xd.Constraints(pin=pin), split=False
        )
    return made


def cancels(count: int) -> list[Figure]:
    """``count`` runs a session, half of them cancelled, half of them out of time."""
    figures = []
    made = sessions()
    for name, session in made.items():
        late, wrong = _given_up(session, count)
        late.sort()
        p99 = late[int(0.99 * (len(late) - 1))] if late else float("inf")
        figures += [
            Figure("S11", f"wrong or unusable of {count:,} ({name})", wrong, 0),
            Figure(
                "S11",
                f"share that ended before it was given up ({name})",
                round(1 - len(late) / count, 2),
                0.8,
            ),
            Figure(
                "S11", f"99th percentile until the caller is free ({name})", round(p99, 4), 0.1, "s"
            ),
            Figure("S11", f"memory not given back ({name})", _held(session), 0),
        ]
    graphs.close(made)
    return figures


def _given_up(session: Session, count: int) -> tuple[Late, int]:
    x = np.random.default_rng(3).standard_normal((SIZE, SIZE)).astype(np.float32) / 16
    want = session.run({"x": x})
    began = time.perf_counter()
    session.run({"x": x})
    whole = time.perf_counter() - began
    dice, late, wrong = random.Random(4), [], 0
    for i in range(count):
        moment = dice.uniform(0, 1.2) * whole
        give_up = _cancelled if i % 2 else _timed_out
        seconds, found = give_up(session, {"x": x}, moment)
        if found is None:
            late.append(seconds)
        else:
            wrong += not graphs.same(found, want)
    wrong += not graphs.same(session.run({"x": x}), want)  # usable after it all
    return late, wrong


def _cancelled(session: Session, fed: graphs.Feeds, moment: float) -> tuple[float, object]:
    future = session.submit(fed)
    time.sleep(moment)
    began = time.perf_counter()
    future.cancel()
    try:
        return 0.0, future.result()
    except (Cancelled, CancelledError):
        return time.perf_counter() - began, None


def _timed_out(session: Session, fed: graphs.Feeds, moment: float) -> tuple[float, object]:
    began = time.perf_counter()
    try:
        return 0.0, session.run(fed, timeout=moment)
    except Timeout:
        return time.perf_counter() - began - moment, None


def _held(session: Session, seconds: float = 30.0) -> int:
    """Instances that are not given back, though nothing runs."""
    pool, end = session.ready().pool, time.monotonic() + seconds
    while (held := pool._made - len(pool.free)) and time.monotonic() < end:
        threading.Event().wait(0.01)
    return held
