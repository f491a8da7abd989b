"""Ops run through their decompositions on OpenCL devices, against the float64 reference."""

from __future__ import annotations

import numpy as np
import pytest

import crossdock as xd
from crossdock.devices.program import GridLaunch, Scratch
from crossdock.kernels import table
from crossdock.runtime import costing, emulation
from tests.cases import CASES, Case
from tests.kernels.grid_run import call_of, execute, opencl_ids, opened
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
    assert isinstance(parts, emulation.Parts), parts
    assert call.op not in parts.ops
    lowered = emulation.EMULATED.lower(call, device.info)
    assert all(isinstance(step, GridLaunch) for step in lowered.steps)
    outputs = execute(lowered, call, arrays, device)
    case.check({f"y{i}": array for i, array in enumerate(outputs)})


@pytest.mark.parametrize("shape", [(1, 1), (3, 1, 1)])
def test_parts_that_would_give_back_the_operand_copy_it(shape: tuple[int, ...]) -> None:
    b = xd.GraphBuilder()
    graph = b.build({"y": b.det(b.input("x", shape))})
    x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape) + 2
    with xd.compile(graph, devices=[ID], measure=False, fallback="forbid") as session:
        np.testing.assert_array_equal(session.run({"x": x})["y"], x[..., 0, 0])


def test_parts_that_would_give_back_a_constant_copy_it() -> None:
    b = xd.GraphBuilder()
    x = b.input("x", (1,))
    scale = b.det(b.constant(np.full((1, 1), 3, np.float32)), label="det")
    graph = b.build({"y": b.mul(x, scale)})
    rules = xd.Constraints(pin={"det": ID})  # which keeps it from being folded
    with xd.compile(graph, ID, measure=False, constraints=rules, fallback="forbid") as session:
        assert "emulated" in {s.kernel for s in session.plan.launches()}
        np.testing.assert_array_equal(session.run({"x": np.ones(1, np.float32)})["y"], [3])


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


def test_what_has_no_decomposition_is_named() -> None:
    device = opened(ID)
    b = xd.GraphBuilder(strict=False)
    x, w = (b.input(n, s, "float64") for n, s in (("x", (1, 2, 5, 7)), ("w", (3, 2, 3, 3))))
    (call,) = costing.op_calls(b.build({"y": b.conv2d(x, w)})).values()
    found = emulation.candidates(call, device.info)
    assert not found.fitting
    assert dict(found.rejected)["emulated"] == "it has no decomposition"


def test_a_product_of_doubles_is_taken_apart_where_it_is_small() -> None:
    info = opened(ID).info
    small, large = (call_of("matmul", [np.ones((n, n)), np.ones((n, n))]) for n in (8, 512))
    assert [k.name for k in emulation.candidates(small, info).fitting] == ["emulated"]
    assert "134,217,728 products are too many" in str(emulation.parts_of(large, info))


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
