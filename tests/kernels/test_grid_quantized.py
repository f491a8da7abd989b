"""Products and convolutions of bytes on a grid: exactly the op's meaning, by every kernel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from crossdock.devices.base import Device, DeviceInfo
from crossdock.kernels import grid_quantized_product, table
from crossdock.kernels.grid_quantized_matmul import packed
from crossdock.kernels.grid_quantized_words import FLOAT_TERMS, POCL
from crossdock.runtime.tensor import Array
from tests.kernels.grid_run import as_gpu, call_of, execute, grid_kernels, opencl_ids, opened

OPERANDS = {"matmul_integer": 4, "conv_integer": 4, "quantized_matmul": 8, "quantized_conv2d": 8}


@pytest.fixture(scope="module", params=opencl_ids())
def device(request: pytest.FixtureRequest) -> Device:
    return opened(request.param)


def full(shape: tuple[int, ...], dtype: str, seed: int = 0) -> Array:
    ends = np.iinfo(dtype)
    rng = np.random.default_rng(seed + sum(shape))
    return rng.integers(ends.min, ends.max + 1, shape).astype(dtype)


def after(channels: int, size: float, out: str | None) -> list[Array | None]:
    """Bias, offset and the result's zero point; results are spread over its range and beyond."""
    rng = np.random.default_rng(channels)
    bias = rng.integers(-5000, 5000, channels).astype(np.int32)
    return [bias, rng.uniform(-3, 3, channels).astype(np.float32), out and full((), out)]


def scales(channels: int, terms: int) -> Array:
    rng = np.random.default_rng(terms)
    made = rng.uniform(0.1, 3, channels) * 80 / (300 * np.sqrt(terms))
    return made.astype(np.float32)


def ways(device: Device) -> list[DeviceInfo]:
    """The device as it is; the first one as a card, too, whose texts PoCL builds for seconds."""
    first = device.info.id == opencl_ids()[0]
    return [device.info, as_gpu(device.info)] if first else [device.info]


def check(
    op: str,
    given: Sequence[Array | None],
    device: Device,
    attrs: dict[str, Any] | None = None,
    constants: Sequence[int] = (),
    infos: Sequence[DeviceInfo] = (),
) -> set[str]:
    """Run every kernel that fits on a device in these ways; the last parts of their names."""
    arrays = [*given, *[None] * (OPERANDS[op] - len(given))]
    call = call_of(op, arrays, attrs, constants)
    want = table.op(op).run(np, *arrays, **call.attrs)
    ran = set()
    for info in infos or ways(device):
        kernels = grid_kernels(call, info)
        assert kernels, table.candidates(call, info).reason()
        for kernel in kernels:
            (got,) = execute(kernel.lower(call, info), call, arrays, device)
            np.testing.assert_array_equal(got, want, err_msg=f"{kernel.name} on {info.details}")
            ran.add(kernel.name.rpartition(".")[2])
    return ran


CARD = "each, on a card"


def there(device: Device, names: set[str]) -> set[str]:
    """The names of kernels, of which a card's run in some ways alone."""
    card = {"each"} if CARD in names and len(ways(device)) > 1 else set()
    return (names - {CARD}) | card


SLOW = pytest.mark.slow
BOTH = ("uint8", "int8")
PAIRS = [
    pytest.param((a, b), id=f"{a}-{b}", marks=() if (a, b) == BOTH else SLOW)
    for a in BOTH
    for b in BOTH
]


@pytest.mark.parametrize("types", PAIRS)
@pytest.mark.parametrize(
    "size", [(1, 5, 3), pytest.param((35, 70, 33), marks=SLOW), (130, 129, 66)]
)
def test_matrices_of_ragged_sizes(
    device: Device, types: tuple[str, str], size: tuple[int, int, int]
) -> None:
    m, n, k = size
    given = [full((m, k), types[0]), full((k, n), types[1])]
    given += [full((), types[0]), full((n,), types[1])]
    if (m, n, k) == (1, 5, 3):
        assert check("matmul_integer", given, device) == {"tiled"}
    assert check("matmul_integer", given, device, constants=(1, 3)) == {"tiled", "weights"}


@pytest.mark.parametrize(
    ("shapes", "names"),
    [
        (((3, 17, 40), (3, 40, 20), (17, 1), (3, 1, 20)), {"tiled"}),
        (((2, 1, 17, 40), (3, 40, 20), (2, 1, 17, 1), (1,)), {"tiled"}),
        (((2, 3, 1, 40), (2, 1, 40, 20), (), (20,)), {"tiled"}),
        (((2, 3, 17, 40), (40, 20), (2, 3, 17, 1), (20,)), {"tiled", "weights"}),
        (((2, 3, 17, 40), (40, 20), (3, 17, 1), (20,)), {"tiled"}),
        (((2, 1, 1, 2, 5, 9), (2, 1, 2, 1, 9, 6), (), ()), {"tiled"}),
        (((17, 40), (40, 20), (17, 40), (20,)), {"tiled", "weights", CARD}),
        (((17, 40), (40, 20), (), (40, 1)), {"tiled", "weights", CARD}),
        (((3, 17, 40), (40, 20), (), (40, 20)), {"tiled", "weights", CARD}),
        (((66000, 1, 4), (66000, 4, 1), (), ()), {"each"}),
    ],
)
def test_batches_and_zero_points_of_any_shape(
    device: Device, shapes: Sequence[tuple[int, ...]], names: set[str]
) -> None:
    given = [full(s, t) for s, t in zip(shapes, ("uint8", "int8") * 2, strict=True)]
    assert check("matmul_integer", given, device, constants=(1, 3)) == there(device, names)


