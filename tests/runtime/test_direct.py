"""The short way of a run: the same answers and errors as the long one, and nothing lost."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import crossdock as xd
from crossdock.runtime.direct import Direct
from crossdock.runtime.errors import ExecutionError, FeedError, PlanError
from crossdock.runtime.session import Session

pytestmark = pytest.mark.usefixtures("no_hang")


def doubled(shape: tuple[int | str, ...] = (4,)) -> Any:
    b = xd.GraphBuilder()
    x = b.input("x", shape)
    return b.build({"y": b.add(x, x)})


def compiled(graph: Any, **options: Any) -> Session:
    return xd.compile(graph, "cpu:0", threads=1, measure=False, **options)


def direct_of(session: Session) -> Direct:
    found = session.ready().direct
    assert found is not None
    return found


def test_an_ordinary_run_takes_it() -> None:
    with compiled(doubled()) as session:
        feeds = {"x": np.arange(4, dtype=np.float32)}
        assert direct_of(session).run(feeds) is None  # there is no instance yet
        first = session.run(feeds)["y"]
        done = direct_of(session).run(feeds)
        assert done is not None
        np.testing.assert_array_equal(done[0]["y"], [0, 2, 4, 6])
        assert done[1] > 0
        second = session.run({"x": np.ones(4, np.float32)})["y"]
        np.testing.assert_array_equal(first, [0, 2, 4, 6])  # outputs are the caller's own
        np.testing.assert_array_equal(second, [2, 2, 2, 2])
        assert session.receipt.measured > 0
        assert len(session.ready().pool.free) == 1


@pytest.mark.parametrize(
    "feeds",
    [
        {},
        {"z": np.zeros(4, np.float32)},
        {"x": np.zeros(5, np.float32)},
        {"x": np.zeros((4, 1), np.float32)},
        {"x": np.zeros(4, np.float64)},
        {"x": np.zeros(4, np.float32), "z": np.zeros(4, np.float32)},
    ],
)
def test_feeds_that_do_not_fit_are_refused_as_before(feeds: dict[str, Any]) -> None:
    with compiled(doubled()) as session:
        session.run({"x": np.zeros(4, np.float32)})
        with pytest.raises(FeedError):
            session.run(feeds)
        assert len(session.ready().pool.free) == 1


@pytest.mark.parametrize(
    "value",
    [
        [np.float32(1), np.float32(2), np.float32(3), np.float32(4)],
        np.array([1, 2, 3, 4], ">f4"),
        np.ma.masked_array(np.array([1, 2, 3, 4], np.float32)),
        np.array([1, 0, 2, 0, 3, 0, 4, 0], np.float32)[::2],
    ],
)
def test_feeds_of_any_kind_are_taken(value: Any) -> None:
    with compiled(doubled()) as session:
        session.run({"x": np.zeros(4, np.float32)})
        np.testing.assert_array_equal(session.run({"x": value})["y"], [2, 4, 6, 8])


def test_other_shapes_are_run_with_their_own_plan() -> None:
    with compiled(doubled(("n",))) as session:
        for n in (3, 5, 3, 3, 5):
            out = session.run({"x": np.ones(n, np.float32)})["y"]
            np.testing.assert_array_equal(out, np.full(n, 2, np.float32))
            assert session.ready().graph.inputs["x"].dims == (n,)


def test_a_closed_session_and_a_deadline_are_minded() -> None:
    session = compiled(doubled())
    feeds = {"x": np.zeros(4, np.float32)}
    session.run(feeds)
    np.testing.assert_array_equal(session.run(feeds, timeout=60)["y"], np.zeros(4, np.float32))
    session.close()
    with pytest.raises(PlanError, match="closed"):
        session.run(feeds)


@pytest.mark.parametrize(
    ("raised", "expected", "said"),
    [
        (ValueError("broken step"), ExecutionError, "broken step"),
    ],
)
def test_a_step_that_fails_is_told_of_and_gives_its_instance_back(
    raised: Exception, expected: type[Exception], said: str
) -> None:
    with compiled(doubled()) as session:
        feeds = {"x": np.zeros(4, np.float32)}
        session.run(feeds)
        (instance,) = session.ready().pool.free

        def fail() -> None:
            raise raised

        instance.calls = instance.brief = (fail,)
        with pytest.raises(expected, match=said):
            session.run(feeds)
        assert list(session.ready().pool.free) == [instance]


def test_a_run_that_found_no_memory_is_done_again() -> None:
    with compiled(doubled()) as session:
        feeds = {"x": np.ones(4, np.float32)}
        session.run(feeds)
        (instance,) = session.ready().pool.free

        def fail() -> None:
            raise MemoryError

        instance.calls = instance.brief = (fail,)
        np.testing.assert_array_equal(session.run(feeds)["y"], [2, 2, 2, 2])
        assert any("too little memory" in note for note in session.receipt.notes)
        np.testing.assert_array_equal(session.run(feeds)["y"], [2, 2, 2, 2])
        assert not any("too little memory" in note for note in session.receipt.notes)


def test_many_callers_share_few_instances_and_get_their_own_answers() -> None:
    with compiled(doubled((64,)), runs_at_once=3) as session:
        start = threading.Barrier(16)

        def call(k: int) -> None:
            start.wait()
            for i in range(50):
                out = session.run({"x": np.full(64, k * 100 + i, np.float32)})["y"]
                np.testing.assert_array_equal(out, np.full(64, 2 * (k * 100 + i), np.float32))

        with ThreadPoolExecutor(16) as threads:
            list(threads.map(call, range(16)))
        pool = session.ready().pool
        assert len({id(i) for i in pool.free}) == len(pool.free) == pool._made <= 3


def test_what_takes_microseconds_keeps_the_interpreter_lock() -> None:
    """And so callers of it do not wait to get it back at every run."""
    ran: list[str] = []
    for _ in range(5):  # on a busy machine a session may have planned anew meanwhile
        ran.clear()
        with compiled(doubled()) as session:
            feeds = {"x": np.ones(4, np.float32)}
            session.run(feeds)
            (instance,) = session.ready().pool.free
            assert len(instance.brief) == len(instance.calls) == 1
            instance.calls = (lambda: ran.append("free"), *instance.calls)
            instance.brief = (lambda: ran.append("kept"), *instance.brief)
            for _ in range(100):
                np.testing.assert_array_equal(session.run(feeds)["y"], [2, 2, 2, 2])
        assert ran[0] == "free", "how long it takes is seen at its first run"
        if ran[-1] == "kept":
            break
    assert ran[-1] == "kept"


def test_what_takes_longer_lets_other_threads_run() -> None:
    b = xd.GraphBuilder()
    x = b.input("x", (1 << 20,))
    with compiled(b.build({"y": b.tanh(x)})) as session:
        feeds = {"x": np.ones(1 << 20, np.float32)}
        for _ in range(5):
            session.run(feeds)
        (instance,) = session.ready().pool.free
        ran = []
        instance.brief = (lambda: ran.append("kept"),)
        session.run(feeds)
        assert not ran


def test_shared_work_is_not_brief() -> None:
    b = xd.GraphBuilder()
    x = b.input("x", (1 << 20,))
    with xd.compile(b.build({"y": b.tanh(x)}), "cpu:0", threads=2, measure=False) as session:
        session.run({"x": np.ones(1 << 20, np.float32)})
        (instance,) = session.ready().pool.free
        assert instance.calls
        assert not instance.brief
