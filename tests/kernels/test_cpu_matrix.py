"""Products, reductions, softmax, normalisation and lstm on the host, against float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossdock.devices.program import NativeCall
from crossdock.kernels.cpu_reduce import REDUCTIONS, block
from crossdock.runtime.tensor import Array, TensorSpec
from tests.kernels.cpu_run import call_of, candidates, check, device, execute

ROUNDING = {"float16": 3e-3, "float32": 5e-6, "float64": 1e-13}
"""Sums of up to a few thousand terms of one sign; half precision is summed in float32."""


def drawn(*shape: int, dtype: str = "float32", seed: int = 0) -> Array:
    return np.random.default_rng(seed).uniform(0.1, 1.1, shape).astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((1, 300), (300, 700)),
        ((4, 4), (4, 4)),
        ((33, 70), (70, 9)),
        ((5, 33, 70), (70, 9)),
        ((2, 3, 40, 50), (2, 3, 50, 60)),
        ((2, 3, 4, 5), (1, 1, 5, 6)),
        ((3, 1, 4, 5), (3, 2, 5, 6)),
        ((300, 200), (200, 250)),
    ],
)
def test_matmul(dtype: str, threads: int, a: tuple[int, ...], b: tuple[int, ...]) -> None:
    arrays = [drawn(*a, dtype=dtype), drawn(*b, dtype=dtype, seed=1)]
    call = call_of("matmul", arrays)
    native = [k.name for k in candidates(call, threads) if k.name.startswith("cpu.")]
    assert native
    for name in native:
        check("matmul", arrays, name=name, tolerance=ROUNDING[dtype], threads=threads)


@pytest.mark.parametrize("rows", [1, 40])
def test_threads_cut_products_where_columns_stay_equal(rows: int) -> None:
    """Equal columns are summed in one order, so that a softmax over great numbers is even.

    OpenBLAS's routine for AVX2 (Haswell's) itself sums them in several, in one call on one thread.
    There a cut is only held to where blocks end.
    """
    arrays = [np.full((rows, 4096), 4.4e10, np.float32), np.full((1000, 4096), 0.02, np.float32)]
    call = call_of("gemm", arrays, {"b_transpose": True})
    (kernel,) = (k for k in candidates(call) if k.name == "cpu.gemm.blas")
    (step,) = kernel.lower(call, device(2).info).steps
    assert isinstance(step, NativeCall)
    assert step.align % 16 == 0
    (whole,) = execute(kernel, call, arrays)
    if len(np.unique(whole)) == 1:
        (cut,) = execute(kernel, call, arrays, threads=2)
        assert len(np.unique(cut)) == 1


@pytest.mark.parametrize("a_transpose", [False, True])
@pytest.mark.parametrize("b_transpose", [False, True])
@pytest.mark.parametrize("rows", [1, 37])
@pytest.mark.parametrize("c", [None, (), (50,), (1, 50), "rows", "full"])
def test_gemm(a_transpose: bool, b_transpose: bool, rows: int, c: Any) -> None:
    a = drawn(*((64, rows) if a_transpose else (rows, 64)))
    b = drawn(*((50, 64) if b_transpose else (64, 50)), seed=1)
    shape = {"rows": (rows, 1), "full": (rows, 50)}.get(c, c)
    arrays = [a, b, None if shape is None else drawn(*shape, seed=2)]
    attrs = {
        "a_transpose": a_transpose, "b_transpose": b_transpose, "alpha": 0.5, "beta": -2.0,
    }  # fmt: skip
    for threads in (1, 2):
        check(
            "gemm", arrays, attrs, name="cpu.gemm.blas", tolerance=ROUNDING["float32"],
            threads=threads,
        )  # fmt: skip


@pytest.mark.parametrize("name", REDUCTIONS)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize(
    ("shape", "axes"),
    [((3, 5, 100), [2]), ((3, 5, 7), [1]), ((3, 50, 37), [0, 1]), ((2, 1, 3), [1]), ((70,), [0])],
)
def test_reduction(name: str, dtype: str, shape: tuple[int, ...], axes: list[int]) -> None:
    x = drawn(*shape, dtype=dtype)
    if name == "product":
        x = np.where(x > 0.8, 1.0625, 1.0).astype(dtype)  # exact in half precision
    check(
        f"reduce_{name}", [x], {"axes": axes}, name=f"cpu.reduce_{name}",
        tolerance=10 * ROUNDING[dtype] if name == "product" else ROUNDING[dtype],
    )  # fmt: skip


@pytest.mark.parametrize("name", ["sum", "max", "min", "product", "l1", "sum_square"])
@pytest.mark.parametrize("dtype", ["int32", "int64", "uint32"])
def test_reduction_of_integers(name: str, dtype: str) -> None:
    low = 0 if dtype[0] == "u" else -3
    x = np.random.default_rng(0).integers(low, 4, (5, 77, 3)).astype(dtype)
    for axes in ([1], [2], [0, 1, 2]):
        check(f"reduce_{name}", [x], {"axes": axes}, name=f"cpu.reduce_{name}")


@given(
    st.lists(st.sampled_from([1, 2, 3, 7]), min_size=1, max_size=5).flatmap(
        lambda dims: st.tuples(st.just(dims), st.sets(st.integers(0, len(dims) - 1), min_size=1))
    )
)
def test_a_view_reduces_what_numpy_does(case: tuple[list[int], set[int]]) -> None:
    dims, axes = case
    view = block(TensorSpec("float32", tuple(dims)), tuple(axes))
    x = np.random.default_rng(0).standard_normal(dims)
    if view is None:
        return
    want = x.sum(axis=tuple(axes)).reshape(-1)
    np.testing.assert_allclose(x.reshape(view).sum(axis=1).reshape(-1), want, atol=1e-12)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize(
    ("shape", "axis"), [((5, 100), 1), ((3, 50, 7), 1), ((2, 64, 33), 1), ((10,), 0), ((4, 1), 1)]
)
def test_softmax(dtype: str, shape: tuple[int, ...], axis: int) -> None:
    x = 20 * drawn(*shape, dtype=dtype)
    for threads in (1, 2):
        check(
            "softmax", [x.astype(dtype)], {"axis": axis}, name="cpu.softmax",
            tolerance=ROUNDING[dtype], threads=threads,
        )  # fmt: skip


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("axes", [[1], [0, 1]])
@pytest.mark.parametrize("operands", ["", "s", "b", "sb"])
def test_layer_normalization(dtype: str, axes: list[int], operands: str) -> None:
    x = drawn(6, 77, dtype=dtype)
    shape = tuple(x.shape[a] for a in axes)
    arrays = [
        x,
        drawn(*shape, dtype=dtype, seed=1) if "s" in operands else None,
        drawn(*shape, dtype=dtype, seed=2) if "b" in operands else None,
    ]
    name = "cpu.layer_normalization"
    check("layer_normalization", arrays, {"axes": axes}, name=name, tolerance=2 * ROUNDING[dtype])


@pytest.mark.parametrize("operands", ["", "s", "b", "sb"])
def test_instance_normalization(operands: str) -> None:
    arrays = [drawn(2, 3, 9, 11)] + [
        drawn(3, seed=i) if n in operands else None for i, n in enumerate("sb", 1)
    ]
    check("instance_normalization", arrays, name="cpu.instance_normalization", tolerance=1e-5)


@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize("operands", ["", "s", "b", "sb"])
def test_batch_normalization(axis: int, operands: str) -> None:
    x = drawn(2, 12, 30)
    channels = x.shape[axis]
    arrays = [x, drawn(channels, seed=1), drawn(channels, seed=2)] + [
        drawn(channels, seed=i) if n in operands else None for i, n in enumerate("sb", 3)
    ]
    check(
        "batch_normalization", arrays, {"axis": axis}, (1, 2, 3, 4),
        name="cpu.batch_normalization", tolerance=5e-6,
    )  # fmt: skip


@settings(max_examples=30)
@given(
    steps=st.integers(1, 5),
    batch=st.integers(1, 3),
    width=st.integers(1, 9),
    hidden=st.sampled_from([1, 7, 8, 20]),
    direction=st.sampled_from(["forward", "backward", "both"]),
    layout=st.sampled_from(["iofg", "ifgo"]),
    sequence=st.booleans(),
    given_operands=st.sets(st.sampled_from([3, 4, 6, 7])),
)
def test_lstm(
    steps: int,
    batch: int,
    width: int,
    hidden: int,
    direction: str,
    layout: str,
    sequence: bool,
    given_operands: set[int],
) -> None:
    ways = 2 if direction == "both" else 1
    gates = 4 * hidden
    shapes: list[tuple[int, ...]] = [
        (steps, batch, width), (ways, gates, width), (ways, gates, hidden), (ways, gates),
        (ways, gates), (ways, 3 * hidden), (ways, batch, hidden), (ways, batch, hidden),
    ]  # fmt: skip
    arrays = [
        drawn(*s, seed=i) - np.float32(0.6) if i < 3 or i in given_operands else None
        for i, s in enumerate(shapes)
    ]
    attrs = {
        "steps": steps, "hidden_size": hidden, "direction": direction, "layout": layout,
        "return_sequence": sequence,
    }  # fmt: skip
    for threads in (1, 2):
        check("lstm", arrays, attrs, name="cpu.lstm", tolerance=2e-6, threads=threads)
