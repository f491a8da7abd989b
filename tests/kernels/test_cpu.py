"""Every candidate on the host against the float64 reference, on the op table's cases."""

from __future__ import annotations

import numpy as np
import pytest

from crossdock.kernels.spec import OpCall
from crossdock.runtime.tensor import Array
from tests.cases import CASES, Case
from tests.kernels.cpu_run import candidates, execute


def instance(case: Case) -> tuple[OpCall, list[Array | None]]:
    graph, feeds = case.build()
    (node,) = graph.nodes
    arrays = [
        None if v is None else np.asarray(feeds[v] if v in feeds else graph.constants[v])
        for v in node.inputs
    ]
    known = {i: graph.constants[v] for i, v in enumerate(node.inputs) if v in graph.constants and v}
    inputs = tuple(None if v is None else graph.specs[v] for v in node.inputs)
    outputs = tuple(graph.specs[v] for v in node.outputs)
    return OpCall(node.op, node.attrs, inputs, outputs, known, node.name), arrays


@pytest.mark.parametrize("case", CASES, ids=str)
def test_case(case: Case) -> None:
    call, arrays = instance(case)
    fitting = candidates(call)
    assert fitting, f"nothing runs {case}"
    for threads in (1, 2):
        for kernel in candidates(call, threads):
            if threads > 1 and kernel.name == "array":
                continue
            outputs = execute(kernel, call, arrays, threads)
            named = {f"y{i}": array for i, array in enumerate(outputs)}
            try:
                case.check(named, exact=kernel.exact)
            except AssertionError as error:
                raise AssertionError(f"{kernel.name}, {threads} threads: {error}") from error
