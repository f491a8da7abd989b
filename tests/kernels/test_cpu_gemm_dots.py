"""General products of few rows with a transposed matrix on the host."""

from __future__ import annotations

import numpy as np
import pytest

from crossdock.kernels import cpu_gemm_dots, table
from crossdock.kernels.cpu_conv_pack import TileShape
from crossdock.runtime.tensor import Array
from tests.kernels.cpu_run import call_of, check, device

NAME = "cpu.gemm.dots"


def drawn(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("m", [1, 3, 8])
@pytest.mark.parametrize(("n", "k"), [(37, 130), (4, 64), (1, 1), (50, 7), (9, 333)])
def test_products(m: int, n: int, k: int, threads: int) -> None:
    a, b, c = drawn(m, k), drawn(n, k, seed=1), drawn(n, seed=2)
    for addend, scales in ((None, (1.0, 1.0)), (c, (1.0, 1.0)), (c, (0.5, -2.0)), (c, (2.0, 0.0))):
        attrs = {"b_transpose": True, "alpha": scales[0], "beta": scales[1]}
        check("gemm", [a, b, addend], attrs, name=NAME, tolerance=1e-6, threads=threads)


def test_few_registers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_gemm_dots, "tile_shape", lambda: TileShape(8, 4, 3, 256))
    monkeypatch.setattr(cpu_gemm_dots, "register_lanes", lambda: 8)
    attrs = {"b_transpose": True}
    for m in (1, 5):
        check("gemm", [drawn(m, 77), drawn(23, 77), None], attrs, name=NAME, tolerance=1e-6)


def test_what_does_not_fit_is_refused_with_the_reason() -> None:
    a, b = drawn(9, 8), drawn(5, 8)
    cases = [
        ([a, b, None], {"b_transpose": True}, "rows"),
        ([a[:2], np.ascontiguousarray(b.T), None], {}, "transposed"),
        ([a[:2], b, drawn(2, 5)], {"b_transpose": True}, "addend"),
    ]
    for arrays, attrs, words in cases:
        why = dict(table.candidates(call_of("gemm", arrays, attrs), device().info).rejected)
        assert words in why[NAME]
