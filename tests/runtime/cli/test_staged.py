"""The commands on models that run in stages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from crossdock.runtime.loaders.onnx_host import HostCall, host_op

DOMAIN = "crossdock.testing.cli"


@host_op("Positive", domain=DOMAIN)
def positive(call: HostCall) -> Any:
    """The positive elements of a vector."""
    array = call.array()
    return array[array > 0]


def saved(path: Path, nodes: list[Any], inputs: list[Any], output: str) -> Path:
    graph = helper.make_graph(nodes, "staged", inputs, [onnx.ValueInfoProto(name=output)])
    imports = [helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=8), path)
    return path


@pytest.fixture
def staged(tmp_path: Path) -> Path:
    nodes = [
        helper.make_node("Neg", ["x"], ["n"], name="minus"),
        helper.make_node("Positive", ["n"], ["p"], name="some", domain=DOMAIN),
        helper.make_node("Exp", ["p"], ["y"], name="grown"),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N"])
    return saved(tmp_path / "staged.onnx", nodes, [x], "y")


@pytest.fixture
def fed(tmp_path: Path) -> Path:
    np.save(tmp_path / "x.npy", np.array([1, -2, 3, -4, -5], np.float32))
    return tmp_path / "x.npy"


def test_run(call: Callable[..., Any], staged: Path, fed: Path, tmp_path: Path) -> None:
    found = call(
        "run", staged, "--input", f"x={fed}", "--device", "cpu:0", "--repeat", "2",
        "--trace", tmp_path / "t.json", "--html", tmp_path / "p.html", "--output", tmp_path / "out",
        "--json", "-",
    )  # fmt: skip
    assert found.status == 0, found.err
    (output,) = found.json["outputs"]
    assert (output["dtype"], output["shape"]) == ("float32", [3])
    assert any("'some'" in n or "some (Positive) ran on the host" in n
               for n in found.json["receipt"]["notes"])  # fmt: skip
    np.testing.assert_allclose(np.load(tmp_path / "out" / "y.npy"), np.exp([2, 4, 5]), rtol=1e-5)
    assert "some" in (tmp_path / "t.json").read_text()
    assert "Positive" in (tmp_path / "p.html").read_text()


def test_plan_and_explain(call: Callable[..., Any], staged: Path, fed: Path) -> None:
    args = (staged, "--input", f"x={fed}", "--device", "cpu:0", "--json", "-")
    found = call("plan", *args)
    assert found.status == 0, found.err
    assert [s["op"] for s in found.json["steps"]] == ["neg", "Positive", "exp"]
    found = call("explain", staged, "some", *args[1:])
    assert found.status == 0, found.err
    assert "no form in the IR" in found.json["ops"][0]["reason"]
    found = call("accuracy", staged, *args[1:], "--no-calibrate")
    assert found.status == 0, found.err
    assert len(found.json["rows"]) == 1


def test_a_model_that_the_host_runs_alone(
    call: Callable[..., Any], tmp_path: Path, fed: Path
) -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N"])
    nodes = [helper.make_node("Positive", ["x"], ["y"], name="all", domain=DOMAIN)]
    model = saved(tmp_path / "host.onnx", nodes, [x], "y")
    args = (model, "--input", f"x={fed}", "--device", "cpu:0", "--json", "-")
    for command in ("plan", "explain"):
        found = call(command, *args)
        assert found.status == 0, found.err
        rows = found.json["steps" if command == "plan" else "ops"]
        assert [row["kernel"] for row in rows] == ["host"]
    found = call("run", *args, "--repeat", "1")
    assert found.status == 0, found.err
    assert found.json["placement"] == {"cpu:0": 1.0}


def test_inputs_that_nothing_can_be_made_up_for(
    call: Callable[..., Any], tmp_path: Path, fed: Path
) -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, None)
    z = helper.make_tensor_value_info("z", TensorProto.FLOAT, ["N"])
    nodes = [helper.make_node("Add", ["x", "z"], ["y"])]
    model = saved(tmp_path / "open.onnx", nodes, [x, z], "y")
    found = call("run", model, "--dim", "N=5")
    assert found.status == 2
    assert "input 'x' is a tensor(float32) whose shape" in found.err
    assert "--input x=FILE.npy" in found.err
    found = call("run", model, "--input", f"x={fed}")
    assert found.status == 2
    assert "--dim N=SIZE" in found.err
    found = call("run", model, "--input", f"x={fed}", "--dim", "N=5", "--json", "-",
                 "--device", "cpu:0", "--repeat", "1")  # fmt: skip
    assert found.status == 0, found.err
    assert found.json["outputs"][0]["shape"] == [5]
    found = call("plan", model, "--input", f"x={fed}", "--dim", "M=5")
    assert found.status == 2
    assert "no such dimension (open dimensions: N)" in found.err


def test_what_is_no_array_is_described(call: Callable[..., Any], tmp_path: Path) -> None:
    body = helper.make_graph(
        [helper.make_node("Identity", ["v"], ["w"])],
        "body",
        [helper.make_tensor_value_info("v", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info("w", TensorProto.FLOAT, None)],
    )
    kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    node = helper.make_node("SequenceMap", ["xs"], ["ys"], body=body)
    model = saved(tmp_path / "seq.onnx", [node], [helper.make_value_info("xs", kind)], "ys")
    found = call("run", model)
    assert found.status == 2
    assert "input 'xs' is a seq(tensor(float32))" in found.err
    assert "from Python" in found.err
