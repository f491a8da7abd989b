"""Outputs that stay on devices: what they take there, and memory that a caller gives up for them.

An input that is *donated* (the term of JAX, whose ``jit`` takes ``donate_argnames``) is its
caller's no more, and an output of as many bytes on the same device is written to its memory: what
goes round in a loop, as the state of a recurrent model does, then takes no new memory. It is safe
where every copy out of the input is over before the output is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from crossdock.devices.base import Device
from crossdock.runtime.device_array import DeviceArray, Ledger
from crossdock.runtime.errors import DeviceError, FeedError
from crossdock.runtime.graph import Graph
from crossdock.runtime.tensor import TensorSpec

DONATED = "it was donated"
FAILED = "it was donated to a run that failed, or was given up"


@dataclass(frozen=True, slots=True)
class Keeping:
    """That a run keeps its outputs on devices: who counts them, and the inputs donated to it."""

    ledger: Ledger
    donated: tuple[DeviceArray, ...] = ()


@dataclass(frozen=True, slots=True)
class Slot:
    """An output that is to stay on a device: what it takes there, found out once for all runs.

    ``planned`` are the bytes of a run on the device, beside which a session's limit has to hold it.
    """

    owner: Device
    spec: TensorSpec
    nbytes: int
    what: str
    planned: int

    @classmethod
    def of(cls, owner: Device, spec: TensorSpec, name: str, planned: int) -> Slot:
        """The slot of the output of this name."""
        return cls(owner, spec, max(1, spec.nbytes), f"output {name!r:.80}", planned)

    def new(self, ledger: Ledger) -> DeviceArray:
        """New memory for the output.

        Raises:
            OutOfMemory: the device has none.
            MemoryBudget: the session may not take it.
        """
        owner, device = self.owner, self.owner.info.id
        if not ledger.bounds(device):
            return DeviceArray(owner, owner.allocate(self.nbytes, self.what), self.spec)
        ledger.take(device, self.nbytes, self.planned, self.what)
        try:
            buffer = owner.allocate(self.nbytes, self.what)
        except BaseException:
            ledger.give(device, self.nbytes)
            raise
        return DeviceArray(owner, buffer, self.spec, counted=ledger)


def donated_of(graph: Graph, feeds: Any, names: Iterable[str]) -> tuple[DeviceArray, ...]:
    """The arrays fed that a caller donates, by the names of their inputs.

    Raises:
        FeedError: a name is no input's, or its array is none of ours.
    """
    if isinstance(names, str):
        raise FeedError(f"donate={names!r:.80}: give a list of the names of inputs")
    found = []
    for name in names:
        array = feeds.get(name) if isinstance(feeds, Mapping) else None
        if name not in graph.inputs:
            raise FeedError(
                f"donate names {name!r:.80}, no input of graph {graph.name!r:.80}; it has "
                f"{', '.join(graph.inputs)}"
            )
        if not isinstance(array, DeviceArray):
            raise FeedError(
                f"input {name!r:.80} is {type(array).__name__} and cannot be donated: only a "
                "DeviceArray, which a run with outputs='device' gives, is its holder's alone"
            )
        found.append(array)
    return tuple(found)


class Donations:
    """The inputs that are donated to one run, and the outputs that get their memory."""

    def __init__(self, donated: Sequence[DeviceArray]) -> None:
        """Claim them.

        Raises:
            FeedError: one is in use by another run, or closed.
        """
        self._arrays: list[DeviceArray] = []
        self._taken: dict[int, DeviceArray] = {}  # the output in an array's memory, by its id
        self._places: dict[int, int] = {}  # where that is written, by the array's id
        self.begun: set[int] = set()
        """Places that the run has begun to write to."""
        try:
            for array in {id(array): array for array in donated}.values():
                array.claim()
                self._arrays.append(array)
        except DeviceError as error:
            self.ended(None)
            raise FeedError(f"an input cannot be donated: {error}") from error

    def output(
        self, slot: Slot, place: int, after: Callable[[DeviceArray], bool]
    ) -> DeviceArray | None:
        """An output in the memory of an input; None where none will do.

        ``place`` is where it is written, and ``after`` says whether that is after all that reads an
        array.
        """
        for array in self._arrays:
            fits = array.owner is slot.owner and array.memory().nbytes == slot.nbytes
            if fits and id(array) not in self._taken and not array.lent and after(array):
                made = DeviceArray(slot.owner, array.memory(), slot.spec)
                self._taken[id(array)], self._places[id(array)] = made, place
                return made
        return None

    def reuse(self, made: DeviceArray) -> bool:
        """Whether an output has the memory of an input."""
        return any(made is taken for taken in self._taken.values())

    def done(self) -> None:
        """The run has ended well: what was donated is its outputs', or free."""
        for array in self._arrays:
            made = self._taken.get(id(array))
            if made is None:
                array.close()
                array.forgo(DONATED)
            else:
                array.hand_on(made, DONATED)
        self._arrays.clear()
        self._taken.clear()

    def ended(self, error: BaseException | None, *, still_on: bool = False) -> None:
        """The run has failed: what it may have written to, or is ``still_on``, is gone.

        A run that is still on has its outputs until its last thread lets go of them.
        """
        for made in self._taken.values() if not still_on else ():
            made.forgo(FAILED)
        for array in self._arrays:
            spoilt = self._places.get(id(array)) in self.begun
            if error is not None and (still_on or spoilt):
                array.forgo(FAILED)
            array.unclaim()
        self._arrays.clear()
        self._taken.clear()


def hosted(host: Device, outputs: Mapping[str, Any], ledger: Ledger) -> dict[str, Any]:
    """Outputs that a run has made on the host, as arrays that stay there.

    What is no array of numbers stays as it is.

    Raises:
        OutOfMemory: the host has no room for them.
        MemoryBudget: the session may not take it.
    """
    return {name: _hosted(host, name, value, ledger) for name, value in outputs.items()}


def _hosted(host: Device, name: str, value: Any, ledger: Ledger) -> Any:
    if not isinstance(value, np.ndarray) or value.dtype.kind in "OSUT":
        return value
    made = Slot.of(host, TensorSpec.of(value), name, 0).new(ledger)
    np.copyto(made.view(), value)
    return made
