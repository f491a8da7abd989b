"""Convolution of small images on the host, with channels as lanes."""

from __future__ import annotations

import numpy as np
import pytest

from crossdock.kernels import cpu_conv, cpu_conv_small, table
from crossdock.kernels.cpu_conv_pack import TileShape
from crossdock.runtime.tensor import Array
from tests.kernels.cpu_run import call_of, candidate, check, device

NAME = "cpu.conv2d.small"
SUM = 3e-6


def drawn(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("batch", "channels", "outputs", "size", "window", "stride", "groups"),
    [
        (1, 130, 40, 7, 1, 1, 1),  # several blocks of taps, a tile that is not whole
        (2, 30, 33, 7, 3, 1, 1),
        (1, 16, 64, 14, 3, 2, 1),  # one part of the pixels
        (1, 20, 48, 15, 1, 1, 1),  # several parts of the pixels
        (3, 5, 16, 6, 5, 1, 2),
        (1, 40, 17, 1, 1, 1, 1),
    ],
)
def test_convolution(
    threads: int, batch: int, channels: int, outputs: int, size: int, window: int, stride: int,
    groups: int,
) -> None:  # fmt: skip
    arrays = [
        drawn(batch, channels * groups, size, size),
        drawn(outputs * groups, channels, window, window, seed=1),
        drawn(outputs * groups, seed=2),
    ]
    attrs = {"padding": [window // 2] * 4, "strides": [stride] * 2, "groups": groups}
    check("conv2d", arrays, attrs, (1,), name=NAME, tolerance=SUM, threads=threads)
    check("conv2d", [*arrays[:2], None], attrs, (1,), name=NAME, tolerance=SUM, threads=threads)


@pytest.mark.parametrize("tile", [TileShape(4, 8, 3, 512), TileShape(8, 4, 3, 256)], ids=str)
def test_tiles_of_other_processors(tile: TileShape, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (cpu_conv, cpu_conv_small):
        monkeypatch.setattr(module, "tile_shape", lambda: tile)
    arrays = [drawn(2, 33, 7, 9), drawn(37, 33, 3, 3, seed=1), drawn(37, seed=2)]
    check("conv2d", arrays, {"padding": [1] * 4}, (1,), name=NAME, tolerance=SUM)


def test_large_images_and_few_channels_are_refused_with_the_reason() -> None:
    for image, kernel, words in (
        (drawn(1, 4, 40, 40), drawn(32, 4, 3, 3), "pixels"),
        (drawn(1, 4, 7, 7), drawn(5, 4, 3, 3), "channels"),
    ):
        call = call_of("conv2d", [image, kernel], {}, (1,))
        assert words in dict(table.candidates(call, device().info).rejected)[NAME]


def test_jobs_fill_the_threads() -> None:
    call = call_of("conv2d", [drawn(1, 8, 7, 7), drawn(300, 8, 1, 1)], {}, (1,))
    form = cpu_conv_small.form_of(cpu_conv_small.epilogue_of(call)[0])
    for threads in (1, 2, 4):
        found = cpu_conv_small.small_geometry(call, form, threads)
        assert found["items"] == threads
        assert (found["parts"] - 1) * found["part_tiles"] < found["tiles"]
        assert found["tiles"] <= found["parts"] * found["part_tiles"]
    assert candidate(call, NAME).name == NAME
