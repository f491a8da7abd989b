"""The trained models: real input for each, and what onnxruntime makes of it."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import onnxruntime as ort

import crossdock as xd
from crossdock.devices import registry
from crossdock.kernels import table
from crossdock.runtime import costing
from crossdock.runtime.graph import Graph
from crossdock.runtime.session import Session
from tests.models import signals
from tests.models.scripts import script

Feeds = dict[str, Any]


inputs = script("examples", "inputs")
MODELS: tuple[str, ...] = tuple(inputs.PATHS)
SOUND = signals.utterances([(0.2, 1.16)], 1.4)


@cache
def feeds(name: str) -> Feeds:
    """A real input: voiced sound for the voice detectors, else the example's."""
    given: Feeds = dict(inputs.feeds(name))
    if name == "silero-vad-sequence":
        given["input"] = signals.windows(SOUND)[8:24]
    elif name.startswith("silero"):
        given["input"] = signals.windows(SOUND)[20][None]
    elif name == "basic-pitch":
        # Silence in a band leaves rounding errors alone, whose logarithm is taken.
        key = next(iter(given))
        noise = np.random.default_rng(0).standard_normal(given[key].shape)
        given[key] = given[key] + (0.001 * noise).astype(np.float32)
    return given


def peer(model: Any, given: Feeds) -> Feeds:
    """onnxruntime's outputs by name."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(None, given), strict=True))


@cache
def wanted(name: str) -> Feeds:
    """onnxruntime's outputs for ``feeds(name)``."""
    return peer(str(inputs.model_path(name)), feeds(name))


def bound(source: Any, given: Feeds) -> Graph:
    """The model for these inputs' shapes."""
    graph = xd.load(source)
    if graph.symbols:
        graph = graph.bind(shapes={name: array.shape for name, array in given.items()})
    return graph


BLOCK = 5
"""Ops that stay together where a model is split over two devices; fewer in a model of few."""


def compiled(graph: Graph, where: str) -> Session:
    """A session on a device, or with blocks of ops by turns on two ("cpu:0+opencl:0")."""
    ids = where.split("+")
    pin = {}
    if len(ids) > 1:
        info = registry.open_device(ids[1]).info
        calls = costing.op_calls(graph)
        # A pin by the name of an op is a pin of all of its nodes.
        named = {n: call for n, call in calls.items() if n not in table.ops()}
        can = [n for n, call in named.items() if table.candidates(call, info).fitting]
        block = max(1, min(BLOCK, len(can) // 2))
        pin = {name: ids[i // block % 2] for i, name in enumerate(can)}
    return xd.compile(graph, ids, constraints=xd.Constraints(pin=pin), measure=False)


def errors(found: Feeds, want: Feeds) -> dict[str, tuple[float, float]]:
    """Largest error of each output: absolute, and over the output's largest value."""
    made = {}
    for name, array in want.items():
        off = float(np.abs(found[name].astype(np.float64) - array).max())
        made[name] = (off, off / max(float(np.abs(array).max()), 1e-30))
    return made
