"""Runs of a program that stays on the host, in the calling thread, as cheap as Python allows.

Everything that a run looks up is looked up before the first; no lock is taken unless the host is
busy. A run that is out of the ordinary (feeds to be converted or refused, no free instance) is left
to the long way.

Machine code runs without the interpreter lock, so that callers run side by side. To take the lock
back costs some microseconds once others want it, too: a program that takes no longer than that is
run with the lock kept, and its callers then go on one after the other at full speed. Others take
turns on the host.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from numpy import ndarray

from crossdock.devices.worker import JOBS, no_more
from crossdock.runtime.device_array import DeviceArray
from crossdock.runtime.errors import Error, OutOfMemory
from crossdock.runtime.executor import failed
from crossdock.runtime.graph import Graph
from crossdock.runtime.keeping import Donations, Keeping, Slot
from crossdock.runtime.losses import blame
from crossdock.runtime.plan import HOST
from crossdock.runtime.pool import Deadline, Pool
from crossdock.runtime.program import Instance, Program
from crossdock.runtime.tensor import Array
from crossdock.runtime.turns import Flow, Share, Turn

BRIEF = 2e-5
"""Seconds of a run, with feeding it, up to which the interpreter lock is kept."""


class Direct:
    """Runs a program that ``suits``; safe for threads."""

    def __init__(self, program: Program, pool: Pool, shares: tuple[Share, ...], flow: Flow) -> None:
        self._program, self._pool, self._free = program, pool, pool.free
        self._shares, self._flow = shares, flow
        self._inputs, self._slots = len(program.graph.inputs), program.slots
        self._brief = False

    @staticmethod
    def suits(graph: Graph, program: Program) -> bool:
        """Whether a program keeps to the host, and is fed and read as its caller's graph is."""
        windows = program.windows
        same = dict(graph.inputs) == dict(program.graph.inputs)
        return program.host_only and same and not (windows.inputs or windows.outputs)

    def run(
        self, feeds: Mapping[str, Any], keeping: Keeping | None = None
    ) -> tuple[dict[str, Any], float] | None:
        """The outputs and the seconds from feeding to outputs; None where it takes the long way.

        With ``keeping`` the outputs are arrays that stay.

        Raises:
            ExecutionError: a step failed.
            FeedError: an input cannot be donated, since another run has it.
            MemoryBudget: the session may not take what is to stay.
            Cancelled: the process is ending.
        """
        if feeds.__class__ is not dict or len(feeds) != self._inputs:
            return None
        try:
            instance = self._free.pop()
        except IndexError:
            return None
        kept: _Kept | None = None
        turn: Turn | None = None
        try:
            began = perf_counter()
            if not _fed(instance, feeds) or (
                keeping is not None and (kept := self._room(keeping)) is None
            ):
                return None
            if JOBS.ending or not self._brief:
                turn = Turn(self._shares, self._flow)
                self._take(turn)
            for call in (self._brief and instance.brief) or instance.calls:
                call()
            made = instance.outputs
            outputs = _copies(made) if kept is None else kept.filled(made)
            seconds = perf_counter() - began
            self._brief |= seconds < BRIEF  # what took so little once is no longer than that
            return outputs, seconds
        except Error as error:
            blame(error, self._program.devices[HOST])
            raise
        except Exception as error:
            raise failed(self._program, error) from error
        finally:
            if kept is not None:
                kept.over()
            self._free.append(instance)
            if turn is not None or self._pool.waiting:
                self._tell(turn)

    def _room(self, keeping: Keeping) -> _Kept | None:
        """What outputs that stay go to; None where the long way has to make room for them."""
        try:
            return _Kept(self._slots, keeping)
        except OutOfMemory:
            return None

    def _take(self, turn: Turn) -> None:
        """Wait for a turn; raises Cancelled where the process is ending."""
        if JOBS.ending or not (turn.grab() or turn.take(Deadline().wait)):
            raise no_more(f"run of {self._program.graph.name!r:.80}")

    def _tell(self, turn: Turn | None) -> None:
        """Let others go on, who wait for the turn or for an instance."""
        if turn is not None:
            turn.end()
        if self._pool.waiting:
            self._pool.tell()


def _fed(instance: Instance, feeds: Mapping[str, Any]) -> bool:
    """Copy the inputs in, if all are there as arrays that need no conversion."""
    for name, dims, dtype, target in instance.wanted:
        array = feeds.get(name)
        if array.__class__ is not ndarray:
            array = array.here() if array.__class__ is DeviceArray else None
            if array is None:
                return False
        if array.shape != dims or array.dtype != dtype:
            return False
        target[...] = array
    return True


def _copies(made: Mapping[str, Array]) -> dict[str, Any]:
    return {name: array.copy() for name, array in made.items()}


class _Kept:
    """Memory for the outputs of a run that are to stay, in part of inputs donated for them."""

    def __init__(self, slots: Mapping[str, Slot], keeping: Keeping) -> None:
        """Take it; raises OutOfMemory, MemoryBudget, or FeedError for what cannot be donated."""
        self._donations = Donations(keeping.donated) if keeping.donated else None
        try:
            self._arrays = {name: self._new(slot, keeping) for name, slot in slots.items()}
        except BaseException:
            self.over()
            raise

    def _new(self, slot: Slot, keeping: Keeping) -> DeviceArray:
        donations = self._donations
        made = None if donations is None else donations.output(slot, 0, lambda _: True)
        return made or slot.new(keeping.ledger)

    def filled(self, made: Mapping[str, Array]) -> dict[str, Any]:
        """The outputs, with what was made."""
        for name, array in self._arrays.items():
            array.view()[...] = made[name]
        if self._donations is not None:
            self._donations.done()
        return self._arrays

    def over(self) -> None:
        """Let go of what was donated."""
        if self._donations is not None:
            self._donations.ended(None)


@dataclass(frozen=True)
class DirectStage:
    """A stage, what it is fed, and values that decide which stage comes next."""

    direct: Direct | None
    feeds: tuple[str, ...]
    demands: Mapping[str, Array]


class StagedDirect:
    """The stages that a run went through, for runs that are led the same way; safe for threads."""

    def __init__(self, stages: Sequence[DirectStage], outputs: tuple[str, ...]) -> None:
        self._stages, self._outputs = tuple(stages), outputs

    def run(
        self, feeds: Mapping[str, Any], keeping: Keeping | None = None
    ) -> tuple[dict[str, Any], float] | None:
        """The outputs and the seconds that all took; None where the run is led elsewhere.

        Outputs that are to stay take the long way.

        Raises:
            ExecutionError: a step failed.
            Cancelled: the process is ending.
        """
        if keeping is not None:
            return None
        began = perf_counter()
        values = dict(feeds)
        for stage in self._stages:
            if stage.direct is not None:
                try:
                    given = {name: values[name] for name in stage.feeds}
                except KeyError:
                    return None
                done = stage.direct.run(given)
                if done is None:
                    return None
                values.update(done[0])
            for name, wanted in stage.demands.items():
                if not _same(values.get(name), wanted):
                    return None
        return {name: values[name] for name in self._outputs}, perf_counter() - began


def _same(value: object, wanted: Array) -> bool:
    """Whether a value is an array of these very bytes."""
    return (
        isinstance(value, ndarray)
        and value.dtype == wanted.dtype
        and value.shape == wanted.shape
        and value.tobytes() == wanted.tobytes()
    )
