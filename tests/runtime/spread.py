"""A graph and its inputs spread over the host and devices whose work is done as late as may be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

import crossdock as xd
from crossdock.runtime.graph import Graph
from tests.runtime.conftest import Machine
from tests.runtime.lazy_device import World
from tests.runtime.test_exchange import on

COPYING = ("a", "b")
"""The devices that copy from each other without the host."""


class Spread:
    """Places for the ops of a drawn graph, and for its inputs, which move from turn to turn."""

    def __init__(self, machine: Machine, made: tuple[Graph, dict[str, int]], seed: int) -> None:
        self.graph, where = made
        self._seed, world = seed, World(seed)
        self._ids = ["cpu:0", *(machine.lazy(name, world, peers=COPYING) for name in "abc")]
        self._homes = [machine.device(name) for name in self._ids]
        self._pins = {name: self._ids[at] for name, at in where.items()}

    def session(self, outputs: str) -> Any:
        """Compiled for inputs on a device each."""
        told = {n: self._ids[(self._seed + i) % 4] for i, n in enumerate(self.graph.inputs)}
        rules = xd.Constraints(pin=self._pins)
        return xd.compile(
            self.graph, self._ids, constraints=rules, measure=False, feeds_on=told, outputs=outputs
        )

    def placed(self, feeds: Mapping[str, Any], turn: int) -> dict[str, Any]:
        """The feeds of a turn: where it was compiled for in the first, a device further in each."""
        return {
            name: on(self._homes[(self._seed + i + turn) % 4], np.asarray(array))
            for i, (name, array) in enumerate(feeds.items())
        }
