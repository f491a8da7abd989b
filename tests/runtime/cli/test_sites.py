"""Where inputs lie and outputs stay, from the command line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from crossdock.devices.sim import SimQueue
from crossdock.runtime import costing, knowledge
from crossdock.runtime.cli import profile as profile_command
from crossdock.runtime.cli import run as run_command
from crossdock.runtime.session import Session
from tests.runtime.conftest import Machine, no_profile

A, B = "sim:a", "sim:b"
SIZE = ("--dim", "N=3")
PLAIN = ("--measure", "0", "--repeat", "2")


@pytest.fixture
def two(costs: costing.CostStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """Two devices alike, with a link of their own, and nothing measured."""
    monkeypatch.setattr(knowledge, "probe", lambda **_: no_profile())
    made = Machine()
    made.sim("a", peers=("b",))
    made.sim("b", peers=("a",))
    yield made
    made.end()


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose shapes hang on values."""
    graph = helper.make_graph(
        [helper.make_node("NonZero", ["x"], ["i"]), helper.make_node("Neg", ["i"], ["y"])],
        "staged",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])],
        [helper.make_tensor_value_info("y", TensorProto.INT64, [1, None])],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    path = tmp_path_factory.mktemp("staged") / "staged.onnx"
    onnx.save(made, path)
    return path


def copies(data: Any) -> list[tuple[str, str, str]]:
    """The copies of a plan in JSON."""
    return [(s["name"], s["src"], s["dst"]) for s in data["steps"] if s["kind"] == "copy"]


