"""The check of a card, rehearsed without one: its reports, its processes, its networks."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import crossdock as xd
from bench.gpu_check import layout, needs, nets, nets_ours, runner
from bench.gpu_check.place import Place
from bench.gpu_check.report import FAILED, MET, MISSED, NOT_RUN, Report, read_rows, summary, table
from bench.gpu_check.sections import cards, conformance, models, operators
from bench.timing import interleaved
from crossdock.devices import cuda, registry
from crossdock.devices.base import DeviceInfo, Probe
from crossdock.runtime import tensor
from crossdock.runtime.cases import of_op
from tests.cards import CARD, WITH_CUDNN
from tests.fakes import cupy_fake

ROOT = Path(__file__).resolve().parents[2]
POCL = bool(registry.probe_all(["opencl"])[0].devices)


@pytest.fixture
def report(tmp_path: Path) -> Report:
    return Report("a section", tmp_path / "rows.jsonl")


def rehearse(tmp_path: Path, *sections: str) -> tuple[int, dict[str, Any], str]:
    """Exit status, the JSON file, and what was printed."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.gpu_check", "--rehearse", "--out", str(tmp_path), *sections],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    (path,) = tmp_path.glob("*.json")
    return done.returncode, json.loads(path.read_text()), done.stdout


# --- rows -----------------------------------------------------------------------------------------


def test_figures_are_held_against_their_targets(report: Report) -> None:
    report.figure("fast enough", 1.04, "x", "<= 1.05")
    report.figure("too slow", 0.7, "x", ">= 0.8")
    report.figure("noted", 3.0, "ms")
    report.bound("none", 0, "== 0", "tests")
    report.check("wrong", False, "an answer")
    report.not_run("absent", "no torch")
    report.failed("broken", "CompileError: no")
    rows = read_rows(report.path)
    assert [row.state for row in rows] == [MET, MISSED, "", MET, FAILED, NOT_RUN, FAILED]
    assert [row.bad for row in rows] == [False, True, False, False, True, False, True]
    assert summary(rows) == "2 met, 1 missed, 2 failed, 1 noted, 1 not run"
    text = table(rows)
    assert text.count("a section") == 1
    assert "1.04 x  <= 1.05  met" in text
    assert "no torch" in text


def test_a_rehearsal_holds_no_time_against_its_target(tmp_path: Path) -> None:
    report = Report("a section", tmp_path / "rows.jsonl", rehearsal=True)
    report.figure("slow", 100.0, "x", "<= 1.05")
    report.bound("wrong", 1.0, "<= 1e-3")
    assert [row.state for row in read_rows(report.path)] == ["", MISSED]


def test_a_row_cut_off_by_a_crash_costs_no_other(report: Report) -> None:
    assert read_rows(report.path) == []
    report.figure("kept", 1.0)
    with report.path.open("a") as file:
        file.write('{"section": "a sec')
    assert [row.what for row in read_rows(report.path)] == ["kept"]


# --- processes ------------------------------------------------------------------------------------


def rows_of(report: Report, code: str, limit: float = 60.0) -> list[tuple[str, str]]:
    runner.supervise([sys.executable, "-c", code], report, limit, grace=0.0)
    return [(row.state, row.note) for row in read_rows(report.path)]


def test_a_section_that_crashes_is_a_row(report: Report) -> None:
    report.figure("before it", 1.0)
    (_, (state, note)) = rows_of(report, "import os; os.abort()")
    assert state == FAILED
    assert "signal 6" in note


def test_a_section_that_fails_is_a_row(report: Report) -> None:
    assert rows_of(report, "import sys; sys.exit(7)") == [
        (FAILED, "its process ended with status 7; its output is above")
    ]
    assert rows_of(report, "pass") == [
        (FAILED, "its process ended with status 7; its output is above")
    ]


def test_a_section_that_hangs_is_ended_with_what_it_started(report: Report, tmp_path: Path) -> None:
    code = (
        "import subprocess, sys, time\n"
        "c = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(99)'])\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(c.pid))\n"
        "time.sleep(99)"
    )
    ((state, note),) = rows_of(report, code, limit=1.0)
    assert state == FAILED
    assert "not done after 1 s" in note
    pid = int((tmp_path / "pid").read_text())
    for _ in range(100):
        if not _alive(pid):
            break
        time.sleep(0.05)
    assert not _alive(pid)


