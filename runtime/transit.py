"""Inputs and outputs of a run that stay off the host: where they lie, or copied on their device.

A plan copies inputs from where it has them, by default the host, and outputs to the host or to
where they stay. An array that lies on a device, or is to stay there, is read and written where it
lies, if launches of that device alone use it; the plan's copy is left out then. Where an input
lies elsewhere than planned, or others need it, that step of the plan copies between the caller's
array and the arena: at the same place in the same queue, so that every wait and every lifetime in
the arena holds as planned. What the host needs for itself goes there still.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from crossdock.devices.base import Buffer, CommandBuffer, Device, Event, Queue
from crossdock.devices.links import link_ends
from crossdock.runtime.device_array import DeviceArray, Ledger
from crossdock.runtime.errors import Cancelled, Error, FeedError, OutOfMemory, Timeout
from crossdock.runtime.in_place import Users, made_once, worth
from crossdock.runtime.keeping import Donations, Keeping, Slot
from crossdock.runtime.plan import HOST, Step
from crossdock.runtime.program import Instance, Program
from crossdock.runtime.rebinding import rebound
from crossdock.runtime.tensor import Array, to_numpy
from crossdock.scheduler import LinkModel

Fed = Array | DeviceArray


class NoRoom(OutOfMemory):
    """A device has no memory for an output that is to stay: nothing that a run can do without."""

    def __init__(self, error: OutOfMemory, device: str) -> None:
        super().__init__(
            f"{error}; close arrays kept on {device} that are not needed any more, or run without "
            "outputs='device'",
            device=device,
            wanted=error.wanted,
            free=error.free,
        )


@dataclass
class Transit:
    """What a run does with arrays on devices.

    ``feeds`` are inputs as the host has them, ``fed`` those of the graph that it does not need.
    ``kept`` are the outputs that are to stay, by name, and ``brought`` those that go to the host
    where the plan has them stay. ``arrivals`` and ``departures`` say by segment which arrays are
    copied on the device; ``spared`` are the segments of which nothing else is copied. ``hosted``
    has by segment the host's end of a copy that the plan has between other memories. ``pulled`` has
    bytes that crossed a link beside the plan, by link, and ``astray`` the segments that crossed
    another link than planned. ``checked``: what is copied or computed is looked at, so that all of
    it lies in the arena; ``verified``: copies are to pass the host, which reads both ends back.
    ``lying`` are the arrays used where they lie, by root and device, and ``commands`` those over
    them, by segment. ``donations`` are inputs that are given up for outputs.
    """

    program: Program
    checked: bool = False
    verified: bool = False
    feeds: dict[str, Array] = field(default_factory=dict)
    fed: set[str] = field(default_factory=set)
    kept: dict[str, DeviceArray] = field(default_factory=dict)
    arrivals: dict[int, DeviceArray] = field(default_factory=dict)
    departures: dict[int, list[DeviceArray]] = field(default_factory=dict)
    spared: set[int] = field(default_factory=set)
    brought: dict[str, Array] = field(default_factory=dict)
    hosted: dict[int, Array] = field(default_factory=dict)
    astray: set[int] = field(default_factory=set)
    pulled: dict[str, int] = field(default_factory=dict)
    lying: dict[tuple[str, str], DeviceArray] = field(default_factory=dict)
    commands: dict[int, CommandBuffer] = field(default_factory=dict)
    donations: Donations | None = None

    def feed(self, name: str, value: Fed) -> None:
        """Take an input."""
        planned = self.program.ends.takes.get(name)
        if planned is not None:
            self.fed.add(name)
            for index in planned:
                value = self._arrive(index, value)
        elif isinstance(value, DeviceArray):
            self._take(name, value)
        else:
            self.feeds[name] = value

    def _arrive(self, index: int, value: Fed) -> Fed:
        """Let an input that the plan has on a device come from where it is; where it is now."""
        program = self.program
        step = self._step(index)
        device, far = program.devices[program.segments[index].device], HOST
        if isinstance(value, DeviceArray):
            owner = value.owner
            near = step.dst != HOST and self._direct(owner, device, step.nbytes)
            if owner is device and step.dst != HOST and self._lies(step.name, value):
                far = value.device
            elif owner is device or near:
                self.arrivals[index], far = value, value.device
            else:
                self._pull(value, HOST)
                value = value.numpy()
        if far == HOST and index not in self.arrivals:
            self.hosted[index] = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
        if far == step.dst != step.src:
            self.spared.add(index)
        elif far != step.src:
            self.astray.add(index)
            self._pulled(far, step.dst, step.nbytes)
        return value

    def _take(self, name: str, array: DeviceArray) -> None:
        """Let an input come from a device, as far as the plan has it copied there or near it."""
        program, root = self.program, self.program.roots.get(name, name)
        cut = {window.source for window in program.windows.inputs.values()}
        near: set[str] = set()
        if name in program.graph.inputs and name not in cut:
            near = self._near(root, array)
        outputs = {program.roots[value] for value in program.graph.outputs.values()}
        wanted = name in cut or program.watched or root in outputs
        if name in program.graph.inputs and not wanted and not program.ends.host_reads(root, near):
            self.fed.add(name)
            return
        self.feeds[name] = array.numpy()
        self._pull(array, HOST)

    def _near(self, root: str, array: DeviceArray) -> set[str]:
        """Let the devices of the plan that can copy an input do so; their ids."""
        program, near = self.program, set[str]()
        for name, index in program.ends.ups.get(root, {}).items():
            device = program.devices[name]
            own = device is array.owner
            if own or self._direct(array.owner, device, array.nbytes):
                if not (own and self._lies(root, array)):
                    self.arrivals[index] = array
                self.spared.add(index)
                near.add(name)
                if not own:
                    self._pull(array, name)
        return near

    def _lies(self, root: str, array: DeviceArray, departs: int | None = None) -> bool:
        """Let an array be used where it lies, if all that uses it there can.

        ``departs`` is the segment that the plan has for copying it from there, of an output, which
        has to be the only one there is of its value.
        """
        program, owner, key = self.program, array.owner, (root, array.device)
        mark = (*key, departs)
        if mark not in program.may_lie:
            found = program.users.get(key, Users())
            alone = not (program.watched or found.copies - {departs})
            alone = alone and (departs is None or made_once(program.graph, program.roots, root))
            fit = worth(owner.info, _link(owner, owner), array.nbytes, found.count)
            program.may_lie[mark] = alone and fit
        if self.checked or not program.may_lie[mark]:
            return False
        place = array.memory().place()
        if place is not None and place % owner.info.alignment:
            return False
        self.lying[key] = array
        return True

    def bind(self, instance: Instance) -> None:
        """Make the commands over the arrays that are used where they lie."""
        try:
            lying = {key: array.memory() for key, array in self.lying.items()}
            self.commands = rebound(self.program, instance, lying)
        except BaseException as error:
            self._not_begun(error)
            raise

    def ready(self, index: int) -> Sequence[Event]:
        """What a segment waits for that uses arrays where they lie.

        Raises:
            FeedError: one was closed meanwhile.
        """
        users, found = self.program.users, list[Event]()
        for key, array in self.lying.items():
            if index in users[key].launches:
                _memory(array)
                found += array.ready
        return found

    def _direct(self, source: Device, target: Device, nbytes: int) -> bool:
        """Whether a device copies from another itself, and no slower than through the host.

        Links that were not measured count as the faster way: such a copy moves the bytes once.
        """
        if self.verified or not target.copies_from(source):
            return False
        host = self.program.devices[HOST]
        links = [_link(*pair) for pair in ((source, target), (source, host), (host, target))]
        if any(link is None for link in links):
            return True
        own, down, up = (link.seconds(nbytes) for link in links if link is not None)
        return own <= down + up

    def _pull(self, array: DeviceArray, device: str) -> None:
        self._pulled(array.device, device, array.nbytes)

    def _pulled(self, source: str, device: str, nbytes: int) -> None:
        link = f"{source}->{device}"
        self.pulled[link] = self.pulled.get(link, 0) + nbytes

    def bring(self) -> None:
        """Let the outputs that the plan has stay on devices come to the host."""
        program, graph = self.program, self.program.graph
        for name, value in graph.outputs.items():
            index = program.ends.keeps.get(program.roots[value])
            if index is None:
                continue
            spec = program.windows.specs[name]
            if index not in self.hosted:
                self.hosted[index] = np.empty(spec.nbytes, np.uint8)
                self._pulled(program.segments[index].device, HOST, spec.nbytes)
            self.brought[name] = np.ndarray(spec.dims, to_numpy(spec.dtype), self.hosted[index])

    def keep(self, keeping: Keeping) -> None:
        """Let the outputs stay where they are made; raises NoRoom, MemoryBudget or FeedError."""
        try:
            if keeping.donated:
                self.donations = Donations(keeping.donated)
            self._keep(keeping.ledger)
        except BaseException:
            self._not_begun(None)
            raise

    def _not_begun(self, error: BaseException | None) -> None:
        """Give back what the run has taken: the frames of its error hold the memory there was."""
        self.failed(error)
        for array in self.kept.values():
            array.close()

    def _keep(self, ledger: Ledger) -> None:
        program, graph = self.program, self.program.graph
        for name, slot in program.slots.items():
            root = program.roots[graph.outputs[name]] if name in graph.outputs else ""
            stays, where = program.ends.keeps.get(root), program.ends.downs.get(root)
            try:
                made = self._reused(slot, where if stays is None else stays) or slot.new(ledger)
            except OutOfMemory as error:
                raise NoRoom(error, slot.owner.info.id) from error
            self.kept[name] = made
            home = where if stays is None else stays
            if home is None:
                continue
            if stays is None and not program.ends.host_reads(root):
                self.spared.add(home)
            if not self._written(root, made, home):
                self.departures.setdefault(home, []).append(made)

    def _written(self, root: str, made: DeviceArray, home: int) -> bool:
        """Let an output be made where it stays, if it can.

        One in the memory of an input has to wait until nothing reads that any more.
        """
        spared = home in self.spared or home in self.program.ends.callers
        taken = self.donations is not None and self.donations.reuse(made)
        return spared and not taken and self._lies(root, made, home)

    def _reused(self, slot: Slot, place: int | None) -> DeviceArray | None:
        """An output in the memory of an input that is donated, where nothing reads that any more.

        ``place`` is the segment that writes the output, None where the host does, at the end.
        """
        if self.donations is None:
            return None

        def after(array: DeviceArray) -> bool:
            reads = {index for index, source in self.arrivals.items() if source is array}
            for key, source in self.lying.items():
                reads.update(self.program.users[key].launches if source is array else ())
            return place is None or all(self.program.follows(place, read) for read in reads)

        return self.donations.output(slot, -1 if place is None else place, after)

    def failed(self, error: BaseException | None) -> None:
        """The run, or what it was to begin with, has failed."""
        if self.donations is not None:
            over = isinstance(error, Error) and not isinstance(error, Timeout | Cancelled)
            self.donations.ended(error, still_on=error is not None and not over)

    def copied(
        self, index: int, queue: Queue, buffer: Buffer, waits: Sequence[Event]
    ) -> tuple[bool, Event | None]:
        """Do what a copying segment does on its device; whether that is all, and its event."""
        event: Event | None = None
        source = self.arrivals.get(index)
        if buffer.device is not queue.device:
            return True, self._come_to_host(index, queue, buffer, waits)
        if source is not None:
            event = queue.copy(buffer, _memory(source), [*waits, *source.ready])
        for target in self.departures.get(index, ()):
            if self.donations is not None:
                self.donations.begun.add(index)
            event = queue.copy(_memory(target), buffer, waits)
        planned = index in self.program.ends.callers and index not in self.hosted
        return planned or index in self.spared, event

    def _come_to_host(
        self, index: int, queue: Queue, buffer: Buffer, waits: Sequence[Event]
    ) -> Event | None:
        """Let an input arrive in the host's arena, where the plan has it come to from a device."""
        spec = self.program.graph.specs[self._step(index).name]
        target, source = buffer.array(spec), self.arrivals.get(index)
        flat = target.reshape(-1).view(np.uint8)
        if source is not None:
            return queue.read(_memory(source), flat, [*waits, *source.ready])
        for event in waits:
            event.wait()
        np.copyto(flat, self.hosted[index])
        return None

    def _step(self, index: int) -> Step:
        return self.program.plan.steps[self.program.segments[index].steps[0]]

    def collected(self, made: Mapping[str, Array]) -> dict[str, DeviceArray]:
        """The outputs that stay, those on the host filled from ``made``."""
        ends, graph, windows = self.program.ends, self.program.graph, self.program.windows
        for name, array in self.kept.items():
            if name in made and self.program.roots[graph.outputs[name]] not in ends.downs:
                np.copyto(array.view(), made[name])
        for name, window in windows.outputs.items():
            np.copyto(window.of(self.kept[window.source].view()), made[name])
        if self.donations is not None:
            self.donations.done()
        return self.kept

    def let_go(self) -> None:
        """Hold no array any more: the run is over, and a cycle may keep it for a while."""
        for held in (self.feeds, self.kept, self.arrivals, self.departures, self.hosted):
            held.clear()
        self.lying.clear()
        self.commands.clear()

    @property
    def avoided(self) -> tuple[Step, ...]:
        """The copies of the plan that were not made."""
        return tuple(map(self._step, sorted(self.spared)))

    @property
    def otherwise(self) -> tuple[Step, ...]:
        """The copies of the plan that crossed another link."""
        return tuple(map(self._step, sorted(self.astray)))


