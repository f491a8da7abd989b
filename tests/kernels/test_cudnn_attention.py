"""Attention by cuDNN, and the launches before and behind it, on the fake cupy and the fake cuDNN.

The fake makes NaN of a bias of minus infinity, and refuses what cuDNN 9.28 refused as it planned
for described cards.
"""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crossdock.devices import cuda_dnn, registry
from crossdock.devices.cuda_dnn_attention import Attention
from crossdock.devices.program import ArrayCall, GridLaunch, In, Lowered, Out, Scratch
from crossdock.kernels import cudnn_attention, table
from crossdock.kernels.fused_attention import Extents
from crossdock.kernels.precision import Permission
from crossdock.kernels.refusal import Cause, cause_of
from crossdock.kernels.spec import OpCall
from crossdock.runtime.errors import CompileError
from crossdock.runtime.tensor import Array, TensorSpec, to_numpy
from tests.cases import CASES
from tests.kernels import host_build, host_run
from tests.kernels.cpu_run import call_of
from tests.kernels.cudnn_run import WITH, Card, caught, drawn, kernels, off, opened, why
from tests.kernels.test_cpu import instance
from tests.kernels.test_cuda import execute

POCL = bool(registry.probe_all(["opencl"])[0].devices)
needs_pocl = pytest.mark.skipif(not POCL, reason="the fake cupy runs kernels on PoCL")
NAME = "cudnn.attention"
OP = "scaled_dot_product_attention"
NEAR = {"float16": 2e-3, "bfloat16": 1.6e-2}
"""Shares and the result are each rounded once: a half and a quarter of this."""
SIZES = Extents(2, 4, 2, 5, 9, 16, 8)
HIDDEN = -math.inf


@pytest.fixture(scope="module")
def card() -> Iterator[Card]:
    with opened() as found:
        yield found


def operands(sizes: Extents = SIZES, dtype: str = "float16") -> list[Array | None]:
    return [drawn(*sizes.operand(i), seed=i, dtype=dtype) for i in range(3)]


def call_with(
    arrays: list[Array | None], bias: Array | None = None, **attrs: Any
) -> tuple[OpCall, list[Array | None]]:
    dtype = arrays[0].dtype if arrays[0] is not None else None
    given = [*arrays, None if bias is None else bias.astype(dtype)]
    return call_of(OP if "extents" not in attrs else "fused_attention", given, attrs), given


def check(card: Card, call: OpCall, arrays: list[Array | None]) -> None:
    assert off(card, NAME, call, arrays) < NEAR[call.outputs[0].dtype]


def asked_of(call: OpCall) -> Attention:
    found = [s.fn.asked for s in kernels(call)[NAME].lowered(call, WITH).steps
             if isinstance(s, ArrayCall)]  # fmt: skip
    (asked,) = found
    return asked


@pytest.mark.parametrize("dtype", NEAR)
@pytest.mark.parametrize("shared", [4, 2, 1])
def test_heads_share_keys(card: Card, shared: int, dtype: str) -> None:
    check(card, *call_with(operands(replace(SIZES, shared=shared), dtype), scale=0.4))


@needs_pocl
@pytest.mark.parametrize("dtype", NEAR)
@pytest.mark.parametrize("shape", [(), (9,), (5, 1), (5, 9), (4, 1, 1), (2, 1, 1, 9), (2, 4, 5, 9)])
def test_biases_of_every_rank(card: Card, shape: tuple[int, ...], dtype: str) -> None:
    check(card, *call_with(operands(dtype=dtype), 3 * drawn(*shape, seed=9)))


@pytest.mark.parametrize(
    ("offset", "reach", "from_end"),
    [(0, 0, False), (2, 2, False), (4, 0, True), (8, None, False), (30, None, False)],
)
def test_what_is_seen(card: Card, offset: int, reach: int | None, from_end: bool) -> None:
    """Of 9 keys by 5 queries; the last of them see all."""
    call, arrays = call_with(operands(), causal_offset=offset)
    assert (asked_of(call).reach, asked_of(call).from_end) == (reach, from_end)
    check(card, call, arrays)


def masked() -> Array:
    """Parts of rows, a whole one, the first keys of all, and numbers that are as good as hidden."""
    bias = drawn(5, 9, seed=7)
    bias[:, :2], bias[0, 3:], bias[3] = HIDDEN, HIDDEN, HIDDEN
    return bias


