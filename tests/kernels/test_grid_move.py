"""Copies on a grid: any permutation, slice, padding; pieces; what is gathered and scattered."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossdock.devices.base import Device
from crossdock.kernels.grid_common import Space, row_major
from crossdock.kernels.grid_pad import Padding
from crossdock.runtime.tensor import Array
from tests.kernels.grid_run import as_gpu, call_of, check, opencl_ids, opened


@pytest.fixture(scope="module", params=opencl_ids())
def device(request: pytest.FixtureRequest) -> Device:
    return opened(request.param)


def counted(shape: tuple[int, ...], dtype: str = "float32") -> Array:
    return (np.arange(np.prod(shape)) % 251).astype(dtype).reshape(shape)


SIZES = st.lists(st.sampled_from([1, 2, 3, 18, 35]), min_size=1, max_size=4)


@settings(max_examples=30)
@given(SIZES, st.randoms(use_true_random=False), st.sampled_from(["uint8", "float16", "int64"]))
def test_any_permutation(device: Device, sizes: list[int], random: object, dtype: str) -> None:
    order = list(range(len(sizes)))
    random.shuffle(order)  # type: ignore[attr-defined]
    arrays = [counted(tuple(sizes), dtype)]
    call = call_of("transpose", arrays, {"permutation": order})
    check(call, arrays, device)
    check(call, arrays, device, info=as_gpu(device.info))


@settings(max_examples=25)
@given(st.data())
def test_any_slice(device: Device, data: st.DataObject) -> None:
    sizes = data.draw(SIZES)
    starts = [data.draw(st.integers(0, n - 1)) for n in sizes]
    counts = [data.draw(st.integers(1, n - s)) for n, s in zip(sizes, starts, strict=True)]
    strides = [data.draw(st.integers(1, 3)) for _ in sizes]
    arrays = [counted(tuple(sizes))]
    attrs = {"starts": starts, "sizes": counts, "strides": strides}
    check(call_of("slice", arrays, attrs), arrays, device)


@settings(max_examples=25)
@given(st.data(), st.sampled_from(["constant", "edge", "reflection"]))
def test_any_padding(device: Device, data: st.DataObject, mode: str) -> None:
    sizes = data.draw(SIZES)
    widths = [[data.draw(st.integers(0, min(3, n - 1))) for n in sizes] for _ in range(2)]
    arrays = [counted(tuple(sizes))]
    attrs = {
        "beginning_padding": widths[0],
        "ending_padding": widths[1],
        "mode": mode,
        "value": -1.5,
    }
    check(call_of("pad", arrays, attrs), arrays, device)


def test_more_rows_than_a_grid_has(device: Device) -> None:
    arrays = [counted((70_000, 2))]
    attrs = {"beginning_padding": [0, 1], "ending_padding": [1, 0]}
    check(call_of("pad", arrays, attrs), arrays, device)
    wide = [counted((70_000, 17)), counted((17,))]
    check(call_of("add", wide), wide, device)


@pytest.mark.parametrize("index", ["int32", "uint32", "int64"])
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("inner", [1, 40])
def test_indices_wrap_once_and_are_clamped(
    device: Device, index: str, axis: int, inner: int
) -> None:
    x = counted((3, 4, inner))
    given_ = [0, 2, 99] if index == "uint32" else [0, -1, 99, -99]
    indices = np.array(given_, index)
    arrays = [x, indices]
    check(call_of("gather", arrays, {"axis": axis}), arrays, device)


def test_scatter_keeps_the_rest(device: Device) -> None:
    x = counted((4, 5))
    rows, updates = np.array([[1], [-1]], np.int64), counted((2, 5)) + 1000
    check(call_of("scatter_nd", [x, rows, updates]), [x, rows, updates], device)
    columns = np.array([[3, 0], [1, 2], [0, 4], [2, 1]], np.int32)
    arrays = [x, columns, counted((4, 2)) - 1000]
    check(call_of("scatter_elements", arrays, {"axis": 1}), arrays, device)


@pytest.mark.parametrize("axes", [(0, 2), (1, 3), (0, 1, 3), (2,), (0, 1, 2, 3), ()])
@pytest.mark.parametrize("op", ["reduce_sum", "reduce_max", "reduce_log_sum_exp", "reduce_product"])
def test_reductions_over_any_axes(device: Device, op: str, axes: tuple[int, ...]) -> None:
    x = np.random.default_rng(1).uniform(0.5, 1.4, (3, 4, 5, 70)).astype(np.float32)
    call = call_of(op, [x], {"axes": list(axes)})
    check(call, [x], device, tolerance=2e-4)  # products of up to 4200 factors
    check(call, [x], device, info=as_gpu(device.info), tolerance=2e-4)


@pytest.mark.parametrize("axes", [(1, 2), (2, 1), (0,), (0, 2), (2,)])
@pytest.mark.parametrize("length", [5, 300])
def test_layer_normalization_over_any_axes(
    device: Device, axes: tuple[int, ...], length: int
) -> None:
    x = np.random.default_rng(2).standard_normal((3, 4, length)).astype(np.float32)
    shape = tuple(x.shape[a] for a in axes)
    arrays = [x, counted(shape) / 100, counted(shape) / 50]
    call = call_of("layer_normalization", arrays, {"axes": list(axes)})
    check(call, arrays, device, tolerance=1e-4)
    check(call, arrays, device, info=as_gpu(device.info), tolerance=1e-4)


# --- the arithmetic behind them -------------------------------------------------------------------


@given(st.lists(st.integers(1, 4), min_size=0, max_size=5), st.data())
def test_a_collapsed_space_visits_the_same_places(sizes: list[int], data: st.DataObject) -> None:
    dense = row_major(sizes)
    other = tuple(data.draw(st.sampled_from([0, s, 2 * s])) for s in dense)
    space = Space(tuple(sizes), (dense, other))
    small = space.collapsed()
    assert small.size == space.size
    assert len(small.dims) <= max(1, sum(n > 1 for n in sizes))
    assert _visited(small) == _visited(space)


def _visited(space: Space) -> list[tuple[int, ...]]:
    return [
        tuple(sum(i * s for i, s in zip(at, strides, strict=True)) for strides in space.strides)
        for at in np.ndindex(*space.dims)
    ]


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 2), st.integers(0, 2)), max_size=5))
def test_collapsed_padding_has_the_same_size(cells: list[tuple[int, int, int]]) -> None:
    padding = Padding(*(tuple(c[i] for c in cells) for i in range(3)))
    for constant in (True, False):
        small = padding.collapsed(constant=constant)
        assert np.prod(small.out) == np.prod(padding.out)
        assert np.prod(small.dims) == np.prod(padding.dims)
