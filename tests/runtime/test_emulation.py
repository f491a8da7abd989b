"""Ops run through their decompositions on OpenCL devices, against the float64 reference."""

from __future__ import annotations

import numpy as np
import pytest

import crossdock as xd
from crossdock.devices.program import GridLaunch, Scratch
from crossdock.kernels import table
from crossdock.runtime import costing, emulation
from tests.cases import CASES, Case
from tests.kernels.grid_run import execute, opencl_ids, opened
from tests.kernels.test_cpu import instance

ID = opencl_ids()[0]
WITH = [c for c in CASES if table.op(c.op).decompose is not None and not table.op(c.op).alias]


def first(case: Case) -> bool:
    """One float32 case an op runs always: the parts of each build kernels of their own."""
    return case is next(c for c in WITH if c.op == case.op)


@pytest.mark.parametrize(
    "case",
    [pytest.param(c, id=str(c), marks=() if first(c) else pytest.mark.slow) for c in WITH],
)
def test_parts_give_what_the_op_gives(case: Case) -> None:
    call, arrays = instance(case)
    device = opened(ID)
    parts = emulation.parts_of(call, device.info)
    if isinstance(parts, str):
        # the one reason in the table: a clamp whose bounds are absent is its operand
        assert "gives back an operand" in parts
        assert case.op == "clamp"
        return
    assert call.op not in parts.ops
    lowered = emulation.EMULATED.lower(call, device.info)
    assert all(isinstance(step, GridLaunch) for step in lowered.steps)
    outputs = execute(lowered, call, arrays, device)
    case.check({f"y{i}": array for i, array in enumerate(outputs)})


def test_an_op_without_a_kernel_is_placed_where_its_parts_have_some() -> None:
    device = opened(ID)
    b = xd.GraphBuilder()
    x = b.input("x", (2, 3, 4))
    y = b.layer_normalization(x, axes=[], bias=b.constant(np.float32(0.5)))
    graph = b.build({"y": y})
    (call,) = costing.op_calls(graph).values()
    assert not table.candidates(call, device.info).fitting
    assert [k.name for k in emulation.candidates(call, device.info).fitting] == ["emulated"]
    with xd.compile(graph, devices=[ID], measure=False) as session:
        assert {(s.device, s.kernel) for s in session.plan.launches()} == {(ID, "emulated")}
        assert "[emulated]" in session.plan.explain()
        out = session.run({"x": np.ones((2, 3, 4), np.float32)})
    np.testing.assert_array_equal(out["y"], np.full((2, 3, 4), 0.5, np.float32))


def test_a_part_without_a_kernel_is_named() -> None:
    device = opened(ID)
    b = xd.GraphBuilder(strict=False)
    x = b.input("x", (1, 2, 5, 7))
    y = b.resize(
        x,
        sizes=[3, 3],
        axes=[2, 3],
        roi=[0.1, 0.1, 0.9, 0.9],
        coordinate_transformation_mode="tf_crop_and_resize",
        mode="linear",
    )
    (call,) = costing.op_calls(b.build({"y": y})).values()
    found = emulation.candidates(call, device.info)
    assert not found.fitting
    assert dict(found.rejected)["emulated"] == "it has no decomposition"


def test_scratch_is_used_again_by_later_parts() -> None:
    case = next(c for c in WITH if c.op == "gelu")
    call, _ = instance(case)
    info = opened(ID).info
    parts = emulation.parts_of(call, info)
    assert not isinstance(parts, str)
    lowered = emulation.EMULATED.lower(call, info)
    taken = {a for s in lowered.steps if isinstance(s, GridLaunch) for a in s.args}
    used = {a.index for a in taken if isinstance(a, Scratch)}
    assert used == set(range(len(lowered.scratch)))
    assert len(lowered.scratch) < len(parts.graph.nodes) - 1
