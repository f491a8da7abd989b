"""Choosing among the algorithms that there are for a step, by timing them.

They are timed where the kernel is, and as it is: within its command buffer, on the device's clock.
Each step of a kernel is chosen by itself, one after the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from crossdock.devices.base import CommandBuffer, Device, Executable
from crossdock.devices.choice import Timing
from crossdock.runtime.errors import DeviceError, DeviceLost

SECONDS = 0.25
"""What the algorithms of a step may run for while they are timed; one sample may exceed it.

To build a variant of a kernel of our own is no part of it: there are few, and other steps of the
same text have them already.
"""
FAR = (3.0, 1.5, 1.2, 1.1)
"""After each round of samples, how many times the best an algorithm may take to be in the next.

What disturbs makes samples longer, never shorter; it may hit the only one that there is, and hardly
two.
"""
WORTH = 1.05
"""How much faster than the first choice, that is taken unmeasured, another one has to be."""
PAIRS = 3
"""How often in a row it has to be, sampled by turns with the first choice, before it is kept.

What disturbed the samples of the first choice, and none of the others', does not come by turns.
These are beyond ``SECONDS``.
"""


@dataclass(frozen=True)
class Clock:
    """How steps are timed: ``record`` makes commands of ``runs`` runs of all that they are part of.

    ``sample`` runs such commands a few times, and returns what a run took each time.
    """

    record: Callable[[], CommandBuffer]
    sample: Callable[[CommandBuffer], Sequence[float]]
    runs: int


def tune(device: Device, executables: Iterable[Executable], clock: Clock) -> float:
    """Choose an algorithm for each step that leaves a choice; the least seconds that were seen.

    Commands recorded before run by what they were recorded with.

    Raises:
        DeviceError: a step fails by every algorithm there is; or the device does.
    """
    best = math.inf
    for executable in executables:
        count = device.algorithms(executable)
        if count:
            best = min(best, _choose(device, executable, count, clock))
    return best


def _choose(device: Device, executable: Executable, count: int, clock: Clock) -> float:
    found = _Contest(device, executable, clock, [None] * count)
    if count > 1:
        found.rounds()
    index = found.winner()
    device.take_algorithm(executable, index)
    device.keep_algorithm(executable, index, found.timings)
    return found.seconds.get(index, math.inf)


@dataclass
class _Contest:
    """Algorithms of a step that are timed: ``seconds`` of those that ran, by index."""

    device: Device
    executable: Executable
    clock: Clock
    timings: list[Timing]
    seconds: dict[int, float] = field(default_factory=dict)
    spent: float = 0.0
    _commands: dict[int, CommandBuffer] = field(default_factory=dict)

    def rounds(self) -> None:
        """Sample them until the time is over or one is left; raises DeviceError if all fail."""
        left = list(range(len(self.timings)))
        last: DeviceError | None = None
        for far in FAR:
            for index in left:
                if self.seconds and self.spent > SECONDS:
                    return
                try:
                    self._sample(index)
                except DeviceLost:
                    raise
                except DeviceError as error:
                    self.seconds.pop(index, None)
                    self.timings[index], last = str(error), error
            if not self.seconds and last is not None:
                raise last
            best = min(self.seconds.values())
            left = [i for i in left if i in self.seconds and self.seconds[i] <= far * best]
            if len(left) < 2:
                return

    def winner(self) -> int:
        """The fastest; the first choice, if it runs, unless another is faster again and again."""
        index = min(self.seconds, key=lambda i: self.seconds[i], default=0)
        if index == 0 or 0 not in self.seconds:
            return index
        if self.seconds[0] <= WORTH * self.seconds[index]:
            return 0
        pairs = (self._sample(0) > WORTH * self._sample(index) for _ in range(PAIRS))
        return index if all(pairs) else 0

    def _sample(self, index: int) -> float:
        """Seconds that a run by an algorithm takes now, which is noted."""
        if index not in self._commands:
            self.device.take_algorithm(self.executable, index)
            self._commands[index] = self.clock.record()
        taken = self.clock.sample(self._commands[index])
        self.spent += sum(taken) * self.clock.runs
        self.seconds[index] = min(*taken, self.seconds.get(index, math.inf))
        self.timings[index] = self.seconds[index]
        return min(taken)
