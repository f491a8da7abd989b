"""Kill -9 of the processes that devices run in, at random moments under load (S7).

Tasks are runs that are handed in ten at a time; while each ten are on, a process is killed. What
was in flight is finished without its device, and the next ten have it back in a new process.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

import crossdock as xd
from crossdock.devices import registry, sim
from crossdock.devices.isolated_device import IsolatedDevice
from crossdock.devices.isolated_process import DEATHS_AT
from crossdock.devices.sim import SimSpec
from crossdock.runtime.graph import Graph
from crossdock.runtime.session import Session
from tests.soak import graphs
from tests.soak.figures import Figure
from tests.soak.usage import Usage, settled

TEN = 10
PATIENCE = 60.0
NAME = "S7"


def _work(device: str) -> tuple[Graph, dict[str, str]]:
    """Steps on the device and on the host, each of which takes what the other has made."""
    b = xd.GraphBuilder()
    x = b.input("x", (64, 64))
    y, places = x, {}
    for i in range(6):
        y = b.max(b.neg(b.add(y, x, label=f"there{i}"), label=f"here{i}"), x)
        places[f"there{i}"], places[f"here{i}"] = device, "cpu:0"
    return b.build({"y": y}), places


def kills(tasks: int) -> list[Figure]:
    """``tasks`` runs, a kill for every ten of them."""
    inner = graphs.opencl()[0] if graphs.opencl() else "sim:killed"
    if inner == "sim:killed":
        sim.register(SimSpec("killed"))
    device, dice, found = f"isolated:{inner}", random.Random(7), Counter[str]()
    graph, places = _work(device)
    rules = xd.Constraints(pin=places)
    took: list[float] = []
    back: list[float] = []
    pids: set[int] = set()
    before: Usage | None = None
    with xd.compile(
        graph, ["cpu:0", device], constraints=rules, measure=False, runs_at_once=2
    ) as session:
        for turn in range(-(-tasks // TEN)):
            back.append(_again(session, device))
            if turn == 1:
                before = Usage.now()
            process = _opened(session, device).process
            pids.add(process.pid)
            took.append(_ten(session, process.pid, dice, found))
            DEATHS_AT._counts.clear()  # what a process was at had no part in its end
        back.append(_again(session, device))
        after = settled(Usage.now, before) if before is not None else None
    registry.close_all()
    xd.rescan()
    figures = [
        Figure(NAME, f"lost of {tasks:,} tasks", found["lost"], 0),
        Figure(NAME, f"wrong of {tasks:,} tasks", found["wrong"], 0),
        Figure(NAME, f"errors of {tasks:,} tasks", found["errors"], 0),
        Figure(NAME, f"tasks of {tasks:,} that ended twice", found["twice"], 0),
        Figure(NAME, f"share of {len(took):,} kills that hit nothing", _idle(found, took), 0.9),
        Figure(NAME, "95th percentile until what was in flight is done", _p95(took), 1.0, "s"),
        Figure(NAME, "95th percentile until the device computes again", _p95(back), 5.0, "s"),
        Figure(NAME, f"processes left of {len(pids):,}", sum(map(_runs, pids)), 0),
    ]
    if after is not None and before is not None:
        named = ("growth of descriptors", "growth of threads")
        figures += [f for f in after.figures(NAME, before) if f.what in named]
    return figures


def _opened(session: Session, device: str) -> IsolatedDevice:
    found = session.devices[device]
    assert isinstance(found, IsolatedDevice)
    return found


def _again(session: Session, device: str) -> float:
    """Let the device be used again, and run on it; seconds until that was done."""
    began = time.perf_counter()
    registry.rescan()
    fed, want = _task(0)
    assert graphs.same(session.run(fed, timeout=PATIENCE), want)
    assert device in session.devices
    return time.perf_counter() - began


def _task(seed: int) -> tuple[graphs.Feeds, Mapping[str, Any]]:
    """Feeds, and what they give: whole numbers, which are exact wherever they are computed."""
    x = np.random.default_rng(seed).integers(-9, 10, (64, 64)).astype(np.float32)
    y = x
    for _ in range(6):
        y = np.maximum(-(y + x), x)
    return {"x": x}, {"y": y}


def _ten(session: Session, pid: int, dice: random.Random, found: Counter[str]) -> float:
    """Ten tasks and a kill; seconds from the kill until all that were in flight are done."""
    tasks = [_task(dice.getrandbits(31)) for _ in range(TEN)]
    ended = [0.0] * TEN
    ends: Counter[int] = Counter()
    futures = []
    killed: list[float] = []

    def kill() -> None:
        killed.append(time.perf_counter())
        os.kill(pid, signal.SIGKILL)

    timer = threading.Timer(dice.random() * 0.02, kill)
    timer.start()
    for i, (fed, _) in enumerate(tasks):
        future = session.submit(fed)

        def end(_: object, i: int = i) -> None:
            ended[i] = time.perf_counter()
            ends[i] += 1

        future.add_done_callback(end)
        futures.append(future)
    for (_, want), future in zip(tasks, futures, strict=True):
        try:
            found["wrong"] += not graphs.same(future.result(PATIENCE), want)
        except TimeoutError:
            found["lost"] += 1
        except xd.Error:
            found["errors"] += 1
    timer.join()
    found["twice"] += sum(count > 1 for count in ends.values())
    found["hit"] += max(ended) > killed[0]
    return max(0.0, max(ended) - killed[0])


def _idle(found: Counter[str], took: list[float]) -> float:
    return round(1 - found["hit"] / len(took), 3)


def _p95(seconds: list[float]) -> float:
    return round(sorted(seconds)[int(0.95 * (len(seconds) - 1))], 4)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
