"""No string of a model reaches the source that a device compiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest

from crossdock.devices import registry
from crossdock.devices.base import DeviceInfo
from crossdock.devices.cpu_llvm import compile_ir
from crossdock.devices.program import NativeCall
from crossdock.kernels import cpu_ir
from crossdock.kernels.spec import OpCall
from crossdock.runtime.calls import op_calls
from crossdock.runtime.emulation import candidates
from crossdock.runtime.graph import Graph
from crossdock.runtime.loaders import load
from crossdock.runtime.passes import run as run_passes
from tests.cards import CARD
from tests.runtime.hostile.graphs import HOSTILE_NAMES
from tests.runtime.hostile.kit import info, model

MARK = "Zq9xMark"


def _named(name: str) -> Any:
    """A model all of whose names hold a mark and a hostile word."""

    def of(part: str) -> str:
        return f"{MARK}{part}{name}"

    nodes = [
        ("Conv", ["x", "w"], {"pads": [1, 1, 1, 1]}),
        ("Sigmoid", ["conv"], {}),
        ("Elu", ["act"], {"alpha": float("nan")}),
        ("MatMul", ["elu", "m"], {}),
        ("Softmax", ["mul"], {"axis": -1}),
        ("Transpose", ["soft"], {"perm": [0, 2, 1, 3]}),
        ("Resize", ["turn", "", "scales"], {"mode": "nearest"}),
        ("Clip", ["big", "low", "high"], {}),
        ("ReduceSum", ["clip"], {"keepdims": 0}),
    ]
    results = ["conv", "act", "elu", "mul", "soft", "turn", "big", "clip", "y"]
    made = []
    for (op, inputs, attrs), result in zip(nodes, results, strict=True):
        names = [of(i) if i else "" for i in inputs]
        made.append(onnx.helper.make_node(op, names, [of(result)], name=of(op), **attrs))
    constants = {
        of("w"): np.ones((2, 1, 3, 3), np.float32),
        of("m"): np.ones((4, 4), np.float32),
        of("scales"): np.array([1, 1, 2, 2], np.float32),
        of("low"): np.float32(-np.inf),
        of("high"): np.float32(1e-45),
    }
    proto = model(made, [info(of("x"), shape=(1, 1, 4, 4))], [of("y")], **constants)
    proto.graph.name = of("graph")
    proto.producer_name = of("producer")
    return proto


def _sources(value: Any, depth: int = 0) -> list[str]:
    """Every string, and the text of all bytes, that a lowered op holds."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, bytes):
        return [value.decode("latin1")]
    if isinstance(value, dict):
        return [s for v in value.values() for s in _sources(v, depth + 1)]
    if isinstance(value, list | tuple | set | frozenset):
        return [s for v in value for s in _sources(v, depth + 1)]
    if depth > 8 or isinstance(value, np.ndarray | OpCall | Graph):
        return []
    fields = getattr(value, "__dataclass_fields__", ())
    return [s for name in fields for s in _sources(getattr(value, name), depth + 1)]


def _info(kind: str) -> DeviceInfo:
    if kind == "cpu":
        return next(d for d in registry.devices() if d.id == "cpu:0")
    return replace(CARD, id=f"{kind}:0", kind=kind)


@pytest.mark.parametrize("kind", ["cpu", "opencl", "cuda"])
@pytest.mark.parametrize("name", [*HOSTILE_NAMES[:6], *HOSTILE_NAMES[9:13], HOSTILE_NAMES[-5]])
def test_names_stay_out_of_what_devices_compile(
    name: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The strings of every step, and the LLVM IR that the processor's steps are compiled from."""
    texts: list[str] = []

    def recorded(text: str, names: Sequence[str]) -> list[int]:
        texts.append(text)
        return compile_ir(text, names)

    monkeypatch.setattr(cpu_ir, "compile_ir", recorded)
    info = _info(kind)
    graph = run_passes(load(_named(name).SerializeToString()))
    for call in op_calls(graph).values():
        for kernel in candidates(call, info).fitting:
            lowered = kernel.lower(call, info)
            texts += _sources(lowered)
            for step in lowered.steps:
                if isinstance(step, NativeCall):
                    assert step.address()
    assert texts
    assert not [text for text in texts if MARK in text]


def test_the_graph_itself_keeps_the_names() -> None:
    graph = load(_named("a b").SerializeToString())
    assert any(MARK in n.name for n in graph.nodes)
