"""onnxruntime's own transformer operators, against onnxruntime on random operands."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from onnx import helper

from crossdock.runtime.errors import UnsupportedModel
from crossdock.runtime.loaders import load
from tests.runtime.loaders.conftest import build_model, run_ort, run_ours, twins

MICROSOFT = "com.microsoft"
RNG = np.random.default_rng(11)
BATCH, LENGTH, HEADS, SIZE = 2, 5, 3, 8
WIDTH = HEADS * SIZE


def rand(*shape: int, size: float = 1.0) -> Any:
    return (RNG.standard_normal(shape) * size).astype(np.float32)


def ints(*values: int) -> Any:
    return np.array(values, np.int32)


def model_of(
    op: str, arrays: list[Any], outputs: int, domain: str, fixed: frozenset[int], **attrs: Any
) -> tuple[Any, dict[str, Any]]:
    named = {f"a{i}": a for i, a in enumerate(arrays) if a is not None}
    names = [f"a{i}" if a is not None else "" for i, a in enumerate(arrays)]
    constants = {f"a{i}": named[f"a{i}"] for i in fixed}
    feeds = {name: array for name, array in named.items() if name not in constants}
    results = [f"y{i}" for i in range(outputs)]
    node = helper.make_node(op, names, results, domain=domain, **attrs)
    imports = [helper.make_opsetid("", 17), helper.make_opsetid(MICROSOFT, 1)]
    return build_model([node], feeds, results, constants=constants, opset_imports=imports), feeds


def check(
    op: str,
    arrays: list[Any],
    *,
    theirs: list[Any] | None = None,
    outputs: int = 1,
    domain: str = MICROSOFT,
    fixed: frozenset[int] = frozenset(),
    atol: float = 2e-5,
    **attrs: Any,
) -> None:
    model, feeds = model_of(op, arrays, outputs, domain, fixed, **attrs)
    wanted = run_ort(*model_of(op, theirs or arrays, outputs, domain, fixed, **attrs))
    found = run_ours(load(model.SerializeToString()), feeds)
    for name, want in zip(found, wanted, strict=True):
        assert found[name].dtype == want.dtype, name
        assert found[name].shape == want.shape, name
        np.testing.assert_allclose(found[name], want, rtol=1e-5, atol=atol, err_msg=name)


# --- normalisations -------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batched", [True, False])
def test_skip_layer_normalization(bias: bool, batched: bool) -> None:
    skip = rand(*[BATCH] * batched, LENGTH, WIDTH)
    arrays = [rand(BATCH, LENGTH, WIDTH), skip, rand(WIDTH), rand(WIDTH)]
    arrays += [rand(WIDTH)] * bias
    check("SkipLayerNormalization", arrays, epsilon=1e-5)
    model, feeds = model_of("SkipLayerNormalization", arrays, 1, MICROSOFT, frozenset())
    model.graph.node[0].output.extend(["", "", "sum"])
    model.graph.output.add().name = "sum"
    wanted, found = run_ort(model, feeds), run_ours(load(model), feeds)
    np.testing.assert_allclose(found["sum"], wanted[1], rtol=1e-6)


@pytest.mark.parametrize("bias", [True, False])
def test_skip_simplified_layer_normalization(bias: bool) -> None:
    arrays = [rand(BATCH, LENGTH, WIDTH), rand(BATCH, LENGTH, WIDTH), rand(WIDTH)]
    arrays += [rand(WIDTH)] * bias
    check("SkipSimplifiedLayerNormalization", arrays, epsilon=1e-5)


def test_layer_normalization_before_onnx_had_it() -> None:
    x, scale = rand(BATCH, LENGTH, WIDTH), rand(WIDTH)
    check("SimplifiedLayerNormalization", [x, scale], domain="", axis=-1, epsilon=1e-5)
    node = helper.make_node("LayerNormalization", ["x", "s"], ["y"], axis=-1)
    model = build_model([node], {"x": x, "s": scale}, ["y"], 12)
    wanted, found = (
        run_ort(model, {"x": x, "s": scale}),
        run_ours(load(model), {"x": x, "s": scale}),
    )
    np.testing.assert_allclose(found["y"], wanted[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("places", [True, False])
def test_embed_layer_normalization(places: bool) -> None:
    arrays = [
        RNG.integers(0, 20, (BATCH, LENGTH)).astype(np.int32),
        RNG.integers(0, 2, (BATCH, LENGTH)).astype(np.int32),
        rand(20, WIDTH), rand(16, WIDTH), rand(2, WIDTH), rand(WIDTH), rand(WIDTH),
        np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], np.int32),
        RNG.integers(0, 16, (BATCH, LENGTH)).astype(np.int32) if places else None,
    ]  # fmt: skip
    arrays = arrays if places else arrays[:-1]
    check("EmbedLayerNormalization", arrays, outputs=2, epsilon=1e-5)
    arrays[1] = arrays[4] = None
    check("EmbedLayerNormalization", arrays[:7], outputs=2)


# --- activations and products ---------------------------------------------------------------------


def test_activations() -> None:
    x, bias = rand(BATCH, LENGTH, WIDTH, size=2), rand(WIDTH)
    check("Gelu", [x])
    check("BiasGelu", [x, bias])
    check("FastGelu", [x])
    check("FastGelu", [x, bias])
    check("QuickGelu", [x])
    check("QuickGelu", [x], alpha=1.3)


def run(op: str, arrays: list[Any], **attrs: Any) -> Any:
    model, feeds = model_of(op, arrays, 1, MICROSOFT, frozenset(), **attrs)
    return run_ours(load(model), feeds)["y0"]


def erf_gelu(x: Any) -> Any:
    erf = np.vectorize(math.erf)
    return x * 0.5 * (1 + erf(x.astype(np.float64) / math.sqrt(2)))


def test_operators_that_onnxruntime_has_on_other_devices_only() -> None:
    x, bias, rest = rand(BATCH, LENGTH, WIDTH), rand(WIDTH), rand(BATCH, LENGTH, WIDTH)
    np.testing.assert_allclose(run("BiasAdd", [x, bias, rest]), x + bias + rest, rtol=1e-6)
    left, right = np.split(x + bias, 2, axis=2)
    found = run("BiasSplitGelu", [x, bias])
    np.testing.assert_allclose(found, left * erf_gelu(right), rtol=1e-5, atol=1e-6)
    image, scale, shift = rand(2, 4, 5, 6), rand(6), rand(6)
    parts = image.reshape(2, 20, 3, 2)
    mean = parts.mean(axis=(1, 3), keepdims=True)
    variance = parts.var(axis=(1, 3), keepdims=True)
    want = ((parts - mean) / np.sqrt(variance + 1e-5)).reshape(image.shape) * scale + shift
    found = run("GroupNorm", [image, scale, shift], groups=3, activation=0)
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5)
    found = run("GroupNorm", [image, scale, shift], groups=3, activation=1)
    np.testing.assert_allclose(found, want / (1 + np.exp(-want)), rtol=1e-4, atol=1e-5)
    first = np.moveaxis(image, 3, 1).copy()
    found = run("GroupNorm", [first, scale, shift], groups=3, activation=0, channels_last=0)
    np.testing.assert_allclose(np.moveaxis(found, 1, 3), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("right", [False, True])
def test_fused_matmul(left: bool, right: bool) -> None:
    a, b = rand(2, 4, 6), rand(2, 6, 3)
    a = a.swapaxes(1, 2).copy() if left else a
    b = b.swapaxes(1, 2).copy() if right else b
    check("FusedMatMul", [a, b], transA=int(left), transB=int(right), alpha=0.3)


def test_fused_matmul_with_the_batch_inside() -> None:
    a, b = rand(4, 2, 6), rand(6, 2, 3)
    check("FusedMatMul", [a, b], transBatchA=1, transBatchB=1)


@pytest.mark.parametrize("activation", ["Relu", "Tanh", "Sigmoid", "LeakyRelu"])
def test_products_with_an_activation(activation: str) -> None:
    leaky = activation == "LeakyRelu"
    options = {"transB": 1, **({"activation_alpha": 0.1} if leaky else {})}
    check("FusedGemm", [rand(4, 6), rand(5, 6), rand(5)], activation=activation, **options)
    image, weights = rand(2, 3, 7, 6), rand(4, 3, 3, 3)
    params = {"activation_params": [0.1]} if leaky else {}
    check("FusedConv", [image, weights, rand(4)], activation=activation, pads=[1] * 4, **params)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("zeros", [True, False])
@pytest.mark.parametrize("inner", [64, 40])
def test_weights_of_few_bits(bits: int, zeros: bool, inner: int) -> None:
    block, columns = 32, 6
    blocks = -(-inner // block)
    packed = RNG.integers(0, 256, (columns, blocks, block * bits // 8)).astype(np.uint8)
    scales = np.abs(rand(columns, blocks, size=0.1))
    arrays = [rand(2, 5, inner), packed, scales]
    if zeros:
        arrays.append(RNG.integers(0, 256, (columns, -(-blocks * bits // 8))).astype(np.uint8))
    attrs = {"K": inner, "N": columns, "bits": bits, "block_size": block}
    check("MatMulNBits", arrays, fixed=frozenset(range(1, len(arrays))), atol=1e-4, **attrs)


# --- attention ------------------------------------------------------------------------------------

MASKS = {
    "none": None,
    "lengths": ints(5, 3),
    "ends and starts": ints(5, 4, 0, 1),
    "keys": np.array([[1, 1, 1, 1, 1], [1, 1, 0, 1, 0]], np.int32),
    "pairs": (np.arange(50).reshape(2, 5, 5) % 3 > 0).astype(np.int32),
}


@pytest.mark.parametrize("mask", list(MASKS))
@pytest.mark.parametrize("unidirectional", [0, 1])
def test_attention(mask: str, unidirectional: int) -> None:
    arrays = [rand(BATCH, LENGTH, 10), rand(10, 3 * WIDTH, size=0.4), rand(3 * WIDTH), MASKS[mask]]
    arrays = arrays if MASKS[mask] is not None else arrays[:3]
    options = {"num_heads": HEADS, "unidirectional": unidirectional, "fixed": frozenset({1, 2})}
    check("Attention", arrays, **options)


def test_attention_with_a_past_and_a_bias() -> None:
    past = rand(2, BATCH, HEADS, 4, SIZE)
    arrays = [rand(BATCH, LENGTH, 10), rand(10, 3 * WIDTH, size=0.4), rand(3 * WIDTH)]
    options = {"num_heads": HEADS, "fixed": frozenset({1, 2})}
    check("Attention", [*arrays, None, past], outputs=2, unidirectional=1, **options)
    bias = rand(BATCH, HEADS, LENGTH, LENGTH)
    check("Attention", [*arrays, None, None, bias], scale=0.2, **options)


def test_attention_with_values_of_another_width() -> None:
    sizes = [WIDTH, WIDTH, 2 * WIDTH]
    arrays = [rand(BATCH, LENGTH, 10), rand(10, sum(sizes), size=0.4), rand(sum(sizes))]
    options = {"num_heads": HEADS, "fixed": frozenset({1, 2})}
    check("Attention", arrays, qkv_hidden_sizes=sizes, **options)


@pytest.mark.parametrize("mask", ["none", "lengths", "keys"])
def test_attention_of_bytes(mask: str) -> None:
    x = RNG.integers(0, 256, (BATCH, LENGTH, 10)).astype(np.uint8)
    w = RNG.integers(-128, 128, (10, 3 * WIDTH)).astype(np.int8)
    scales = [np.array(0.02, np.float32), np.array(0.01, np.float32)]
    zeros = [np.array(120, np.uint8), np.array(0, np.int8)]
    arrays = [x, w, rand(3 * WIDTH), *scales, MASKS[mask], *zeros]
    options = {"num_heads": HEADS, "fixed": frozenset({1, 2})}
    for ours, theirs in twins(arrays, 1, 7):
        check("QAttention", ours, theirs=theirs, **options)
        check("QAttention", ours, theirs=theirs, unidirectional=1, **options)


def test_attention_with_a_shared_cache_is_refused() -> None:
    arrays = [rand(BATCH, LENGTH, 10), rand(10, 3 * WIDTH), rand(3 * WIDTH)]
    options = {"num_heads": HEADS, "past_present_share_buffer": 1}
    model, feeds = model_of("Attention", arrays, 1, MICROSOFT, frozenset(), **options)
    with pytest.raises(UnsupportedModel, match=r"Attention.*past_present_share_buffer"):
        run_ours(load(model), feeds)


@pytest.mark.parametrize("mask", ["none", "lengths", "keys", "pairs"])
@pytest.mark.parametrize("bias", [True, False])
def test_multi_head_attention(mask: str, bias: bool) -> None:
    arrays = [rand(BATCH, LENGTH, WIDTH) for _ in range(3)]
    arrays += [rand(3 * WIDTH) if bias else None, MASKS[mask]]
    while arrays[-1] is None:
        del arrays[-1]
    check("MultiHeadAttention", arrays, num_heads=HEADS)
    check("MultiHeadAttention", arrays, num_heads=HEADS, unidirectional=1, scale=0.3)


def test_multi_head_attention_of_other_keys() -> None:
    arrays = [rand(BATCH, LENGTH, WIDTH), rand(BATCH, 7, WIDTH), rand(BATCH, 7, 2 * WIDTH)]
    check("MultiHeadAttention", arrays, num_heads=HEADS)
    more = [None, None, rand(1, HEADS, LENGTH, 7)]
    check("MultiHeadAttention", arrays + more, num_heads=HEADS)
    whole = [rand(BATCH, HEADS, 7, SIZE), rand(BATCH, HEADS, 7, SIZE)]
    check("MultiHeadAttention", [arrays[0], *whole], num_heads=HEADS)


def test_multi_head_attention_with_a_past() -> None:
    arrays = [rand(BATCH, LENGTH, WIDTH) for _ in range(3)]
    past = [rand(BATCH, HEADS, 4, SIZE) for _ in range(2)]
    arrays += [None, None, None, *past]
    check("MultiHeadAttention", arrays, outputs=3, num_heads=HEADS)


@pytest.mark.parametrize("interleaved", [0, 1])
def test_rotary_embedding(interleaved: int) -> None:
    angles = RNG.uniform(0, 6, (16, SIZE // 2))
    caches = [np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)]
    for places in (np.array([3]), RNG.integers(0, 16, (BATCH, LENGTH))):
        arrays = [rand(BATCH, LENGTH, WIDTH), places.astype(np.int64), *caches]
        check("RotaryEmbedding", arrays, interleaved=interleaved)
        arrays[0] = rand(BATCH, HEADS, LENGTH, SIZE)
        check("RotaryEmbedding", arrays, interleaved=interleaved)
    half = [cache[:, : SIZE // 4].copy() for cache in caches]
    arrays = [rand(BATCH, LENGTH, WIDTH), places.astype(np.int64), *half]
    options = {"rotary_embedding_dim": SIZE // 2, "num_heads": HEADS}
    check("RotaryEmbedding", arrays, interleaved=interleaved, **options)


GROUPED = {"num_heads": 4, "kv_num_heads": 2}


def grouped(
    batch: int, length: int, past: int, *, size: int = SIZE, packed: bool = False
) -> list[Any]:
    parts = [rand(batch, length, n * size) for n in (4, 2, 2)]
    if packed:
        parts = [np.concatenate(parts, 2), None, None]
    cache = [rand(batch, 2, past, size) for _ in range(2)]
    total = length + past
    return [*parts, *cache, np.full(batch, total - 1, np.int32), np.array([total], np.int32)]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("batch", "length", "past"), [(2, LENGTH, 0), (2, 1, 6), (1, 3, 6)])
def test_group_query_attention(batch: int, length: int, past: int, packed: bool) -> None:
    arrays = grouped(batch, length, past, packed=packed)
    options = {"outputs": 3, "fixed": frozenset({6}), **GROUPED}
    check("GroupQueryAttention", arrays, **options)
    check("GroupQueryAttention", arrays, local_window_size=3, **options)
    check("GroupQueryAttention", arrays, softcap=2.0, **options)


@pytest.mark.parametrize("length", [LENGTH, 1])
@pytest.mark.parametrize("interleaved", [0, 1])
def test_group_query_attention_with_rotation(length: int, interleaved: int) -> None:
    angles = RNG.uniform(0, 6, (16, 8))
    past = 0 if length == LENGTH else 6
    arrays = grouped(BATCH, length, past, size=16)
    arrays += [np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)]
    options = {"do_rotary": 1, "rotary_interleaved": interleaved, **GROUPED}
    check("GroupQueryAttention", arrays, outputs=3, fixed=frozenset({6}), **options)


def test_group_query_attention_of_samples_of_different_lengths() -> None:
    arrays = grouped(2, 1, 6)
    arrays[5] = np.array([6, 3], np.int32)
    model, feeds = model_of("GroupQueryAttention", arrays, 3, MICROSOFT, frozenset({6}), **GROUPED)
    wanted, found = run_ort(model, feeds), run_ours(load(model), feeds)
    np.testing.assert_allclose(found["y0"], wanted[0], rtol=1e-5, atol=1e-5)
    for name, want in zip(("y1", "y2"), wanted[1:], strict=True):
        np.testing.assert_array_equal(found[name][0], want[0])
        np.testing.assert_array_equal(found[name][1, :, :4], want[1, :, :4])
