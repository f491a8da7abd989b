"""The bounded cache: what it drops, and that each value is made once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from crossdock.runtime.lru import LruCache


def test_the_least_recently_used_goes_first() -> None:
    cache: LruCache[str, int] = LruCache(2)
    cache.put("a", 1)
    cache.put("b", 2)
    assert cache.get("a") == 1
    cache.put("c", 3)
    assert cache.get("b") is None
    assert cache.values() == [1, 3]
    assert len(cache) == 2


def test_a_value_replaced_counts_as_used() -> None:
    cache: LruCache[str, int] = LruCache(2)
    for key, value in (("a", 1), ("b", 2), ("a", 3), ("c", 4)):
        cache.put(key, value)
    assert cache.values() == [3, 4]


def test_clear_forgets_all() -> None:
    cache: LruCache[str, int] = LruCache(2)
    cache.put("a", 1)
    cache.clear()
    assert len(cache) == 0
    assert cache.get("a") is None


def test_a_value_is_made_once_while_others_are_found() -> None:
    cache: LruCache[str, int] = LruCache(4)
    cache.put("there", 0)
    begun, go = threading.Event(), threading.Event()
    made: list[int] = []

    def make() -> int:
        begun.set()
        assert go.wait(20)
        made.append(len(made) + 1)
        return made[-1]

    with ThreadPoolExecutor(4) as pool:
        results = [pool.submit(cache.get_or_make, "new", make) for _ in range(4)]
        try:
            assert begun.wait(20)
            assert cache.get_or_make("there", make) == 0
        finally:
            go.set()
        assert [result.result() for result in results] == [1] * 4
    assert made == [1]


def test_a_failed_make_keeps_nothing_and_is_tried_again() -> None:
    cache: LruCache[str, int] = LruCache(4)

    def fail() -> int:
        raise ValueError("not now")

    with pytest.raises(ValueError, match="not now"):
        cache.get_or_make("a", fail)
    assert len(cache) == 0
    assert cache.get_or_make("a", lambda: 5) == 5


def test_the_lock_given_is_held_while_a_value_is_made() -> None:
    making = threading.RLock()
    cache: LruCache[str, int] = LruCache(4, making)

    def inner() -> int:
        with ThreadPoolExecutor(1) as pool:
            return int(pool.submit(making.acquire, blocking=False).result())

    # Made while another one is made: the lock given may be one that a thread takes twice.
    assert cache.get_or_make("outer", lambda: cache.get_or_make("inner", inner)) == 0
