"""softmax and layer normalisation in vectors: full rows, odd lengths, infinities."""

from __future__ import annotations

import numpy as np
import pytest

from crossdock.devices.base import Device
from crossdock.runtime.tensor import Array
from tests.kernels.grid_run import call_of, check, execute, grid_kernels, opencl_ids, opened

LENGTHS = (1, 5, 16, 33, 47, 384)


@pytest.fixture(scope="module", params=opencl_ids())
def device(request: pytest.FixtureRequest) -> Device:
    return opened(request.param)


def normal(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("length", LENGTHS)
def test_softmax(device: Device, length: int) -> None:
    arrays = [normal(37, length) * 20]
    call = call_of("softmax", arrays, {"axis": 1})
    assert "grid.softmax.vectors" in {k.name for k in grid_kernels(call, device.info)}
    check(call, arrays, device)


def test_softmax_of_infinities(device: Device) -> None:
    x = normal(3, 40)
    x[0, 3:] = -np.inf
    x[1, 5] = np.nan
    x[2, :] = -np.inf
    call = call_of("softmax", [x], {"axis": 1})
    for kernel in grid_kernels(call, device.info):
        (y,) = execute(kernel.lower(call, device.info), call, [x], device)
        np.testing.assert_allclose(y[0, :3].sum(), 1.0, rtol=1e-6, err_msg=kernel.name)
        assert not y[0, 3:].any()
        assert np.isnan(y[1:]).all()


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize(("scaled", "shifted"), [(True, True), (False, True), (False, False)])
def test_layer_normalization(device: Device, length: int, scaled: bool, shifted: bool) -> None:
    arrays = [normal(37, length), normal(length) if scaled else None, normal(length + 1)[1:]]
    arrays[2] = arrays[2] if shifted else None
    call = call_of("layer_normalization", arrays, {"axes": [1]})
    assert "grid.layer_normalization.vectors" in {k.name for k in grid_kernels(call, device.info)}
    check(call, arrays, device, tolerance=1e-4)
