"""Attention on a grid without scores in memory: chunks of keys, masks, shared heads, odd widths."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from crossdock.devices.base import Device
from crossdock.kernels.spec import OpCall
from crossdock.runtime.tensor import Array
from tests.kernels.grid_run import as_gpu, call_of, check, grid_kernels, opencl_ids, opened

OP = "scaled_dot_product_attention"


@pytest.fixture(scope="module", params=opencl_ids())
def device(request: pytest.FixtureRequest) -> Device:
    return opened(request.param)


def instance(
    sizes: tuple[int, ...], bias: tuple[int, ...] | None = None, **attrs: Any
) -> tuple[OpCall, list[Array | None]]:
    batch, heads, shared, queries, keys, width, out = sizes
    rng = np.random.default_rng(sum(sizes))
    shapes = [(batch, heads, queries, width), (batch, shared, keys, width),
              (batch, shared, keys, out)]  # fmt: skip
    arrays: list[Array | None] = [rng.standard_normal(s).astype(np.float32) for s in shapes]
    arrays.append(None if bias is None else rng.standard_normal(bias).astype(np.float32))
    return call_of(OP, arrays, attrs), arrays


@pytest.mark.parametrize(
    "sizes",
    [(1, 2, 2, 5, 7, 8, 6), (2, 4, 2, 9, 300, 32, 32), (1, 2, 1, 17, 520, 20, 70)],
)
def test_any_sizes(device: Device, sizes: tuple[int, ...]) -> None:
    check(*instance(sizes), device)
    check(*instance(sizes, scale=0.3, softcap=1.5), device)


@pytest.mark.parametrize("bias", [(300,), (9, 300), (4, 1, 1), (2, 1, 1, 300), (2, 4, 9, 300)])
def test_biases_broadcast(device: Device, bias: tuple[int, ...]) -> None:
    check(*instance((2, 4, 2, 9, 300, 32, 32), bias), device)


@pytest.mark.parametrize("offset", [-2, 0, 290])
def test_hidden_keys(device: Device, offset: int) -> None:
    check(*instance((2, 4, 2, 9, 300, 32, 32), causal_offset=offset), device)


def test_a_query_that_sees_nothing_gives_zero(device: Device) -> None:
    call, arrays = instance((1, 2, 2, 5, 270, 16, 16), (5, 270))
    assert arrays[3] is not None
    arrays[3][0] = -np.inf
    arrays[3][:, :260] = -np.inf  # a whole chunk
    check(call, arrays, device)


def test_it_is_for_processors(device: Device) -> None:
    call, _ = instance((1, 2, 2, 5, 7, 8, 6))
    assert [k.name for k in grid_kernels(call, device.info)] == [
        "grid.attention",
        "grid.attention.low",
    ]
    assert grid_kernels(call, as_gpu(device.info)) == []
