"""Attention by two products of cuBLASLt and a launch between them, on the fake cupy."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crossdock.devices import registry
from crossdock.devices.cuda import CudaDevice
from crossdock.devices.program import GridLaunch, In, Lowered, Out, Scratch, is_launch
from crossdock.kernels import cublaslt_attention, table
from crossdock.kernels.fused_attention import Extents
from crossdock.kernels.precision import FORMATS
from crossdock.kernels.spec import OpCall
from crossdock.runtime.tensor import Array, TensorSpec, to_numpy
from tests.cards import CARD
from tests.fakes import cards
from tests.kernels import host_build, host_run
from tests.kernels.cpu_run import call_of, expected
from tests.kernels.host_run import Job
from tests.kernels.test_cuda import execute

POCL = bool(registry.probe_all(["opencl"])[0].devices)
needs_pocl = pytest.mark.skipif(not POCL, reason="the fake cupy runs kernels on PoCL")
NAME = "cublaslt.attention"
HALVES = f"{NAME}.halves"
OP = "scaled_dot_product_attention"


@pytest.fixture(scope="module")
def device() -> Iterator[CudaDevice]:
    with pytest.MonkeyPatch.context() as patch, cards.opened(patch) as made:
        yield made


def drawn(*shape: int, seed: int = 0, dtype: str = "float32") -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(to_numpy(dtype))


def operands(sizes: Extents, dtype: str = "float32") -> list[Array | None]:
    return [drawn(*sizes.operand(i), seed=i, dtype=dtype) for i in range(3)]


def run(
    device: CudaDevice,
    arrays: list[Array | None],
    attrs: dict[str, Any],
    *,
    name: str = NAME,
    limit: float = 2e-6,
) -> None:
    """Run one candidate; the error allowed is relative to the largest result."""
    call = call_of(OP if "extents" not in attrs else "fused_attention", arrays, attrs)
    (kernel,) = (k for k in table.candidates(call, device.info).fitting if k.name == name)
    assert all(map(is_launch, kernel.lowered(call, device.info).steps))
    (got,) = execute(device, kernel, call, arrays).values()
    (want,) = expected(call, arrays)
    scale = float(np.abs(want[np.isfinite(want)]).max(initial=0.0))
    np.testing.assert_allclose(
        got.astype(np.float64), want, rtol=0, atol=limit * scale, equal_nan=True
    )


@needs_pocl
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("shared", [4, 2, 1])
def test_heads_share_keys(device: CudaDevice, batch: int, shared: int) -> None:
    run(device, [*operands(Extents(batch, 4, shared, 5, 7, 8, 6)), None], {})


@needs_pocl
@pytest.mark.parametrize("by_row", [True, False])
def test_operands_by_row_in_one_tensor(device: CudaDevice, by_row: bool) -> None:
    sizes = Extents(2, 3, 3, 19, 19, 8, 6)
    joined = drawn(2 * 19, 5 + 3 * (8 + 8 + 6))
    attrs = {
        "extents": sizes, "offsets": (5, 29, 53), "by_row": by_row, "scale": 0.4,
        "hidden_zero": False,
    }  # fmt: skip
    run(device, [joined, joined, joined, drawn(2, 1, 1, 19)], attrs)
    attrs["offsets"] = (None, 29, None)
    query, _, value = operands(sizes)
    run(device, [query, joined, value, drawn(19, 19)], attrs)


@needs_pocl
@pytest.mark.parametrize("zero", [True, False])
def test_hidden_rows_and_what_is_no_number(device: CudaDevice, zero: bool) -> None:
    sizes = Extents(1, 2, 2, 12, 150, 8, 6)
    query, key, value = operands(sizes)
    bias = drawn(12, 150)
    bias[:, :64], bias[3] = -math.inf, -math.inf
    bias[5] = np.finfo(np.float32).min
    attrs = {"extents": sizes, "scale": 0.3, "hidden_zero": zero}
    run(device, [query, key, value, bias], attrs)
    assert query is not None
    query[0, 0, 2, 3] = math.nan
    run(device, [query, key, value, bias], attrs)


@needs_pocl
def test_a_cap_and_hidden_keys(device: CudaDevice) -> None:
    sizes = Extents(1, 2, 2, 16, 24, 8, 16)
    run(device, [*operands(sizes), drawn(24, seed=9)], {"causal_offset": 3, "softcap": 2.0})


@needs_pocl
@pytest.mark.parametrize("rounds", FORMATS)
def test_rounded(device: CudaDevice, rounds: str) -> None:
    arrays = [*operands(Extents(1, 4, 4, 16, 24, 8, 16)), None]
    run(device, arrays, {}, name=f"{NAME}.{rounds}", limit=8 * FORMATS[rounds].error)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        run(device, arrays, {}, name=f"{NAME}.{rounds}")


UNIT = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
"""Half a unit in the last place of 1."""


def run_halves(
    device: CudaDevice, arrays: list[Array | None], attrs: dict[str, Any], dtype: str
) -> None:
    """Shares and results are rounded once each, to the type of the values."""
    call = call_of(OP if "extents" not in attrs else "fused_attention", arrays, attrs)
    (kernel,) = (k for k in table.candidates(call, device.info).fitting if k.name == HALVES)
    lowered = kernel.lowered(call, device.info)
    assert all(map(is_launch, lowered.steps))
    (got,) = execute(device, kernel, call, arrays).values()
    (want,) = expected(call, arrays)
    assert got.dtype == to_numpy(dtype)
    assert arrays[2] is not None
    most = np.abs(arrays[2].astype(np.float64)).max()
    np.testing.assert_allclose(
        got.astype(np.float64), want, rtol=UNIT[dtype], atol=1.01 * UNIT[dtype] * most,
        equal_nan=True,
    )  # fmt: skip


@needs_pocl
@pytest.mark.parametrize("dtype", UNIT)
@pytest.mark.parametrize("shared", [4, 1])
def test_halves(device: CudaDevice, shared: int, dtype: str) -> None:
    run_halves(device, [*operands(Extents(2, 4, shared, 5, 150, 8, 6), dtype), None], {}, dtype)


@needs_pocl
@pytest.mark.parametrize("dtype", UNIT)
def test_halves_with_all_that_there_is(device: CudaDevice, dtype: str) -> None:
    sizes = Extents(2, 3, 3, 19, 19, 8, 6)
    joined = drawn(2 * 19, 5 + 3 * (8 + 8 + 6), dtype=dtype)
    attrs = {
        "extents": sizes, "offsets": (5, 29, 53), "by_row": True, "scale": 0.4,
        "hidden_zero": False,
    }  # fmt: skip
    run_halves(device, [joined, joined, joined, drawn(2, 1, 1, 19, dtype=dtype)], attrs, dtype)
    query, key, value = operands(Extents(1, 2, 2, 12, 150, 8, 6), dtype)
    bias = drawn(12, 150, dtype=dtype)
    bias[:, :64], bias[3] = -math.inf, -math.inf
    capped = {"causal_offset": 3, "softcap": 2.0}
    run_halves(device, [query, key, value, bias], capped, dtype)


@needs_pocl
@pytest.mark.parametrize("dtype", UNIT)
def test_shares_of_many_keys_are_no_smaller_than_their_type_takes(
    device: CudaDevice, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 64,900 keys that are alike, each share is 1.5e-5, of which float16 has eight bits."""
    query, key, value = operands(Extents(1, 1, 1, 1, 64_900, 4, 2), dtype)
    arrays = [np.zeros_like(query), key, np.ones_like(value), None]
    run_halves(device, arrays, {}, dtype)
    if dtype == "float16":
        monkeypatch.setattr(cublaslt_attention, "RAISED", {})
        with pytest.raises(AssertionError, match="Not equal to tolerance"):
            run_halves(device, arrays, {}, dtype)


