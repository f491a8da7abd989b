"""Models: every device set, predicted next to measured, beside the peers, interleaved."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import inputs
import numpy as np
import peers
import pytest

import crossdock as xd

THREADS = (1, 2)
LIGHT = (
    "resnet50",
    "squeezenet",
    "densenet121",
    "shufflenet",
    "inception_v1",
    "inception_v2",
    "bvlc_alexnet",
    "zfnet512",
    "vgg19",
)


def device_sets() -> dict[str, list[str]]:
    """The processor, the first OpenCL device, and both."""
    opencl = [d.id for d in xd.devices() if d.kind == "opencl"][:1]
    sets = {"cpu": ["cpu:0"]}
    if opencl:
        sets["opencl"] = opencl
        sets["both"] = ["cpu:0", *opencl]
    return sets


def light_path(name: str) -> Path:
    """A light model of the onnx wheel."""
    found = importlib.util.find_spec("onnx")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent / "backend/test/data/light" / f"light_{name}.onnx"


@pytest.mark.parametrize("devices", list(device_sets()))
@pytest.mark.parametrize("name", list(inputs.PATHS))
@pytest.mark.benchmark(group="real models")
def test_real(name: str, devices: str, versus: Any) -> None:
    """A real model on real input; correctness against onnxruntime goes into the report."""
    feeds = inputs.feeds(name)
    path = inputs.model_path(name)
    others = peers.all_peers(path, feeds, 2) if devices == "cpu" else {}
    shapes = {key: value.shape for key, value in feeds.items()}
    with xd.compile(xd.load(path), device_sets()[devices], shapes=shapes) as session:
        outputs = list(session.run(feeds).values())
        predicted = session.estimate().seconds  # before a peer's threads spin
        errors = _errors(outputs, peers.onnxruntime(path, feeds, 2)())
        versus(
            lambda: session.run(feeds),
            others,
            predicted_ms=round(predicted * 1e3, 3),
            max_abs_error=f"{errors[0]:.1e}",
            max_rel_error=f"{errors[1]:.1e}",
            shares={k: round(v, 3) for k, v in session.plan.shares().items()},
        )


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("name", LIGHT)
@pytest.mark.benchmark(group="light models")
def test_light(name: str, threads: int, versus: Any) -> None:
    """A light model (constant weights: for timing only) on the processor."""
    path = light_path(name)
    graph = xd.load(path)
    rng = np.random.default_rng(0)
    feeds = {n: rng.random(s.dims, np.float32) for n, s in graph.inputs.items()}
    with xd.compile(graph, "cpu:0", threads=threads) as session:
        predicted = session.estimate().seconds
        versus(
            lambda: session.run(feeds),
            peers.all_peers(path, feeds, threads),
            rounds=9,
            predicted_ms=round(predicted * 1e3, 3),
        )


def _errors(got: list[Any], want: list[Any]) -> tuple[float, float]:
    """Largest absolute error, and the same over the largest magnitude of its output."""
    absolute = relative = 0.0
    for a, b in zip(got, want, strict=True):
        x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
        error = float(np.abs(x - y).max(initial=0.0))
        absolute = max(absolute, error)
        relative = max(relative, error / max(float(np.abs(y).max(initial=0.0)), 1e-30))
    return absolute, relative
