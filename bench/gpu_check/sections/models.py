"""Whole models on the card and over two and three devices, against the processor's answers."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import crossdock as xd
from bench.gpu_check.nets import NETS, TINY
from bench.gpu_check.nets_ours import graph
from bench.gpu_check.place import HOST, Place
from bench.gpu_check.report import Report
from crossdock.devices import registry
from crossdock.kernels import table
from crossdock.runtime import costing

ROOT = Path(__file__).resolve().parents[3]
BLOCK = 5
"""Ops that stay together where devices take turns."""
ENOUGH = 12.0
"""Seconds that a model may take: none is begun with less."""
TOLERANCE = 1e-4
"""Error over an output's largest value: sums are in another order."""


def run(place: Place, report: Report) -> None:
    """Networks built in code, whole numbers bit by bit, and trained models where there are any."""
    sets = device_sets(place)
    if not place.rehearsal and (why := without_opencl()):
        report.not_run("plans over the processor, the card and OpenCL", why)
    _whole_numbers(sets, report)
    for net in TINY if place.rehearsal else NETS:
        if place.left < ENOUGH:
            report.not_run(net.name, "out of time")
            continue
        _compare(net.name, graph(net, 1), net.feeds(1), sets, report)
    if not place.rehearsal:
        _trained(place, sets, report)


def device_sets(place: Place) -> dict[str, list[str]]:
    """The card; the processor and the card by turns; and an OpenCL device with them."""
    both = [HOST, place.device]
    if place.device == HOST:
        return {place.device: [HOST]}
    opencl = [info.id for info in registry.devices() if info.kind == "opencl"][:1]
    sets = {place.device: [place.device], "+".join(both): both}
    if opencl and not place.rehearsal:
        sets["+".join(both + opencl)] = both + opencl
    return sets


def without_opencl() -> str:
    """Why there is no OpenCL device, or nothing where there is one."""
    (probe,) = registry.probe_all(["opencl"])
    return "" if probe.devices else f"{probe.reason}; {probe.fix}"


def by_turns(made: Any, ids: list[str]) -> xd.Constraints:
    """Pins of blocks of ops on devices by turns; ops that a device cannot run are free."""
    if len(ids) == 1:
        return xd.Constraints()
    infos = [registry.open_device(name).info for name in ids]
    moving = {node.name for node in made.nodes if not costing.is_alias(node)} - set(table.ops())
    able = [
        name
        for name, call in costing.op_calls(made).items()
        if name in moving and all(table.candidates(call, info).fitting for info in infos)
    ]
    block = max(1, min(BLOCK, len(able) // len(ids)))
    return xd.Constraints(pin={n: ids[i // block % len(ids)] for i, n in enumerate(able)})


def _compare(
    name: str, made: Any, feeds: Mapping[str, Any], sets: Mapping[str, list[str]], report: Report
) -> None:
    """Run on the processor and on every set; a set that raises is a failure of its own."""
    with xd.compile(made, HOST, measure=False) as session:
        want = session.run(feeds)
    for where, ids in sets.items():
        try:
            with xd.compile(made, ids, constraints=by_turns(made, ids), measure=False) as session:
                found = session.run(feeds)
                ran = {op.device for op in session.receipt.ops}
        except xd.Error as error:
            report.failed(f"{name} on {where}", str(error))
            continue
        worst = max(error_of(found[key], value) for key, value in want.items())
        report.bound(f"{name} on {where}: error", worst, f"<= {TOLERANCE:g}")
        if made.staged is None:
            report.check(f"{name} on {where}: every device ran", ran >= set(ids), f"{sorted(ran)}")


def error_of(found: Any, want: Any) -> float:
    """Largest difference over the largest value wanted."""
    if np.asarray(want).dtype.kind not in "fc":
        return float(not np.array_equal(found, want))
    a, b = np.asarray(found, np.float64), np.asarray(want, np.float64)
    if a.shape != b.shape or not np.isfinite(a).all():
        return float("inf")
    return float(np.abs(a - b).max(initial=0.0)) / max(float(np.abs(b).max(initial=0.0)), 1e-30)


def _whole_numbers(sets: Mapping[str, list[str]], report: Report) -> None:
    """Ops that do not round: every bit is the processor's."""
    b = xd.GraphBuilder("whole numbers")
    x, y = b.input("x", (64, 33), "int32"), b.input("y", (64, 33), "int32")
    z = b.max(b.add(x, y), b.sub(x, y))
    z = b.concat([z, b.transpose(b.transpose(b.mul(z, y)))], axis=1)
    made = b.build({"z": z, "sum": b.reduce_sum(z, axes=[1])})
    rng = np.random.default_rng(0)
    feeds = {n: rng.integers(-1000, 1000, (64, 33)).astype(np.int32) for n in ("x", "y")}
    with xd.compile(made, HOST, measure=False) as session:
        want = session.run(feeds)
    for where, ids in sets.items():
        with xd.compile(made, ids, constraints=by_turns(made, ids), measure=False) as session:
            found = session.run(feeds)
        same = all(np.array_equal(found[key], value) for key, value in want.items())
        report.check(f"whole numbers on {where}: every bit", same)


def _trained(place: Place, sets: Mapping[str, list[str]], report: Report) -> None:
    """The models of `make models`, where they and the package onnx are."""
    if not (ROOT / ".models").is_dir() or importlib.util.find_spec("onnx") is None:
        report.not_run("trained models", "need .models (`make models`) and the package onnx")
        return
    sys.path.insert(0, str(ROOT / "examples"))
    inputs = importlib.import_module("inputs")
    for name in inputs.PATHS:
        if place.left < ENOUGH:
            report.not_run(name, "out of time")
            continue
        feeds = inputs.feeds(name)
        made = xd.load(inputs.model_path(name))
        if made.symbols:
            made = made.bind(shapes={key: value.shape for key, value in feeds.items()})
        _compare(name, made, feeds, sets, report)