def rejected(call: OpCall, name: str = NAME) -> str:
    return dict(table.candidates(call, CARD).rejected)[name]


def test_what_it_is_not_for() -> None:
    halves = call_of(OP, operands(Extents(1, 4, 2, 5, 7, 8, 6), "float16"))
    assert "no float16 kernel" in rejected(halves)
    assert "no float32 kernel" in rejected(
        call_of(OP, operands(Extents(1, 4, 2, 5, 7, 8, 6))), HALVES
    )
    old = replace(CARD, details={"compute_capability": "7.5"})
    halves = call_of(OP, operands(Extents(1, 4, 2, 5, 7, 8, 6), "bfloat16"))
    assert "7.5 has no bfloat16" in dict(table.candidates(halves, old).rejected)[HALVES]
    (kernel,) = (k for k in table.kernels(OP) if k.name == HALVES)
    assert not kernel.exact, "shares are rounded"
    many = call_of(OP, operands(Extents(70, 4, 2, 5, 7, 8, 6)))
    assert "more than 64 calls" in rejected(many)
    wide = [np.broadcast_to(np.float32(1), (1, 8, n, 8)) for n in (16384, 4096, 4096)]
    assert "bytes of scores" in rejected(call_of(OP, wide))


COPY = "KERNEL BLOCK_SIZE(1, 1, 1) void f(CONSTANT float *x, GLOBAL float *y) "
COPY += "{ y[GLOBAL_ID(0)] = x[GLOBAL_ID(0)]; }"


