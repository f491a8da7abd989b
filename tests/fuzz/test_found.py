"""What was found by bytes at random, each as small as it goes."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import crossdock as xd
from crossdock.runtime import kept
from crossdock.runtime.costing import read_costs
from crossdock.runtime.errors import LONGEST, LoadError, MalformedModel, PlanError, ShapeError
from crossdock.runtime.memory import Tenant, plan_arena
from tests.fuzz import graphs
from tests.fuzz.watch import one_line


def test_a_long_value_does_not_make_a_long_message(tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    path.write_bytes(kept.sealed(json.dumps({"schema": "x" * 5_000}).encode()))
    with pytest.raises(PlanError) as found:
        read_costs(path)
    assert one_line(str(found.value))


def test_a_plan_with_a_long_name_is_refused_in_few_words() -> None:
    graphs.quiet()
    plan = next(graphs.plans()).to_json()
    plan |= {"graph": "0" * 64, "graph_name": "\u202e\n" * 3_000}
    with pytest.raises(PlanError) as found:
        xd.compile(graphs.graph(), plan=xd.Plan.from_json(plan), measure=False)
    assert one_line(str(found.value))


@pytest.mark.parametrize("text", ["a\nb", "\u202ea", "\ud800", "\0", "é" * 5_000])
def test_a_message_is_one_line_that_can_be_printed(text: str) -> None:
    said = str(LoadError(f"file {text}: is broken"))
    assert one_line(said)
    assert said.encode()
    assert len(said) <= LONGEST
    assert said.startswith("file ")
    assert said.endswith(": is broken")


def test_many_tensors_that_live_together_lie_side_by_side() -> None:
    rng = random.Random(3)
    together = [Tenant(f"t{i}", rng.randrange(1, 999), (0,), (9,)) for i in range(500)]
    later = [Tenant(f"l{i}", rng.randrange(1, 999), (9,), (12,)) for i in range(200)]
    made = plan_arena([*together, *later])
    assert made.nbytes == made.live_bytes
    for part in (together, later):
        spans = sorted((made.offsets[t.name], made.offsets[t.name] + t.nbytes) for t in part)
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))


def _model(nodes: list[Any], shape: list[int], *constants: Any, **opsets: int) -> bytes:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "found", [x], [y], list(constants))
    imports = [helper.make_opsetid(name, version) for name, version in opsets.items()]
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17), *imports])
    return bytes(model.SerializeToString())


@pytest.mark.parametrize("version", [-1, 1 << 31, 1 << 40])
def test_a_version_that_no_operator_set_has_is_refused(version: int) -> None:
    relu = helper.make_node("Relu", ["x"], ["y"])
    data = _model([relu], [2], **{"ai.onnx.preview.training": version})
    with pytest.raises(MalformedModel, match="of which there is none"):
        xd.load(data)


@pytest.mark.parametrize("op", ["Reshape", "Expand"])
def test_an_empty_tensor_spans_no_more_than_memory_could(op: str) -> None:
    dims = numpy_helper.from_array(np.array([0, 1 << 62], np.int64), "dims")
    more = {"allowzero": 1} if op == "Reshape" else {}
    data = _model([helper.make_node(op, ["x", "dims"], ["y"], **more)], [0, 1], dims)
    with pytest.raises(ShapeError, match=r"spans .* bytes, beyond 2\^63 - 1"):
        xd.compile(xd.load(data), "cpu:0", measure=False, shapes={"x": [0, 1]})


def test_an_empty_constant_spans_no_more_than_memory_could() -> None:
    weights = TensorProto(name="w", data_type=TensorProto.DOUBLE, dims=[0, (1 << 63) - 1])
    relu = helper.make_node("Relu", ["x"], ["y"])
    with pytest.raises(MalformedModel, match="is no shape of a tensor"):
        xd.load(_model([relu], [2], weights))
