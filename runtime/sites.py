"""Sites: on which device the inputs of runs lie, and which outputs stay on the one that makes them.

A plan is made for them: what lies on a device is copied from there to where it is read, and what
stays is not copied to the host. A run may be fed otherwise, and asked for its outputs elsewhere,
all the same; it then takes other copies than planned.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from crossdock.devices.registry import HOST
from crossdock.runtime.device_array import DeviceArray
from crossdock.runtime.errors import PlanError
from crossdock.runtime.graph import Graph


@dataclass(frozen=True)
class Sites:
    """The device of each input that is not on the host, by name, and the outputs that stay.

    ``in_place``: they may be used where they lie, which runs that are looked at do not.
    """

    feeds: Mapping[str, str] = field(default_factory=dict)
    stays: tuple[str, ...] = ()
    in_place: bool = field(default=True, compare=False)

    @property
    def plain(self) -> bool:
        """Whether every input comes from the host, and every output goes there."""
        return not self.feeds and not self.stays

    @property
    def devices(self) -> frozenset[str]:
        """The devices on which inputs lie."""
        return frozenset(self.feeds.values())

    def within(self, devices: Collection[str]) -> Sites:
        """With the inputs of other devices on the host."""
        feeds = {name: device for name, device in self.feeds.items() if device in devices}
        return replace(self, feeds=feeds)

    def __str__(self) -> str:
        feeds = ", ".join(f"{name!r:.80} on {device}" for name, device in self.feeds.items())
        inputs = f"inputs {feeds}" if feeds else "inputs on the host"
        return f"{inputs}, outputs {'that stay' if self.stays else 'to the host'}"


ON_HOST = Sites(MappingProxyType({}))
"""Every input comes from the host, and every output goes there."""


def sites_of(graph: Graph, feeds_on: str | Mapping[str, str] | None, outputs: str) -> Sites:
    """What ``compile`` is told of where inputs lie and outputs are to be.

    Raises:
        PlanError: there is no such input, or the graph runs in stages, which take their inputs on
            the host; or ``outputs`` is another word.
    """
    if outputs not in ("host", "device"):
        raise PlanError(f"outputs is 'host' or 'device'; it is {outputs!r:.80}")
    told: Any = {} if feeds_on is None else feeds_on
    if isinstance(told, str):
        told = dict.fromkeys(graph.fed, told)
    if not isinstance(told, Mapping) or not all(isinstance(d, str) for d in told.values()):
        raise PlanError(
            f"feeds_on={feeds_on!r:.80}: give the id of the device that all inputs lie on, or one "
            "for each by the input's name"
        )
    unknown = [repr(name) for name in told if name not in graph.fed]
    if unknown:
        raise PlanError(
            f"feeds_on names {', '.join(unknown)}, no input of graph {graph.name!r:.80}; it has "
            f"{', '.join(graph.fed)}"
        )
    feeds = {name: told[name] for name in graph.fed if told.get(name, HOST) != HOST}
    if graph.staged is not None:
        if feeds:
            raise PlanError(
                f"graph {graph.name!r:.80} runs in stages that hang on the values fed, which they "
                "take on the host; compile without feeds_on"
            )
        return ON_HOST
    return Sites(feeds, tuple(graph.outputs) if outputs == "device" else ())


def sites_now(graph: Graph, feeds: Mapping[str, Any], *, keep: bool) -> Sites:
    """Where a run's inputs lie and its outputs are to be."""
    placed = {n: a.device for n, a in feeds.items() if isinstance(a, DeviceArray)}
    return Sites(placed, tuple(graph.outputs) if keep else ())