@needs_pocl
@pytest.mark.parametrize("dtype", NEAR)
@pytest.mark.parametrize(
    ("zero", "offset"), [(False, None), (True, None), (True, 0), (True, 1), (True, 4)]
)
def test_hidden_keys_and_rows(card: Card, zero: bool, offset: int | None, dtype: str) -> None:
    """By the bias, by the corner, and by both together."""
    attrs = {"extents": SIZES, "hidden_zero": zero, "causal_offset": offset, "scale": 0.3}
    check(card, *call_with(operands(dtype=dtype), masked(), **attrs))


@needs_pocl
@pytest.mark.parametrize("dtype", NEAR)
def test_the_smallest_number_hides_as_the_op_says(card: Card, dtype: str) -> None:
    """A row of nothing else weighs all values alike; beside others it has no share."""
    bias = drawn(5, 9, seed=7)
    info = -3.3e38 if dtype == "bfloat16" else float(np.finfo(np.float16).min)
    bias[1], bias[2, 4:], bias[4, :8], bias[4, 8] = info, info, HIDDEN, info
    check(card, *call_with(operands(dtype=dtype), bias))


@needs_pocl
def test_what_is_no_number_stays_so(card: Card) -> None:
    arrays = operands()
    assert arrays[0] is not None
    arrays[0][0, 1, 2, 3] = math.nan
    bias = drawn(5, 9, seed=7)
    bias[4, 2] = math.nan
    check(card, *call_with(arrays, bias))


@needs_pocl
@pytest.mark.parametrize("by_row", [True, False])
def test_operands_by_row_in_one_tensor(card: Card, by_row: bool) -> None:
    sizes = Extents(2, 3, 3, 19, 19, 8, 16)
    joined = drawn(2 * 19, 8 + 3 * (8 + 8 + 16), dtype="float16")
    attrs = {"extents": sizes, "offsets": (8, 32, 56), "by_row": by_row, "scale": 0.4}
    check(card, *call_with([joined] * 3, **attrs))
    query, _, value = operands(sizes)
    attrs["offsets"] = (None, 32, None)
    check(card, *call_with([query, joined, value], masked_row(19), **attrs))


def masked_row(keys: int) -> Array:
    bias = drawn(2, 1, 1, keys)
    bias[1, ..., 12:] = HIDDEN
    return bias


@pytest.mark.parametrize("case", [c for c in CASES if c.op == OP and "pieces" in c.id], ids=str)
def test_case(card: Card, case: Any) -> None:
    call, arrays = instance(case)
    kernel = kernels(call)[NAME]
    if len(kernel.lowered(call, WITH).steps) == 1 or POCL:
        case.check(execute(card.device, kernel, call, arrays), exact=kernel.exact)


def test_what_it_is_not_for() -> None:
    def said(sizes: Extents = SIZES, dtype: str = "float16", info: Any = WITH, **attrs: Any) -> str:
        return why(call_with(operands(sizes, dtype), **attrs)[0], NAME, info)

    assert "no float32 kernel" in said(dtype="float32")
    assert "soft cap" in said(softcap=3.0)
    assert "see none" in said(causal_offset=-1)
    assert "whole pieces of 8" in said(replace(SIZES, out_width=6))
    assert cause_of(said(replace(SIZES, width=264))) is Cause.SIZE
    turing = replace(WITH, details={**WITH.details, "compute_capability": "7.5"})
    assert said(info=turing) == "cuDNN's attention begins with compute capability 8"
    without = replace(WITH, details={"compute_capability": "8.0", "no cudnn": "none"})
    assert cause_of(said(info=without)) is Cause.LIBRARY
    joined = drawn(2 * 5, 4 + 3 * 4 * 8, dtype="float16")
    attrs = {"extents": Extents(2, 4, 4, 5, 5, 8, 8), "offsets": (4, 36, 68)}
    assert "whole pieces" in why(call_with([joined] * 3, **attrs)[0], NAME)


def test_a_bias_of_too_many_bytes() -> None:
    wide = [np.broadcast_to(to_numpy("float16").type(1), (1, 8, n, 8)) for n in (16384, 4096, 4096)]
    bias = np.broadcast_to(to_numpy("float16").type(1), (1, 8, 16384, 4096))
    assert "bytes of bias" in why(call_of(OP, [*wide, bias]), NAME)
    assert NAME in kernels(call_of(OP, [*wide, None]))


def test_it_comes_first_but_not_where_every_bit_counts() -> None:
    call, _ = call_with(operands())
    fitting = table.candidates(call, WITH).fitting
    assert [kernel.name for kernel in fitting[:2]] == [NAME, "cublaslt.attention.halves"]
    permitted = Permission(strict=True).permitted(fitting)
    assert permitted
    assert NAME not in [kernel.name for kernel in permitted]


