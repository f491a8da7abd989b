"""Choosing among the algorithms that a library has for a step, by timing them.

They are timed where the kernel is, and as it is: within its command buffer, on the device's clock.
Each step of a kernel is chosen by itself, one after the other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from crossdock.devices.base import Device, Executable, Timing
from crossdock.runtime.errors import DeviceError, DeviceLost

SECONDS = 0.25
"""What timing the algorithms of a step may take; one sample may exceed it."""
ROUNDS = 3
"""Samples of an algorithm, at most: what disturbs makes them longer, never shorter."""
FAR = 1.5
"""How many times the best an algorithm may take and still get another sample."""
WORTH = 1.03
"""How much faster than the library's own first choice another one has to be."""


def tune(device: Device, executables: Iterable[Executable], sample: Callable[[], float]) -> float:
    """Choose an algorithm for each step that leaves a choice; the least seconds that were seen.

    ``sample`` runs the commands that the steps are recorded in, and returns what a run takes.

    Raises:
        DeviceError: a step fails by every algorithm there is; or the device does.
    """
    best = float("inf")
    for executable in executables:
        count = device.algorithms(executable)
        if count:
            best = min(best, _choose(device, executable, count, sample))
    return best


def _choose(
    device: Device, executable: Executable, count: int, sample: Callable[[], float]
) -> float:
    timings: list[Timing] = [None] * count
    seconds: dict[int, float] = {}
    if count > 1:
        _rounds(device, executable, timings, seconds, sample)
    index = min(seconds, key=lambda i: seconds[i], default=0)
    if 0 in seconds and seconds[0] <= WORTH * seconds[index]:
        index = 0
    device.take_algorithm(executable, index)
    device.keep_algorithm(executable, index, timings)
    return seconds.get(index, float("inf"))


def _rounds(
    device: Device,
    executable: Executable,
    timings: list[Timing],
    seconds: dict[int, float],
    sample: Callable[[], float],
) -> None:
    """Fill in timings, and seconds by index, until the time is over or one is left."""
    until = time.monotonic() + SECONDS
    left = list(range(len(timings)))
    last: DeviceError | None = None
    for _ in range(ROUNDS):
        for index in left:
            if seconds and time.monotonic() > until:
                return
            device.take_algorithm(executable, index)
            try:
                taken = sample()
            except DeviceLost:
                raise
            except DeviceError as error:
                seconds.pop(index, None)
                timings[index], last = str(error), error
            else:
                timings[index] = seconds[index] = min(taken, seconds.get(index, taken))
        if not seconds and last is not None:
            raise last
        best = min(seconds.values())
        left = [i for i in left if i in seconds and seconds[i] <= FAR * best]
        if len(left) < 2:
            return
