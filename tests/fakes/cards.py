"""Cards of the fake cupy, put in the place of real ones and taken away again.

What a test left open is closed, and what it used wrongly fails it.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from crossdock.devices import cuda, registry
from crossdock.devices.cuda import CudaDevice
from tests.fakes import cupy_fake
from tests.fakes.cuda_machine import Machine


@contextmanager
def installed(
    patch: pytest.MonkeyPatch, machine: Machine | None = None
) -> Iterator[cupy_fake.FakeCupy]:
    """Cards for sessions, by their ids."""
    fake = cupy_fake.install(patch, machine)
    with checked(fake):
        yield fake


@contextmanager
def checked(fake: cupy_fake.FakeCupy) -> Iterator[None]:
    """Close what is left open of cards that are there, and look for what was used wrongly."""
    yield
    for key in [key for key in registry._OPEN if key[0].startswith("cuda:")]:
        registry._OPEN.pop(key).close()
    gc.collect()
    assert fake.machine.errors == []


@contextmanager
def opened(patch: pytest.MonkeyPatch) -> Iterator[CudaDevice]:
    """The first card."""
    with installed(patch), first() as device:
        yield device


@contextmanager
def first() -> Iterator[CudaDevice]:
    """The first of cards that are there."""
    device = cuda.open_device("cuda:0")
    yield device
    device.close()
