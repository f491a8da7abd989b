"""Choosing among the algorithms that there are for a step, by timing them.

They are timed where the kernel is, and as it is: within its command buffer, on the device's clock.
Each step of a kernel is chosen by itself, one after the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

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
    timings: list[Timing] = [None] * count
    seconds: dict[int, float] = {}
    if count > 1:
        _rounds(device, executable, timings, seconds, clock)
    index = min(seconds, key=lambda i: seconds[i], default=0)
    if 0 in seconds and seconds[0] <= WORTH * seconds[index]:
        index = 0
    device.take_algorithm(executable, index)
    device.keep_algorithm(executable, index, timings)
    return seconds.get(index, math.inf)


def _rounds(
    device: Device,
    executable: Executable,
    timings: list[Timing],
    seconds: dict[int, float],
    clock: Clock,
) -> None:
    """Fill in timings, and seconds by index, until the time is over or one is left."""
    left, spent = list(range(len(timings))), 0.0
    commands: dict[int, CommandBuffer] = {}
    last: DeviceError | None = None
    for far in FAR:
        for index in left:
            if seconds and spent > SECONDS:
                return
            try:
                if index not in commands:
                    device.take_algorithm(executable, index)
                    commands[index] = clock.record()
                taken = clock.sample(commands[index])
            except DeviceLost:
                raise
            except DeviceError as error:
                seconds.pop(index, None)
                timings[index], last = str(error), error
            else:
                spent += sum(taken) * clock.runs
                timings[index] = seconds[index] = min(*taken, seconds.get(index, math.inf))
        if not seconds and last is not None:
            raise last
        best = min(seconds.values())
        left = [i for i in left if i in seconds and seconds[i] <= far * best]
        if len(left) < 2:
            return
