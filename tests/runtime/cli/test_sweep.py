"""The sweep command: table, JSON, page, and what it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

BATCHES = ("--batch", "1,512,65536")


@pytest.fixture
def fixed(tmp_path: Path) -> Path:
    """A model whose batch is 1."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "fixed",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 8])],
        [numpy_helper.from_array(np.eye(8, dtype=np.float32), "w")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    path = tmp_path / "fixed.onnx"
    onnx.save(made, path)
    return path


def test_points_and_break_even_of_a_machine_that_is_not_here(
    call: Any, model: Path, machine_file: Path
) -> None:
    got = call("sweep", model, "--machine", machine_file, *BATCHES, "--json", "-").json
    assert got["sets"] == [["cpu:0"], ["cuda:0"], ["cpu:0", "cuda:0"]]
    points = {(p["batch"], tuple(p["devices"])): p for p in got["points"]}
    assert len(points) == 9
    # The card is twenty times as fast, and its link costs what a small batch takes on the host.
    assert points[1, ("cpu:0",)]["seconds"] < points[1, ("cuda:0",)]["seconds"]
    assert points[65536, ("cpu:0",)]["seconds"] > points[65536, ("cuda:0",)]["seconds"]
    for p in points.values():
        assert p["throughput"] == pytest.approx(p["batch"] / p["seconds"])
        alone = [points[p["batch"], (d,)]["seconds"] for d in p["devices"]]
        assert p["seconds"] <= min(alone) * (1 + 1e-9)
    even = {(tuple(b["devices"]), b["versus"]): b["batch"] for b in got["break_even"]}
    assert 1 < even[("cuda:0",), "cpu:0"] <= 65536
    both = even[("cpu:0", "cuda:0"), "cpu:0"]
    assert both is not None
    assert both <= even[("cuda:0",), "cpu:0"]


def test_the_points_are_the_plans(call: Any, model: Path, machine_file: Path) -> None:
    got = call("sweep", model, "--machine", machine_file, *BATCHES, "--json", "-").json
    made = call("plan", model, "--machine", machine_file, "--dim", "N=512", "--json", "-").json
    point = next(p for p in got["points"] if p["batch"] == 512 and len(p["devices"]) == 2)
    assert point["seconds"] == made["predicted"]
    parts = ("arena_bytes", "resident_bytes", "scratch_bytes")
    peaks = {d["id"]: sum(d[part] for part in parts) for d in made["devices"]}
    assert point["peak_bytes"] == peaks


def test_the_tables_name_sets_and_break_even(call: Any, model: Path, machine_file: Path) -> None:
    got = call("sweep", model, "--machine", machine_file, *BATCHES, "--set", "cpu:0,cuda:0",
               "--set", "cpu:0")  # fmt: skip
    assert got.status == 0, got.err
    for said in ("Predicted", "samples/s", "cpu:0 + cuda:0", "Break-even", "from batch"):
        assert said in got.out


def test_changes_and_shapes_count(call: Any, model: Path, machine_file: Path) -> None:
    common = ("sweep", model, "--machine", machine_file, "--batch", "65536", "--shape", "x=7,8")
    plain = call(*common, "--json", "-").json["points"]
    slow = call(*common, "--json", "-", "--link", "cpu:0:cuda:0=0.01").json["points"]
    assert slow[1]["seconds"] > 10 * plain[1]["seconds"]
    alone = call(*common, "--json", "-", "--without", "cuda:0").json
    assert alone["sets"] == [["cpu:0"]]


def test_the_page_holds_the_points_and_loads_nothing(
    call: Any, model: Path, machine_file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "sweep.html"
    got = call("sweep", model, "--machine", machine_file, *BATCHES, "--html", path, "--json", "-")
    text = path.read_text(encoding="utf-8")
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert data is not None
    held = json.loads(data[1])
    assert held["points"] == got.json["points"]
    assert [d["id"] for d in held["devices"]] == ["cpu:0", "cuda:0", "cpu:0 + cuda:0"]
    assert "default-src 'none'" in text
    assert not re.search(r"\b(src|href)=", text)
    assert "<i>" not in text


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--batch", "0"), "not of the form 1,8,64"),
        (("--batch", "one"), "not of the form 1,8,64"),
        (("--batch", "1", "--batch-dim", "M"), "--batch-dim M: no such dimension"),
        (("--batch", "1", "--set", ","), "a set is one id or more"),
        (("--batch", "1", "--set", "cuda:9"), "--set cuda:9: no such device"),
        (("--batch", "1", "--without", "cuda:9"), "--without cuda:9: no such device"),
    ],
)
def test_what_cannot_be_swept_is_bad_input(
    args: tuple[str, ...], said: str, call: Any, model: Path, machine_file: Path
) -> None:
    got = call("sweep", model, "--machine", machine_file, *args)
    assert got.status == 2
    assert said in got.err
    assert got.err.count("\n") == 1


def test_a_fixed_batch_is_refused_with_the_way_out(
    call: Any, fixed: Path, machine_file: Path
) -> None:
    got = call("sweep", fixed, "--machine", machine_file, "--batch", "1,8")
    assert got.status == 2
    assert "the batch of 'fixed' is fixed" in got.err
    assert "export the model with an open first dimension" in got.err


def test_here_the_processor_is_swept(call: Any, model: Path) -> None:
    got = call("sweep", model, "--batch", "1,2", "--device", "cpu:0", "--measure", "0",
               "--json", "-")  # fmt: skip
    assert [p["devices"] for p in got.json["points"]] == [["cpu:0"], ["cpu:0"]]
    assert got.json["break_even"] == []
