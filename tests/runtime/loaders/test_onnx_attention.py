"""ONNX attention: subgraphs of FlexAttention, linear attention, caches; against onnx itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from crossdock.runtime.errors import Error
from crossdock.runtime.loaders import load
from tests.runtime.loaders.conftest import build_model, run_ours

RNG = np.random.default_rng(5)
PREVIEW = "ai.onnx.preview"


def rand(*shape: int, size: float = 1.0) -> Any:
    return (RNG.standard_normal(shape) * size).astype(np.float32)


def compare(model: Any, feeds: dict[str, Any], rtol: float = 1e-4) -> list[Any]:
    wanted = ReferenceEvaluator(model).run(None, feeds)
    found = list(run_ours(load(model), feeds).values())
    for got, want in zip(found, wanted, strict=True):
        assert got.dtype == want.dtype
        np.testing.assert_allclose(got, want, rtol=rtol, atol=1e-5)
    return found


# --- FlexAttention --------------------------------------------------------------------------------


def modifier(op: str, constant: Any) -> Any:
    """A subgraph: its input and a constant through one operator."""
    return helper.make_graph(
        [helper.make_node(op, ["given", "c"], ["made"])],
        "modifier",
        [helper.make_tensor_value_info("given", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info("made", TensorProto.FLOAT, None)],
        initializer=[numpy_helper.from_array(constant, "c")],
    )


def flex(feeds: dict[str, Any], **attrs: Any) -> Any:
    node = helper.make_node("FlexAttention", ["q", "k", "v"], ["y"], domain=PREVIEW, **attrs)
    imports = [helper.make_opsetid("", 24), helper.make_opsetid(PREVIEW, 1)]
    return build_model([node], feeds, ["y"], opset_imports=imports)


def operands(heads: int = 4, own: int = 2) -> dict[str, Any]:
    return {"q": rand(2, heads, 5, 8), "k": rand(2, own, 6, 8), "v": rand(2, own, 6, 3)}


def softmax(x: Any) -> Any:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def by_hand(feeds: dict[str, Any], score: Any, weight: Any) -> Any:
    groups = feeds["q"].shape[1] // feeds["k"].shape[1]
    k, v = (np.repeat(feeds[n], groups, axis=1) for n in "kv")
    scores = feeds["q"] @ k.swapaxes(2, 3) / np.sqrt(feeds["q"].shape[3])
    return weight(softmax(score(scores))) @ v


def test_flex_attention_through_both_modifiers() -> None:
    feeds = operands()
    bias = np.where(np.tri(5, 6), 0, -np.inf).astype(np.float32)
    half = np.array(0.5, np.float32)
    model = flex(feeds, score_mod=modifier("Add", bias), prob_mod=modifier("Mul", half))
    want = by_hand(feeds, lambda s: s + bias, lambda p: p * 0.5)
    found = run_ours(load(model), feeds)["y"]
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5)


def test_flex_attention_without_modifiers() -> None:
    feeds = operands(3, 3)
    want = by_hand(feeds, lambda s: s, lambda p: p)
    np.testing.assert_allclose(run_ours(load(flex(feeds)), feeds)["y"], want, rtol=1e-4, atol=1e-5)


def test_a_modifier_that_changes_the_shape_is_refused() -> None:
    feeds = operands()
    model = flex(feeds, score_mod=modifier("Add", np.zeros((2, 1, 1, 1, 1), np.float32)))
    with pytest.raises(Error, match=r"score_mod makes"):
        load(model)


# --- Attention ------------------------------------------------------------------------------------


def attention(
    arrays: dict[str, Any], outputs: Sequence[str] = ("y",), opset: int = 24, **attrs: Any
) -> tuple[Any, dict[str, Any]]:
    order = ("q", "k", "v", "mask", "past_k", "past_v", "lengths")
    names = [name if name in arrays else "" for name in order]
    while not names[-1]:
        del names[-1]
    node = helper.make_node("Attention", names, list(outputs), **attrs)
    return build_model([node], arrays, [o for o in outputs if o], opset), arrays


OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "causal": ({}, {"is_causal": 1}),
    "scaled and capped": ({}, {"scale": 0.3, "softcap": 1.5}),
    "added mask": ({"mask": rand(2, 1, 5, 6)}, {}),
    "mask of truth": ({"mask": RNG.integers(0, 2, (5, 6)).astype(bool)}, {"is_causal": 1}),
    "row without keys": ({"mask": np.arange(30).reshape(5, 6) >= 6}, {}),
    "short mask": ({"mask": rand(4, 5, 4)}, {}),
    "lengths": ({"lengths": np.array([6, 3], np.int64)}, {"is_causal": 1}),
    "past": ({"past_k": rand(2, 2, 3, 8), "past_v": rand(2, 2, 3, 3)}, {"is_causal": 1}),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_attention(name: str) -> None:
    more, attrs = OPTIONS[name]
    outputs = ("y", "k2", "v2") if name == "past" else ("y",)
    compare(*attention({**operands(), **more}, outputs, **attrs))


@pytest.mark.parametrize("mode", range(4))
def test_attention_shows_its_scores(mode: int) -> None:
    arrays = operands() | {"mask": rand(5, 6)}
    options: dict[str, Any] = {"qk_matmul_output_mode": mode}
    if mode:
        # onnx's evaluator caps what mode 0 shows too; the specification has the raw product.
        options["softcap"] = 2.0
    compare(*attention(arrays, ("y", "", "", "scores"), **options))


def test_attention_of_flat_heads() -> None:
    arrays = {"q": rand(2, 5, 32), "k": rand(2, 6, 16), "v": rand(2, 6, 6)}
    compare(*attention(arrays, q_num_heads=4, kv_num_heads=2))


def test_attention_of_halves_is_rounded_once() -> None:
    """The nearest half to the exact value, give or take the error of float32."""
    halves = {name: array.astype(np.float16) for name, array in operands().items()}
    model, feeds = attention(halves, is_causal=1)
    exact, _ = attention({n: a.astype(np.float64) for n, a in halves.items()}, is_causal=1)
    wide = {name: array.astype(np.float64) for name, array in halves.items()}
    want = run_ours(load(exact), wide)["y"]
    found = run_ours(load(model), feeds)["y"]
    assert found.dtype == np.float16
    off = np.abs(found.astype(np.float64) - want)
    assert (off <= 0.501 * np.spacing(np.abs(found)).astype(np.float64)).all()


# --- LinearAttention ------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["linear", "gated", "delta", "gated_delta"])
@pytest.mark.parametrize("past", [True, False])
def test_linear_attention(rule: str, past: bool) -> None:
    batch, length, heads, own, size, wide = 2, 4, 4, 2, 3, 5
    arrays = {
        "q": rand(batch, length, heads * size),
        "k": rand(batch, length, own * size, size=0.5),
        "v": rand(batch, length, own * wide),
        "s": rand(batch, own, size, wide) if past else None,
        "g": -np.abs(rand(batch, length, own)) if "gated" in rule else None,
        "b": np.abs(rand(batch, length, own, size=0.3)) if "delta" in rule else None,
    }
    feeds = {name: array for name, array in arrays.items() if array is not None}
    names = [name if array is not None else "" for name, array in arrays.items()]
    attrs = {"q_num_heads": heads, "kv_num_heads": own, "update_rule": rule}
    node = helper.make_node("LinearAttention", names, ["y", "state"], **attrs)
    if onnx.defs.onnx_opset_version() < 27:
        pytest.skip("the installed onnx has no LinearAttention")
    y, state = compare(build_model([node], feeds, ["y", "state"], 27), feeds)
    assert y.shape == (batch, length, heads * wide)
    assert state.shape == (batch, own, size, wide)


# --- TensorScatter --------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["linear", "circular"])
@pytest.mark.parametrize("axis", [-2, 1])
def test_tensor_scatter(mode: str, axis: int) -> None:
    past, update = rand(3, 8, 8, 2), rand(3, 8, 8, 2)
    update = np.take(update, range(3), axis=axis)
    starts = np.array([0, 5, 3 if mode == "linear" else 7], np.int64)
    feeds = {"past": past, "update": update, "starts": starts}
    node = helper.make_node("TensorScatter", list(feeds), ["y"], mode=mode, axis=axis)
    compare(build_model([node], feeds, ["y"], 24), feeds)
    del feeds["starts"]
    node = helper.make_node("TensorScatter", list(feeds), ["y"], mode=mode, axis=axis)
    compare(build_model([node], feeds, ["y"], 24), feeds)
