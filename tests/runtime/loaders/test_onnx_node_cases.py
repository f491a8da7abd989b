"""The cases that ONNX itself ships for its operators, over all that can be loaded."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from crossdock.kernels.reference import evaluate
from crossdock.runtime.errors import UnsupportedModel
from crossdock.runtime.graph import Graph
from crossdock.runtime.loaders import load

FLOOR = 1480
"""Cases that ran and agreed when this was written; more may, fewer may not."""

KNOWN = {
    "test_resize_downsample_scales_linear_align_corners": "divides by the unrounded output size",
    "test_resize_downsample_scales_cubic_align_corners": "divides by the unrounded output size",
    "test_quantizelinear_blocked_symmetric": "the expected output is an array of objects",
}
"""Cases that onnxruntime does not pass either, or that hold no usable numbers."""

HALVES = {"float16": 2e-3, "bfloat16": 2e-2}
"""Tolerance by type, about two units in the last place: intermediate results of an operator that
is written out are rounded where the case's are not."""


def frozen(model: Any, names: list[str], values: list[Any]) -> Any:
    """The model with every input but the first a constant: shapes and axes must be known."""
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    first = 0 if copy.graph.node[0].op_type == "Range" else 1
    for name, value in list(zip(names, values, strict=True))[first:]:
        if name and isinstance(value, np.ndarray):
            copy.graph.initializer.append(numpy_helper.from_array(value, name))
    return copy


def bound(model: Any, feeds: dict[str, Any]) -> Graph:
    """The graph for the sizes at hand; dimensions of zero are declared as unknown ones are."""
    graph = load(model)
    if graph.symbols:
        graph = graph.bind(shapes={n: feeds[n].shape for n in graph.inputs})
    return graph


def loaded(model: Any, names: list[str], values: list[Any]) -> Graph | None:
    """The graph, or None where something in it is not supported."""
    feeds = {n: np.asarray(v) for n, v in zip(names, values, strict=True)}
    try:
        return bound(model, feeds)
    except UnsupportedModel as error:
        if "inputs' values" not in str(error):
            return None
    try:
        return bound(frozen(model, names, values), feeds)
    except UnsupportedModel:
        return None


def complaint(graph: Graph, feeds: dict[str, Any], wanted: list[Any], case: Any) -> str:
    """What is wrong with the outputs; empty where nothing is."""
    for got, want in zip(evaluate(graph, feeds).values(), wanted, strict=True):
        want = np.asarray(want)
        if got.dtype != want.dtype or got.shape != want.shape:
            return f"{got.dtype}{got.shape} for {want.dtype}{want.shape}"
        if got.dtype.kind in "biu":
            close = bool((got == want).all())
        else:
            rtol = HALVES.get(got.dtype.name, case.rtol)
            a, b = got.astype(np.float64), want.astype(np.float64)
            close = np.allclose(a, b, rtol=rtol, atol=max(case.atol, rtol / 10), equal_nan=True)
        if not close:
            return f"{got} for {want}"
    return ""


@pytest.mark.slow
def test_the_cases_of_onnx() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases

        cases = collect_testcases(None)
    agreed, wrong = 0, {}
    for case in cases:
        for inputs, outputs in case.data_sets if case.model is not None else ():
            names = [i.name for i in case.model.graph.input]
            plain = all(isinstance(v, np.ndarray | np.generic) for v in inputs)
            graph = loaded(case.model, names, inputs) if plain else None
            if graph is None:
                continue
            feeds = {n: np.asarray(v) for n, v in zip(names, inputs, strict=True)}
            found = complaint(graph, {n: feeds[n] for n in graph.inputs}, outputs, case)
            agreed += not found
            if found and case.name not in KNOWN:
                wrong[case.name] = found
    assert not wrong
    assert agreed >= FLOOR
