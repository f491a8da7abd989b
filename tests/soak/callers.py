"""Many callers at once: bits as if alone, fair shares, an event loop that goes on (S4)."""

from __future__ import annotations

import asyncio
import statistics
import threading
import time
from collections import Counter, deque

import numpy as np

from crossdock.runtime.session import Session
from tests.soak import cancels, graphs
from tests.soak.figures import Figure

THREADS = 16


def threads(runs: int) -> list[Figure]:
    """16 threads with ``runs`` runs each on one session, for each session in turn."""
    made = graphs.sessions(runs_at_once=4)
    figures = []
    for name, session in made.items():
        wrong = _together(session, runs)
        figures.append(Figure("S4", f"wrong of 16 x {runs:,} runs ({name})", wrong, 0))
    graphs.close(made)
    return figures


def _together(session: Session, runs: int) -> int:
    fed = [graphs.feeds(5, seed) for seed in range(THREADS)]
    wants = [session.run(f) for f in fed]
    wrong: Counter[int] = Counter()

    def call(i: int) -> None:
        for _ in range(runs):
            wrong[i] += not graphs.same(session.run(fed[i]), wants[i])

    _all([threading.Thread(target=call, args=(i,)) for i in range(THREADS)])
    return sum(wrong.values())


def _all(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def sharing(seconds: float) -> list[Figure]:
    """Eight sessions over the same devices: each gets its turn."""
    made = [s for _ in range(8) for s in graphs.sessions(runs_at_once=2).items()]
    kind = made[-1][0]  # over both devices, where there are two
    same = [session for name, session in made if name == kind]
    done = [0] * len(same)
    fed = graphs.feeds(5, 1)
    want = same[0].run(fed)
    wrong = [0] * len(same)
    end = time.monotonic() + seconds

    def call(i: int) -> None:
        while time.monotonic() < end:
            wrong[i] += not graphs.same(same[i].run(fed), want)
            done[i] += 1

    _all([threading.Thread(target=call, args=(i,)) for i in range(len(same))])
    for _, session in made:
        session.close()
    return [
        Figure("sharing", f"wrong of {sum(done):,} runs of eight sessions", sum(wrong), 0),
        Figure(
            "sharing",
            "runs of the luckiest over the unluckiest",
            round(max(done) / max(1, min(done)), 2),
            3.0,
        ),
    ]


def beside(seconds: float) -> list[Figure]:
    """A run at a time beside another session's 64: its median time over that when alone."""
    figures = []
    quiet, deep = cancels.sessions(steps=2), cancels.sessions(steps=2)
    fed = {"x": np.ones((cancels.SIZE, cancels.SIZE), np.float32)}
    for name, session in quiet.items():
        _latency(session, fed, seconds / 10)
        alone = _latency(session, fed, seconds)
        end, flood = threading.Event(), deep[name]
        flooding = threading.Thread(target=_flood, args=(flood, fed, end))
        flooding.start()
        _latency(session, fed, seconds / 10)
        found = _latency(session, fed, seconds)
        end.set()
        flooding.join()
        what = f"times as long beside 64 runs in flight ({name})"
        figures.append(Figure("beside", what, round(found / alone, 2), 4.0))
    for session in (*quiet.values(), *deep.values()):
        session.close()
    return figures


def _latency(session: Session, fed: graphs.Feeds, seconds: float) -> float:
    took, end = [], time.perf_counter() + seconds
    while not took or time.perf_counter() < end:
        began = time.perf_counter()
        session.run(fed)
        took.append(time.perf_counter() - began)
    return statistics.median(took)


def _flood(session: Session, fed: graphs.Feeds, end: threading.Event) -> None:
    flying = deque(session.submit(fed) for _ in range(64))
    while not end.is_set():
        flying.popleft().result()
        flying.append(session.submit(fed))
    for future in flying:
        future.result()


def asynchronous(count: int) -> list[Figure]:
    """``count`` runs awaited at once: the loop turns meanwhile, every run is right."""
    made = graphs.sessions()
    figures = []
    for name, session in made.items():
        fed = [graphs.feeds(5, seed) for seed in range(8)]
        wants = [session.run(f) for f in fed]
        gap, wrong = asyncio.run(_awaited(session, fed, wants, count))
        figures += [
            Figure("asyncio", f"wrong of {count:,} in flight ({name})", wrong, 0),
            Figure("asyncio", f"longest turn of the loop ({name})", round(gap, 4), 0.25, "s"),
        ]
    graphs.close(made)
    return figures


async def _awaited(
    session: Session, fed: list[graphs.Feeds], wants: list[dict[str, object]], count: int
) -> tuple[float, int]:
    longest, going = 0.0, True

    async def turn() -> None:
        nonlocal longest
        last = time.perf_counter()
        while going:
            await asyncio.sleep(0)
            now = time.perf_counter()
            longest, last = max(longest, now - last), now

    turning = asyncio.create_task(turn())
    tasks = [asyncio.create_task(session.run_async(fed[i % len(fed)])) for i in range(count)]
    found = await asyncio.gather(*tasks)
    going = False
    await turning
    return longest, sum(not graphs.same(f, wants[i % len(fed)]) for i, f in enumerate(found))
