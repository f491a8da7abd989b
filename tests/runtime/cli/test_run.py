"""Running a model from the command line: outputs, JSON, files, traces."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from crossdock.runtime.cli.run import describe, save

FAST = ("--device", "cpu:0", "--measure", "0", "--repeat", "2")


def test_run_prints_outputs_placement_and_times(call: Any, model: Path) -> None:
    got = call("run", model, "--dim", "N=3", *FAST)
    assert (got.status, got.err) == (0, "input 'x': float32[3,8] generated (seed 0)\n")
    for said in ("float32[3,16]", "cpu:0", "100%", "predicted", "measured"):
        assert said in got.out
    assert "\x1b" not in got.out


def test_run_json_stands_alone_on_stdout_and_says_it_all(call: Any, model: Path) -> None:
    got = call("run", model, "--dim", "N=3", "--json", "-", *FAST)
    data = got.json
    assert data["schema"] == "crossdock-run/1"
    assert [(o["dtype"], o["shape"]) for o in data["outputs"]] == [
        ("float32", [3, 16]),
        ("float32", []),
    ]
    assert data["placement"] == {"cpu:0": 1.0}
    assert len(data["runs_s"]) == 2
    assert data["measured_s"] == sum(data["runs_s"]) / 2
    assert {op["device"] for op in data["receipt"]["ops"]} == {"cpu:0"}


def test_the_numbers_are_the_models(call: Any, model: Path, tmp_path: Path) -> None:
    x = np.linspace(-2, 2, 24, dtype=np.float32).reshape(3, 8)
    np.save(tmp_path / "x.npy", x)
    got = call(
        "run", model, "--input", f"x={tmp_path / 'x.npy'}", "--output", tmp_path / "out", *FAST
    )
    assert got.status == 0, got.err
    want = onnxruntime.InferenceSession(str(model)).run(["y"], {"x": x})[0]
    # One product of length 8 and a softmax in float32.
    np.testing.assert_allclose(np.load(tmp_path / "out" / "y.npy"), want, rtol=1e-5, atol=1e-6)


def test_outputs_stay_in_their_folder_whatever_they_are_called(
    call: Any, model: Path, tmp_path: Path
) -> None:
    call("run", model, "--dim", "N=1", "--output", tmp_path / "deep" / "out", *FAST)
    names = {p.name for p in (tmp_path / "deep" / "out").iterdir()}
    assert names == {"y.npy", "out_script_b_31m_.._up.npy"}
    assert [p.name for p in tmp_path.iterdir()] == ["deep"]


def test_names_that_become_the_same_get_numbers(tmp_path: Path) -> None:
    one = np.ones(1)
    written = save({"a/b": one, "a:b": one, "..": one, "": one}, str(tmp_path))
    assert [Path(p).name for p in written] == ["a_b.npy", "a_b_2.npy", "output.npy", "output_2.npy"]


def test_a_folder_that_cannot_be_written_is_bad_input(
    call: Any, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    got = call("run", model, "--dim", "N=1", "--output", tmp_path / "file", *FAST)
    assert got.status == 2
    assert "--output" in got.err.splitlines()[-1]


def test_a_trace_has_a_predicted_and_a_measured_row_a_queue(
    call: Any, model: Path, tmp_path: Path
) -> None:
    path = tmp_path / "trace.json"
    assert call("run", model, "--dim", "N=2", "--trace", path, *FAST).status == 0
    trace = json.loads(path.read_text())
    names = [
        (e["name"], e["args"]["name"])
        for e in trace["traceEvents"]
        if e["name"] in ("process_name", "thread_name")
    ]
    assert names == [
        ("process_name", "cpu:0/compute"),
        ("thread_name", "predicted"),
        ("thread_name", "measured"),
    ]
    bars = [e for e in trace["traceEvents"] if e["ph"] == "X"]
    by_row = {tid: [b["args"]["step"] for b in bars if b["tid"] == tid] for tid in (1, 2)}
    assert by_row[1]
    assert set(by_row[1]) == set(by_row[2])
    assert all(b["ts"] >= 0 and b["dur"] >= 0 for b in bars)
    assert trace["otherData"]["model"] == str(model)


def test_a_device_that_is_not_here_is_bad_input_with_its_reason(call: Any, model: Path) -> None:
    got = call("run", model, "--dim", "N=1", "--device", "cuda:7")
    assert got.status == 2
    assert "cuda:7" in got.err.splitlines()[-1]


def test_pinning_to_nothing_is_bad_input(call: Any, model: Path) -> None:
    got = call("run", model, "--dim", "N=1", "--pin", "no such op=cpu:0", *FAST)
    assert got.status == 2
    assert "matches no op" in got.err


@pytest.mark.parametrize(
    ("array", "want"),
    [
        (np.array([1.0, 3.0]), (1.0, 2.0, 3.0, "")),
        (np.array([np.nan, 2.0]), (2.0, 2.0, 2.0, "1 of 2 are NaN")),
        (np.array([np.nan]), (None, None, None, "1 of 1 are NaN")),
        (np.zeros((0, 3)), (None, None, None, "empty")),
        (np.array([True, False]), (0.0, 0.5, 1.0, "")),
    ],
)
def test_an_output_is_described(array: Any, want: tuple[Any, ...]) -> None:
    made = describe(array)
    assert tuple(made[k] for k in ("min", "mean", "max", "note")) == want