@pytest.mark.parametrize("op", cudnn_attention.OPS)
def test_its_place_does_not_hang_on_what_was_imported_first(op: str) -> None:
    """Kernels of one rank come in the order in which their modules were imported."""
    table.candidates(call_with(operands())[0], WITH)
    ranks = {kernel.name: kernel.rank for kernel in table.kernels(op)}
    first = ranks.pop(NAME)
    assert "cublaslt.attention.halves" in ranks
    assert all(first < rank for rank in ranks.values())


def test_another_process_makes_the_same_call() -> None:
    call, _ = call_with(operands(), masked(), causal_offset=1)
    _, step, _ = kernels(call)[NAME].lowered(call, WITH).steps
    module, name, data = step.form()
    made = getattr(importlib.import_module(module), name)(json.loads(json.dumps(data)))
    assert made.asked == step.fn.asked


def test_a_refusal_is_kept_in_cudnns_words(card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(card.dnn, "refuse", "No valid engine configs for Sdpa_")
    call, arrays = call_with(operands())
    with pytest.raises(CompileError, match=r"attention of 2x4x5x16 to 2x2x9x16 .*No valid engine"):
        execute(card.device, kernels(call)[NAME], call, arrays)


# --- bugs planted ---------------------------------------------------------------------------------


def wrong(card: Card, bias: Array | None = None, **attrs: Any) -> bool:
    """Whether a result is off, or NaN where there is none."""
    call, arrays = call_with(operands(dtype="bfloat16"), bias, **attrs)
    try:
        return off(card, NAME, call, arrays) > 3 * NEAR["bfloat16"]
    except AssertionError:
        return True


def plant(monkeypatch: pytest.MonkeyPatch, **changed: Any) -> None:
    """Ask for something else."""
    right = cudnn_attention._asked
    monkeypatch.setattr(
        cudnn_attention, "_asked", lambda rounds, call: replace(right(rounds, call), **changed)
    )


def test_without_a_bug_nothing_is_wrong(card: Card) -> None:
    assert not wrong(card, scale=2.0)
    assert not wrong(card, causal_offset=0)


@pytest.mark.parametrize(
    "changed",
    [{"scale": 0.3}, {"reach": 1}, {"reach": None}, {"from_end": True},
     {"result_strides": (160, 8, 32, 1)}],
    ids=str,
)  # fmt: skip
def test_a_wrong_number_shows(
    card: Card, monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any]
) -> None:
    plant(monkeypatch, **changed)
    assert wrong(card, causal_offset=0)


