"""Planning and explaining, for this machine and for one that is not here."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from crossdock.devices.base import DeviceInfo
from crossdock.devices.machine import Machine
from crossdock.runtime.plan import Plan

HERE = ("--dim", "N=64", "--measure", "0", "--device", "cpu:0")


def plan(call: Any, *args: object) -> Plan:
    got = call("plan", *args, "--json", "-")
    assert got.status == 0, got.err
    return Plan.from_json(got.json)


def test_plan_prints_devices_and_steps_with_reasons(call: Any, model: Path) -> None:
    got = call("plan", model, *HERE)
    assert got.status == 0
    for said in ("Devices", "Steps", "predicted", "lower bound", "product", "cpu:0/compute"):
        assert said in got.out
    assert "only device" in got.out


def test_the_json_is_a_plan(call: Any, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    assert call("plan", model, "--json", path, *HERE).status == 0
    made = Plan.from_json(json.loads(path.read_text()))
    assert next(s.op for s in made.launches()) == "matmul"
    assert json.loads(json.dumps(made.to_json())) == json.loads(path.read_text())


def test_a_saved_plan_is_the_same_bytes_each_time_and_differs_where_it_does(
    call: Any, model: Path, machine_file: Path, tmp_path: Path
) -> None:
    common = ("plan", model, "--machine", machine_file, "--dim", "N=65536")
    a, b, c = (tmp_path / f"{name}.json" for name in "abc")
    assert call(*common, "--save", a).status == 0
    assert call(*common, "--save", b).status == 0
    assert call(*common, "--save", c, "--link", "cpu:0:cuda:0=0.001").status == 0
    assert a.read_bytes() == b.read_bytes()
    assert "the same plan" in call("plan", "diff", a, b).out
    got = call("plan", "diff", a, c)
    assert got.status == 0, got.err
    for said in ("predicted", "cost model", "Moved", "product", "cuda:0", "cpu:0->cuda:0"):
        assert said in got.out
    found = call("plan", "diff", a, c, "--json", "-").json
    assert {row["after"] for row in found["moved"]} == {"cpu:0"}
    assert set(found["stale"]) == {"cost model"}


def test_a_saved_plan_is_run(call: Any, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    assert call("plan", model, *HERE, "--save", path).status == 0
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    common = ("run", model, "--measure", "0", "--repeat", "1", "--plan", path)
    got = call(*common, "--dim", "N=64", "--json", "-")
    assert got.status == 0, got.err
    assert got.json["receipt"]["plan"] == digest
    got = call(*common, "--dim", "N=65")
    assert got.status == 2
    assert "is for another graph" in got.err


def test_a_saved_plan_that_brings_weights_is_run(
    call: Any, opencl: DeviceInfo, tmp_path: Path
) -> None:
    """The file that ``plan --memory`` saves says all that a run within that memory takes."""
    model, path = tmp_path / "products.onnx", tmp_path / "p.json"
    weights = [np.eye(64, dtype=np.float32) * (i + 1) for i in range(6)]
    names = ["x", *(f"y{i}" for i in range(6))]
    ends = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, 64]) for n in (names[0], names[-1])
    ]
    graph = helper.make_graph(
        [helper.make_node("MatMul", [names[i], f"w{i}"], [names[i + 1]]) for i in range(6)],
        "products",
        ends[:1],
        ends[1:],
        [numpy_helper.from_array(w, f"w{i}") for i, w in enumerate(weights)],
    )
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets), str(model))
    here = ("--measure", "0", "--device", opencl.id)
    got = call("plan", model, *here, "--memory", f"{opencl.id}=70000", "--save", path)
    assert got.status == 0, got.err
    made = Plan.loads(path.read_text())
    assert made.streamed
    got = call("run", model, "--measure", "0", "--repeat", "1", "--plan", path, "--json", "-")
    assert got.status == 0, got.err
    assert got.json["receipt"]["plan"] == made.digest()
    assert sum(got.json["receipt"]["streamed"].values()) == sum(made.streamed_bytes().values())


def test_a_file_that_is_no_plan_is_named(call: Any, tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text('{"schema": 1}')
    got = call("plan", "diff", path, path)
    assert got.status == 2
    assert f"{path}: plan schema 1 is not" in got.err
    assert "cannot be read" in call("plan", "diff", tmp_path / "none.json", path).err


def test_a_profile_is_planned_for_without_its_devices(
    call: Any, model: Path, machine_file: Path
) -> None:
    made = plan(call, model, "--machine", machine_file, "--dim", "N=65536")
    assert made.device_ids() == ("cpu:0", "cuda:0")
    assert made.device("cuda:0").fingerprint == "imaginary-cuda:0"
    assert {s.source for s in made.launches()} <= {"roofline", "measured", "fitted"}
    # The card is twenty times as fast and the tensors are large, so it pays to go there.
    assert made.shares()["cuda:0"] > 0.5
    assert made.copies()


def test_without_a_device_nothing_is_placed_there(
    call: Any, model: Path, machine_file: Path
) -> None:
    common = (model, "--machine", machine_file, "--dim", "N=65536")
    assert plan(call, *common, "--without", "cuda:0").device_ids() == ("cpu:0",)
    left = plan(call, *common, "--without", "cpu:0")
    assert left.shares()["cuda:0"] == 1.0


def test_a_slow_link_keeps_the_ops_at_home(call: Any, model: Path, machine_file: Path) -> None:
    common = (model, "--machine", machine_file, "--dim", "N=65536")
    assert plan(call, *common, "--link", "cpu:0:cuda:0=0.001").shares()["cuda:0"] == 0.0
    one_way = plan(call, *common, "--without", "cpu:0", "--link", "cuda:0->cpu:0=0.5")
    both_ways = plan(call, *common, "--without", "cpu:0", "--link", "cuda:0:cpu:0=0.5")
    assert one_way.predicted < both_ways.predicted


def test_a_change_is_compared_with_the_unchanged_plan(
    call: Any, model: Path, machine_file: Path
) -> None:
    common = (model, "--machine", machine_file, "--dim", "N=65536")
    got = call("plan", *common, "--without", "cuda:0")
    assert got.status == 0
    for said in ("Changed", "peak memory before", "Moved", "device gone", "cuda:0 is left out"):
        assert said in got.out
    form = call("plan", *common, "--without", "cuda:0", "--compare", "-").json
    unchanged, alone = plan(call, *common), plan(call, *common, "--without", "cuda:0")
    assert form["before"]["seconds"] == unchanged.predicted
    assert form["after"]["seconds"] == alone.predicted
    peaks = {d.id: d.peak_bytes for d in unchanged.devices}
    assert form["before"]["peak_bytes"] == peaks
    assert {m["src"] for m in form["moves"]} == {"cuda:0"}


def test_a_budget_may_be_written_as_a_number_with_an_exponent(
    call: Any, model: Path, machine_file: Path
) -> None:
    common = (model, "--machine", machine_file, "--dim", "N=65536")
    got = call("plan", *common, "--memory", "cuda:0=1e5", "--compare", "-").json
    assert got["after"]["peak_bytes"]["cuda:0"] <= 1e5 < got["before"]["peak_bytes"]["cuda:0"]
    assert {m["why"] for m in got["moves"]} == {"memory"}


def test_fewer_cores_and_threads_are_planned_for(
    call: Any, model: Path, machine_file: Path
) -> None:
    common = (model, "--machine", machine_file, "--dim", "N=65536", "--device", "cpu:0")
    whole = plan(call, *common).predicted
    assert plan(call, *common, "--cores", "2").predicted == pytest.approx(4 * whole)
    assert plan(call, *common, "--threads", "4").predicted == pytest.approx(2 * whole)


def test_a_change_that_makes_a_plan_possible_says_why_there_was_none(
    call: Any, model: Path, machine: Machine, tmp_path: Path
) -> None:
    form = machine.to_json()
    form["devices"][0]["info"]["memory_bytes"] = 1000
    path = tmp_path / "small.json"
    path.write_text(json.dumps(form))
    common = (model, "--machine", path, "--dim", "N=64", "--device", "cpu:0")
    got = call("plan", *common, "--memory", "cpu:0=1G")
    assert "unchanged, there is no plan: cpu:0 needs" in got.out
    assert call("plan", *common, "--memory", "cpu:0=1G", "--compare", "-").status == 2


def test_comparing_nothing_is_refused(call: Any, model: Path, machine_file: Path) -> None:
    got = call("plan", model, "--machine", machine_file, "--dim", "N=64", "--compare", "-")
    assert got.status == 2
    assert "nothing is changed" in got.err


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--memory", "cpu:0=100"), "cpu:0 needs"),
        (("--memory", "cuda:9=1G"), "--memory cuda:9: no such device"),
        (("--without", "cuda:9"), "--without cuda:9: no such device"),
        (("--without", "cpu:0", "--without", "cuda:0"), "leaves no device"),
        (("--device", "cuda:9"), "--device cuda:9: no such device"),
        (("--link", "cpu:0:cuda:9=1"), "is no pair A:B"),
        (("--policy", "guess"), "guess"),
        (("--pin", "*=cuda:9"), "cuda:9"),
    ],
)
def test_what_cannot_be_planned_is_bad_input(
    args: tuple[str, ...], said: str, call: Any, model: Path, machine_file: Path
) -> None:
    got = call("plan", model, "--machine", machine_file, "--dim", "N=64", *args)
    assert got.status == 2
    assert said in got.err
    assert got.err.count("\n") == 1


def test_a_shipped_machine_is_named_and_says_where_its_figures_are_from(
    call: Any, model: Path
) -> None:
    got = call("plan", model, "--machine", "workstation-rtx4090", "--dim", "N=65536")
    assert got.status == 0, got.err
    assert "NVIDIA GeForce RTX 4090" in got.out
    assert "workstation-rtx4090: typed in from the data sheets of" in got.out
    got = call("plan", model, "--machine", "workstation", "--dim", "N=65536")
    assert got.status == 2
    assert "no machine of that name is shipped; those are" in got.err


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is no machine profile"),
        ("[]", "must be an object"),
        ('{"schema": 99}', "make the profile anew"),
    ],
)
def test_a_damaged_profile_is_named(
    content: str, said: str, call: Any, model: Path, tmp_path: Path
) -> None:
    path = tmp_path / "m.json"
    path.write_text(content)
    got = call("plan", model, "--machine", path)
    assert got.status == 2
    assert str(path) in got.err
    assert said in got.err


def test_explain_shows_every_candidate_of_every_op(
    call: Any, model: Path, machine_file: Path
) -> None:
    got = call("explain", model, "--machine", machine_file, "--dim", "N=65536")
    assert got.status == 0
    assert "Candidates" in got.out
    assert "cuda:0" in got.out
    assert "product" in got.out
    assert "ops are replayed in graphs of launches" in got.out


@pytest.mark.parametrize(("op", "name"), [("product", "product"), ("y", "sum")])
def test_explain_one_op_by_its_name_or_the_output_it_makes(
    op: str, name: str, call: Any, model: Path, machine_file: Path
) -> None:
    common = ("--machine", machine_file, "--dim", "N=65536")
    got = call("explain", model, op, *common)
    assert got.status == 0, got.err
    for said in ("-> ", "cpu:0", "cuda:0", "would end", "roofline", "placed on", "the best other"):
        assert said in got.out
    for said in ("launch", "waits", "free", "to move it: batch", "bandwidth", "memory"):
        assert said in got.out
    (found,) = call("explain", model, op, *common, "--json", "-").json["ops"]
    assert found["name"] == name
    assert "replayed" in found["replay"]
    assert f"launches {found['replay']}" in got.out
    assert {c["device"] for c in found["candidates"]} == {"cpu:0", "cuda:0"}
    assert [f["knob"] for f in found["flips"]] == ["batch", "bandwidth", "memory"]
    assert sum(c["chosen"] for c in found["candidates"]) == 1


def test_explain_writes_a_page_and_data_of_every_op(
    call: Any, model: Path, machine_file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "why.html"
    got = call("explain", model, "--machine", machine_file, "--dim", "N=512", "--html", path,
               "--json", "-")  # fmt: skip
    assert got.status == 0, got.err
    names = [e["name"] for e in got.json["ops"]]
    assert names[0] == "product"
    text = path.read_text()
    assert '"runnerUp"' in text
    assert "Would move it" in text
    assert "<script>\x1b" not in text


def test_a_contract_is_held_when_planning(call: Any, model: Path, machine_file: Path) -> None:
    common = (model, "--machine", machine_file, "--dim", "N=64", "--device", "cuda:0")
    assert call("plan", *common, "--fallback", "forbid").status == 0
    for text in ("never", "share=2", "ops", "size=1", "share=x"):
        got = call("plan", *common, "--fallback", text)
        assert got.status == 2
        assert "--fallback" in got.err


def test_explain_an_op_that_is_not_there_names_near_ones(call: Any, model: Path) -> None:
    got = call("explain", model, "prod", *HERE)
    assert got.status == 2
    assert "did you mean product" in got.err


WATTS = ("--watts", "cpu:0=1:9", "--watts", "cuda:0=1:99")


def test_a_plan_for_energy_says_its_joules(call: Any, model: Path, machine_file: Path) -> None:
    common = (model, "--machine", machine_file, "--dim", "N=65536", *WATTS)
    quick = plan(call, *common)
    frugal = plan(call, *common, "--objective", "energy")
    assert frugal.goal.objective == "energy"
    assert frugal.goal.joules is not None
    assert quick.goal.joules is not None
    assert frugal.goal.joules <= quick.goal.joules
    said = call("plan", *common, "--objective", "energy").out
    assert "objective energy: " in " ".join(said.split())
    mixed = plan(call, *common, "--objective", "latency=1,throughput=1")
    assert mixed.goal.objective == "0.5 latency + 0.5 throughput"


def test_energy_without_watts_fails_naming_the_device(
    call: Any, model: Path, machine_file: Path
) -> None:
    got = call("plan", model, "--machine", machine_file, "--dim", "N=64", "--objective", "energy")
    assert got.status == 2
    assert "needs the watts of cpu:0, cuda:0" in got.err


def test_watts_of_a_profile_are_taken(
    call: Any, model: Path, machine_file: Path, tmp_path: Path
) -> None:
    form = json.loads(machine_file.read_text())
    for device in form["devices"]:
        device["watts"] = {"idle": 1.0, "active": 10.0}
    edited = tmp_path / "edited.json"
    edited.write_text(json.dumps(form))
    made = plan(call, model, "--machine", edited, "--dim", "N=64", "--objective", "energy")
    assert made.goal.unit == "J"


@pytest.mark.parametrize("given", ["speed", "latency=x", "latency=-1", "latency=0", ""])
def test_a_wrong_objective_says_what_there_is(
    call: Any, model: Path, machine_file: Path, given: str
) -> None:
    got = call("plan", model, "--machine", machine_file, "--dim", "N=64", "--objective", given)
    assert got.status == 2
    assert "objective" in got.err


def test_shares_and_labels_are_kept(call: Any, model: Path, machine_file: Path) -> None:
    common = (model, "--machine", machine_file, "--dim", "N=65536")
    half = plan(call, *common, "--max-share", "cuda:0=40%")
    assert 0 < half.shares()["cuda:0"] < 1
    home = plan(call, *common, "--residency", "product=cpu:0")
    by_name = {s.name: s.device for s in home.launches()}
    assert by_name["product"] == by_name["right"] == "cpu:0"
    got = call("plan", *common, "--max-share", "cuda:0=2")
    assert got.status == 2
    assert "ID=SHARE" in got.err


def test_precision_is_part_of_the_plan(call: Any, model: Path, machine_file: Path) -> None:
    assert plan(call, model, *HERE).precision == "highest"
    assert plan(call, model, *HERE, "--precision", "fast").precision == "fast"
    there = ("--machine", machine_file, "--dim", "N=64", "--precision", "high")
    assert plan(call, model, *there).precision == "high"
    assert "precision 'high': no op is rounded" in plan(call, model, *there).explain()
    for command in (("plan", model, *HERE), ("run", model, *HERE), ("explain", model, *HERE)):
        assert "no op is rounded" in " ".join(call(*command, "--precision", "fast").out.split())
        assert "no op is rounded" not in call(*command).out
    assert "is not one of 'highest', 'high', 'fast'" in call("plan", model, "--precision", "x").err
