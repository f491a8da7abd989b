"""Products of bytes on the host: every unit of instructions, exactly the op's meaning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossdock.devices.base import DeviceInfo
from crossdock.devices.cpu_llvm import host_features
from crossdock.devices.program import Lowered
from crossdock.kernels import (
    cpu_quantized_conv,
    cpu_quantized_depthwise,
    cpu_quantized_matmul,
    table,
)
from crossdock.kernels.cpu_dots import Unit, tile_unit, vector_unit
from crossdock.kernels.spec import Kernel, OpCall
from crossdock.runtime.tensor import Array
from tests.kernels import cpu_run

X86 = "sse2" in host_features()
UNITS: dict[str, Unit] = {
    "best": vector_unit(),
    "plain": vector_unit(frozenset()),
    **({"sse2": vector_unit(frozenset({"sse2"}))} if X86 else {}),
}
if "avx2" in host_features():
    UNITS["avx2"] = vector_unit(frozenset({"sse2", "avx2"}))
if "avxvnni" in host_features():
    UNITS["avxvnni"] = vector_unit(frozenset({"sse2", "avx2", "avxvnni"}))
if {"avx512f", "avx512bw", "avx512vl"} <= host_features():
    UNITS["avx512"] = vector_unit(frozenset({"avx512f", "avx512bw", "avx512vl"}))
if (TILES := tile_unit()) is not None:
    UNITS["tiles"] = TILES
    UNITS["tiles-no-compress"] = replace(TILES, compress=False)

MODULES = {"quantized_conv2d": cpu_quantized_conv, "quantized_matmul": cpu_quantized_matmul}


def kernel_of(op: str, unit: Unit) -> Kernel:
    module: Any = MODULES[op]

    def lower(call: OpCall, device: DeviceInfo) -> Lowered:
        made: Lowered = module.lowered(call, device.compute_units, unit)
        return made

    return Kernel("unit", op, frozenset({"cpu"}), lambda *_: None, lower)


def full(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Array:
    ends = np.iinfo(dtype)
    return rng.integers(ends.min, ends.max + 1, shape).astype(dtype)


def operands(
    rng: np.random.Generator, x: Array, w: Array, channels: int, output: str
) -> list[Array | None]:
    """Scales that spread results over and beyond the result's range; every parameter there is."""
    size = 300.0 * np.sqrt(w.size / channels)
    scale = rng.uniform(0.1, 3, channels).astype(np.float32) * np.float32(80 / size)
    zero = None if output == "float32" else full(rng, (), output)
    return [
        x, w, scale, full(rng, (), str(x.dtype)), full(rng, (), str(w.dtype)),
        rng.integers(-5000, 5000, channels).astype(np.int32),
        rng.uniform(-3, 3, channels).astype(np.float32), zero,
    ]  # fmt: skip


def check(
    op: str,
    arrays: list[Array | None],
    attrs: dict[str, Any],
    unit: Unit,
    *,
    threads: int = 1,
    runtime: tuple[int, ...] = (0,),
) -> None:
    constants = [i for i in range(len(arrays)) if i not in runtime and arrays[i] is not None]
    call = cpu_run.call_of(op, arrays, attrs, constants)
    want = table.op(op).run(np, *arrays, **call.attrs)
    (got,) = cpu_run.execute(kernel_of(op, unit), call, arrays, threads)
    np.testing.assert_array_equal(got, want)


PAIRS = [(a, b) for a in ("uint8", "int8") for b in ("uint8", "int8")]
MIXED = [("uint8", "int8"), ("int8", "uint8")]
MEET = [
    (unit, types) for unit in UNITS for types in (PAIRS if unit in ("best", "tiles") else MIXED)
]
"""Units and types: every pairing on the units that this processor prefers."""


