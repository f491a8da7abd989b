"""Attention on the host, by head and by row, against its meaning in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossdock.kernels import cpu_attention, table
from crossdock.kernels.cpu_conv_pack import TileShape
from crossdock.kernels.fused_attention import Extents
from crossdock.runtime.tensor import Array
from tests.kernels.cpu_run import call_of, check, device

NAME = "cpu.attention"
OP = "scaled_dot_product_attention"


def drawn(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def run(arrays: list[Array | None], attrs: dict[str, Any] | None = None, threads: int = 1) -> None:
    op = OP if not attrs or "extents" not in attrs else "fused_attention"
    check(op, arrays, attrs or {}, name=NAME, tolerance=2e-6, threads=threads)


def operands(sizes: Extents, seed: int = 0) -> list[Array]:
    return [drawn(*sizes.operand(i), seed=seed + i) for i in range(3)]


SIZES = {
    "short": Extents(2, 4, 2, 5, 7, 8, 6),
    "long": Extents(1, 2, 2, 50, 150, 8, 6),
    "one": Extents(1, 1, 1, 1, 1, 8, 6),
}
BIASES = {
    "none": None,
    "keys": ("batch", 1, 1, "keys"),
    "plane": ("length", "keys"),
    "whole": ("batch", "heads", "length", "keys"),
    "heads": ("heads", 1, 1),
    "number": (),
}


def bias_of(name: str, sizes: Extents) -> Array | None:
    dims = BIASES[name]
    if dims is None:
        return None
    return drawn(*(getattr(sizes, d) if isinstance(d, str) else d for d in dims), seed=7)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("size", SIZES)
def test_by_head(size: str, bias: str, threads: int) -> None:
    sizes = SIZES[size]
    arrays = [*operands(sizes), bias_of(bias, sizes)]
    run(arrays, threads=threads)
    if bias in ("none", "keys"):
        for offset in (sizes.keys - sizes.length, -2, 3):
            run(arrays, {"causal_offset": offset}, threads)


def test_a_cap_and_a_scale() -> None:
    run([*operands(SIZES["long"]), None], {"softcap": 1.5, "scale": 0.3})


@pytest.mark.parametrize(("width", "out_width"), [(1, 3), (32, 32), (20, 65)])
def test_widths_of_heads(width: int, out_width: int) -> None:
    run([*operands(Extents(1, 2, 1, 20, 70, width, out_width)), None])


@pytest.mark.parametrize("by_row", [True, False])
def test_operands_by_row_in_one_tensor(by_row: bool) -> None:
    sizes = Extents(2, 3, 3, 19, 19, 8, 6)
    joined = drawn(2 * 19, 5 + 3 * (8 + 8 + 6))
    attrs = {
        "extents": sizes, "offsets": (5, 29, 53), "by_row": by_row, "scale": 0.4,
        "hidden_zero": False,
    }  # fmt: skip
    run([joined, joined, joined, drawn(2, 1, 1, 19)], attrs, threads=2)
    attrs["offsets"] = (None, 29, None)
    query, _, value = operands(sizes)
    run([query, joined, value, drawn(19, 19)], attrs)


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(*(st.integers(1, n) for n in (2, 3, 2, 70, 140))),
    st.sampled_from(["none", "keys", "whole"]),
    st.integers(0, 9),
)
def test_any_size(sizes: tuple[int, ...], bias: str, seed: int) -> None:
    batch, shared, each, length, keys = sizes
    extents = Extents(batch, shared * each, shared, length, keys, 8, 6)
    run([*operands(extents, seed), bias_of(bias, extents)], threads=2)


def test_few_registers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_attention, "tile_shape", lambda: TileShape(8, 4, 3, 256))
    sizes = Extents(1, 2, 2, 30, 80, 12, 9)
    run([*operands(sizes), drawn(1, 1, 1, 80)])
    run([*operands(sizes), drawn(30, 80)], {"causal_offset": 50})


@pytest.mark.parametrize("zero", [True, False])
def test_hidden_rows_and_what_is_no_number(zero: bool) -> None:
    sizes = Extents(1, 2, 2, 40, 90, 8, 6)
    query, key, value = operands(sizes)
    bias = drawn(40, 90)
    bias[:, :64] = -math.inf  # a whole chunk
    bias[3] = -math.inf
    bias[5] = np.finfo(np.float32).min  # as exporters hide a whole row
    attrs = {"extents": sizes, "scale": 0.3, "hidden_zero": zero}
    run([query, key, value, bias], attrs)
    query[0, 0, 2, 3], key[0, 1, 5, 1] = math.nan, math.inf
    run([query, key, value, None], attrs)
    run([query, key, value, bias], attrs)
    key[0, 0, 1] *= 1e30
    run([query, key, value, None], attrs)


def test_what_does_not_fit_is_refused_with_the_reason() -> None:
    cases = [
        (np.float64, 8, "float32"),
        (np.float32, 513, "features"),
    ]
    for dtype, width, words in cases:
        arrays = [drawn(1, 1, 2, width).astype(dtype) for _ in range(3)]
        call = call_of(OP, [*arrays, None])
        why = dict(table.candidates(call, device().info).rejected)
        assert words in why[NAME]