@pytest.mark.skipif(not host_build.compiler(), reason=host_build.ABSENT)
@pytest.mark.parametrize(
    "dtype", [pytest.param("float32", marks=pytest.mark.slow), "float16",
              pytest.param("bfloat16", marks=pytest.mark.slow)]
)  # fmt: skip
def test_the_launch_between_under_the_sanitizers(tmp_path: Path, dtype: str) -> None:
    """Index for index, on blocks of the heap of exact sizes: scores become shares in place.

    Those of half types have memory of their own.
    """
    sizes, narrow = Extents(2, 3, 3, 5, 150, 8, 6), dtype != "float32"
    bias = drawn(2, 1, 5, 150, seed=4, dtype=dtype)
    bias[1, 0, 2] = -math.inf
    attrs = {"extents": sizes, "softcap": 1.5, "causal_offset": 20}
    call = call_of("fused_attention", [*operands(sizes, dtype), bias], attrs)
    name = HALVES if narrow else NAME
    (kernel,) = (k for k in table.candidates(call, CARD).fitting if k.name == name)
    _, between, _ = kernel.lowered(call, CARD).steps
    assert isinstance(between, GridLaunch)
    places: dict[Any, Any] = {In(3): In(1), Scratch(0): Out(0), Scratch(2): Out(1)}
    args = tuple(places[a] if isinstance(a, In | Scratch) else a for a in between.args)
    scores = drawn(2, 3, 5, 150, seed=8)
    copy = GridLaunch(COPY, "f", (In(0), Out(0)), (scores.size,), (1,))
    specs = TensorSpec.of(scores), TensorSpec.of(bias)
    made = (specs[0], specs[0].with_dtype(dtype))[: 1 + narrow]
    job = Job(
        "shares",
        Lowered((copy, replace(between, args=args))),
        OpCall("identity", {}, specs, made, {}, "shares"),
        [scores, bias],
    )
    (found,) = host_run.run([job], tmp_path)
    assert not isinstance(found, str), found
    hidden = np.where(np.arange(150) <= np.arange(5)[:, None] + 20, 0.0, -np.inf)
    raised = 1.5 * np.tanh(scores.astype(np.float64) / 1.5) + bias + hidden
    with np.errstate(all="ignore"):
        shares = np.exp(raised - raised.max(axis=3, keepdims=True))
        shares /= shares.sum(axis=3, keepdims=True)
    shares[1, :, 2] = 0
    raised_by = cublaslt_attention.RAISED.get(dtype, 1.0)
    got = found[-1].astype(np.float64) / raised_by
    np.testing.assert_allclose(got, shares, rtol=UNIT.get(dtype, 0.0), atol=1e-6)