@pytest.mark.parametrize(
    "out", ["uint8", pytest.param("int8", marks=SLOW), pytest.param(None, marks=SLOW)]
)
def test_what_follows_a_product_of_matrices(device: Device, out: str | None) -> None:
    for one, bounds in ((False, {}), (True, {"min_value": -20.5, "max_value": 31.25})):
        a, b = full((33, 70), "uint8"), full((70, 45), "int8")
        channels = 1 if one else 45
        given = [a, b, scales(channels, 70), full((), "uint8"), full((), "int8")]
        given += after(channels, 70, out)
        known = (1, 4) if one else ()
        check("quantized_matmul", given, device, bounds, known)


def test_halves_are_rounded_to_even(device: Device) -> None:
    a = np.arange(-60, 61, dtype=np.int8)[:, None]
    b, scale = np.array([[1, 3]], np.int8), np.array([0.5], np.float32)
    given = [a, b, scale, None, None, None, None, np.array(3, np.int8)]
    check("quantized_matmul", given, device, constants=(1,))


def test_a_product_is_rounded_before_the_offset_is_added(device: Device) -> None:
    """A fused multiply-add keeps bits of the product that the op's meaning has not."""
    a, b = full((40, 64), "uint8"), full((64, 32), "int8")
    scale = np.full(32, 0.1, np.float32)
    offset = -(np.matmul(a.astype(np.float32), b) * np.float32(0.1))[0]
    check("quantized_matmul", [a, b, scale, None, None, None, offset], device, constants=(1,))


def test_sums_pass_what_floats_hold_and_wrap(device: Device) -> None:
    for terms in (FLOAT_TERMS + 1, 1000, 40000):
        a, b = np.full((3, terms), 255, np.uint8), np.full((terms, 2), 255, np.uint8)
        check("matmul_integer", [a, b], device, constants=(1,))
    want = table.op("matmul_integer").run(np, a, b, None, None)
    assert int(want[0, 0]) < 0


GENERAL = {"padding": [1, 0, 1, 2], "strides": [2, 1], "dilations": [1, 2], "groups": 2}
WINDOWS = [
    pytest.param((GENERAL, (2, 6, 9, 21), (18, 3, 3, 3)), id="general"),
    pytest.param(({"padding": [1, 1, 1, 1]}, (1, 9, 12, 7), (6, 9, 3, 2)), id="odd", marks=SLOW),
    pytest.param(({}, (2, 16, 5, 13), (40, 16, 1, 1)), id="1x1", marks=SLOW),
    pytest.param(
        ({"padding": [2, 1, 0, 3], "strides": [1, 2], "groups": 4}, (2, 4, 9, 37), (8, 1, 3, 3)),
        id="depthwise",
    ),
]
"""Attributes, image and filter in nchw and oihw."""


@pytest.mark.parametrize("layout", ["nchw", pytest.param("nhwc", marks=SLOW)])
@pytest.mark.parametrize("window", WINDOWS)
def test_convolutions(device: Device, window: Any, layout: str) -> None:
    attrs, image, filters = window
    types = ("uint8", "int8") if layout == "nchw" else ("int8", "uint8")
    x, w = full(image, types[0]), full(filters, types[1])
    outputs, terms = filters[0], w[0].size
    zero = full((outputs, 1, 1, 1), types[1])
    if layout == "nhwc":
        x, w, zero = (np.ascontiguousarray(t.transpose(0, 2, 3, 1)) for t in (x, w, zero))
        attrs = {**attrs, "input_layout": "nhwc", "filter_layout": "ohwi"}
    exact = check("conv_integer", [x, w, full((1,), types[0]), zero], device, attrs)
    first = [x, w, scales(outputs, terms), full((), types[0]), zero]
    given = [*first, *after(outputs, terms, types[0])]
    names = check("quantized_conv2d", given, device, attrs, range(1, 8))
    if attrs.get("groups") == 4:
        assert exact == names == there(device, {"depthwise", CARD})
    else:
        assert exact == {"implicit"}
        assert names == {"implicit", "weights"}


@pytest.mark.parametrize(
    "vector", ["4", pytest.param("8", marks=SLOW), pytest.param("16", marks=SLOW)]
)
def test_words_of_every_compiler_and_vector(device: Device, vector: str) -> None:
    """Pairs without the instruction for them are slow, and the same."""
    infos = [
        replace(device.info, details={**device.info.details, "vector": vector, "platform": name})
        for name in (POCL, "another")
    ]
    given = [full((29, 601), "uint8"), full((601, 50), "int8"), full((29, 1), "uint8")]
    assert "weights" in check("matmul_integer", given, device, {}, (1,), infos)
    x, w = full((1, 5, 8, 9), "int8"), full((20, 5, 3, 3), "uint8")
    window = {"padding": [1, 1, 1, 1]}
    assert "weights" in check("conv_integer", [x, w], device, window, (1,), infos)


def test_weights_lie_in_words_of_signed_bytes() -> None:
    weights = full((7, 5), "uint8")
    words = packed(weights).view(np.int8).reshape(2, 5, 4)
    np.testing.assert_array_equal(words[1, :, :3], weights[4:].T.astype(np.int16) - 128)
    assert not words[1, :, 3].any()


@pytest.mark.slow
def test_large_tiles_are_as_exact(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are for more columns than a test makes."""
    for tile in grid_quantized_product.TILES:
        monkeypatch.setattr(grid_quantized_product, "TILES", (replace(tile, pace=1.0),))
        given = [full((70, 45), "uint8"), full((45, 150), "int8"), full((), "uint8")]
        check("matmul_integer", given, device, infos=[as_gpu(device.info)])
