"""The processor's threads: they last, sleep between runs, and keep to what the process may use."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import crossdock as xd
from crossdock.devices import cpu, topology
from crossdock.devices.cpu_crew import HelperPool
from crossdock.runtime.session import Session

SIZE = 1 << 20
FEEDS = {"x": np.linspace(-1, 1, SIZE, dtype=np.float32)}


def compiled(threads: int | None) -> Session:
    b = xd.GraphBuilder()
    graph = b.build({"y": b.tanh(b.input("x", (SIZE,)))})
    return xd.compile(graph, "cpu:0", threads=threads, measure=False)


def helpers() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("crossdock cpu:0 helper")]


def child(code: str) -> str:
    """What a process of its own prints."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], check=True, capture_output=True, text=True,
        timeout=60, env={**os.environ, "CROSSDOCK_DEVICES": "cpu:0"},
    )  # fmt: skip
    return done.stdout.strip()


def test_helpers_last_from_session_to_session() -> None:
    with compiled(2) as session:
        session.run(FEEDS)
        before = {t.ident for t in helpers()}
        assert before
    with compiled(2) as session:
        for _ in range(3):
            session.run(FEEDS)
        assert {t.ident for t in helpers()} == before


def test_idle_threads_take_no_processor_time() -> None:
    with compiled(2) as session:
        session.run(FEEDS)
        time.sleep(0.05)
        before = time.process_time()
        time.sleep(0.5)
        assert time.process_time() - before < 0.05


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_one_core_is_one_thread_and_more_asked_for_still_end() -> None:
    core = min(os.sched_getaffinity(0))
    said = child(f"""
import os, threading
os.sched_setaffinity(0, {{{core}}})
import numpy as np, crossdock as xd
b = xd.GraphBuilder()
graph = b.build({{"y": b.tanh(b.input("x", ({SIZE},)))}})
x = np.linspace(-1, 1, {SIZE}, dtype=np.float32)
for threads in (None, 3):
    with xd.compile(graph, "cpu:0", threads=threads, measure=False) as session:
        for _ in range(5):
            y = session.run({{"x": x}})["y"]
        print(session.devices["cpu:0"].info.compute_units, np.allclose(y, np.tanh(x), atol=1e-6))
    print(sum("helper" in t.name for t in threading.enumerate()))
""")
    assert said.splitlines() == ["1 True", "0", "3 True", "2"]


@pytest.mark.parametrize(("quota", "threads"), [("100000 100000", 1), ("250000 100000", 3)])
def test_a_container_s_quota_bounds_the_threads(
    monkeypatch: pytest.MonkeyPatch, quota: str, threads: int
) -> None:
    monkeypatch.setattr(topology, "processors", lambda: frozenset(range(8)))
    monkeypatch.setattr(
        topology, "_read", lambda path: quota if Path(path).name == "cpu.max" else ""
    )
    (info,) = cpu.probe().devices
    assert info.compute_units == threads
    assert cpu.open_device("cpu:0").threads == threads
    assert cpu.open_device("cpu:0", threads=2).threads == 2, "what is asked for is what is used"


@pytest.mark.skipif(len(topology.processors()) < 2, reason="one processor alone")
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_a_caller_that_is_pinned_does_not_pin_its_helpers() -> None:
    mine = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(mine)})
    try:
        pool = HelperPool(1, "test")
        (thread,) = (t for t in threading.enumerate() if t.name == "test helper 0")
        assert thread.native_id is not None
        for _ in range(100):
            if os.sched_getaffinity(thread.native_id) == topology.processors():
                break
            time.sleep(0.01)
        assert os.sched_getaffinity(thread.native_id) == topology.processors()
        pool.close()
        assert not thread.is_alive()
    finally:
        os.sched_setaffinity(0, mine)


def test_programs_may_go_as_soon_as_they_have_run() -> None:
    """Helpers that come late find nothing of them."""
    want = np.tanh(FEEDS["x"][: SIZE // 4])
    failures: list[str] = []

    def work() -> None:
        b = xd.GraphBuilder()
        graph = b.build({"y": b.tanh(b.input("x", (SIZE // 4,)))})
        for _ in range(15):
            with xd.compile(graph, "cpu:0", threads=3, measure=False) as session:
                for _ in range(3):
                    got = session.run({"x": FEEDS["x"][: SIZE // 4]})["y"]
                    if not np.allclose(got, want, atol=1e-6):
                        failures.append("a wrong result")

    callers = [threading.Thread(target=work) for _ in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not failures


def test_a_program_runs_without_helpers_once_they_have_ended() -> None:
    device = cpu.open_device("cpu:0", threads=2)
    first = device.pace()
    taker = device._pace
    device.close()
    assert first > 0
    assert taker is not None
    assert taker.take() > 0
