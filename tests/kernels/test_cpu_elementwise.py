"""Elementwise kernels on the host: broadcasting, types, special values, fused chains."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossdock.kernels import table
from crossdock.kernels.cpu_elementwise import nest
from crossdock.kernels.fused import FusedBody, FusedStep
from crossdock.runtime.tensor import Array, to_numpy
from tests.kernels.cpu_run import call_of, candidate, check, device, execute

NAME = "cpu.elementwise"
INTEGERS = ("int8", "uint8", "int32", "uint32", "int64", "uint64")
FLOATS = ("float16", "bfloat16", "float32", "float64")
ROUNDING = {"float16": 2e-3, "bfloat16": 2e-2, "float32": 4e-7, "float64": 1e-15}
"""A few roundings of each type."""


def drawn(shape: tuple[int, ...], dtype: str = "float32", seed: int = 0) -> Array:
    rng = np.random.default_rng(seed)
    if dtype in INTEGERS:
        return rng.integers(0 if dtype[0] == "u" else -50, 50, shape).astype(dtype)
    return rng.uniform(-3, 3, shape).astype(to_numpy(dtype))


@st.composite
def broadcasts(draw: st.DrawFn) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    """A result's shape and shapes that broadcast to it, the first of them whole."""
    shape = tuple(draw(st.lists(st.sampled_from([1, 2, 3, 5, 17, 40]), max_size=4)))
    parts = [shape]
    for _ in range(2):
        kept = tuple(d if draw(st.booleans()) else 1 for d in shape)
        parts.append(kept[draw(st.integers(0, len(kept))) :])
    return shape, draw(st.permutations(parts))


@given(broadcasts())
@settings(max_examples=150)
def test_operands_broadcast(case: tuple[tuple[int, ...], list[tuple[int, ...]]]) -> None:
    shape, parts = case
    condition, a, b = (drawn(part, seed=i) for i, part in enumerate(parts))
    mask = (condition > 0).astype(np.uint8)
    call = call_of("where", [mask, a, b])
    assert call.outputs[0].dims == shape
    (got,) = execute(candidate(call, NAME), call, [mask, a, b])
    np.testing.assert_array_equal(got, np.where(mask, a, b))


@given(broadcasts())
def test_a_nest_visits_what_numpy_does(
    case: tuple[tuple[int, ...], list[tuple[int, ...]]],
) -> None:
    shape, parts = case
    space = nest(shape, parts)
    assert math.prod(space.sizes) == math.prod(shape)
    for part, strides in zip(parts, space.strides, strict=True):
        flat = np.arange(math.prod(part), dtype=np.int64)
        walked = np.lib.stride_tricks.as_strided(flat, space.sizes, [8 * s for s in strides])
        wanted = np.broadcast_to(flat.reshape(part), shape)
        np.testing.assert_array_equal(walked.reshape(-1), wanted.reshape(-1))


def test_neighbouring_dimensions_are_one_loop() -> None:
    assert nest((2, 3, 4, 5), [(2, 3, 4, 5)]).sizes == (120,)
    assert nest((2, 64, 7, 7), [(2, 64, 7, 7), (64, 1, 1)]).sizes == (2, 64, 49)
    assert nest((1, 64, 7, 7), [(1, 64, 7, 7), (64, 1, 1)]).sizes == (64, 49)


@pytest.mark.parametrize("op", ["add", "sub", "mul", "div", "max", "min"])
@pytest.mark.parametrize("dtype", [*INTEGERS, *FLOATS])
@pytest.mark.parametrize("size", [1, 15, 100])
def test_arithmetic(op: str, dtype: str, size: int) -> None:
    a, b = drawn((size,), dtype, 1), drawn((size,), dtype, 2)
    b = np.where(b == 0, np.ones_like(b), b)
    tolerance = ROUNDING.get(dtype, 0.0)
    check(op, [a, b], name=NAME, tolerance=tolerance)


@pytest.mark.parametrize("op", ["equal", "not_equal", "greater", "lesser_or_equal"])
@pytest.mark.parametrize("dtype", [*INTEGERS, *FLOATS])
def test_comparisons(op: str, dtype: str) -> None:
    a, b = drawn((77,), dtype, 1), drawn((77,), dtype, 2)
    b[::3] = a[::3]
    check(op, [a, b], name=NAME)


@pytest.mark.parametrize("source", [*INTEGERS, "float32", "float64", "bool"])
@pytest.mark.parametrize("target", [*INTEGERS, "float16", "float32", "float64", "bool"])
def test_cast(source: str, target: str) -> None:
    if source == "bool":
        x = np.arange(40) % 3 == 0
    else:
        x = drawn((40,), source)
    if target[0] == "u" and source in ("float32", "float64"):
        x = np.abs(x)
    call = call_of("cast", [x], {"data_type": target})
    (got,) = execute(candidate(call, NAME), call, [x])
    want = x != 0 if target == "bool" else x.astype(target)
    np.testing.assert_array_equal(got, want)


def test_a_float_out_of_range_saturates() -> None:
    x = np.array([300.0, -300.0, np.inf, -np.inf, np.nan, 2.9], np.float32)
    call = call_of("cast", [x], {"data_type": "int8"})
    (got,) = execute(candidate(call, NAME), call, [x])
    assert got.tolist() == [127, -128, 127, -128, 0, 2]


def test_integer_division_never_traps() -> None:
    a = np.array([7, -7, 0, np.iinfo(np.int32).min], np.int32)
    b = np.array([0, 2, 0, -1], np.int32)
    call = call_of("div", [a, b])
    (got,) = execute(candidate(call, NAME), call, [a, b])
    assert got.tolist() == [0, -3, 0, np.iinfo(np.int32).min]


