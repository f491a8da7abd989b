"""Copies that are looked at: what ``verify="transfers"`` asks for; see ``checks``.

A copy that did not arrive may come yet, over what lies there by then: all that its queue has is
waited for before the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from crossdock.devices.base import SLOWEST, Buffer, Device, Event, Queue
from crossdock.runtime import settings
from crossdock.runtime.errors import TransferError
from crossdock.runtime.plan import HOST
from crossdock.runtime.segments import Segment
from crossdock.runtime.tensor import Array, TensorSpec, to_numpy

TRIES = 2
"""How often a copy is made before the device is given up."""


def copied(
    queue: Queue, part: Segment, buffer: Buffer, array: Array, waits: Sequence[Event], what: str
) -> None:
    """Make a copy of a run and look whether it arrived; it is done then.

    Raises:
        TransferError: it did not, twice.
    """
    back = np.empty_like(array)
    for _ in range(TRIES):
        if part.role == "upload":
            done(queue, queue.write(buffer, array, waits))
        else:
            done(queue, queue.read(buffer, array, waits))
        done(queue, queue.read(buffer, back))
        if np.array_equal(array, back):
            return
        queue.finish()
        waits = ()
    raise _wrong(queue.device, "to" if part.role == "upload" else "from", what, array, back)


def read_back(queue: Queue, buffer: Buffer, spec: TensorSpec, what: str) -> Array:
    """A copy of what a buffer holds, which two reads agree on.

    Raises:
        TransferError: they do not, twice.
    """
    if not spec.nbytes:
        return np.empty(spec.dims, to_numpy(spec.dtype))
    first, again = (np.full(spec.nbytes, fill, np.uint8) for fill in (0, 255))
    for _ in range(TRIES):
        done(queue, queue.read(buffer, first))
        done(queue, queue.read(buffer, again))
        if np.array_equal(first, again):
            return first.view(to_numpy(spec.dtype)).reshape(spec.dims)
        queue.finish()
    raise _wrong(queue.device, "from", what, first, again)


def resident(device: Device, array: Array, label: str) -> Buffer:
    """``device.resident``, and a look at what arrived.

    Raises:
        TransferError: it is another array, twice.
    """
    if device.info.id == HOST or not array.nbytes:
        return device.resident(array, label)
    sent = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    back = np.empty_like(sent)
    limit = settings.watchdog() + sent.nbytes / SLOWEST
    for _ in range(TRIES):
        buffer = device.resident(array, label)
        device.call("download", partial(_read, buffer, back), limit)
        if np.array_equal(sent, back):
            return buffer
        device.call("upload", lambda queue: queue.finish(), limit)
        buffer.release()
    raise _wrong(device, "to", label, sent, back)


def _read(buffer: Buffer, array: Array, queue: Queue) -> None:
    done(queue, queue.read(buffer, array))


def done(queue: Queue, event: Event | None) -> None:
    """Wait for work of a queue."""
    if event is not None:
        queue.flush()
        event.wait()


def _wrong(device: Device, way: str, what: str, array: Array, back: Array) -> TransferError:
    wrong, name = np.flatnonzero(array != back), device.info.id
    return TransferError(
        f"the copy of {what!r:.80} {way} {name} arrived with {len(wrong)} of {array.size} bytes "
        f"that are others, first at {wrong[0]}, {TRIES} times; do not use the device",
        device=name,
    )