@pytest.mark.parametrize(("unit", "types"), MEET, ids=str)
def test_convolution_is_exact(unit: str, types: tuple[str, str]) -> None:
    rng = np.random.default_rng(1)
    for output, attrs in (
        ("uint8", {"padding": [1, 0, 2, 1], "strides": [2, 2], "groups": 2}),
        (
            "int8",
            {"padding": [1, 1, 1, 1], "dilations": [1, 2], "min_value": -20.0, "max_value": 50.5},
        ),
        ("float32", {"strides": [3, 3]}),
    ):
        groups = attrs.get("groups", 1)
        x, w = full(rng, (2, 14, 9, 21), types[0]), full(rng, (18, 14 // groups, 3, 3), types[1])
        check("quantized_conv2d", operands(rng, x, w, 18, output), attrs, UNITS[unit])


@pytest.mark.parametrize("unit", [name for name, unit in UNITS.items() if unit.rows < 16])
@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_depthwise_is_exact(unit: str, dtype: str) -> None:
    rng = np.random.default_rng(10)
    for output, attrs, channels, window in (
        ("uint8", {"padding": [1, 1, 1, 1]}, 6, (3, 3)),
        ("int8", {"padding": [1, 0, 2, 1], "strides": [2, 2]}, 12, (3, 5)),
        ("float32", {"strides": [1, 2]}, 6, (2, 1)),
    ):
        x, w = full(rng, (2, 6, 9, 37), dtype), full(rng, (channels, 1, *window), "int8")
        arrays = operands(rng, x, w, channels, output)
        arrays[4] = None
        call = cpu_run.call_of("quantized_conv2d", arrays, attrs | {"groups": 6}, range(1, 8))
        want = table.op(call.op).run(np, *arrays, **call.attrs)

        def lower(given: OpCall, device: DeviceInfo) -> Lowered:
            return cpu_quantized_depthwise.lowered(given, UNITS[unit])

        kernel = Kernel("unit", call.op, frozenset({"cpu"}), lambda *_: None, lower)
        (got,) = cpu_run.execute(kernel, call, arrays, 2)
        np.testing.assert_array_equal(got, want)
        cpu_run.candidate(call, "cpu.quantized_conv2d.depthwise")


@pytest.mark.parametrize(("unit", "types"), MEET, ids=str)
def test_matrices_are_exact(unit: str, types: tuple[str, str]) -> None:
    rng = np.random.default_rng(2)
    for (rows, terms, columns), output in (
        ((35, 132, 70), "uint8"), ((1, 7, 9), "int8"), ((3, 66, 130), "float32"),
    ):  # fmt: skip
        a, b = full(rng, (1, rows, terms), types[0]), full(rng, (terms, columns), types[1])
        arrays = operands(rng, a, b, columns, output)
        check("quantized_matmul", arrays, {}, UNITS[unit], threads=2)


@pytest.mark.parametrize("unit", UNITS)
def test_points_of_an_image(unit: str) -> None:
    rng = np.random.default_rng(3)
    x, w = full(rng, (1, 70, 11, 13), "uint8"), full(rng, (33, 70, 1, 1), "int8")
    check("quantized_conv2d", operands(rng, x, w, 33, "uint8"), {}, UNITS[unit], threads=2)


@pytest.mark.parametrize("op", MODULES)
def test_sums_at_the_edge_of_int32_wrap(op: str) -> None:
    """Bias and products beyond 2^31 wrap as the reference's int32 does."""
    shape = ((1, 64, 2, 2), (3, 64, 1, 1)) if op == "quantized_conv2d" else ((4, 64), (64, 3))
    x, w = np.full(shape[0], 255, np.uint8), np.full(shape[1], -128, np.int8)
    bias = np.array([-(2**31), 2**31 - 1, 0], np.int32)
    arrays = [x, w, np.float32(1e-3).reshape(()), None, None, bias]
    for unit in UNITS.values():
        check(op, list(arrays), {}, unit)


@pytest.mark.parametrize("zero", [0, 1, 128, 255])
@pytest.mark.parametrize("unit", UNITS)
def test_weights_of_nine_bits(unit: str, zero: int) -> None:
    """Unsigned weights less their zero point are up to 255 in size."""
    rng = np.random.default_rng(9)
    a, b = full(rng, (5, 70), "int8"), full(rng, (70, 19), "uint8")
    b[::3], b[1::3] = 255, 0
    one = np.float32(1e-3).reshape(())
    check("quantized_matmul", [a, b, one, None, np.array(zero, np.uint8)], {}, UNITS[unit])


@pytest.mark.parametrize("unit", UNITS)
def test_what_is_known_at_run_time_only(unit: str) -> None:
    rng = np.random.default_rng(4)
    a, b = full(rng, (6, 64), "uint8"), full(rng, (64, 50), "int8")
    arrays = operands(rng, a, b, 50, "float32")
    check("quantized_matmul", arrays, {}, UNITS[unit], runtime=(0, 2, 3, 6))


@pytest.mark.parametrize("unit", UNITS)
def test_halves_go_to_even_and_ends_saturate(unit: str) -> None:
    a = np.arange(-20, 20, dtype=np.int8).reshape(-1, 1) * np.ones((1, 4), np.int8)
    a[:, 1:] = 0
    b = np.array([[1, 127], [0, 0], [0, 0], [0, 0]], np.int8)
    zero = np.array(3, np.int8)
    arrays = [a, b, np.float32(0.5).reshape(()), None, None, None, None, zero]
    call = cpu_run.call_of("quantized_matmul", arrays, {}, (1, 2, 7))
    (got,) = cpu_run.execute(kernel_of("quantized_matmul", UNITS[unit]), call, arrays)
    steps = np.arange(-20, 20)
    np.testing.assert_array_equal(got[:, 0], np.rint(steps / 2) + 3)
    np.testing.assert_array_equal(got[:, 1], np.clip(np.rint(steps * 63.5) + 3, -128, 127))


@pytest.mark.parametrize("op", ["matmul_integer", "conv_integer"])
def test_products_alone_have_kernels(op: str) -> None:
    rng = np.random.default_rng(5)
    left, right = ((9, 40), (40, 11)) if op == "matmul_integer" else ((1, 5, 6, 7), (4, 5, 3, 3))
    arrays = [full(rng, left, "uint8"), full(rng, right, "int8"), full(rng, (), "uint8"), None]
    call = cpu_run.call_of(op, arrays, {}, (1, 2))
    names = [k.name for k in cpu_run.candidates(call) if k.name.startswith("cpu.quantized")]
    assert names
    for name in names:
        cpu_run.check(op, arrays, {}, (1, 2), name=name)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_convolutions_of_any_shape(data: st.DataObject) -> None:
    draw: Callable[..., Any] = data.draw
    seed = draw(st.integers(0, 2**16))
    rng, groups = np.random.default_rng(seed), draw(st.integers(1, 3))
    per, out = draw(st.integers(1, 9)), groups * draw(st.integers(1, 6))
    height, width = draw(st.integers(1, 12)), draw(st.integers(1, 40))
    kh, kw = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    pads = [draw(st.integers(0, 2)) for _ in range(4)]
    dilations = [draw(st.integers(1, 2)) for _ in range(2)]
    fits = all(
        size + low + high > (k - 1) * d
        for size, low, high, k, d in zip(
            (height, width), pads[::2], pads[1::2], (kh, kw), dilations, strict=True
        )
    )
    attrs = {
        "padding": pads if fits else [kh, kh, 2 * kw, kw], "groups": groups,
        "strides": [draw(st.integers(1, 3)) for _ in range(2)],
        "dilations": dilations if fits else [1, 1],
    }  # fmt: skip
    x = full(rng, (draw(st.integers(1, 2)), groups * per, height, width), "uint8")
    w = full(rng, (out, per, kh, kw), "int8")
    unit = UNITS[draw(st.sampled_from(list(UNITS)))]
    check("quantized_conv2d", operands(rng, x, w, out, "uint8"), attrs, unit)


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 40), terms=st.integers(4, 150), columns=st.integers(1, 140),
    unit=st.sampled_from(list(UNITS)), types=st.sampled_from(PAIRS), seed=st.integers(0, 99),
)  # fmt: skip
def test_matrices_of_any_shape(
    rows: int, terms: int, columns: int, unit: str, types: tuple[str, str], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    a, b = full(rng, (rows, terms), types[0]), full(rng, (terms, columns), types[1])
    check("quantized_matmul", operands(rng, a, b, columns, "uint8"), {}, UNITS[unit])


# --- bytes beside products ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("attrs", [
    {"window_dimensions": [3, 3], "strides": [2, 2], "padding": [1, 1, 1, 1]},
    {"window_dimensions": [2, 5], "padding": [1, 0, 2, 3]},
    {"window_dimensions": [3, 1], "strides": [3, 1]},
], ids=str)  # fmt: skip
def test_maxima_of_bytes(dtype: str, attrs: dict[str, Any]) -> None:
    x = full(np.random.default_rng(6), (2, 3, 20, 77), dtype)
    cpu_run.check("max_pool2d", [x], attrs, name="cpu.max_pool2d.bytes", threads=2)


