"""Who is to blame for an error, and whether a device is lost by it.

A device that could not be handed a step, that failed one, or that answers no more is lost at once:
what it holds cannot be trusted, and asking it again may hang. Having no memory left, a kernel that
does not build and a wrong result are no such failures.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from crossdock.devices import registry
from crossdock.devices.base import Device
from crossdock.runtime.errors import (
    CompileError,
    DeviceError,
    DeviceLost,
    OutOfMemory,
    Unavailable,
    WrongResult,
)

_NO_LOSS = (OutOfMemory, CompileError, WrongResult, Unavailable)


def is_loss(error: BaseException) -> bool:
    """Whether a device that an error came from is lost."""
    return isinstance(error, DeviceError) and not isinstance(error, _NO_LOSS)


def blame(error: BaseException, device: Device) -> None:
    """Write a device's id into its error, and count the device as lost where it is."""
    if isinstance(error, DeviceError):
        error.device = device.info.id
        if is_loss(error):
            registry.lose(device, said(error))


@contextmanager
def blaming(device: Device) -> Iterator[None]:
    """Blame a device for the errors of what is done with it; raises DeviceLost where it is lost."""
    check(device)
    try:
        yield
    except DeviceError as error:
        blame(error, device)
        raise


def check(device: Device) -> None:
    """Raise DeviceLost where a device is lost: nothing of it may be called."""
    if device.gone:
        raise lost(device)


def lost(device: Device) -> DeviceLost:
    """The error of a device that is lost already."""
    name = device.info.id
    return DeviceLost(f"{name} was lost ({device.gone}); {registry.FIX}", device=name)


def let_go(error: BaseException) -> None:
    """Forget the calls that a device without memory ended: they hold memory of it.

    That of an exception's frames is kept by it, and that of their closures even where they are
    cleared.
    """
    if isinstance(error, OutOfMemory):
        found: list[BaseException | None] = [error]
        for one in found:
            if one is not None and one.__traceback__ is not None:
                one.__traceback__ = None
                found += [one.__cause__, one.__context__]


def said(error: BaseException) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