def _memory(array: DeviceArray) -> Buffer:
    """An array's memory, while a run is on.

    Raises:
        FeedError: it was closed meanwhile, which is no fault of the device's.
    """
    if array.closed:
        raise FeedError(f"{array!r} was closed while a run used it; close it after the run")
    return array.memory()


def _link(source: Device, target: Device) -> LinkModel | None:
    """The link as it was measured."""
    from crossdock.runtime import costing  # takes long to load

    return costing.store().model.link(*link_ends(source.info, target.info))


def begin(
    program: Program,
    instance: Instance,
    feeds: Mapping[str, Fed],
    keeping: Keeping | None,
    *,
    checked: bool = False,
    verified: bool = False,
) -> Transit | None:
    """What a run with these inputs does on devices; None where all is as planned.

    ``keeping`` is for outputs that are to stay; without it none are. ``checked``: no array is used
    where it lies; ``verified``: what passes between two devices goes over the host.

    Raises:
        NoRoom: a device has no memory for an output that is to stay.
        MemoryBudget: the session may not take it.
        FeedError: an input cannot be donated, since another run has it.
        DeviceError: a device fails at giving an input to the host.
    """
    planned = program.ends.takes or program.ends.keeps
    resident = any(array.__class__ is DeviceArray for array in feeds.values())
    if not planned and keeping is None and not resident:
        return None
    made = Transit(program, checked, verified)
    for name, value in feeds.items():
        made.feed(name, value)
    if keeping is not None:
        made.keep(keeping)
    else:
        made.bring()
    made.bind(instance)
    return made