@pytest.mark.parametrize("source", ["uint8", "int8"])
@pytest.mark.parametrize("size", [256, 1000])
def test_functions_of_bytes_are_looked_up(source: str, size: int) -> None:
    x = full(np.random.default_rng(7), (size,), source)
    cpu_run.check("cast", [x], {"data_type": "int8"}, name="cpu.lookup", threads=2)
    x = full(np.random.default_rng(8), (size // 4, 4), source)
    seven = np.array(7, source)
    cpu_run.check("max", [x, seven], {}, (1,), name="cpu.lookup")


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16"])
def test_floats_saturate_at_narrow_types(dtype: str) -> None:
    ends = np.iinfo(dtype)
    x = np.array(
        [np.nan, np.inf, -np.inf, 1e30, -1e30, -0.9, 0.9, ends.max + 0.7, ends.min - 0.7, 1.5] * 4,
        np.float32,
    )
    arrays, attrs = [x], {"data_type": dtype}
    call = cpu_run.call_of("cast", arrays, attrs)
    (got,) = cpu_run.execute(cpu_run.candidate(call, "cpu.elementwise"), call, arrays)
    held = np.clip(np.nan_to_num(x, nan=0.0), ends.min, ends.max)
    np.testing.assert_array_equal(got, held.astype(dtype))
