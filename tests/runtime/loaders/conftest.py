"""Small ONNX models, run by onnxruntime and by the reference interpreter on the loaded graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from crossdock.kernels.reference import evaluate
from crossdock.runtime.graph import Graph
from crossdock.runtime.loaders import load

ort.set_default_logger_severity(4)
NEWEST_ORT = 24
"""Newest opset that the onnxruntime at hand is asked to run; beyond it onnx's own evaluator is."""


def value_info(name: str, array: Any) -> Any:
    dtype = helper.np_dtype_to_tensor_dtype(array.dtype)
    return helper.make_tensor_value_info(name, dtype, array.shape)


def build_model(
    nodes: Sequence[Any],
    inputs: dict[str, Any],
    outputs: Sequence[str],
    opset: int = 17,
    constants: dict[str, Any] | None = None,
    **options: Any,
) -> Any:
    """A ModelProto of these nodes; ``inputs`` and ``constants`` map names to arrays."""
    graph = helper.make_graph(
        list(nodes),
        "g",
        [value_info(n, a) for n, a in inputs.items()],
        [onnx.ValueInfoProto(name=n) for n in outputs],
        initializer=[numpy_helper.from_array(a, n) for n, a in (constants or {}).items()],
    )
    imports = options.pop("opset_imports", [helper.make_opsetid("", opset)])
    return helper.make_model(graph, opset_imports=imports, ir_version=8, **options)


def run_ort(model: Any, feeds: dict[str, Any]) -> list[Any]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        model if isinstance(model, str) else model.SerializeToString(),
        options,
        providers=["CPUExecutionProvider"],
    )
    return list(session.run(None, feeds))


def unsigned(array: Any) -> Any:
    """Signed bytes, 128 more."""
    return np.asarray(array.astype(np.int16) + 128, np.uint8)


def narrow(array: Any) -> Any:
    """Signed bytes of seven bits."""
    return array // 2


def twins(arrays: list[Any], weights: int, zero: int) -> Iterator[tuple[list[Any], list[Any]]]:
    """Operands of a quantised product for us, and for onnxruntime those that mean the same.

    Without instructions for sums of products of bytes (VNNI), onnxruntime adds two products of
    unsigned and signed bytes in 16 bits, which saturate. It is exact where both are unsigned, and
    where the signed ones have seven bits. So signed weights of all values are written for it as
    unsigned ones, their zero as much higher; those of seven bits are compared as they are.
    """
    signed = arrays[weights]
    if signed.dtype != np.int8 or arrays[0].dtype == np.int8:
        yield arrays, arrays
        return
    theirs = arrays + [None] * (zero + 1 - len(arrays))
    offset = np.array(0, np.int8) if theirs[zero] is None else theirs[zero]
    theirs[weights], theirs[zero] = unsigned(signed), unsigned(offset)
    yield arrays, theirs
    halves = list(arrays)
    halves[weights] = narrow(signed)
    yield halves, halves


def run_ours(graph: Graph, feeds: dict[str, Any]) -> dict[str, Any]:
    if graph.symbols:
        graph = graph.bind(shapes={n: a.shape for n, a in feeds.items()})
    graph.check()
    return evaluate(graph, feeds)


def assert_close(ours: Any, theirs: Any, rtol: float, atol: float, what: str = "") -> None:
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.dtype == theirs.dtype, what
    assert ours.shape == theirs.shape, what
    if ours.dtype.kind in "biu":
        assert (ours == theirs).all(), what
    else:
        ours, theirs = ours.astype(np.float64), theirs.astype(np.float64)
        np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=atol, err_msg=what)


@pytest.fixture(scope="session")
def make() -> Callable[..., Any]:
    return build_model


@pytest.fixture(scope="session")
def compare() -> Callable[..., dict[str, Any]]:
    """Check a model's outputs against onnxruntime's (or onnx's own evaluator)."""

    def run(
        model: Any,
        feeds: dict[str, Any],
        *,
        rtol: float = 1e-5,
        atol: float = 1e-6,
        oracle: str = "ort",
    ) -> dict[str, Any]:
        if oracle == "ort":
            theirs = run_ort(model, feeds)
        else:
            theirs = list(ReferenceEvaluator(model).run(None, feeds))
        ours = run_ours(load(model), feeds)
        assert list(ours) == [o.name for o in model.graph.output]
        for name, got, want in zip(ours, ours.values(), theirs, strict=True):
            assert_close(got, want, rtol, atol, name)
        return ours

    return run


@pytest.fixture(scope="session")
def check(compare: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """Check one node: arrays are inputs, those at the indices ``fixed`` initialisers."""

    def run(
        op: str,
        *arrays: Any,
        opset: int,
        fixed: Sequence[int] = (),
        outputs: int | Sequence[str] = 1,
        domain: str = "",
        rtol: float = 1e-5,
        atol: float = 1e-6,
        oracle: str | None = None,
        **attrs: Any,
    ) -> dict[str, Any]:
        names = ["" if a is None else f"x{i}" for i, a in enumerate(arrays)]
        results = [f"y{i}" for i in range(outputs)] if isinstance(outputs, int) else list(outputs)
        node = helper.make_node(op, names, results, name="the node", domain=domain, **attrs)
        given = {n: a for n, a in zip(names, arrays, strict=True) if a is not None}
        constants = {names[i]: arrays[i] for i in fixed if arrays[i] is not None}
        feeds = {n: a for n, a in given.items() if n not in constants}
        model = build_model([node], feeds, [r for r in results if r], opset, constants)
        chosen = oracle or ("ort" if opset <= NEWEST_ORT else "onnx")
        return compare(model, feeds, rtol=rtol, atol=atol, oracle=chosen)

    return run