@pytest.mark.parametrize("op", ["exp", "log", "tanh", "erf", "sqrt", "sin", "cos", "tan"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_functions_are_accurate(op: str, dtype: str) -> None:
    x = np.linspace(-20, 20, 20001).astype(dtype)
    if op in ("log", "sqrt"):
        x = np.concatenate([np.abs(x), np.geomspace(1e-30, 1e30, 5000).astype(dtype)])
    call = call_of(op, [x])
    (got,) = execute(candidate(call, NAME), call, [x])
    with np.errstate(all="ignore"):
        if op == "erf":
            want = np.array([math.erf(v) for v in x.tolist()])
        else:
            want = getattr(np, op)(x.astype(np.longdouble))
        finite = np.isfinite(want)
        ulps = np.abs(got - want)[finite] / np.spacing(np.abs(got[finite]))
    # tan is steep, and the C library's float32 functions are good to about one place.
    assert ulps.max() <= 2.5
    np.testing.assert_array_equal(got[~finite], want[~finite].astype(dtype))


def test_gelu_is_off_by_no_more_than_its_operands_last_place() -> None:
    x = np.concatenate([np.linspace(-8, 8, 4001), [-1e4, 1e4, 0.0]]).astype(np.float32)
    call = call_of("gelu", [x])
    (got,) = execute(candidate(call, NAME), call, [x])
    want = table.op("gelu").run(np, x.astype(np.float64))
    assert (np.abs(got - want) <= 2.0**-23 * np.abs(x) + 2.0**-22 * np.abs(want)).all()


@pytest.mark.parametrize("op", ["exp", "log", "tanh", "erf", "abs", "floor", "sign", "relu"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_special_values(op: str, dtype: str) -> None:
    special = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -1.0, 1e-42, 200.0, -200.0]
    x = np.array(special * 4, to_numpy(dtype))
    call = call_of(op, [x])
    (got,) = execute(candidate(call, NAME), call, [x])
    with np.errstate(all="ignore"):
        want = np.asarray(table.op(op).run(np, x.astype(np.float64))).astype(got.dtype)
    np.testing.assert_array_equal(np.isnan(got.astype(float)), np.isnan(want.astype(float)))
    np.testing.assert_array_equal(np.isinf(got.astype(float)), np.isinf(want.astype(float)))
    finite = np.isfinite(want.astype(float))
    np.testing.assert_allclose(
        got[finite].astype(float), want[finite].astype(float), rtol=ROUNDING[dtype], atol=1e-37
    )


@pytest.mark.parametrize("op", ["max", "min"])
def test_nan_propagates_from_either_side(op: str) -> None:
    a = np.array([np.nan, 1.0, np.nan, 2.0] * 5, np.float32)
    b = np.array([1.0, np.nan, np.nan, 1.0] * 5, np.float32)
    call = call_of(op, [a, b])
    (got,) = execute(candidate(call, NAME), call, [a, b])
    assert np.isnan(got).tolist() == [True, True, True, False] * 5


def test_clamp_bounds_of_integers_are_exact() -> None:
    x = np.array([2**53 + 1, -(2**60) - 1, 5], np.int64)
    check("clamp", [x], {"min_value": -(2**60), "max_value": 2**53 + 1}, name=NAME)


@pytest.mark.parametrize("exponent", [2.0, 0.5, -1.0, 3.0, 1.7])
def test_powers_by_constants(exponent: float) -> None:
    x = np.abs(drawn((3, 40))) + np.float32(0.1)
    arrays = [x, np.array([exponent], np.float32)]
    check("pow", arrays, None, (1,), name=NAME, tolerance=5e-7)


def body() -> FusedBody:
    f = "float32"
    return FusedBody(
        (
            FusedStep("mul", {}, (0, 1), f, (f, f)),
            FusedStep("add", {}, (-1, 2), f, (f, f)),
            FusedStep("sigmoid", {}, (-2,), f, (f,)),
            FusedStep("mul", {}, (-2, -3), f, (f, f)),
            FusedStep("greater", {}, (-4, 0), "uint8", (f, f)),
            FusedStep("where", {}, (-5, -4, 2), f, ("uint8", f, f)),
        )
    )


def test_a_fused_chain() -> None:
    arrays = [drawn((2, 30, 50), seed=1), drawn((30, 1), seed=2), drawn((50,), seed=3)]
    check("fused", arrays, {"body": body()}, name=NAME, tolerance=1e-6)


@pytest.mark.parametrize(
    ("op", "shapes"),
    [
        ("gelu", [(300_000,)]),
        ("add", [(100_001,), (100_001,)]),
        ("mul", [(64, 3000), (64, 1)]),
        ("tanh", [(1000, 333)]),
    ],
)
def test_threads_give_the_same_bits(op: str, shapes: list[tuple[int, ...]]) -> None:
    arrays = [drawn(shape, seed=i) for i, shape in enumerate(shapes)]
    call = call_of(op, arrays)
    kernel = candidate(call, NAME)
    (one,) = execute(kernel, call, arrays, threads=1)
    for _ in range(3):
        (two,) = execute(kernel, call, arrays, threads=2)
        np.testing.assert_array_equal(one.view(np.int32), two.view(np.int32))


def test_a_power_of_integers_is_refused_with_the_reason() -> None:
    x = drawn((4,), "int32")
    found = table.candidates(call_of("pow", [x, x]), device().info)
    assert ("cpu.elementwise", "pow: no native power of integers") in found.rejected
    assert [k.name for k in found.fitting] == ["array"]
