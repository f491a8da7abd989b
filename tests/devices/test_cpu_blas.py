"""The BLAS library's threads: one while anybody is inside, given back by the last to leave."""

from __future__ import annotations

import random
import threading
import time

import pytest

from crossdock.devices import cpu_blas
from crossdock.devices.cpu_blas import Blas

THREADS = 7


class Library:
    """Only the count of threads; to set it takes a while, as seen by who does it."""

    def __init__(self) -> None:
        self.count = THREADS
        self.blas = Blas(0, 0, 0, 0, True, lambda: self.count, self.put)

    def put(self, count: int) -> None:
        time.sleep(random.random() * 1e-4)
        self.count = count
        time.sleep(random.random() * 1e-4)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    monkeypatch.setattr(cpu_blas, "_INSIDE", [])
    monkeypatch.setattr(cpu_blas, "_TAKEN", [])
    return Library()


def test_one_thread_while_anybody_is_inside(library: Library) -> None:
    library.blas.enter()
    library.blas.enter()
    assert library.count == 1
    library.blas.leave()
    assert library.count == 1
    library.blas.leave()
    assert library.count == THREADS


def test_a_count_that_was_set_to_one_meanwhile_stays(library: Library) -> None:
    library.blas.enter()
    library.blas.leave()
    library.count = 1
    library.blas.enter()
    library.blas.leave()
    assert library.count == 1


def test_callers_at_once_leave_it_as_it_was(library: Library) -> None:
    def visits() -> None:
        for _ in range(100):
            library.blas.enter()
            time.sleep(random.random() * 1e-4)
            library.blas.leave()

    for _ in range(3):
        callers = [threading.Thread(target=visits) for _ in range(8)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        assert library.count == THREADS


def test_who_stays_has_one_thread_whoever_comes_and_goes(library: Library) -> None:
    library.blas.enter()
    seen = set()

    def visits() -> None:
        for _ in range(200):
            library.blas.enter()
            seen.add(library.count)
            library.blas.leave()

    callers = [threading.Thread(target=visits) for _ in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert seen == {1}
    library.blas.leave()
    assert library.count == THREADS
