"""Convolution and pooling on the host over drawn geometries, against float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from crossdock.kernels import cpu_conv, cpu_conv_panel, table
from crossdock.kernels.cpu_conv_pack import TileShape
from crossdock.kernels.fused import FusedBody, FusedStep
from crossdock.runtime.errors import Error
from crossdock.runtime.tensor import Array
from tests.kernels.cpu_run import call_of, candidate, candidates, check, device, execute

SUM = 3e-6
"""Sums of a few hundred float32 products, relative to the largest."""
TRANSFORMED = 1e-5
"""The same by way of transforms, which lose some bits."""


def drawn(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@st.composite
def windows(draw: st.DrawFn) -> dict[str, Any]:
    """Attributes that window ops share, small enough to fit most images."""
    return {
        "padding": [draw(st.integers(0, 3)) for _ in range(4)],
        "strides": [draw(st.integers(1, 3)) for _ in range(2)],
        "dilations": [draw(st.integers(1, 2)) for _ in range(2)],
    }


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[list[Array | None], dict[str, Any]]:
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    channels, outputs = (groups * draw(st.integers(1, 9)) for _ in range(2))
    image = drawn(draw(st.integers(1, 2)), channels, draw(st.integers(1, 20)), draw(
        st.integers(1, 40)), seed=1)  # fmt: skip
    kernel = drawn(outputs, channels // groups, draw(st.integers(1, 5)), draw(st.integers(1, 5)))
    bias = drawn(outputs, seed=2) if draw(st.booleans()) else None
    return [image, kernel, bias], draw(windows()) | {"groups": groups}


@given(convolutions(), st.booleans())
@settings(max_examples=120)
def test_convolution(case: tuple[list[Array | None], dict[str, Any]], fixed: bool) -> None:
    arrays, attrs = case
    try:
        call = call_of("conv2d", arrays, attrs)
    except Error:
        assume(False)
    names = [k.name for k in candidates(call) if k.name.startswith("cpu.")]
    assert "cpu.conv2d.panel" in names
    for name in names:
        constants = (1,) if fixed else ()
        tolerance = TRANSFORMED if "winograd" in name else SUM
        check("conv2d", arrays, attrs, constants, name=name, tolerance=tolerance)


@given(convolutions())
@settings(max_examples=100)
def test_transposed_convolution(case: tuple[list[Array | None], dict[str, Any]]) -> None:
    (image, kernel, bias), attrs = case
    assert image is not None
    assert kernel is not None
    groups = attrs["groups"]
    turned = drawn(image.shape[1], kernel.shape[0] // groups, *kernel.shape[2:], seed=3)
    arrays = [image if groups == 1 else image[:1], turned, bias]
    try:
        call_of("conv_transpose2d", arrays, attrs)
    except Error:
        assume(False)
    for threads in (1, 2):
        check(
            "conv_transpose2d", arrays, attrs, name="cpu.conv_transpose2d", tolerance=SUM,
            threads=threads,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("channels", "outputs", "size", "window"),
    [(300, 33, 7, 1), (90, 17, 9, 3), (16, 130, 14, 3), (2, 4, 60, 7)],
)
@pytest.mark.parametrize("threads", [1, 2])
def test_convolution_in_blocks(
    channels: int, outputs: int, size: int, window: int, threads: int
) -> None:
    """More taps than a block holds, tiles and vectors that are not whole, shared panels."""
    image, kernel = drawn(1, channels, size, size), drawn(outputs, channels, window, window)
    attrs = {"padding": [window // 2] * 4}
    check(
        "conv2d", [image, kernel, drawn(outputs)], attrs, (1,),
        name="cpu.conv2d.panel", tolerance=1e-5, threads=threads,
    )  # fmt: skip


def test_a_wide_filter_shares_panels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_conv, "tile_shape", lambda: TileShape(8, 4, 3, 256))
    arrays = [drawn(1, 256, 7, 7), drawn(512, 256, 1, 1), None]
    shape = cpu_conv.geometry(call_of("conv2d", arrays), threads=1)
    assert 1 < shape["share"] <= cpu_conv_panel.SHARE
    check("conv2d", arrays, {}, (1,), name="cpu.conv2d.panel", tolerance=SUM)


@pytest.mark.parametrize(
    "tile", [TileShape(16, 8, 3, 128), TileShape(4, 4, 3, 512), TileShape(4, 8, 3, 60)], ids=str
)
@pytest.mark.parametrize("window", [1, 3])
def test_tiles_of_other_processors(
    tile: TileShape, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_conv, "tile_shape", lambda: tile)
    arrays = [drawn(2, 70, 11, 13), drawn(37, 70, window, window), drawn(37, seed=2)]
    for stride in (1, 2, 3):
        attrs = {"padding": [window // 2] * 4, "strides": [stride] * 2}
        check("conv2d", arrays, attrs, (1,), name="cpu.conv2d.panel", tolerance=1e-5)


def test_a_constant_filter_is_packed_once() -> None:
    arrays = [drawn(1, 4, 8, 8), drawn(4, 4, 3, 3), None]
    info = device().info
    for constants, steps, packs in (((1,), 1, 1), ((), 2, 0)):
        call = call_of("conv2d", arrays, {}, constants)
        lowered = candidate(call, "cpu.conv2d.panel").lower(call, info)
        assert (len(lowered.steps), len(lowered.packs)) == (steps, packs)
        assert lowered.unused == frozenset(constants)


def test_other_layouts_are_refused_with_the_reason() -> None:
    image, kernel = drawn(1, 8, 8, 4), drawn(4, 4, 3, 3)
    call = call_of("conv2d", [image, kernel], {"input_layout": "nhwc"})
    why = dict(table.candidates(call, device().info).rejected)
    assert "not nchw and oihw" in why["cpu.conv2d.panel"]


@given(windows(), st.integers(1, 4), st.integers(1, 4), st.integers(7, 30), st.integers(7, 45))
@settings(max_examples=60)
@pytest.mark.parametrize("op", ["max_pool2d", "average_pool2d", "l2_pool2d"])
def test_pooling(op: str, attrs: dict[str, Any], kh: int, kw: int, height: int, width: int) -> None:
    top, bottom, left, right = attrs["padding"]
    attrs = attrs | {
        "window_dimensions": [kh, kw],
        # Less than the window: none lies outside of the image.
        "padding": [min(top, kh - 1), min(bottom, kh - 1), min(left, kw - 1), min(right, kw - 1)],
    }
    image = drawn(2, 3, height, width)
    names = {k.name for k in candidates(call_of(op, [image], attrs))}
    assert f"cpu.{op}.window" in names
    for name in names & {f"cpu.{op}.window", f"cpu.{op}.lines"}:
        check(op, [image], attrs, name=name, tolerance=SUM)


@pytest.mark.parametrize("padded", [False, True])
def test_average_counts(padded: bool) -> None:
    attrs = {
        "window_dimensions": [3, 3],
        "strides": [2, 2],
        "padding": [1, 1, 1, 1],
        "output_shape_rounding": "ceil",
        "count_include_pad": padded,
    }
    for name in ("window", "lines"):
        kernel = f"cpu.average_pool2d.{name}"
        check("average_pool2d", [drawn(1, 2, 14, 20)], attrs, name=kernel, tolerance=SUM)


def test_a_wide_window_is_a_loop() -> None:
    attrs = {"window_dimensions": [9, 11], "padding": [4, 4, 5, 5]}
    name = "cpu.max_pool2d.window"
    check("max_pool2d", [drawn(1, 2, 20, 30)], attrs, name=name)


def test_max_pooling_propagates_nan() -> None:
    image = drawn(1, 1, 9, 9)
    image[0, 0, 4, 4] = np.nan
    call = call_of("max_pool2d", [image], {"window_dimensions": [3, 3]})
    for name in ("window", "lines"):
        (got,) = execute(candidate(call, f"cpu.max_pool2d.{name}"), call, [image])
        assert np.isnan(got).sum() == 9


@pytest.mark.parametrize("op", ["max_pool2d", "average_pool2d", "l2_pool2d"])
@pytest.mark.parametrize("size", [(7, 7), (1, 1), (20, 31)])
def test_pooling_of_whole_images(op: str, size: tuple[int, int]) -> None:
    check(op, [drawn(2, 5, *size)], {}, name=f"cpu.{op}.global", tolerance=SUM)


@pytest.mark.parametrize("mode", ["nearest-neighbor", "linear"])
@pytest.mark.parametrize("sizes", [(14, 18), (5, 4), (7, 9), (21, 33)])
def test_resampling(mode: str, sizes: tuple[int, int]) -> None:
    attrs = {"mode": mode, "sizes": list(sizes)}
    for threads in (1, 2):
        check(
            "resample2d", [drawn(2, 3, 7, 9)], attrs, name="cpu.resample2d", tolerance=SUM,
            threads=threads,
        )  # fmt: skip


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_resizing(mode: str) -> None:
    attrs = {"mode": mode, "sizes": [2, 3, 15, 20]}
    check("resize", [drawn(2, 3, 7, 9)], attrs, name="cpu.resize", tolerance=SUM)


@pytest.mark.parametrize("beta", [0.75, 0.5])
@pytest.mark.parametrize("size", [1, 4, 5])
def test_local_response_normalisation(beta: float, size: int) -> None:
    attrs = {"size": size, "beta": beta, "alpha": 0.5, "bias": 2.0}
    check("lrn", [drawn(2, 9, 5, 7)], attrs, name="cpu.lrn", tolerance=SUM)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(
    ("channels", "outputs", "size", "groups"),
    [(300, 33, 7, 1), (9, 17, 33, 1), (12, 12, 30, 12), (16, 24, 20, 2)],
)
def test_what_follows_a_convolution(
    channels: int, outputs: int, size: int, groups: int, residual: bool
) -> None:
    """Every kernel, one block of taps and several, whole tiles and edges."""
    image, kernel = drawn(2, channels, size, size), drawn(outputs, channels // groups, 3, 3)
    beside = drawn(2, outputs, size, size, seed=5) if residual else None
    one, two = ("float32",), ("float32", "float32")
    steps = (FusedStep("relu", {}, (-1 if residual else 0,), "float32", one),)
    if residual:
        steps = (FusedStep("add", {}, (0, 1), "float32", two), *steps)
    attrs = {"padding": [1] * 4, "groups": groups, "body": FusedBody(steps)}
    arrays = [image, kernel, drawn(outputs, seed=2), beside]
    attrs = {**call_of("conv2d", arrays[:3], {k: attrs[k] for k in ("padding", "groups")}).attrs,
             "body": attrs["body"]}  # fmt: skip
    names = {k.name for k in candidates(call_of("fused_conv2d", arrays, attrs, (1,)))} - {"array"}
    assert "cpu.conv2d.panel" in names
    for name in names:
        for threads in (1, 2):
            check(
                "fused_conv2d", arrays, attrs, (1,), name=name, tolerance=TRANSFORMED,
                threads=threads,
            )  # fmt: skip


@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2), (3, 1)])
def test_a_column_of_pixels(stride: int, dilation: int) -> None:
    arrays = [drawn(2, 20, 45, 1), drawn(18, 20, 5, 1), drawn(18)]
    attrs = {"padding": [2, 1, 0, 0], "strides": [stride, 1], "dilations": [dilation, 1]}
    for name in ("cpu.conv2d.panel", "cpu.conv2d.small"):
        check("conv2d", arrays, attrs, (1,), name=name, tolerance=SUM)


@pytest.mark.parametrize("down", [1, 2])
@pytest.mark.parametrize("window", [(3, 3), (5, 5), (1, 5), (4, 2)])
@pytest.mark.parametrize(("size", "threads"), [((7, 7), 1), ((1, 1), 2), ((13, 33), 2)])
def test_depthwise_by_rows(
    window: tuple[int, int], size: tuple[int, int], threads: int, down: int
) -> None:
    image, kernel = drawn(2, 6, *size), drawn(12, 1, *window, seed=1)
    top, left = window[0] // 2, window[1] // 2
    for padding in ([top, top, left, left], [window[0] - 1, 0, 0, window[1] - 1]):
        attrs = {"padding": padding, "groups": 6, "strides": [down, 1]}
        for bias in (None, drawn(12, seed=2)):
            check(
                "conv2d", [image, kernel, bias], attrs, name="cpu.conv2d.depthwise-rows",
                tolerance=SUM, threads=threads,
            )  # fmt: skip
