"""Quantised models beside onnxruntime: QDQ and QOperator graphs, and dynamic quantisation."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import peers
import pytest
import quantised

import crossdock as xd

THREADS = (1, 2)
LIGHT = ("resnet50", "squeezenet", "shufflenet")
FORMS = ("qdq", "qoperator")
LENGTHS = (16, 128)


@functools.cache
def static(name: str, form: str) -> bytes:
    """A light model, quantised once."""
    return quantised.quantised(name, form)


@functools.cache
def dynamic(length: int) -> bytes:
    """An encoder of MiniLM's shape, dynamically quantised once."""
    return quantised.quantised_dynamic(quantised.encoder(length=length))


def compared(model: bytes, feeds: dict[str, Any], threads: int, versus: Any) -> None:
    """Time a model beside onnxruntime; how far the outputs lie apart goes into the report."""
    peer = peers.onnxruntime(model, feeds, threads)
    with xd.compile(xd.load(model), "cpu:0", threads=threads) as session:
        got, want = list(session.run(feeds).values()), peer()
        apart = max(float(np.abs(g - w).max()) for g, w in zip(got, want, strict=True))
        largest = max(float(np.abs(w).max()) for w in want)
        versus(
            lambda: session.run(feeds),
            {"onnxruntime": peer},
            rounds=11,
            largest_difference=f"{apart:.1e}",
            largest_output=f"{largest:.1e}",
        )


@pytest.mark.skipif(not peers.installed("onnxruntime"), reason="onnxruntime makes the models")
@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", LIGHT)
@pytest.mark.benchmark(group="quantised light models")
def test_light(name: str, form: str, threads: int, versus: Any) -> None:
    """Convolutions of uint8 images by int8 filters with a scale for each channel."""
    model = static(name, form)
    rng = np.random.default_rng(2)
    inputs = xd.load(model).inputs
    feeds = {n: rng.standard_normal(s.dims).astype(np.float32) for n, s in inputs.items()}
    compared(model, feeds, threads, versus)


@pytest.mark.skipif(not peers.installed("onnxruntime"), reason="onnxruntime makes the models")
@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.benchmark(group="quantised encoders")
def test_encoder(length: int, threads: int, versus: Any) -> None:
    """Products whose left matrix is quantised over its own range at run time."""
    ids = np.random.default_rng(3).integers(0, quantised.WORDS, (1, length))
    compared(dynamic(length), {"ids": ids.astype(np.int64)}, threads, versus)
