"""Winograd convolution on the host: its matrices, its kernels, its guard."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

import crossdock as xd
from crossdock.kernels import cpu_winograd, table
from crossdock.kernels.cpu_conv_pack import TileShape
from crossdock.kernels.cpu_winograd import Layer, plan_of
from crossdock.kernels.cpu_winograd_error import error_of
from crossdock.kernels.cpu_winograd_math import Matrix, filtering
from crossdock.runtime.tensor import Array
from tests.kernels.cpu_run import call_of, check, device

FORMS = [(4, 3), (2, 3), (2, 5)]
ERROR = 1e-5


def drawn(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def times(matrix: Matrix, values: list[Fraction]) -> list[Fraction]:
    return [sum((x * y for x, y in zip(row, values, strict=True)), Fraction(0)) for row in matrix]


@pytest.mark.parametrize(("m", "r"), FORMS)
def test_the_matrices_give_the_exact_convolution(m: int, r: int) -> None:
    f = filtering(m, r)
    taps = [Fraction(3 * i + 1, 7) for i in range(r)]
    pixels = [Fraction((5 * i * i) % 11 - 4) for i in range(f.n)]
    pairs = zip(times(f.filter, taps), times(f.image, pixels), strict=True)
    products = [a * b for a, b in pairs]
    want = [sum(taps[k] * pixels[i + k] for k in range(r)) for i in range(m)]
    assert times(f.result, products) == want


@pytest.mark.parametrize(("m", "r"), FORMS)
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("batch", "channels", "outputs", "height", "width", "groups"),
    [
        (1, 8, 8, 5, 5, 1),  # one vector of tiles, mostly padding
        (2, 9, 21, 13, 27, 1),  # odd everything
        (1, 16, 24, 40, 9, 2),
        (3, 8, 40, 7, 7, 1),  # tile rows of several images in one vector
        (1, 10, 8, 6, 130, 1),
    ],
)
def test_convolution(
    m: int, r: int, threads: int, batch: int, channels: int, outputs: int, height: int,
    width: int, groups: int,
) -> None:  # fmt: skip
    image = drawn(batch, channels * groups, height, width)
    arrays = [image, drawn(outputs * groups, channels, r, r, seed=1), drawn(outputs * groups)]
    name = f"cpu.conv2d.winograd-{m}x{r}"
    for padding in ([r // 2] * 4, [0, 1, 2, 0], [0] * 4):
        attrs = {"padding": padding, "groups": groups}
        check("conv2d", arrays, attrs, (1,), name=name, tolerance=ERROR, threads=threads)
    bare = [*arrays[:2], None]
    attrs = {"groups": groups}
    check("conv2d", bare, attrs, (1,), name=name, tolerance=ERROR, threads=threads)


@pytest.mark.parametrize("tile", [TileShape(4, 8, 3, 512), TileShape(8, 4, 3, 256)], ids=str)
def test_tiles_of_other_processors(tile: TileShape, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_winograd, "tile_shape", lambda: tile)
    arrays = [drawn(2, 11, 19, 21), drawn(13, 11, 3, 3, seed=1), drawn(13)]
    for m in (2, 4):
        name = f"cpu.conv2d.winograd-{m}x3"
        check("conv2d", arrays, {"padding": [1] * 4}, (1,), name=name, tolerance=ERROR)


def test_parts_that_leave_the_cache_are_done_one_after_the_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cpu_winograd, "STAGE_BYTES", 1 << 15)
    layer = Layer(4, 3, 1, 1, 12, 30, 25, 25)
    assert plan_of(layer, 1).units > 1
    arrays = [drawn(1, 12, 25, 25), drawn(30, 12, 3, 3, seed=1), None]
    name = "cpu.conv2d.winograd-4x3"
    check("conv2d", arrays, {"padding": [1] * 4}, (1,), name=name, tolerance=ERROR)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_every_tile_row_and_channel_is_done_once(threads: int) -> None:
    for height, outputs, batch in ((224, 64, 1), (14, 512, 1), (7, 320, 8), (3, 9, 1)):
        layer = Layer(4, 3, batch, 1, 16, outputs, height, height)
        plan = plan_of(layer, threads)
        rows = batch * layer.tiles[0]
        assert 1 <= plan.units <= rows
        assert (plan.parts - 1) * plan.part_rows < outputs <= plan.parts * plan.part_rows
        assert plan.items <= threads
        if outputs == 64 and threads == 2:
            assert plan.jobs % threads == 0, "half of the rows of tiles each"


def test_a_layer_over_the_bound_uses_another_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = [drawn(1, 32, 8, 8), drawn(32, 32, 3, 3, seed=1), None]
    call = call_of("conv2d", arrays, {"padding": [1] * 4}, (1,))
    measured = error_of(call.constants[1], 4, 3)
    assert 1e-8 < measured < ERROR
    monkeypatch.setenv("CROSSDOCK_FAST_ERROR", repr(measured / 2))
    why = dict(table.candidates(call, device().info).rejected)["cpu.conv2d.winograd-4x3"]
    assert f"{measured:.1e}" in why
    monkeypatch.setenv("CROSSDOCK_FAST_ERROR", "0")
    found = table.candidates(call, device().info)
    assert not [k for k in found.fitting if "winograd" in k.name]
    assert "exact" in dict(found.rejected)["cpu.conv2d.winograd-2x3"]


def test_the_error_is_that_of_the_kernel() -> None:
    """The guard's figure and the kernel's own error are alike."""
    image, kernel = drawn(1, 256, 16, 16), drawn(64, 256, 3, 3, seed=1)
    guess = error_of(kernel, 4, 3)
    name = "cpu.conv2d.winograd-4x3"
    check("conv2d", [image, kernel, None], {}, (1,), name=name, tolerance=8 * guess)
    with pytest.raises(AssertionError):
        check("conv2d", [image, kernel, None], {}, (1,), name=name, tolerance=guess / 30)


def test_a_strict_session_uses_exact_kernels() -> None:
    b = xd.GraphBuilder("strict")
    x = b.input("x", (1, 64, 40, 40))
    graph = b.build({"y": b.conv2d(x, b.constant(drawn(64, 64, 3, 3)), padding=[1] * 4)})
    image = drawn(1, 64, 40, 40)
    image[0, 0, 20, 20] = np.inf
    names, results = [], []
    for strict in (False, True):
        with xd.compile(graph, "cpu:0", threads=1, strict=strict) as session:
            names += [step.kernel for step in session.plan.launches()]
            results.append(session.run({"x": image})["y"])
    assert "winograd" in names[0]
    assert "winograd" not in names[1]
    touched = ~np.isfinite(results[1])
    assert touched[0, :, 19:22, 19:22].all()
    assert touched.sum() == 9 * 64
    tile = np.zeros_like(touched)
    tile[0, :, 14:27, 14:27] = True  # a tile of F(4, 3) is 6 x 6
    assert np.isfinite(results[0][~tile]).all()
