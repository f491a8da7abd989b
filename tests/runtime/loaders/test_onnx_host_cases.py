"""The cases that ONNX ships, of one node each, through the host functions."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from crossdock.runtime.errors import UnsupportedModel
from crossdock.runtime.loaders.onnx_host import EMPTY, HostCall, find_host, no_body, run_entry
from crossdock.runtime.loaders.onnx_model import OnnxModel
from crossdock.runtime.loaders.onnx_parse import parse_proto
from crossdock.runtime.loaders.source import Source

FLOOR = 450
"""Cases that ran and agreed when this was written; more may, fewer may not."""

DEVICES_ONLY = ("ScatterND", "ScatterElements", "TensorScatter")
"""Moves whose reductions, or whose operator, the host takes no part in."""


def as_value(value: Any) -> Any:
    """A case's value as the host has it: strings are objects."""
    if isinstance(value, onnx.TensorProto):
        value = numpy_helper.to_array(value)
    if value is None:
        return EMPTY
    if isinstance(value, list):
        return [as_value(item) for item in value]
    array = np.asarray(value)
    return array.astype(object) if array.dtype.kind in "US" else array


def same(got: Any, want: Any, case: Any) -> bool:
    if want is EMPTY or isinstance(want, list):
        pairs = zip(got, want, strict=True) if isinstance(want, list) else ()
        return isinstance(got, type(want)) and all(same(a, b, case) for a, b in pairs)
    if got.shape != want.shape or got.dtype != want.dtype:
        return False
    if "bernoulli" in case.name:
        return True
    if got.dtype.kind in "biuO" or got.dtype.name.lstrip("u").startswith("int"):
        return bool((got == want).all())
    a, b = got.astype(np.float64), want.astype(np.float64)
    return np.allclose(a, b, rtol=case.rtol, atol=case.atol, equal_nan=True)


@functools.cache
def cases() -> list[tuple[Any, OnnxModel]]:
    """Cases of one node that has a host function and no subgraph."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loader = pytest.importorskip("onnx.backend.test.loader")
        found = []
        for case in loader.load_model_tests(kind="node"):
            if case.model is None or len(case.model.graph.node) != 1 or case.data_sets is None:
                continue
            model = parse_proto(case.model, Source(b"", case.name))
            node = model.graph.nodes[0]
            known = find_host(node, model.opsets.get(node.domain, 0))
            if known is not None and not any(node.subgraphs()):
                found.append((case, model))
        return found


def agrees(case: Any, model: OnnxModel) -> bool:
    node = model.graph.nodes[0]
    opset = model.opsets[node.domain]
    entry = find_host(node, opset)
    assert entry is not None
    for inputs, outputs in case.data_sets:
        values = dict(zip((v.name for v in case.model.graph.input), inputs, strict=True))
        held = {name: as_value(value) for name, value in values.items()}
        feeds = tuple(held[name] if name else None for name in node.inputs)
        results = run_entry(entry, HostCall(node, opset, feeds, no_body))
        made = [r for r, name in zip(results, node.outputs, strict=False) if name]
        wanted = [as_value(value) for value in outputs]
        if not all(same(a, b, case) for a, b in zip(made, wanted, strict=False)):
            return False
    return True


def test_the_host_gives_what_onnx_says() -> None:
    wrong, passed = [], 0
    for case, model in cases():
        try:
            if agrees(case, model):
                passed += 1
            else:
                wrong.append(case.name)
        except UnsupportedModel:
            assert model.graph.nodes[0].op in DEVICES_ONLY, case.name
    assert not wrong
    assert passed >= FLOOR