def _alive(pid: int) -> bool:
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def test_what_a_section_has_found_is_saved_while_it_runs(
    report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[int] = []
    monkeypatch.setattr(runner, "SAVING", 0.05)
    code = "import time; time.sleep(0.3)"
    runner.supervise([sys.executable, "-c", code], report, 60.0, save=lambda: saved.append(1))
    assert len(saved) > 1
    assert read_rows(report.path) == []


def test_torch_is_compiled_ahead_beside_what_times_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    has_only(monkeypatch, "torch")
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    proof = [section for section in runner.SECTIONS if not section.timed]
    timed = [section for section in runner.SECTIONS if section.timed]
    assert [section.name for section in proof] == ["conformance", "operators", "models", "faults"]
    assert list(runner.SECTIONS) == [*proof, *timed]
    commands = runner.ahead(runner.SECTIONS)
    assert [command[2:] for command in commands] == [
        ["bench.gpu_check.ahead", str(part), "3"] for part in range(3)
    ]
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert len(runner.ahead(runner.SECTIONS)) == 1
    assert runner.ahead(proof) == runner.ahead(timed) == []
    has_only(monkeypatch)
    assert runner.ahead(runner.SECTIONS) == []


def test_what_compiles_ahead_is_ended_before_anything_is_timed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    begun: list[subprocess.Popen[bytes]] = []
    seen: list[tuple[bool, bool]] = []

    def begin(*given: Any, before: Any = runner._begun) -> Any:
        begun.append(before(*given))
        return begun[-1]

    def run(section: runner.Section, *_: Any) -> None:
        seen.append((section.timed, begun[0].poll() is None))

    sleep = [sys.executable, "-c", "import time; time.sleep(99)"]
    monkeypatch.setattr(runner, "ahead", lambda _: [sleep])
    monkeypatch.setattr(runner, "_begun", begin)
    monkeypatch.setattr(runner, "_run_one", run)
    args = runner._parser().parse_args(["--out", str(tmp_path)])
    facts = {"device": "a card", "shared": True, "created": "2026-01-01", "rehearsal": False}
    runner._run_all(args, facts)
    assert len(begun) == 1
    assert all(timed is not alive for timed, alive in seen)
    assert {timed for timed, _ in seen} == {True, False}
    begun.clear()
    seen.clear()
    monkeypatch.setattr(runner, "_run_one", lambda *_: None)
    runner._run_all(args, {**facts, "shared": False})
    assert begun == [], "a card that one process may use"


def test_a_card_says_whether_processes_share_it(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = cupy_fake.install(monkeypatch)
    assert needs.facts("cuda:0")["shared"] is True
    monkeypatch.setattr(fake.cuda.runtime, "deviceGetAttribute", lambda *_: 3)
    assert needs.facts("cuda:0")["shared"] is False
    assert needs.facts("cpu:0")["shared"] is False


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # torch's own
def test_networks_are_compiled_ahead() -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    from bench.gpu_check.ahead import compile_all
    from bench.gpu_check.sections.networks import EXACT

    def wrong(*_: Any) -> Any:
        raise ValueError("no such network")

    plan = [(2, EXACT, net) for net in (replace(nets.TINY[0], made=wrong), *nets.TINY)]
    assert compile_all(plan, "cpu") == 2


def test_without_a_card_it_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    absent = Probe("cuda", (), "there is no NVIDIA driver", "install NVIDIA's driver")
    monkeypatch.setattr(cuda, "probe", lambda: absent)
    has_only(monkeypatch, *needs.VITAL)
    needs.main(rehearse=False)
    found = json.loads(capfd.readouterr().out)
    assert found["device"] is None
    assert found["missing"][0] == (
        "missing: there is no NVIDIA driver (there is no card to check); install NVIDIA's driver"
    )
    assert any("pip install torch" in line for line in found["missing"])
    monkeypatch.setattr(runner, "_preflight", lambda _: found)
    assert runner.main([]) == runner.NO_CARD
    assert capfd.readouterr().out.splitlines() == found["missing"]


def has_only(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Of packages these alone are installed."""
    monkeypatch.setattr(
        needs.importlib.util, "find_spec", lambda name: name if name in names else None
    )


def test_without_what_everything_is_made_of_it_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    has_only(monkeypatch, "numba", "torch")
    needs.main(rehearse=False)
    found = json.loads(capfd.readouterr().out)
    assert found["device"] is None
    assert found["missing"][:2] == [
        "missing: package numpy (nothing runs); pip install numpy",
        "missing: package cupy (no card can be reached); pip install cupy-cuda12x[ctk]",
    ]


def test_what_says_so_needs_nothing_but_python() -> None:
    for module in ("bench.gpu_check.runner", "bench.gpu_check.needs"):
        code = f"import sys, {module}; print('numpy' in sys.modules, 'crossdock' in sys.modules)"
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert done.stdout.split() == ["False", "False"]


def test_every_section_is_described() -> None:
    said = (ROOT / "CUDA.md").read_text(encoding="utf-8")
    assert [s.name for s in runner.SECTIONS if f"| `{s.name}` |" not in said] == []


def test_an_unknown_section_is_bad_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        runner.main(["nothing", "--rehearse"])
    assert ended.value.code == 2
    assert "no section nothing" in capsys.readouterr().err


def test_a_small_rehearsal(tmp_path: Path) -> None:
    status, data, said = rehearse(tmp_path, "faults")
    assert status == 0, said
    assert data["schema"] == "crossdock-gpu-check/1"
    assert data["rehearsal"] is True
    assert {"numba", "numpy"} <= set(data["packages"])
    assert {row["section"] for row in data["rows"]} == {"faults"}
    assert "\nfaults\n" in said
    if POCL:
        states = {row["what"]: row["state"] for row in data["rows"]}
        assert states["a run outlives the loss of the card"] == MET
        assert states["over the budget: OutOfMemory"] == MET


@pytest.mark.slow
def test_a_whole_rehearsal(tmp_path: Path) -> None:
    status, data, said = rehearse(tmp_path)
    assert status == 0, said
    assert {row["section"] for row in data["rows"]} == {s.name for s in runner.SECTIONS}


def test_a_checkout_that_is_not_installed_can_be_imported(tmp_path: Path) -> None:
    code = (
        "from bench.gpu_check import layout; layout.importable(); import subprocess, sys\n"
        "code = 'import crossdock, os; print(os.path.realpath(crossdock.__file__), flush=True)'\n"
        "exec(code); subprocess.run([sys.executable, '-c', code])"
    )
    packages = os.pathsep.join(p for p in sys.path if p.endswith("site-packages"))
    shadow = tmp_path / "sitecustomize.py"  # hides an installed crossdock
    shadow.write_text("import sys; sys.path = [p for p in sys.path if '.editable' not in p]")
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(tmp_path), packages))},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.split()
    assert len(lines) == 2
    assert {Path(line) for line in lines} == {ROOT / "__init__.py"}
    assert layout.ROOT == ROOT


# --- what sections are made of --------------------------------------------------------------------


def test_runs_are_interleaved_and_the_first_does_not_count() -> None:
    made: list[str] = []

    def slow_at_first() -> None:
        time.sleep(0.0 if made.count("a") else 0.2)
        made.append("a")

    found = interleaved({"a": slow_at_first, "b": lambda: made.append("b")}, rounds=3)
    assert made == ["a", "b"] * 4
    assert found["a"] < 0.1
    made.clear()
    interleaved({"a": lambda: made.append("a")}, rounds=50, seconds=0.0)
    assert len(made) == 4


@pytest.mark.parametrize("net", [*nets.NETS, *nets.TINY], ids=lambda net: net.name)
def test_networks_have_the_shapes_of_their_kind(net: nets.Net) -> None:
    graph = nets_ours.graph(net, 2)
    (shape,) = [graph.specs[name].dims for name in graph.outputs.values()]
    want = {
        "resnet50": (2, 1000), "mobilenet": (2, 1000), "minilm": (2, 128, 384),
        "unet block": (2, 320, 64, 64), "bert base": (2, 128, 768), "two convolutions": (2, 10),
        "attention": (2, 128, 32),
    }  # fmt: skip
    assert shape == want[net.name]


def test_a_network_of_another_type_has_its_type() -> None:
    graph = nets_ours.graph(nets.TINY[1], 1, "float16")
    assert {graph.specs[n].dtype for n in graph.outputs.values()} == {"float16"}
    assert {spec.dtype for spec in graph.inputs.values()} == {"int32"}


def test_weights_are_those_of_their_name() -> None:
    assert np.array_equal(nets.weight("a", (3, 4), 0.5), nets.weight("a", (3, 4), 0.5))
    assert not np.array_equal(nets.weight("a", (3, 4), 0.5), nets.weight("b", (3, 4), 0.5))


@pytest.mark.parametrize("net", nets.TINY, ids=lambda net: net.name)
def test_torch_has_the_same_network(net: nets.Net) -> None:
    if importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed")
    from bench.gpu_check.nets_torch import Peers

    feeds = net.feeds(2)
    with xd.compile(nets_ours.graph(net, 2), "cpu:0", measure=False) as session:
        found = session.run(feeds)["y"]
    assert models.error_of(found, Peers(net, 2, "float32", "cpu", feeds).eager()()) < 1e-5


def test_errors_are_over_the_largest_value() -> None:
    want = np.array([1.0, -4.0])
    assert models.error_of(np.array([1.0, -4.4]), want) == pytest.approx(0.1)
    assert models.error_of(np.array([1.0, np.nan]), want) == float("inf")
    assert models.error_of(np.ones(3), want) == float("inf")
    assert models.error_of(np.array([1, 2]), np.array([1, 3])) == 1.0


def test_devices_take_turns() -> None:
    made = nets_ours.graph(nets.TINY[0], 1)
    (info, *_) = registry.devices()
    pins = models.by_turns(made, [info.id, info.id]).pin
    assert pins
    assert set(pins.values()) == {info.id}
    assert models.by_turns(made, [info.id]).pin == {}


def test_a_machine_without_opencl_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = Probe("opencl", (), "no ICD is there", "install one")
    monkeypatch.setattr(registry, "probe_all", lambda _: [absent])
    assert models.without_opencl() == "no ICD is there; install one"
    shown = Probe("opencl", (CARD,))
    monkeypatch.setattr(registry, "probe_all", lambda _: [shown])
    assert models.without_opencl() == ""


def test_the_marked_tests_are_found() -> None:
    assert any(name.endswith("test_cuda_card.py") for name in conformance.marked())


def test_a_place_counts_down() -> None:
    place = Place(seconds=100.0, rehearsal=True)
    assert 99 < place.left <= 100
    assert place.size(1000, 10) == 10


@pytest.mark.skipif(not POCL, reason="the fake cupy runs kernels on PoCL")
def test_two_cards_are_checked_where_there_are_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = Report("cards", tmp_path / "rows.jsonl", rehearsal=True)
    cupy_fake.install(monkeypatch)
    try:
        cards.run(Place("cuda:0", rehearsal=True, seconds=1.0), report)
    finally:
        for name in ("cuda:0", "cuda:1"):
            registry._OPEN.pop((name, None, None)).close()
    rows = {row.what: row for row in read_rows(report.path)}
    assert not any(row.bad for row in rows.values())
    assert rows["cuda:0 to cuda:1: copies by itself"].note == "peer access"
    assert rows["a plan over two cards is right"].state == MET
    assert rows["its value passes the host by"].state == MET
    assert rows["one card through CUDA and OpenCL"].state == NOT_RUN


def test_cases_of_a_type_that_is_not_here_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package ml_dtypes may be missing where a card is checked."""
    cases = [replace(case) for case in of_op("scaled_dot_product_attention")]  # nothing drawn yet
    tensor.to_numpy.cache_clear()
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    found, reasons = operators.buildable(cases)
    tensor.to_numpy.cache_clear()
    here = [str(case) for case in cases if "bfloat16" not in case.dtypes]
    assert list(map(str, found)) == here
    assert reasons == {str(next(iter(reasons))): len(cases) - len(here)}
    assert "pip install ml_dtypes" in next(iter(reasons))


def test_each_kernel_of_a_library_has_a_case() -> None:
    def cases(info: DeviceInfo) -> list[str]:
        return [str(case) for case in operators.of_libraries(info)]

    attention = "scaled_dot_product_attention"
    without = cases(CARD)
    assert f"{attention}-plain-float32" in without
    assert not [name for name in without if name.startswith("layer_normalization")]
    found = cases(WITH_CUDNN)
    assert {f"{attention}-pieces-float16", f"{attention}-pieces-bfloat16"} <= set(found)
    assert {"layer_normalization-default-float16", "conv2d-3x3-float16"} <= set(found)
    assert len(found) < 40
