"""Plans that take a batch image by image and are given: they compute the same, or are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import crossdock as xd
from crossdock.kernels.precision import PLAIN, Permission
from crossdock.kernels.reference import evaluate
from crossdock.kernels.refusal import Cause, Refusal
from crossdock.kernels.spec import Kernel
from crossdock.runtime import costing, images
from crossdock.runtime.errors import PlanError
from crossdock.runtime.plan import Plan
from crossdock.runtime.plan_parts import ImageRow
from crossdock.runtime.settle import Settling
from tests.kernels.cpu_run import device
from tests.runtime.test_images import IMAGES, found_row, network, source

X = np.random.default_rng(2).standard_normal((IMAGES, 16, 12, 12)).astype(np.float32)
WANT = evaluate(source(), {"x": X}, dtype="float64")["y"]


@pytest.fixture
def plan(costs: costing.CostStore, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """The plan of a session that found images in turn to be faster."""
    row = found_row(network(), 1, 100.0)
    assert costs is not None
    monkeypatch.setattr(images, "CACHED", 0)
    monkeypatch.setattr(images, "by_image", lambda *_: row)
    monkeypatch.setattr(Settling, "rival", lambda self, ready, planned: self.make(planned))
    with xd.compile(source(), "cpu:0", threads=2, measure=0.1) as session:
        plan = session.plan
        np.testing.assert_allclose(session.run({"x": X})["y"], WANT, rtol=1e-4, atol=1e-4)
    assert plan.rows == (row,)
    return plan


def run(plan: Plan, **options: Any) -> Any:
    with xd.compile(source(), plan=plan, measure=False, **options) as session:
        assert session.plan == plan
        return session.run({"x": X})["y"]


def test_a_saved_plan_takes_a_batch_image_by_image(plan: Plan) -> None:
    again = Plan.loads(plan.dumps())
    assert any(step.op == "by_image" for step in again.launches())
    np.testing.assert_allclose(run(again), WANT, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(run(again), run(plan))


def other(row: ImageRow) -> list[ImageRow]:
    """Rows that the graph has not, or that cannot be computed so."""
    a, b, *rest = row.order
    return [
        replace(row, ops=()),
        replace(row, ops=row.ops[::-1]),
        replace(row, ops=row.ops[1:]),
        replace(row, ops=("none", *row.ops[1:])),
        replace(row, ops=(*row.ops, "none")),
        replace(row, order=(a, a, *rest)),
        replace(row, order=row.order[:-1]),
        replace(row, order=row.order[:-1], kernels=row.kernels[:-1]),
        replace(row, order=row.order[::-1], kernels=row.kernels[::-1]),
        replace(row, order=(*row.order, b), kernels=(*row.kernels, row.kernels[1])),
        replace(row, kernels=row.kernels[:-1]),
        replace(row, kernels=("none", *row.kernels[1:])),
        replace(row, kernels=("array", *row.kernels[1:])),
        replace(row, kernels=("cpu.by_image", *row.kernels[1:])),
    ]


def test_rows_that_are_none_are_refused(plan: Plan) -> None:
    for row in other(plan.rows[0]):
        with pytest.raises(PlanError, match="the plan is damaged: no ops in a row from"):
            run(replace(plan, rows=(row,)))
    with pytest.raises(PlanError, match="the plan is damaged: no ops in a row from"):
        run(replace(plan, rows=plan.rows * 2))
    with pytest.raises(PlanError, match="is no op of the graph"):
        run(replace(plan, rows=()))


def test_a_step_that_is_damaged_is_refused(plan: Plan) -> None:
    at = next(s.index for s in plan.steps if s.op == "by_image")
    data: Any = json.loads(plan.dumps())
    for field, value in (("inputs", []), ("outputs", ["y"]), ("kernel", "array"), ("op", "relu")):
        broken = json.loads(json.dumps(data))
        broken["steps"][at][field] = value
        with pytest.raises(PlanError):
            run(Plan.loads(json.dumps(broken)))


class Refusing(Permission):
    """Refuses every kernel: what a caller permits now may be less than when a plan was made."""

    def refuses(self, kernel: Kernel) -> Refusal | None:
        return Refusal(f"{kernel.name} is not wanted", Cause.PRECISION)


def test_kernels_for_an_image_lose_no_more_than_is_permitted(plan: Plan) -> None:
    thread = device(1).info
    assert images.joined(network(), plan.rows[0], thread, PLAIN) is not None
    assert images.joined(network(), plan.rows[0], thread, Refusing()) is None
