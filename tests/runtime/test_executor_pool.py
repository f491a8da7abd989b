"""The pool of instances and the threads of ``submit``: limits, failures, deadlines, no leaks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import pytest

from crossdock.runtime.background import Background
from crossdock.runtime.errors import OutOfMemory, Timeout
from crossdock.runtime.pool import Deadline, Pool
from crossdock.runtime.program import Instance

pytestmark = pytest.mark.usefixtures("no_hang")


def blank() -> Instance:
    return Instance({}, {}, {}, {}, {})


def wait_until(true: Callable[[], bool]) -> None:
    """Wait for other threads, ten seconds at most."""
    end = time.monotonic() + 10
    while not true():
        assert time.monotonic() < end
        time.sleep(0.001)


def waiters(pool: Pool) -> int:
    """How many threads wait for the pool to change."""
    return len(cast(Any, pool._change)._waiters)


def test_no_more_instances_than_the_limit_and_none_shared() -> None:
    made: list[Instance] = []

    def make() -> Instance:
        made.append(blank())
        return made[-1]

    pool = Pool(make, 3)
    out: set[int] = set()
    lock = threading.Lock()

    def use(_: int) -> int:
        instance = pool.take(Deadline(30))
        with lock:
            assert id(instance) not in out
            out.add(id(instance))
            most = len(out)
        time.sleep(0.0005)
        with lock:
            out.remove(id(instance))
        pool.give(instance)
        return most

    with ThreadPoolExecutor(16) as threads:
        most = max(threads.map(use, range(400)))
    assert most <= 3
    assert 1 <= len(made) <= 3


def test_an_instance_is_made_again_after_a_failure() -> None:
    tries = iter([OutOfMemory("first"), ValueError("second"), None])

    def make() -> Instance:
        error = next(tries)
        if error is not None:
            raise error
        return blank()

    pool = Pool(make, 1)
    with pytest.raises(OutOfMemory, match="first"):
        pool.take(Deadline(5))
    with pytest.raises(ValueError, match="second"):
        pool.take(Deadline(5))
    assert pool.take(Deadline(5)) is not None


def test_all_waiters_get_the_error_when_there_is_no_room_for_one_instance() -> None:
    started = threading.Event()

    def make() -> Instance:
        started.wait(5)
        raise OutOfMemory("no room")

    pool = Pool(make, 2)

    def use() -> str:
        with pytest.raises(OutOfMemory) as caught:
            pool.take(Deadline(30))
        return str(caught.value)

    with ThreadPoolExecutor(16) as threads:
        said = [threads.submit(use) for _ in range(16)]
        wait_until(lambda: waiters(pool) == 14)  # two are making one
        started.set()
        assert {s.result(20) for s in said} == {"no room"}
    assert pool._made == 0


def test_a_full_device_makes_runs_wait_for_the_one_that_fits() -> None:
    room = threading.Semaphore(1)

    def make() -> Instance:
        if not room.acquire(blocking=False):
            raise OutOfMemory("full")
        return blank()

    pool = Pool(make, 8)

    def use(_: int) -> None:
        instance = pool.take(Deadline(30))
        time.sleep(0.0005)
        pool.give(instance)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(use, range(100)))
    assert pool._made == 1


def test_a_waiter_makes_its_own_when_the_only_other_one_failed() -> None:
    """Two are made at once: one finds no room because of the other, which then fails too."""
    turn, second = threading.Barrier(2), threading.Event()
    calls = iter(range(3))

    def make() -> Instance:
        number = next(calls)
        if number == 2:
            return blank()
        turn.wait(10)
        if number == 1:
            second.wait(10)
        raise OutOfMemory(f"number {number}")

    pool = Pool(make, 2)
    with ThreadPoolExecutor(2) as threads:
        futures = [threads.submit(pool.take, Deadline(20)) for _ in range(2)]
        wait_until(lambda: waiters(pool) == 1)  # the first one waits for the second
        second.set()
        errors = [f.exception(20) for f in futures]
    assert sorted(str(e) for e in errors) == ["None", "number 1"]


def test_the_deadline_holds_although_others_are_quicker() -> None:
    pool = Pool(blank, 1)
    held = pool.take(Deadline())
    stop = threading.Event()

    def stir() -> None:
        while not stop.is_set():
            with pool._change:
                pool._change.notify_all()
            time.sleep(0.002)

    thread = threading.Thread(target=stir)
    thread.start()
    try:
        begin = time.monotonic()
        with pytest.raises(Timeout, match=r"no free slot for a run after 0\.1 s"):
            pool.take(Deadline(0.1))
        assert 0.09 < time.monotonic() - begin < 5
    finally:
        stop.set()
        thread.join()
    pool.give(held)
    assert pool.take(Deadline(0)) is held


def test_a_deadline_counts_down_to_nothing() -> None:
    assert Deadline().left() is None
    assert Deadline(-1).left() == 0
    left = Deadline(10).left()
    assert left is not None
    assert 9 < left <= 10


def test_jobs_run_on_few_threads_and_one_that_blocks_holds_up_no_other() -> None:
    background = Background(2, "crossdock test jobs")
    blocked, done = threading.Event(), []

    def block() -> None:
        blocked.wait(20)

    background.post(block)
    for i in range(50):
        background.post(lambda i=i: done.append(i))  # type: ignore[misc]
    wait_until(lambda: len(done) == 50)
    assert done == list(range(50))
    blocked.set()


def test_a_job_that_raises_is_reported_and_its_thread_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[str] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: told.append(str(args.exc_value)))
    background, done = Background(1, "crossdock test jobs"), threading.Event()

    def fail() -> None:
        raise ValueError("a bug")

    background.post(fail)
    background.post(done.set)
    assert done.wait(10)
    assert told == ["a bug"]


def test_idle_threads_end_and_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Background, "IDLE_SECONDS", 0.01)
    background = Background(3, "crossdock test jobs")
    for _ in range(2):
        done = threading.Event()
        background.post(done.set)
        assert done.wait(10)
        wait_until(lambda: background._threads == 0)
