"""Special values, odd sizes and half precision on every device, and what tolerances let through."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from crossdock.devices import registry
from crossdock.kernels import table
from crossdock.kernels.ops_math import float_to_integer, truncated_divide
from crossdock.runtime.cases.kit import flushed
from crossdock.runtime.cases.special import SPECIAL, special_values
from crossdock.runtime.cli.verify_check import check, judge
from crossdock.runtime.tensor import to_numpy
from tests.cases import CASES, Case, Feed
from tests.kernels.grid_run import opencl_ids

OPS = tuple(dict.fromkeys(case.op for case in SPECIAL))


def failures(cases: list[Case], device_id: str) -> list[str]:
    found, missing = check(cases, [registry.open_device(device_id)], lambda *_: None)
    assert found or missing or all(table.op(case.op).alias for case in cases)
    return [f"{f.case} {f.kernel}: {f.error} {f.message}" for f in found if not f.passed]


@pytest.mark.parametrize("op", OPS)
def test_special_cases_on_the_processor(op: str) -> None:
    assert not failures([case for case in SPECIAL if case.op == op], "cpu:0")


@pytest.mark.parametrize("device_id", opencl_ids())
@pytest.mark.parametrize(
    "op", [op if op in ("div", "cast", "max") else pytest.param(op, marks=pytest.mark.slow)
           for op in OPS],
)  # fmt: skip
def test_special_cases_on_opencl(op: str, device_id: str) -> None:
    cases = [case for case in SPECIAL if case.op == op]
    if op in ("div", "cast", "max"):
        cases = [c for c in cases if c.id in QUICK]
    assert not failures(cases, device_id)


QUICK = ("values-int32", "values-int8", "values-float32", "values-float32-uint8")
"""Each builds a kernel of its own."""


def off_by_two_percent(case: Case, exact: bool) -> float:
    """The largest error over the one allowed where one output is 2 % off everywhere."""
    wanted = list(case.reference().values())
    dtypes = [spec.dtype for spec in case.graph.output_specs.values()]
    least = np.inf
    for i, want in enumerate(wanted):
        if want.dtype.kind != "f" or not np.any(want[np.isfinite(want)]):
            continue
        made = [w.astype(to_numpy(d)) for w, d in zip(wanted, dtypes, strict=True)]
        made[i] = (want * 1.02).astype(to_numpy(dtypes[i]))
        least = min(least, judge(case, made, wanted, dtypes, exact=exact)[0])
    return least


@pytest.mark.parametrize(
    ("cases", "exact"),
    [pytest.param(CASES, True, id="table"), pytest.param(CASES, False, id="fast"),
     pytest.param(SPECIAL, True, id="special")],
)  # fmt: skip
def test_two_percent_off_fails_in_every_case(cases: tuple[Case, ...], exact: bool) -> None:
    """By a fast kernel, too, which may be off by a part of the largest result."""
    with np.errstate(all="ignore"):
        loose = {str(case): off_by_two_percent(case, exact) for case in cases}
    assert not {name: over for name, over in loose.items() if over <= 1.0}


def test_floats_out_of_an_integers_range_are_held_to_it() -> None:
    x = np.array([np.nan, np.inf, -np.inf, 300.7, -1.5, 1e30, -1e30], np.float32)
    assert float_to_integer(np, x, "uint8").tolist() == [0, 255, 0, 255, 0, 255, 0]
    most, least = 2**63 - 1, -(2**63)
    assert float_to_integer(np, x, "int64").tolist() == [0, most, least, 300, -1, most, least]


def test_integers_over_zero_are_zero() -> None:
    a, b = np.array([-7, 7, -(2**31)], np.int32), np.array([0, 0, -1], np.int32)
    with np.errstate(all="ignore"):
        assert truncated_divide(np, a, b).tolist() == [0, 0, -(2**31)]


def doubled(values: tuple[Any, ...]) -> Case:
    feeds = {"a": Feed((len(values),), values=values), "b": Feed((), values=(2.0,))}
    return Case("mul", "denormals", feeds, magnitude=0.0, special=True)


def test_flushed_denormals_pass_and_are_named() -> None:
    case = doubled((1e-40, 1.0))
    (want,) = case.reference().values()
    kept, zeroed, wrong = (np.array([v, 2.0], np.float32) for v in (2e-40, 0.0, 1e-30))
    assert judge(case, [kept], [want], ["float32"])[::2] == (pytest.approx(0, abs=1), False)
    over, _, flushes = judge(case, [zeroed], [want], ["float32"])
    assert over <= 1.0
    assert flushes
    assert judge(case, [wrong], [want], ["float32"])[0] > 1.0


def test_flushing_zeroes_denormals_alone() -> None:
    values = np.array(special_values("float32"), np.float32)
    got = flushed(values)
    small = (np.abs(values) < 2.0**-126) & (values != 0)
    assert small.sum() == 4
    assert (got[small] == 0).all()
    np.testing.assert_array_equal(got[~small], values[~small])
