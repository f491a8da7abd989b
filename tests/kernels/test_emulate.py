"""Emulation: decompositions run as their parts' kernels, as one op of the plan."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import crossdock as xd
from crossdock.devices.program import In, Packed, Scratch
from crossdock.kernels import emulate, table
from crossdock.kernels.spec import OpCall
from crossdock.runtime.cases import CASES, Case
from crossdock.runtime.errors import UnsupportedOp
from tests.kernels.grid_run import call_of, execute, opencl_ids, opened
from tests.kernels.test_cpu import instance

OPENCL = opencl_ids()[0]


QUICK = ("batch_normalization", "det", "dft", "gru_cell", "layer_normalization", "split")
"""Ops whose first case always runs; building the parts' kernels takes a second or so an op."""


def chosen() -> Iterator[Any]:
    """Of every op with a decomposition one case; all of those that have no kernel on a grid."""
    seen: set[str] = set()
    for case in CASES:
        own = case.op in ("det", "dft")
        if table.op(case.op).decompose is None or (case.op in seen and not own):
            continue
        if case.op == "clamp" and not case.attrs:
            continue  # without bounds its decomposition is a view of the operand
        quick = case.op in QUICK and case.op not in seen
        seen.add(case.op)
        yield pytest.param(case, id=str(case), marks=() if quick else pytest.mark.slow)


@pytest.mark.parametrize("case", list(chosen()))
def test_a_decomposition_runs_as_its_parts(case: Case) -> None:
    device = opened(OPENCL)
    call, arrays = instance(case)
    outputs = execute(emulate.lower_emulated(call, device.info), call, arrays, device)
    case.check({f"y{i}": array for i, array in enumerate(outputs)})


def test_a_result_that_is_a_view_is_not_emulated() -> None:
    call = call_of("clamp", [np.ones(3, np.float32)])
    with pytest.raises(UnsupportedOp, match="no step's own"):
        emulate.emulation(call)


def test_emulation_is_for_ops_without_a_kernel_alone() -> None:
    info = opened(OPENCL).info
    soft = call_of("softmax", [np.ones((3, 4), np.float32)], {"axis": 1})
    names = [k.name for k in table.candidates(soft, info).fitting]
    assert names
    assert "emulated" not in names
    det = call_of("det", [np.ones((3, 3), np.float32)])
    (kernel,) = table.candidates(det, info).fitting
    assert (kernel.name, kernel.native) == ("emulated", False)


def test_buffers_are_used_again() -> None:
    call = call_of("det", [np.ones((1, 8, 8), np.float32)])
    plan = emulate.emulation(call)
    step = emulate.lower_emulated(call, opened(OPENCL).info)
    values = sum(len(made) for _, _, made in plan.steps.calls)
    assert len(step.scratch) < values / 4
    slots = {a for s in step.steps for a in s.args}  # type: ignore[union-attr]
    assert {a.index for a in slots if isinstance(a, Scratch)} <= set(range(len(step.scratch)))
    assert {a.index for a in slots if isinstance(a, Packed)} == set(range(len(step.packs)))
    assert In(0) in slots


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (call_of("det", [np.ones((40, 40), np.float32)]), "matrices of 40 rows"),
        (call_of("dft", [np.ones((8192, 2), np.float32)]), "lines of 8192"),
        (call_of("top_k", [np.ones(3, np.float32)], {"k": 1, "axis": 0}), "no decomposition"),
    ],
)
def test_what_is_not_taken_apart(call: OpCall, match: str) -> None:
    with pytest.raises(UnsupportedOp, match=match):
        emulate.emulation(call)


def test_a_part_without_a_kernel_is_named() -> None:
    info = opened(OPENCL).info
    call = call_of("det", [np.ones((1, 0, 3, 3), np.float32)])
    found = table.candidates(call, info)
    assert not found.fitting
    assert "emulated" in found.reason()


def test_a_plan_says_that_an_op_is_emulated() -> None:
    opened(OPENCL)
    b = xd.GraphBuilder()
    graph = b.build({"y": b.det(b.input("x", (4, 3, 3)))})
    session = xd.compile(graph, devices=[OPENCL], measure=False)
    x = np.random.default_rng(0).normal(size=(4, 3, 3)).astype(np.float32)
    np.testing.assert_allclose(session.run({"x": x})["y"], np.linalg.det(x), rtol=1e-4)
    assert [s.kernel for s in session.plan.launches()] == ["emulated"]
