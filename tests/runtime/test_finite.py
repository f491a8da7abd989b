"""``check_finite``: the first op that makes a NaN or an infinity is named."""

from __future__ import annotations

import numpy as np
import pytest

import crossdock as xd
from crossdock.runtime.errors import NotFinite
from crossdock.runtime.graph import Graph

HERE = ("cpu:0",)


def logarithms() -> Graph:
    """Two branches: ``inner`` is log(x), and ``later`` the square root of its result."""
    b = xd.GraphBuilder("logarithms")
    x = b.input("x", (2, 3))
    inner = b.log(x, label="inner")
    total = b.reduce_sum(inner, axes=[1], label="total")
    other = b.reduce_max(b.exp(x, label="other"), axes=[1], label="most")
    return b.build({"y": b.sqrt(total, label="later"), "z": other})


def test_a_run_of_finite_values_gives_what_an_ordinary_run_gives() -> None:
    graph, x = logarithms(), np.full((2, 3), 2.5, np.float32)
    with xd.compile(graph, HERE, measure=False) as plain:
        wanted = plain.run({"x": x})
    with xd.compile(graph, HERE, measure=False, check_finite=True) as session:
        for _ in range(2):
            got = session.run({"x": x})
            for name, value in wanted.items():
                np.testing.assert_array_equal(got[name], value)


@pytest.mark.parametrize("bad", [0.0, -1.0])
def test_the_first_op_in_graph_order_is_named_with_device_and_kernel(bad: float) -> None:
    x = np.full((2, 3), 2.5, np.float32)
    x[1, 2] = bad
    with (
        xd.compile(logarithms(), HERE, measure=False, check_finite=True) as session,
        pytest.raises(NotFinite, match=r"'inner'.*cpu:0.*1 (NaN|.*infinite)|inner") as caught,
    ):
        session.run({"x": x})
    assert "inner" in caught.value.op
    assert caught.value.device == "cpu:0"
    assert caught.value.kernel.startswith("cpu.")


def test_an_op_that_passes_on_what_was_fed_is_not_blamed() -> None:
    x = np.full((2, 3), np.nan, np.float32)
    with xd.compile(logarithms(), HERE, measure=False, check_finite=True) as session:
        assert np.isnan(session.run({"x": x})["y"]).all()


def test_of_two_branches_the_first_in_graph_order_is_named() -> None:
    b = xd.GraphBuilder("branches")
    x = b.input("x", (4,))
    first = b.reduce_sum(b.log(x, label="first"), label="sum1")
    second = b.reduce_sum(b.reciprocal(x, label="second"), label="sum2")
    graph = b.build({"second": second, "first": first})
    with xd.compile(graph, HERE, measure=False, check_finite=True) as session:
        order = [n.name for n in session.ready().program.graph.nodes]
        with pytest.raises(NotFinite) as caught:
            session.run({"x": np.zeros(4, np.float32)})
    assert caught.value.op == min(
        (n for n in order if "first" in n or "second" in n), key=order.index
    )


def test_the_session_can_be_used_after_it() -> None:
    with xd.compile(logarithms(), HERE, measure=False, check_finite=True) as session:
        with pytest.raises(NotFinite):
            session.run({"x": np.zeros((2, 3), np.float32)})
        assert np.isfinite(session.run({"x": np.full((2, 3), 3.0, np.float32)})["y"]).all()


def test_an_op_on_another_device_is_named_with_it() -> None:
    if "opencl:0" not in {info.id for info in xd.devices()}:
        pytest.skip("no OpenCL device here")
    constraints = xd.Constraints(pin={"inner": "opencl:0", "later": "cpu:0"})
    with (
        xd.compile(
            logarithms(), ["cpu:0", "opencl:0"], constraints=constraints, measure=False,
            check_finite=True,
        ) as session,
        pytest.raises(NotFinite) as caught,
    ):  # fmt: skip
        session.run({"x": np.zeros((2, 3), np.float32)})
    assert (caught.value.op, caught.value.device) == ("inner", "opencl:0")