def test_a_beginning_that_is_forgotten_shows(card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    joined = drawn(2 * 5, 3 * 4 * 8, dtype="float16")
    attrs = {"extents": Extents(2, 4, 4, 5, 5, 8, 8), "offsets": (0, 32, 64)}
    call, arrays = call_with([joined] * 3, **attrs)
    plant(monkeypatch, begins=(0, 0, 64))
    assert off(card, NAME, call, arrays) > 10 * NEAR["float16"]


def buggy_bias() -> Array:
    """With a row for each bug of a launch."""
    bias = np.stack([masked()] * 4)
    bias[1, 1], bias[2, 4, :8], bias[2, 4, 8] = HIDDEN, HIDDEN, -3.3e38
    bias[3, 0], bias[3, 0, 5], bias[0, 2] = HIDDEN, 0.0, -3.3e38
    return bias


@needs_pocl
def test_without_a_bug_no_row_is_wrong(card: Card) -> None:
    assert not wrong(card, buggy_bias(), causal_offset=4)


@needs_pocl
@pytest.mark.parametrize(
    ("text", "old", "new"),
    [("_WIDEN", "hidden ? HIDDEN : (x < LEAST ? LEAST : x)", "x"),
     ("_WIDEN", "LOWER(seen, k)", "0"), ("_UNSEEN", "head * f1", "head"),
     pytest.param("_WIDEN", "x < LEAST ? LEAST : x", "x", marks=pytest.mark.slow),
     pytest.param("_WIDEN", "-2e30f", "-1e30f", marks=pytest.mark.slow),
     pytest.param("_WIDEN", "base + k]", "k]", marks=pytest.mark.slow),
     pytest.param("_UNSEEN", "> last", "> keys", marks=pytest.mark.slow),
     pytest.param("_UNSEEN", "ANSWER", "1.0f", marks=pytest.mark.slow),
     pytest.param("_UNSEEN", "e < width", "e < width - 1", marks=pytest.mark.slow)],
)  # fmt: skip
def test_a_bug_in_a_launch_shows(
    card: Card, monkeypatch: pytest.MonkeyPatch, text: str, old: str, new: str
) -> None:
    """Hidden keys given as they are, rows said to be seen or read from elsewhere, and so on."""
    assert old in getattr(cudnn_attention, text)
    monkeypatch.setattr(cudnn_attention, text, getattr(cudnn_attention, text).replace(old, new))
    assert wrong(card, buggy_bias(), causal_offset=4)


def test_a_workspace_smaller_than_it_is_told_shows(
    card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle = cuda_dnn.settle
    plant(monkeypatch, workspace=128)
    monkeypatch.setattr(
        cuda_dnn, "settle",
        lambda dnn, graph, asked: settle(dnn, graph, replace(asked, workspace=1 << 20)),
    )  # fmt: skip
    call, arrays = call_with(operands())
    caught(card, "outside an allocation", lambda: execute(
        card.device, kernels(call)[NAME], call, arrays))  # fmt: skip


def test_operands_that_are_not_aligned_show(card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cudnn_attention, "PIECE", 4)
    joined = drawn(2 * 5, 4 + 3 * 4 * 8, dtype="float16")
    attrs = {"extents": Extents(2, 4, 4, 5, 5, 8, 8), "offsets": (4, 36, 68)}
    call, arrays = call_with([joined] * 3, **attrs)
    caught(card, "is misaligned", lambda: execute(
        card.device, kernels(call)[NAME], call, arrays))  # fmt: skip


# --- the launches by themselves -------------------------------------------------------------------

COPY = "KERNEL BLOCK_SIZE(1, 1, 1) void f(CONSTANT u16 *x, GLOBAL u16 *y) "
COPY += "{ y[GLOBAL_ID(0)] = x[GLOBAL_ID(0)]; }"


@pytest.mark.skipif(not host_build.compiler(), reason=host_build.ABSENT)
@pytest.mark.parametrize(
    "shape", [(2, 1, 5, 150), pytest.param((2, 1, 5, 1), marks=pytest.mark.slow)]
)
def test_the_launches_under_the_sanitizers(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """Index for index, on blocks of the heap of exact sizes."""
    sizes = Extents(2, 3, 3, 5, 150, 8, 8)
    bias = drawn(*shape, seed=4, dtype="float16")
    bias[1, 0, 2], bias[0, 0, 1, :90] = HIDDEN, HIDDEN
    call, _ = call_with([*operands(sizes)], bias, extents=sizes, causal_offset=20)
    before, _, after = kernels(call)[NAME].lowered(call, WITH).steps
    assert isinstance(before, GridLaunch)
    assert isinstance(after, GridLaunch)
    wide = np.broadcast_to(bias, (2, 1, 5, 150)).astype(np.float32)
    first = np.where(np.isneginf(wide), 150, np.arange(150)).min(3).astype(np.int32)
    want = np.where(np.isneginf(wide), np.float32(-2e30), wide)
    results = drawn(2, 3, 5, 8, dtype="float16")
    jobs = [
        job("before", [before], [bias], [want, first], {Scratch(1): Out(0), Scratch(2): Out(1)}),
        job("after", [GridLaunch(COPY, "f", (In(1), Out(0)), (results.size,), (1,)), after],
            [first, results], [results], {Scratch(2): In(0)}),
    ]  # fmt: skip
    found = host_run.run(jobs, tmp_path)
    assert not [one for one in found if isinstance(one, str)], found
    np.testing.assert_array_equal(found[0][0], want)
    np.testing.assert_array_equal(found[0][1], first)
    unseen = (first > np.arange(5) + 20)[..., None]
    np.testing.assert_array_equal(found[1][0], np.where(unseen, 0, results))


def job(
    name: str, steps: list[GridLaunch], ins: list[Array], outs: list[Array], places: dict[Any, Any]
) -> host_run.Job:
    """Launches with their operands in other places."""
    places = {In(3): In(0), **places}
    moved = tuple(
        replace(step, args=tuple(
            places.get(a, a) if isinstance(a, In | Scratch) else a for a in step.args))
        for step in steps
    )  # fmt: skip
    specs = [tuple(TensorSpec.of(a) for a in arrays) for arrays in (ins, outs)]
    return host_run.Job(name, Lowered(moved), OpCall("identity", {}, *specs, {}, name), ins)
