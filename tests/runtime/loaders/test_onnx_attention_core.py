"""ONNX's Attention on random operands, against the package's own evaluator, on every device."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator

import crossdock as xd
from tests.kernels.grid_run import opencl_ids, opened
from tests.runtime.loaders.conftest import build_model, run_ours

NAMES = ("q", "k", "v", "mask", "past_k", "past_v", "lengths")
RNG = np.random.default_rng(3)


def rand(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(np.float32)


def operands(**more: Any) -> dict[str, Any]:
    """Two sequences, 4 query heads that share 2; 5 queries, 7 keys."""
    return {"q": rand(2, 4, 5, 8), "k": rand(2, 2, 7, 8), "v": rand(2, 2, 7, 6), **more}


def flat(**more: Any) -> dict[str, Any]:
    return {"q": rand(2, 5, 32), "k": rand(2, 7, 16), "v": rand(2, 7, 12), **more}


PAST = {"past_k": rand(2, 2, 3, 8), "past_v": rand(2, 2, 3, 6)}
SEEN = np.arange(35).reshape(5, 7) % 3 > 0
LENGTHS = np.array([7, 5], np.int64)
HEADS = {"q_num_heads": 4, "kv_num_heads": 2}

CASES: dict[str, tuple[int, dict[str, Any], dict[str, Any]]] = {
    "plain": (23, operands(), {}),
    "three axes": (23, flat(mask=SEEN), {**HEADS, "is_causal": 1}),
    "scaled and capped": (23, operands(mask=rand(2, 1, 5, 7)), {"scale": 0.3, "softcap": 2.0}),
    "past": (23, operands(**PAST), {"is_causal": 1}),
    "a mask of rank 3": (23, operands(mask=rand(4, 5, 7)), {"is_causal": 1}),
    "a hidden row": (24, operands(mask=SEEN & (np.arange(5) != 2)[:, None]), {}),
    "a short mask": (24, operands(mask=rand(5, 4)), {}),
    "lengths": (24, operands(lengths=LENGTHS), {}),
    "lengths, causal": (24, operands(lengths=LENGTHS), {"is_causal": 1}),
    "a window": (25, operands(), {"left_window_size": 2, "right_window_size": 1}),
    "a causal window after the past": (
        25,
        operands(**PAST),
        {"is_causal": 1, "left_window_size": 3},
    ),
    "a window and lengths": (
        25,
        operands(lengths=LENGTHS),
        {"left_window_size": 2, "right_window_size": 0},
    ),
    "the scores too": (23, operands(), {"qk_matmul_output_mode": 1}),
}


def made(name: str) -> tuple[Any, dict[str, Any]]:
    opset, feeds, attrs = CASES[name]
    outputs = ["y", "all_k", "all_v"] if "past_k" in feeds else ["y"]
    if "qk_matmul_output_mode" in attrs:
        outputs = ["y", "", "", "scores"]
    last = max(at for at, n in enumerate(NAMES) if n in feeds)
    given = [n if n in feeds else "" for n in NAMES[: last + 1]]
    node = helper.make_node("Attention", given, outputs, **attrs)
    imports = [helper.make_opsetid("", opset)]
    named = [n for n in outputs if n]
    return build_model([node], feeds, named, opset_imports=imports), feeds


def agree(found: list[Any], model: Any, feeds: dict[str, Any]) -> None:
    wanted = ReferenceEvaluator(model).run(None, feeds)
    for got, want in zip(found, wanted, strict=True):
        assert got.dtype == want.dtype
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_as_the_packages_own_evaluator(name: str) -> None:
    model, feeds = made(name)
    agree(list(run_ours(xd.load(model), feeds).values()), model, feeds)


@pytest.mark.parametrize("name", ["three axes", "a hidden row", "lengths, causal"])
def test_on_opencl(name: str) -> None:
    model, feeds = made(name)
    device = opened(opencl_ids()[0]).info.id
    with xd.compile(xd.load(model), [device], measure=False) as session:
        found = session.run(feeds)
        assert {op.device for op in session.receipt.ops} <= {device}
    agree(list(found.values()), model, feeds)


def test_halves_are_rounded_once() -> None:
    """Scores and weights are not rounded to half precision on the way."""
    single, feeds = made("plain")
    halves = {name: array.astype(np.float16) for name, array in feeds.items()}
    node = helper.make_node("Attention", ["q", "k", "v"], ["y"])
    model = build_model([node], halves, ["y"], opset_imports=[helper.make_opsetid("", 23)])
    wide = {name: array.astype(np.float32) for name, array in halves.items()}
    same = ReferenceEvaluator(single).run(None, wide)[0]
    found = run_ours(xd.load(model), halves)["y"]
    assert found.dtype == np.float16
    np.testing.assert_allclose(found, same, rtol=2.0**-11, atol=1e-6)
