"""Predicted against measured over the light and the real models: runs and ops, seen and never seen.

With CROSSDOCK_BENCH_THREADS=1 devices have a thread each, else all cores. Devices are calibrated
first where they never were. The last row of a device set sums up the ops of all models.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import inputs
import numpy as np
import pytest
from bench_models import device_sets
from light import NAMES as LIGHT
from light import path as light_path

import crossdock as xd
from crossdock.runtime.accuracy import measure_accuracy
from crossdock.runtime.calibrate import calibrate, is_calibrated
from crossdock.runtime.metrics import Metrics, Pair, metrics

THREADS = int(os.environ.get("CROSSDOCK_BENCH_THREADS", "0")) or None
REPEAT = 15
SEEN: dict[str, list[Pair]] = {}
UNSEEN: dict[str, list[Pair]] = {}
WHOLE: dict[str, list[Pair]] = {}


@pytest.fixture(scope="module", autouse=True)
def calibrated() -> None:
    """Devices whose kernels were timed at shapes of all kinds."""
    for ids in device_sets().values():
        for name in ids:
            if not is_calibrated(name, THREADS):
                calibrate(name, threads=THREADS)


def load(name: str) -> tuple[Any, dict[str, Any]]:
    """A real model with its input, or a light one with random numbers."""
    if name in inputs.PATHS:
        return xd.load(inputs.model_path(name)), inputs.feeds(name)
    graph = xd.load(light_path(name))
    rng = np.random.default_rng(0)
    return graph, {n: rng.random(s.dims, np.float32) for n, s in graph.inputs.items()}


@pytest.mark.parametrize("devices", list(device_sets()))
@pytest.mark.parametrize("model", [*LIGHT, *inputs.PATHS])
@pytest.mark.benchmark(group="accuracy")
def test_accuracy(model: str, devices: str, benchmark: Any) -> None:
    """A model on a set of devices."""
    graph, feeds = load(model)
    shapes = {key: value.shape for key, value in feeds.items()}
    with xd.compile(graph, device_sets()[devices], threads=THREADS, shapes=shapes) as session:
        made = measure_accuracy(session, feeds, REPEAT)
        benchmark.pedantic(session.run, args=(feeds,), rounds=3)
    seen = [op.pair for op in made.ops]
    unseen = [op.unseen for op in made.ops if op.unseen is not None]
    for store, pairs in ((SEEN, seen), (UNSEEN, unseen), (WHOLE, [made.whole])):
        store.setdefault(devices, []).extend(pairs)
    w, c = made.whole, made.composed
    later = "" if made.unseen is None else f", unseen {made.unseen.error:+.0%}"
    benchmark.extra_info["note"] = (
        f"measured {w.measured * 1e3:.2f} ms; run {w.error:+.1%}, composed {c.error:+.0%}{later}; "
        f"ops {_said(metrics(seen))}; unseen {_said(metrics(unseen))}; pace {made.pace:.2f}"
    )
    benchmark.extra_info["whole"] = dataclasses.asdict(w)


@pytest.mark.parametrize("devices", list(device_sets()))
@pytest.mark.benchmark(group="accuracy over all models")
def test_over_all_models(devices: str, benchmark: Any) -> None:
    """The ops and the runs of all models that were measured in this process."""
    benchmark.pedantic(lambda: None, rounds=1)
    whole = metrics(WHOLE.get(devices, []))
    found = {"seen": metrics(SEEN.get(devices, [])), "unseen": metrics(UNSEEN.get(devices, []))}
    benchmark.extra_info["note"] = (
        f"runs {_said(whole)}; ops seen {_said(found['seen'])}; unseen {_said(found['unseen'])}"
    )
    for name, made in (("whole", whole), *found.items()):
        if made is not None:
            benchmark.extra_info[name] = dataclasses.asdict(made)


def _said(q: Metrics | None) -> str:
    if q is None:
        return "-"
    return (
        f"{q.count}: median {q.median_ape:.1%}, within 10 % {q.within_10:.0%}, within 15 % "
        f"{q.within_15:.0%}, in interval {q.coverage:.0%}"
    )
