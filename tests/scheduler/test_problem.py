"""Problems: what they accept, what they refuse, and their JSON form."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given

from crossdock.runtime.errors import GraphError, NoPlacement
from crossdock.scheduler import DeviceSpec, EdgeSpec, LinkSpec, Problem, TaskSpec
from tests.scheduler.problems import problems

TWO = [DeviceSpec("a"), DeviceSpec("b", mem_bytes=1e9, resource_group="g", kind="opencl")]


def build(**changes: object) -> Problem:
    given: dict[str, object] = {
        "tasks": [TaskSpec("x", [1.0, 2.0]), TaskSpec("y", {"b": 3.0})],
        "edges": [("x", "y", 8.0)],
        "devices": TWO,
        "links": [LinkSpec("a", "b", 0.5, 4.0, both=True)],
    }
    return Problem.build(**(given | changes))  # type: ignore[arg-type]


def test_costs_come_in_device_order_or_by_device_id() -> None:
    problem = build()
    assert problem.cost.tolist() == [[1.0, 2.0], [math.inf, 3.0]]
    assert problem.transfer_s(8.0, 0, 1) == pytest.approx(2.5)
    assert problem.transfer_s(8.0, 1, 1) == 0.0
    assert problem.out_bytes.tolist() == [8.0, 0.0]
    assert problem.mem_bytes.tolist() == [math.inf, 1e9]


def test_a_problem_cannot_be_changed() -> None:
    problem = build()
    with pytest.raises(ValueError, match="read-only"):
        problem.cost[0, 0] = 5.0
    with pytest.raises(AttributeError):
        problem.cost = np.zeros((2, 2))  # type: ignore[misc]


def test_pins_and_forbids_leave_their_reason() -> None:
    problem = build(pins={"x": "b"}, forbids={("x", "a"): "private input"})
    assert math.isinf(problem.cost[0, 0])
    assert problem.reasons[0, 0] == "private input"
    assert build(pins={"x": ["b"]}).reasons[0, 0] == "pinned to b"


def test_a_task_without_a_device_is_named_with_every_reason() -> None:
    tasks = [TaskSpec("x", [1.0, 1.0], reasons={"a": "no float16"}), TaskSpec("y", [1.0, 1.0])]
    with pytest.raises(NoPlacement, match=r"'x'.*a: no float16; b: too private"):
        build(
            tasks=tasks,
            pins={"x": "a"},
            forbids={("x", "a"): "no float16", ("x", "b"): "too private"},
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"edges": [("x", "z", 1.0)]}, "unknown task 'z'"),
        ({"edges": [("x", 7, 1.0)]}, "task index 7"),
        ({"edges": [("x", "y", -1.0)]}, "edge bytes"),
        ({"edges": [("x", "y", 1.0), ("y", "x", 1.0)]}, "cycle"),
        ({"devices": []}, "at least one device"),
        ({"devices": [DeviceSpec("a"), DeviceSpec("a")]}, "'a' is given twice"),
        ({"tasks": [TaskSpec("x", [1.0])]}, "1 costs for 2 devices"),
        ({"tasks": [TaskSpec("x", [-1.0, 1.0])]}, "negative or NaN"),
        ({"tasks": [TaskSpec("x", [math.nan, 1.0])]}, "negative or NaN"),
        ({"tasks": [TaskSpec("x", {"c": 1.0})]}, "unknown device 'c'"),
        ({"links": [LinkSpec("a", "b", 0.0, 0.0)]}, "bandwidth > 0"),
        ({"links": [LinkSpec("a", "b", -1.0, 1.0)]}, "latency"),
    ],
)
def test_malformed_problems_are_refused_by_name(changes: dict[str, object], message: str) -> None:
    with pytest.raises(GraphError, match=message):
        build(**{"edges": [], **changes})


def test_pairs_without_a_link_are_staged_through_the_host() -> None:
    devices = [DeviceSpec("host"), DeviceSpec("p"), DeviceSpec("q")]
    links = [
        LinkSpec("host", "p", 1.0, 2.0, both=True),
        LinkSpec("host", "q", 10.0, 4.0, both=True),
    ]
    tasks = [TaskSpec("t", [1.0, 1.0, 1.0])]
    alone = Problem.build(tasks, [], devices, links)
    assert math.isinf(alone.transfer_s(4.0, 1, 2))
    staged = Problem.build(tasks, [], devices, links, host="host")
    assert staged.transfer_s(4.0, 1, 2) == pytest.approx(11.0 + 4.0 / 2.0 + 4.0 / 4.0)


@pytest.mark.parametrize(
    ("capacity", "expected"),
    [({}, [0, 1, 1, 1]), ({"g": 2}, [0, 1, 2, 1]), ({"g": 9}, [0, 1, 2, 3])],
)
def test_a_group_is_one_exclusive_resource_or_as_many_as_its_capacity(
    capacity: dict[str, int], expected: list[int]
) -> None:
    devices = [DeviceSpec("a"), *(DeviceSpec(f"g{i}", resource_group="g") for i in range(3))]
    problem = Problem.build([TaskSpec("t", [1.0] * 4)], [], devices, group_capacity=capacity)
    assert problem.resource.tolist() == expected


def test_edges_of_one_tensor_share_its_number() -> None:
    tasks = [TaskSpec(f"t{i}", [1.0, 1.0]) for i in range(4)]
    edges = [EdgeSpec(0, 1, 1.0, "u"), EdgeSpec(0, 2, 1.0, "u"), EdgeSpec(0, 3, 2.0, "v")]
    problem = build(tasks=tasks, edges=edges)
    assert problem.edge_tensor.tolist() == [0, 0, 1]


@given(problems())
def test_json_gives_the_same_problem_back(problem: Problem) -> None:
    text = json.dumps(problem.to_json(), allow_nan=False)
    again = Problem.from_json(json.loads(text))
    assert again.task_names == problem.task_names
    assert again.device_ids == problem.device_ids
    assert again.groups == problem.groups
    assert dict(again.reasons) == dict(problem.reasons)
    for name in ("cost", "out_bytes", "mem_bytes", "resource", "edge_bytes", "latency"):
        np.testing.assert_array_equal(getattr(again, name), getattr(problem, name))
    # a bandwidth is stored as its inverse, and inverted twice on the way
    np.testing.assert_allclose(again.inv_bw, problem.inv_bw, rtol=1e-12)
    for a, b in zip(again.edge_tensor, problem.edge_tensor, strict=True):
        assert (again.edge_tensor == a).tolist() == (problem.edge_tensor == b).tolist()


def test_json_reads_the_plain_form_with_nulls_and_foreign_ids() -> None:
    problem = Problem.from_json(
        {
            "devices": [{"id": 7, "name": "cpu", "mem_bytes": None}, {"id": 9}],
            "links": [{"a": 7, "b": 9, "bw": 4.0, "lat": 0.5}],
            "tasks": [
                {"id": 3, "name": "p", "cost": [1.0, None], "out_bytes": 8, "param_bytes": 2},
                {"id": 5, "cost": [None, 2.0], "out_bytes": 0, "param_bytes": 0},
            ],
            "edges": [[3, 5, 8]],
        }
    )
    assert problem.device_keys == (7, 9)
    assert problem.device_ids == ("cpu", "9")
    assert problem.task_names == ("p", "5")
    assert math.isinf(problem.cost[0, 1])
    assert problem.latency[1, 0] == 0.5
    assert problem.param_bytes.tolist() == [2.0, 0.0]


@pytest.mark.parametrize(
    "broken",
    [
        {},
        {"devices": [], "tasks": []},
        {"devices": [{"id": 0}], "tasks": [{"id": 0}], "edges": []},
        {"devices": [{"id": 0}], "tasks": [{"id": 0, "cost": ["x"]}], "edges": []},
        {"devices": [{"id": 0}], "tasks": [{"id": 0, "cost": [1]}], "edges": [[0, 1, 2]]},
        {"devices": [{"id": 0}], "tasks": 5, "edges": []},
    ],
)
def test_damaged_json_is_an_error_of_ours(broken: dict[str, object]) -> None:
    with pytest.raises(GraphError):
        Problem.from_json(broken)
