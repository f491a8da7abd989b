"""Products with a packed constant on the host, and what follows them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossdock.kernels import cpu_dense, table
from crossdock.kernels.cpu_conv_pack import TileShape
from crossdock.kernels.fused import FusedBody, FusedStep
from crossdock.runtime.tensor import Array
from tests.kernels.cpu_run import call_of, candidate, candidates, check, device, execute

NAME = "cpu.matmul.packed"
KIND = "float32"
RESIDUAL = FusedBody(
    (FusedStep("add", {}, (0, 1), KIND, (KIND, KIND)), FusedStep("gelu", {}, (-1,), KIND, (KIND,)))
)
SINE = FusedBody(
    (
        FusedStep("sin", {}, (0,), KIND, (KIND,)),
        FusedStep("add", {}, (-1, 1), KIND, (KIND, KIND)),
    )
)
ADDED = FusedBody(RESIDUAL.steps[:1])
RELU = FusedBody((FusedStep("relu", {}, (0,), KIND, (KIND,)),))


def drawn(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


SIZES = [(1, 5, 3), (16, 96, 64), (17, 100, 33), (3, 1000, 7), (130, 50, 1), (12, 16, 2500)]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("m", "n", "k"), SIZES)
def test_products_and_what_follows(m: int, n: int, k: int, threads: int) -> None:
    a, b, bias, beside = drawn(m, k), drawn(k, n, seed=1), drawn(n, seed=2), drawn(m, n, seed=3)
    check("matmul", [a, b], {}, (1,), name=NAME, tolerance=1e-6, threads=threads)
    for row, residual, body in (
        (bias, None, None),
        (bias, beside, RESIDUAL),
        (None, beside, RESIDUAL),
        (bias, None, RELU),
    ):
        arrays = [a, b, row, residual]
        check(
            "fused_matmul", arrays, {"body": body}, (1, 2), name=NAME, tolerance=1e-6,
            threads=threads,
        )  # fmt: skip


def test_general_products_with_scales() -> None:
    a, b, c = drawn(9, 20), drawn(37, 20, seed=1), drawn(37, seed=2)
    for alpha, beta in ((1.0, 1.0), (0.5, -2.0), (2.0, 0.0)):
        attrs = {"b_transpose": True, "alpha": alpha, "beta": beta}
        name = "cpu.gemm.packed"
        check("gemm", [a, b, c], attrs, (1, 2), name=name, tolerance=1e-6)
        check("gemm", [a, np.ascontiguousarray(b.T), None], {}, (1,), name=name, tolerance=1e-6)


def test_rows_of_several_axes_and_a_matrix_of_one_batch() -> None:
    check("matmul", [drawn(2, 3, 5, 8), drawn(1, 8, 20)], {}, (1,), name=NAME, tolerance=1e-6)


def test_one_compiled_kernel_is_all_there_is() -> None:
    arrays = [drawn(9, 20), drawn(20, 40), drawn(40), drawn(9, 40)]
    for body, name in ((RESIDUAL, NAME), (SINE, "cpu.fused_matmul.blas")):
        found = candidates(call_of("fused_matmul", arrays, {"body": body}, (1, 2)))
        assert [k.name for k in found] == [name]


def test_few_registers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_dense, "tile_shape", lambda: TileShape(8, 4, 3, 256))
    for m, n, k in ((7, 30, 20), (1, 24, 9), (10, 100, 1030)):
        arrays = [drawn(m, k), drawn(k, n), drawn(n), drawn(m, n)]
        check("fused_matmul", arrays, {"body": RESIDUAL}, (1, 2), name=NAME, tolerance=1e-6)


def test_what_calls_the_c_library_follows_blas() -> None:
    name = "cpu.fused_matmul.blas"
    for threads in (1, 2):
        for bias, residual in ((drawn(40), drawn(9, 40)), (None, drawn(9, 40))):
            arrays = [drawn(9, 20), drawn(20, 40), bias, residual]
            check(
                "fused_matmul", arrays, {"body": SINE}, (1, 2), name=name, tolerance=2e-6,
                threads=threads,
            )  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 120), st.integers(1, 70), st.integers(0, 9))
def test_any_size(m: int, n: int, k: int, seed: int) -> None:
    arrays = [drawn(m, k, seed=seed), drawn(k, n, seed=seed + 1), drawn(n), drawn(m, n, seed=seed)]
    check("fused_matmul", arrays, {"body": ADDED}, (1, 2), name=NAME, tolerance=2e-6, threads=2)


def test_bits_do_not_hang_on_where_the_work_is_cut() -> None:
    arrays = [drawn(20, 64), drawn(64, 100)]
    arrays[0][7], arrays[0][19] = arrays[0][0], arrays[0][0]
    call = call_of("matmul", arrays, {}, (1,))
    (one,), (two,) = (execute(candidate(call, NAME), call, arrays, t) for t in (1, 2))
    assert one.tobytes() == two.tobytes()
    assert one[0].tobytes() == one[7].tobytes() == one[19].tobytes()


def test_what_does_not_fit_is_refused_with_the_reason() -> None:
    a, b, c = drawn(4, 6), drawn(6, 5), drawn(4, 5)
    tall = FusedBody((FusedStep("sin", {}, (0,), KIND, (KIND,)),))
    cases = [
        ("matmul", [a, b], {}, (), "constant"),
        ("matmul", [a.astype(np.float64), b.astype(np.float64)], {}, (1,), "float32"),
        ("matmul", [drawn(2, 4, 6), drawn(2, 6, 5)], {}, (1,), "batch"),
        ("gemm", [a, b, c], {}, (1, 2), "addend"),
        ("gemm", [a, drawn(5, 6), None], {"b_transpose": True}, (1,), "few rows"),
        ("gemm", [drawn(6, 4), b, None], {"a_transpose": True}, (1,), "transposed"),
        ("fused_matmul", [a, b, None, None], {"body": tall}, (1,), "C library"),
    ]
    names = {"matmul": NAME, "fused_matmul": NAME, "gemm": "cpu.gemm.packed"}
    for op, arrays, attrs, constants, words in cases:
        call = call_of(op, arrays, attrs, constants)
        why = dict(table.candidates(call, device().info).rejected)
        assert words in why[names[op]]
