"""Graphs known from the outside, whose inside is loaded when it is first looked at."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Self

from crossdock.runtime.graph import Graph, Rebuild
from crossdock.runtime.tensor import TensorSpec

_INSIDE = frozenset({"nodes", "specs", "constants"})
_LOCK = threading.RLock()


class LazyGraph(Graph):
    """A graph with inputs and outputs at hand; what else it has comes with its first use.

    What raises while that is loaded is raised where it is used. Safe for threads.
    """

    _whole: Callable[[], Graph]
    _outputs: dict[str, TensorSpec]

    @property
    def output_specs(self) -> dict[str, TensorSpec]:
        """Spec of each output by output name."""
        found = self.__dict__.get("_outputs")
        return super().output_specs if found is None else dict(found)

    def __getattr__(self, name: str) -> object:
        """What is not there yet; called for that alone."""
        if name not in _INSIDE or "_whole" not in self.__dict__:
            raise AttributeError(f"a graph has no {name!r}")
        with _LOCK:
            if name not in self.__dict__:
                self.filled(self._whole())
            return self.__dict__[name]

    def filled(self, whole: Graph) -> Self:
        """Take over the inside of the graph that this one is, and return self."""
        for part in _INSIDE:
            self.__dict__.setdefault(part, getattr(whole, part))
        return self

    def forget(self) -> None:
        """Let go of what can be loaded again; the caller knows that nobody is looking at it."""
        with _LOCK:
            for part in _INSIDE:
                self.__dict__.pop(part, None)


def lazy(
    name: str,
    inputs: Mapping[str, TensorSpec],
    outputs: Mapping[str, str],
    output_specs: Mapping[str, TensorSpec],
    whole: Callable[[], Graph],
    *,
    specs: Mapping[str, TensorSpec] | None = None,
    passes: tuple[str, ...] = (),
    rebuild: Rebuild | None = None,
) -> LazyGraph:
    """A graph that ``whole`` loads; ``specs`` are those of all its values, where they are known."""
    made = object.__new__(LazyGraph)
    made.__dict__.update(
        name=name,
        inputs=dict(inputs),
        outputs=dict(outputs),
        passes=passes,
        rebuild=rebuild,
        staged=None,
        _outputs=dict(output_specs),
        _whole=whole,
    )
    if specs is not None:
        made.__dict__["specs"] = specs
    return made
