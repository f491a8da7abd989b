"""Reductions by teams of work items mean the same on every device as numpy's do."""

from __future__ import annotations

import numpy as np
import pytest

from crossdock.devices.base import Cap, Device
from crossdock.devices.program import In, Out
from tests.devices import teams
from tests.devices.steps import download, record, upload

SLOW = pytest.mark.slow
DTYPES = [pytest.param(t, marks=() if t == "float32" else SLOW) for t in teams.C_TYPE]
RAGGED = [pytest.param(*r, marks=() if r[1] == 100 else SLOW) for r in teams.RAGGED]


def check(device: Device, dtype: str, items: int, sizes: tuple[int, ...]) -> None:
    x = teams.values(dtype, items)
    want = teams.expected(x, sizes)
    buffers = {In(0): upload(device, x), Out(0): upload(device, np.zeros_like(want))}
    step = teams.step(dtype, items, sizes)
    done = device.queues["compute"].execute(record(device, (step, buffers)))
    np.testing.assert_array_equal(download(device, buffers[Out(0)], want, done), want)


@pytest.mark.needs(Cap.GRID, Cap.FLOAT64)
@pytest.mark.parametrize("dtype", DTYPES)
def test_teams_of_a_group(device: Device, dtype: str) -> None:
    check(device, dtype, teams.ITEMS, teams.EVEN)


@pytest.mark.needs(Cap.GRID, Cap.FLOAT64)
@pytest.mark.parametrize(("dtype", "items"), RAGGED)
def test_a_ragged_team(device: Device, dtype: str, items: int) -> None:
    check(device, dtype, items, (items,))