@pytest.mark.parametrize("told", [A, f"x={A}"])
def test_run_lays_inputs_on_the_device_before_it_is_timed(
    call: Any, model: Path, two: Machine, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes: list[tuple[str, bool]] = []
    timed = [False]
    write, clock = SimQueue.write, run_command.time.perf_counter

    def seen(self: SimQueue, *args: Any, **options: Any) -> Any:
        writes.append((self.device.info.id, timed[0]))
        return write(self, *args, **options)

    def tick() -> float:
        timed[0] = not timed[0]
        return clock()

    monkeypatch.setattr(SimQueue, "write", seen)
    where = ("--device", A, "--feeds-on", told, "--outputs", "device")
    monkeypatch.setattr(run_command, "time", type("Time", (), {"perf_counter": staticmethod(tick)}))
    got = call("run", model, *SIZE, *PLAIN, *where, "--json", "-")
    assert got.status == 0, got.err
    assert (A, False) in writes
    assert not any(during for _, during in writes), "an upload within the time of a run"
    data = got.json
    assert data["feeds_on"] == {"x": A}
    assert [o["stayed_on"] for o in data["outputs"]] == [A, A]
    assert data["receipt"]["transfers"] == {}


def test_what_stays_is_told_of_and_saved(
    call: Any, model: Path, two: Machine, tmp_path: Path
) -> None:
    x = np.linspace(-2, 2, 24, dtype=np.float32).reshape(3, 8)
    np.save(tmp_path / "x.npy", x)
    given = ("--input", f"x={tmp_path / 'x.npy'}", "--device", A, *PLAIN)
    plain = call("run", model, *given, "--output", tmp_path / "plain")
    where = ("--feeds-on", A, "--outputs", "device")
    got = call("run", model, *given, *where, "--output", tmp_path / "kept")
    assert (plain.status, got.status) == (0, 0), got.err
    assert got.out.count(f"stayed on {A}") == 2
    assert "moved" in plain.out
    assert "moved" not in got.out
    for path in (tmp_path / "plain").iterdir():
        np.testing.assert_array_equal(
            np.load(tmp_path / "kept" / path.name), np.load(path), err_msg=path.name
        )


def test_a_trace_of_what_stays_has_the_steps_of_the_plan(
    call: Any, model: Path, two: Machine, tmp_path: Path
) -> None:
    path, page = tmp_path / "trace.json", tmp_path / "page.html"
    where = ("--device", A, "--feeds-on", A, "--outputs", "device")
    got = call("run", model, *SIZE, *PLAIN, *where, "--trace", path, "--html", page)
    assert got.status == 0, got.err
    events = json.loads(path.read_text())["traceEvents"]
    bars = [e for e in events if e["ph"] == "X" and e["cat"] == "copy"]
    steps = {row: {e["args"]["step"] for e in bars if e["tid"] == row} for row in (1, 2)}
    assert steps[1] == steps[2], "predicted, and measured"
    assert {(e["args"]["from"], e["args"]["to"]) for e in bars} == {(A, A)}
    assert "<script>" in page.read_text()


@pytest.mark.parametrize("command", ["plan", "explain"])
def test_plans_take_inputs_from_where_they_lie(
    call: Any, model: Path, two: Machine, command: str, tmp_path: Path
) -> None:
    where = ("--device", A, "--feeds-on", A, "--outputs", "device", "--measure", "0")
    got = call(command, model, *SIZE, *where, "--html", tmp_path / "page.html", "--json", "-")
    assert got.status == 0, got.err
    if command == "plan":
        assert {(src, dst) for _, src, dst in copies(got.json)} == {(A, A)}
        assert f"take x on {A}" in call("plan", model, *SIZE, *where).out


def test_a_device_that_only_holds_inputs_computes_nothing(
    call: Any, model: Path, two: Machine
) -> None:
    where = ("--device", B, "--feeds-on", A, "--measure", "0")
    data = call("plan", model, *SIZE, *where, "--memory", f"{B}=1G", "--json", "-").json
    assert {s["device"] for s in data["steps"] if s["kind"] == "launch"} == {B}
    assert ("x", A, B) in copies(data)


def test_by_name_comes_before_all(call: Any, model: Path, two: Machine) -> None:
    where = ("--device", A, "--feeds-on", f"x={B}", "--feeds-on", A, "--measure", "0")
    data = call("plan", model, *SIZE, *where, "--json", "-").json
    assert copies(data)[0] == ("x", B, A)
    on_host = ("--feeds-on", A, "--feeds-on", "x=cpu:0", "--device", A, "--measure", "0")
    data = call("plan", model, *SIZE, *on_host, "--json", "-").json
    assert copies(data)[0] == ("x", "cpu:0", A)


def test_a_saved_plan_is_run_for_what_it_was_made_for(
    call: Any, model: Path, two: Machine, tmp_path: Path
) -> None:
    saved = tmp_path / "plan.json"
    where = ("--device", A, "--feeds-on", A, "--outputs", "device")
    assert call("plan", model, *SIZE, "--measure", "0", *where, "--save", saved).status == 0
    given = (*SIZE, *PLAIN, "--device", A, "--plan", saved, "--json", "-")
    data = call("run", model, *given).json
    assert (data["feeds_on"], data["receipt"]["transfers"]) == ({"x": A}, {})
    data = call("run", model, *given, "--feeds-on", "cpu:0", "--outputs", "host").json
    assert data["feeds_on"] == {}
    assert set(data["receipt"]["transfers"]) == {f"cpu:0->{A}", f"{A}->cpu:0"}


def test_without_the_device_inputs_come_from_the_host(call: Any, model: Path, two: Machine) -> None:
    where = ("--device", A, "--device", B, "--feeds-on", A, "--measure", "0")
    got = call("plan", model, *SIZE, *where, "--without", A, "--json", "-")
    assert got.status == 0, got.err
    assert ("x", "cpu:0", B) in copies(got.json)


def test_a_machine_that_is_not_here_has_inputs_on_its_card(
    call: Any, model: Path, machine_file: Path
) -> None:
    where = ("--machine", machine_file, "--dim", "N=512", "--feeds-on", "cuda:0")
    data = call("plan", model, *where, "--outputs", "device", "--json", "-").json
    assert {(src, dst) for _, src, dst in copies(data)} == {("cuda:0", "cuda:0")}


def test_a_sweep_plans_for_inputs_on_a_device(call: Any, model: Path, machine_file: Path) -> None:
    where = ("--machine", machine_file, "--batch", "4096", "--set", "cuda:0", "--set", "cpu:0")
    plain = call("sweep", model, *where, "--json", "-")
    near = call(
        "sweep", model, *where, "--feeds-on", "cuda:0", "--outputs", "device", "--json", "-"
    )
    assert (plain.status, near.status) == (0, 0), near.err
    (card, host), (fed, far) = ([p["seconds"] for p in got.json["points"]] for got in (plain, near))
    assert fed < 0.5 * card, "most of the time on the card is its link's"
    assert far > host, "what lies on the card has to come to the host"


def test_profile_runs_with_inputs_on_a_device(
    call: Any, model: Path, two: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profile_command, "probe", lambda **_: no_profile())
    seen: list[Any] = []
    profile = Session.profile
    monkeypatch.setattr(
        Session, "profile", lambda self, feeds: seen.append(feeds) or profile(self, feeds)
    )
    got = call("profile", model, *SIZE, "--device", A, "--measure", "0", "--feeds-on", A)
    assert got.status == 0, got.err
    assert {feeds["x"].device for feeds in seen} == {A}


def test_accuracy_runs_with_inputs_on_a_device(call: Any, model: Path, two: Machine) -> None:
    where = ("--device", A, "--feeds-on", f"x={A}", "--outputs", "device", "--measure", "0")
    got = call("accuracy", model, *SIZE, *where, "--repeat", "1", "--no-calibrate", "--json", "-")
    assert got.status == 0, got.err
    assert {op["device"] for op in got.json["rows"][0]["ops"]} == {A}


@pytest.mark.parametrize("command", ["run", "plan", "explain", "accuracy", "profile"])
@pytest.mark.parametrize(
    ("told", "said"),
    [
        (("--feeds-on", f"q={A}"), "feeds_on names 'q', no input of graph"),
        (("--feeds-on", "sim:nowhere"), "sim:nowhere"),
        (("--feeds-on", "x="), "is not of the form DEVICE|NAME=DEVICE"),
        (("--feeds-on", f"={A}"), "is not of the form DEVICE|NAME=DEVICE"),
        (("--outputs", "gpu"), "'gpu' is not one of 'host', 'device'"),
    ],
)
def test_what_makes_no_sense_is_bad_input(
    call: Any, model: Path, two: Machine, command: str, told: tuple[str, ...], said: str
) -> None:
    calm = ("--no-calibrate",) if command == "accuracy" else ()
    got = call(command, model, *SIZE, "--device", A, "--measure", "0", *calm, *told)
    assert got.status == 2
    assert said in got.err.splitlines()[-1]
    assert got.out == ""


@pytest.mark.parametrize("command", ["run", "plan", "explain"])
def test_a_model_that_runs_in_stages_takes_its_inputs_on_the_host(
    call: Any, staged: Path, two: Machine, command: str
) -> None:
    fast = ("--device", A, "--measure", "0")
    got = call(command, staged, *fast, "--feeds-on", A)
    assert got.status == 2
    assert "runs in stages" in got.err.splitlines()[-1]
    assert call(command, staged, *fast, "--feeds-on", "cpu:0", "--outputs", "device").status == 0


@pytest.mark.parametrize("command", ["run", "plan", "explain"])
def test_an_input_that_lies_where_a_label_bars_it_is_bad_input(
    call: Any, model: Path, two: Machine, command: str
) -> None:
    where = ("--device", A, "--measure", "0", "--feeds-on", A, "--residency", "x=cpu:0")
    got = call(command, model, *SIZE, *where)
    assert got.status == 2
    said = got.err.splitlines()[-1]
    assert "residency 'x' keeps the value of 'x' on cpu:0" in said
    assert f"input 'x', which lies on {A}: add {A} to the label" in said


def test_run_prints_no_output_that_may_not_be_on_the_host(
    call: Any, model: Path, two: Machine
) -> None:
    where = ("--device", A, "--feeds-on", A, "--outputs", "device", "--residency", f"sum={A}")
    assert call("plan", model, *SIZE, "--measure", "0", *where).status == 0
    got = call("run", model, *SIZE, *PLAIN, *where)
    assert (got.status, got.out) == (2, "")
    assert "run prints output 'y': add cpu:0 to the label" in got.err.splitlines()[-1]
