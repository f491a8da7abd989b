"""What fits know of an op's shape, and the ops that they learn from."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

import crossdock as xd
from crossdock.kernels.spec import OpCall
from crossdock.runtime import costing
from crossdock.runtime.calibration import MOST_BYTES, MOST_FLOPS, calibration_calls
from crossdock.runtime.shape_features import shape_of
from tests.cases import CASES, Case, by_op, naming


def test_ops_of_a_family_have_as_many_features_and_units() -> None:
    sizes: dict[str, set[tuple[int, int]]] = {}
    for call in calibration_calls(300):
        made = shape_of(call)
        sizes.setdefault(made.family, set()).add((len(made.features), len(made.units)))
        assert all(math.isfinite(x) for x in made.features)
        assert all(math.isfinite(x) and x >= 0.0 for x in made.units)
    assert {"conv", "pool", "product", "pointwise", "along", "turn", "join", "rows"} <= set(sizes)
    assert all(len(found) == 1 for found in sizes.values()), sizes


@pytest.mark.parametrize("cases", by_op(CASES))
def test_every_op_has_features(cases: list[Case]) -> None:
    for case in cases:
        with naming(case):
            graph, _ = case.build()
            for call in costing.op_calls(graph).values():
                work = costing.cost_work(call)
                assert work.family
                assert all(math.isfinite(x) for x in (*work.features, *work.units))


def test_the_draw_is_the_same_everywhere_and_of_bounded_ops() -> None:
    first = list(itertools.islice(calibration_calls(80), 80))
    again = list(calibration_calls(80))
    assert [c.key() for c in first] == [c.key() for c in again]
    assert len({c.key() for c in first}) == 80
    for call in first:
        work = costing.op_work(call)
        assert work.flops <= MOST_FLOPS
        assert work.bytes <= MOST_BYTES


def test_edge_tiles_and_functions_are_units() -> None:
    def conv(channels: int) -> OpCall:
        b = xd.GraphBuilder()
        w = b.constant(np.zeros((channels, 8, 1, 1), np.float32))
        graph = b.build({"y": b.conv2d(b.input("x", (1, 8, 14, 14)), w)})
        return next(iter(costing.op_calls(graph).values()))

    # 33 channels need as many register tiles as 40.
    assert shape_of(conv(33)).units[0] == shape_of(conv(40)).units[0]
    assert shape_of(conv(33)).features != shape_of(conv(40)).features
    b = xd.GraphBuilder()
    x = b.input("x", (64,))
    calls = costing.op_calls(b.build({"a": b.tanh(x, label="t"), "b": b.neg(x, label="n")}))
    assert shape_of(calls["t"]).units[1] > shape_of(calls["n"]).units[1] == 0.0
