"""Simulated devices that fail by plan, for tests of what becomes of the runs on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import crossdock as xd
from crossdock.devices import faults, registry, sim
from crossdock.devices.base import Device
from crossdock.devices.faults import Fault, FaultDevice
from crossdock.devices.sim import SimDevice, SimSpec
from crossdock.kernels.reference import evaluate
from crossdock.runtime import refused
from crossdock.runtime.graph import Graph
from crossdock.runtime.session import Session

Array = np.ndarray[Any, np.dtype[Any]]
A, B, C = "sim:a", "sim:b", "sim:c"


class FaultyMachine:
    """Devices ``sim:NAME`` with fault plans, opened anew by every test, closed after it."""

    def __init__(self) -> None:
        self.devices: list[FaultDevice] = []
        self.peers: tuple[str, ...] = ()  # names of devices that copy from each other directly

    def add(
        self, name: str, *plan: Fault, seed: int = 0, inner: Device | None = None
    ) -> FaultDevice:
        """A device that fails by ``plan``; its own memory and clock unless ``inner`` is given."""
        registry._OPEN.pop((f"sim:{name}", None, None), None)
        inner = inner or SimDevice(SimSpec(name, peers=self.peers))
        made = faults.register(name, inner, plan, seed)
        self.devices.append(made)
        return made

    def all(self, names: str, faulty: str, *plan: Fault) -> dict[str, FaultDevice]:
        """Devices of these names, one letter each; ``faulty`` is the one that fails."""
        return {f"sim:{n}": self.add(n, *(plan if f"sim:{n}" == faulty else ())) for n in names}

    def end(self) -> None:
        """Let everything go, and forget what was lost."""
        registry.rescan()
        refused.forget()
        for device in self.devices:
            device.release()
            registry._OPEN.pop((device.info.id, None, None), None)
            sim.unregister(device.info.id.partition(":")[2])


def compiled(graph: Graph, places: Mapping[str, str], **options: Any) -> Session:
    """A session with every op where ``places`` says."""
    rules = xd.Constraints(pin=dict(places))
    ids = ["cpu:0", *dict.fromkeys(d for d in places.values() if d != "cpu:0")]
    return xd.compile(
        graph, options.pop("devices", ids), constraints=rules, measure=False, **options
    )


def same_bits(got: Mapping[str, Array], want: Mapping[str, Array]) -> None:
    """Hold outputs against others, bit for bit."""
    assert list(got) == list(want)
    for name, array in want.items():
        assert got[name].dtype == array.dtype
        assert got[name].tobytes() == array.tobytes(), name


def right(graph: Graph, feeds: Mapping[str, Array], got: Mapping[str, Array]) -> None:
    """Hold outputs of a graph of whole numbers against the reference, bit for bit."""
    same_bits(got, {k: np.ascontiguousarray(v) for k, v in evaluate(graph, feeds).items()})


def untouched(devices: Sequence[FaultDevice]) -> None:
    """No device was called after it had failed for good."""
    assert {d.info.id: d.after for d in devices if d.after} == {}
