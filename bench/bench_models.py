"""Models on the processor beside the peers, and on every device set; all interleaved."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import inputs
import light
import numpy as np
import peers
import pytest

import crossdock as xd

THREADS = (1, 2)
ROUNDS = 9


def device_sets() -> dict[str, list[str]]:
    """The processor, the first OpenCL device, and both."""
    opencl = [d.id for d in xd.devices() if d.kind == "opencl"][:1]
    sets = {"cpu": ["cpu:0"]}
    return {**sets, "opencl": opencl, "both": ["cpu:0", *opencl]} if opencl else sets


@pytest.mark.parametrize("batch", [1, 8], ids=["batch1", "batch8"])
@pytest.mark.parametrize("threads", THREADS, ids=["1t", "2t"])
@pytest.mark.parametrize("name", light.NAMES)
def test_light(name: str, threads: int, batch: int, versus: Any) -> None:
    """A light model (constant weights: for timing only)."""
    versus.group(f"light models, batch {batch}, {threads} threads")
    model = light.model(name, batch)
    graph = xd.load(model)
    rng = np.random.default_rng(0)
    feeds = {n: rng.random(s.dims, np.float32) for n, s in graph.inputs.items()}
    with xd.compile(graph, "cpu:0", threads=threads) as session:
        predicted = session.estimate().seconds
        versus(
            lambda: session.run(feeds),
            peers.all_peers(model, feeds, threads),
            rounds=ROUNDS,
            predicted_ms=round(predicted * 1e3, 3),
        )


@pytest.mark.parametrize("threads", THREADS, ids=["1t", "2t"])
@pytest.mark.parametrize("name", list(inputs.PATHS))
def test_real(name: str, threads: int, versus: Any) -> None:
    """A real model on real input."""
    versus.group(f"real models, {threads} threads")
    _real(name, ["cpu:0"], threads, versus, peers.all_peers)


@pytest.mark.parametrize("devices", [name for name in device_sets() if name != "cpu"])
@pytest.mark.parametrize("name", list(inputs.PATHS))
@pytest.mark.benchmark(group="device sets")
def test_devices(name: str, devices: str, versus: Any) -> None:
    """A real model on other devices than the processor."""
    _real(name, device_sets()[devices], 2, versus, lambda *_: {})


def _real(name: str, devices: list[str], threads: int, versus: Any, beside: Any) -> None:
    """Correctness against onnxruntime goes into the report."""
    feeds = inputs.feeds(name)
    path: Path = inputs.model_path(name)
    others: Mapping[str, Any] = beside(path, feeds, threads)
    shapes = {key: value.shape for key, value in feeds.items()}
    with xd.compile(xd.load(path), devices, shapes=shapes, threads=threads) as session:
        outputs = list(session.run(feeds).values())
        predicted = session.estimate().seconds  # before a peer's threads spin
        errors = _errors(outputs, peers.onnxruntime(path, feeds, threads)())
        versus(
            lambda: session.run(feeds),
            others,
            predicted_ms=round(predicted * 1e3, 3),
            max_abs_error=f"{errors[0]:.1e}",
            max_rel_error=f"{errors[1]:.1e}",
            shares={k: round(v, 3) for k, v in session.plan.shares().items()},
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
