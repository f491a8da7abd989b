"""A cache of what takes long to make: bounded, thread-safe, each value made once."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class LruCache(Generic[K, V]):
    """The values used last, at most ``limit`` of them. Thread-safe.

    ``making`` is held while ``get_or_make`` makes a value; by default a lock of its own. Values
    that are there are found meanwhile.
    """

    def __init__(self, limit: int, making: AbstractContextManager[object] | None = None) -> None:
        self.limit = limit
        self._making = threading.Lock() if making is None else making
        self._lock = threading.Lock()
        self._values: OrderedDict[K, V] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: K) -> V | None:
        """The value of a key, which counts as a use; None where there is none."""
        with self._lock:
            if key not in self._values:
                return None
            self._values.move_to_end(key)
            return self._values[key]

    def put(self, key: K, value: V) -> None:
        """Keep a value as the one used last, and drop those over the limit."""
        with self._lock:
            self._values[key] = value
            self._values.move_to_end(key)
            while len(self._values) > self.limit:
                self._values.popitem(last=False)

    def get_or_make(self, key: K, make: Callable[[], V]) -> V:
        """The value of a key, made at need: once, whoever asks meanwhile waits for it.

        What ``make`` raises is raised, and nothing is kept. Values are never None.
        """
        found = self.get(key)
        if found is None:
            with self._making:
                found = self.get(key)
                if found is None:
                    found = make()
                    self.put(key, found)
        return found

    def swap(self, old: V, new: V) -> None:
        """Put a value in another's place, where that is still there."""
        with self._lock:
            for key, value in self._values.items():
                if value is old:
                    self._values[key] = new

    def values(self) -> list[V]:
        """The values there are now, the one used last at the end."""
        with self._lock:
            return list(self._values.values())

    def clear(self) -> None:
        """Forget all values."""
        with self._lock:
            self._values.clear()
