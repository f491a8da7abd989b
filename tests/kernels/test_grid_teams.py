"""Rows reduced by teams of work items: short, ragged and long ones, ties, NaN and infinities."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from crossdock.devices.base import Device, DeviceInfo
from crossdock.kernels.grid_reduce import lanes
from crossdock.runtime.tensor import Array, to_numpy
from tests.cards import CARD
from tests.kernels.grid_run import as_gpu, call_of, check, opencl_ids, opened

SUB = CARD.subgroup
LENGTHS = (2 * SUB, 2 * SUB + 1, 511, 512, 700)
"""Rows of teams of a sub-group, and of several."""
ROWS = (1, 9)


@pytest.fixture(scope="module", params=opencl_ids())
def device(request: pytest.FixtureRequest) -> Device:
    return opened(request.param)


@pytest.fixture
def card(device: Device) -> DeviceInfo:
    """The device as if it were a card whose sub-groups were as wide as CUDA's."""
    return replace(as_gpu(device.info), subgroup=SUB)


def data(rows: int, length: int, dtype: str = "float32") -> Array:
    x = np.random.default_rng(rows * length).integers(-9, 10, (rows, length))
    return (np.abs(x) if "uint" in dtype else x).astype(to_numpy(dtype))


def test_teams_are_taken_where_rows_are_long_enough() -> None:
    assert lanes(CARD, (9, 2 * SUB - 1, 1)) == 0
    assert lanes(CARD, (9, 2 * SUB, 1)) == SUB
    assert lanes(CARD, (9, 512, 1)) == 4 * SUB
    assert lanes(CARD, (9, 512, 2)) == 0


SLOW = pytest.mark.slow
INTEGERS = ("int32", "uint32", "int64", "uint64")
DTYPES = (
    "float32",
    *(pytest.param(d, marks=SLOW) for d in ("float64", "float16", "bfloat16", *INTEGERS)),
)
SUMS = (
    ("sum", "float32"),
    *(pytest.param("sum", d, marks=SLOW) for d in ("float64", "float16", "bfloat16", *INTEGERS)),
    *(pytest.param("max", d, marks=SLOW) for d in ("float32", "bfloat16", "int32", "uint64")),
    *(pytest.param("product", d, marks=SLOW) for d in INTEGERS),
    *(pytest.param("l1", d, marks=SLOW) for d in ("float16", "int64", "uint32")),
)


@pytest.mark.parametrize(("name", "dtype"), SUMS)
def test_reductions(device: Device, card: DeviceInfo, name: str, dtype: str) -> None:
    for rows in ROWS:
        for length in LENGTHS:
            x = data(rows, length, dtype)
            call = call_of(f"reduce_{name}", [x], {"axes": [1]})
            check(call, [x], device, info=card)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", ["arg_max", pytest.param("arg_min", marks=SLOW)])
def test_the_first_of_equal_places(device: Device, card: DeviceInfo, op: str, dtype: str) -> None:
    for rows in ROWS:
        for length in LENGTHS:
            x = data(rows, length, dtype)
            check(call_of(op, [x], {"axis": 1}), [x], device, info=card)


@pytest.mark.parametrize("op", ["arg_max", pytest.param("arg_min", marks=SLOW)])
def test_the_first_nan_is_the_place(device: Device, card: DeviceInfo, op: str) -> None:
    for length in LENGTHS:
        x = data(3, length)
        x[0, [7, 50]] = np.nan
        x[1, -1] = np.nan
        x[2, 5] = np.inf if op == "arg_max" else -np.inf
        check(call_of(op, [x], {"axis": 1}), [x], device, info=card)


@pytest.mark.slow
def test_nan_and_infinities_reach_the_result(device: Device, card: DeviceInfo) -> None:
    for length in LENGTHS:
        x = data(4, length)
        x[0, 40], x[1, 41], x[2, length - 1] = np.nan, np.inf, -np.inf
        for name in ("max", "min", "log_sum_exp"):
            call = call_of(f"reduce_{name}", [x], {"axes": [1]})
            check(call, [x], device, info=card)


TWICE = (
    "softmax",
    *(pytest.param(op, marks=SLOW) for op in ("layer_normalization", "reduce_log_sum_exp")),
)


@pytest.mark.parametrize("op", TWICE)
def test_what_reduces_twice(device: Device, card: DeviceInfo, op: str) -> None:
    attrs = {"axis": 1} if op == "softmax" else {"axes": [1]}
    for rows in ROWS:
        for length in LENGTHS:
            x = data(rows, length) / np.float32(3)
            arrays = [x, x[0], x[-1]] if op == "layer_normalization" else [x]
            check(call_of(op, arrays, attrs), arrays, device, info=card, tolerance=1e-4)


@pytest.mark.slow
def test_channels_of_rows_of_several_images(device: Device, card: DeviceInfo) -> None:
    x = data(6, 100).reshape(2, 3, 10, 10)
    scale = np.arange(1, 4, dtype=np.float32)
    arrays = [x, scale, -scale]
    call = call_of("instance_normalization", arrays)
    check(call, arrays, device, info=card, tolerance=1e-4)
