"""Products and convolutions on a grid: ragged edges, batches, layouts, packed filters."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossdock.devices.base import Device
from crossdock.kernels import grid_panels, grid_product, table
from crossdock.kernels.grid_conv_transpose import phases
from crossdock.kernels.grid_tile import choose
from crossdock.runtime.tensor import Array
from tests.kernels.grid_run import as_gpu, call_of, check, execute, grid_kernels, opencl_ids, opened


@pytest.fixture(scope="module", params=opencl_ids())
def device(request: pytest.FixtureRequest) -> Device:
    return opened(request.param)


def normal(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


SIZES = st.sampled_from([1, 2, 3, 7, 8, 9, 16, 31, 63, 64, 65, 100, 129])


@settings(max_examples=25)
@given(m=SIZES, n=SIZES, k=SIZES, batch=st.sampled_from([(), (3,), (2, 3)]), shared=st.booleans())
def test_matmul_of_any_size(
    device: Device, m: int, n: int, k: int, batch: tuple[int, ...], shared: bool
) -> None:
    right = batch if not shared else tuple(1 for _ in batch)
    arrays = [normal(*batch, m, k), normal(*right, k, n)]
    call = call_of("matmul", arrays)
    check(call, arrays, device)
    check(call, arrays, device, info=as_gpu(device.info))


def test_batches_broadcast_both_ways(device: Device) -> None:
    arrays = [normal(4, 1, 20, 12), normal(3, 12, 33)]
    check(call_of("matmul", arrays), arrays, device)


@pytest.mark.parametrize("m", [1, 3, 40])
@pytest.mark.parametrize("transposed", [(False, False), (False, True), (True, False), (True, True)])
@pytest.mark.parametrize("c_shape", [None, (), (33,), (1, 33), (-1, 1), (-1, 33)])
def test_gemm(
    device: Device, m: int, transposed: tuple[bool, bool], c_shape: tuple[int, ...] | None
) -> None:
    a, b = normal(m, 50), normal(50, 33)
    a, b = (np.ascontiguousarray(x.T) if t else x for x, t in zip((a, b), transposed, strict=True))
    c = None if c_shape is None else normal(*(m if n == -1 else n for n in c_shape))
    attrs = {"alpha": 0.5, "beta": 2.0, "a_transpose": transposed[0], "b_transpose": transposed[1]}
    arrays = [a, b, c]
    check(call_of("gemm", arrays, attrs), arrays, device)


@pytest.mark.parametrize(("m", "n", "k"), [(1, 100, 64), (9, 33, 7), (40, 64, 129), (130, 31, 3)])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("c_shape", [None, (-1,), (-2, 1)])
def test_known_weights_are_packed(
    device: Device, m: int, n: int, k: int, turned: bool, c_shape: tuple[int, ...] | None
) -> None:
    sizes = {-1: n, -2: m}
    c = None if c_shape is None else normal(*(sizes.get(s, s) for s in c_shape))
    arrays = [normal(m, k), normal(n, k) if turned else normal(k, n), c]
    attrs = {"alpha": 0.5, "beta": 2.0, "b_transpose": turned}
    call = call_of("gemm", arrays, attrs, constants=(1,))
    assert "grid.gemm.weights" in {found.name for found in grid_kernels(call, device.info)}
    check(call, arrays, device)
    if not turned and c is None:
        check(call_of("matmul", [normal(2, m, k), arrays[1]], constants=(1,)),
              [normal(2, m, k), arrays[1]], device)  # fmt: skip


def test_few_rows_have_a_kernel_of_their_own(device: Device) -> None:
    names = {
        m: [
            k.name
            for k in grid_kernels(call_of("matmul", [normal(m, 9), normal(9, 9)]), device.info)
        ]
        for m in (1, 8, 9)
    }
    assert names == {
        1: ["grid.matmul.few_rows"],
        8: ["grid.matmul.few_rows"],
        9: ["grid.matmul.tiled"],
    }


CONVOLUTIONS: list[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
    ((2, 6, 12, 13), (8, 3, 3, 2), {"groups": 2, "padding": [1, 0, 2, 1], "strides": [2, 1]}),
    ((1, 5, 20, 21), (7, 5, 3, 3), {"padding": [2, 2, 2, 2], "dilations": [2, 2]}),
    ((1, 70, 5, 5), (130, 70, 3, 3), {"padding": [1, 1, 1, 1]}),
    ((1, 3, 9, 70), (4, 3, 1, 7), {"strides": [1, 3]}),
    ((3, 8, 7, 7), (16, 4, 1, 1), {"groups": 2}),
    ((2, 8, 9, 13), (16, 1, 3, 3), {"groups": 8, "padding": [1, 0, 1, 0], "strides": [2, 2]}),
    ((2, 3, 31, 31), (30, 3, 7, 7), {"padding": [3, 3, 3, 3], "strides": [2, 2]}),
    ((1, 9, 7, 7), (25, 9, 1, 1), {}),
    ((1, 9, 4, 4), (25, 9, 1, 1), {"strides": [3, 2]}),
    ((1, 4, 30, 66), (4, 1, 5, 5), {"groups": 4, "padding": [2, 2, 2, 2], "dilations": [1, 2]}),
]


@pytest.mark.parametrize(("shape", "filter_shape", "attrs"), CONVOLUTIONS)
@pytest.mark.parametrize("constant", [True, False])
def test_convolutions(
    device: Device,
    shape: tuple[int, ...],
    filter_shape: tuple[int, ...],
    attrs: dict[str, Any],
    constant: bool,
) -> None:
    arrays = [normal(*shape), normal(*filter_shape), normal(filter_shape[0])]
    call = call_of("conv2d", arrays, attrs, constants=(1, 2) if constant else ())
    check(call, arrays, device)
    check(call, arrays, device, info=as_gpu(device.info))


@pytest.mark.parametrize("layout", ["oihw", "hwio", "ohwi", "ihwo"])
@pytest.mark.parametrize("window", [1, 3])
def test_channels_last(device: Device, layout: str, window: int) -> None:
    sizes = {"o": 10, "i": 6, "h": window, "w": window}
    arrays = [normal(2, 9, 8, 6), normal(*(sizes[axis] for axis in layout)), None]
    attrs = {"input_layout": "nhwc", "filter_layout": layout, "padding": [window // 2] * 4}
    check(call_of("conv2d", arrays, attrs), arrays, device)


def test_a_constant_filter_in_another_layout_is_packed(device: Device) -> None:
    arrays = [normal(1, 9, 8, 6), normal(3, 3, 6, 10), None]
    attrs = {"input_layout": "nhwc", "filter_layout": "hwio"}
    for constants, unused in (((1,), {1}), ((), set())):
        call = call_of("conv2d", arrays, attrs, constants)
        (kernel,) = grid_kernels(call, device.info)
        lowered = kernel.lower(call, device.info)
        assert lowered.unused == unused
        assert len(lowered.packs) == 1 + len(unused)
        (got,) = execute(lowered, call, arrays, device)
        want = table.op("conv2d").run(np, *arrays, **call.attrs)
        np.testing.assert_allclose(got, want, atol=1e-4)


def test_few_candidates_for_each_convolution(device: Device) -> None:
    """Nothing is built and measured that cannot win."""
    for shape, filter_shape, attrs in CONVOLUTIONS:
        arrays = [normal(*shape), normal(*filter_shape), None]
        call = call_of("conv2d", arrays, attrs)
        shapes = 3 if attrs.get("groups", 1) == shape[1] else 1  # of a depthwise one's blocks
        assert len(grid_kernels(call, device.info)) <= shapes
        assert len(grid_kernels(call, as_gpu(device.info))) == 1


@given(
    out=st.integers(1, 12),
    window=st.integers(1, 5),
    stride=st.integers(1, 4),
    dilation=st.integers(1, 3),
    before=st.integers(0, 4),
)
def test_phases_hold_every_meeting_of_result_and_tap_once(
    out: int, window: int, stride: int, dilation: int, before: int
) -> None:
    met = []
    for phase in phases(out, window, stride, dilation, before):
        for i in range(phase.count):
            for t, away in enumerate(phase.away):
                met.append((phase.first + i * stride, phase.tap + t * phase.every, i + away))
    want = [
        (o, k, (o + before - k * dilation) // stride)
        for o in range(out)
        for k in range(window)
        if (o + before - k * dilation) % stride == 0
    ]
    assert sorted(met) == sorted(want)


def test_tiles_fit_the_device(device: Device) -> None:
    info = as_gpu(device.info)
    small = replace(info, local_memory=12 << 10, max_work_group=256)
    assert grid_product.TILES[0] not in grid_product.fitting(small)
    panels = grid_panels.fitting(replace(info, local_memory=32 << 10))
    assert [(t.tm, t.tn) for t in panels] == [(48, 32)]
    none = replace(device.info, local_memory=1 << 10)
    arrays = [normal(20, 20), normal(20, 20)]
    assert "too little local memory" in table.candidates(call_of("matmul", arrays), none).reason()


def test_the_tile_that_wastes_least_is_chosen(device: Device) -> None:
    card = replace(as_gpu(device.info), compute_units=100)
    assert choose(grid_product.TILES, 16, 40_960, 1, card).tm == 16
    assert choose(grid_product.TILES, 4096, 4096, 1, card).tm == 128
    assert choose(grid_product.TILES, 512, 512, 1, card).tm == 64
