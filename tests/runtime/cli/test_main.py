"""Exit statuses, one line for every error, help, and how the command is started and stopped."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from crossdock import __version__
from crossdock.runtime.cli import main as entry
from crossdock.runtime.cli.app import COMMANDS, app
from crossdock.runtime.errors import (
    CompileError,
    DeviceLost,
    FeedError,
    NoPlacement,
    ShapeError,
    Timeout,
    Unavailable,
    UnsupportedModel,
)


def raising(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(_args: list[str]) -> int:
        raise error

    monkeypatch.setattr(entry, "_invoke", fail)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UnsupportedModel("m.onnx: no op"), 2),
        (ShapeError("bad shape"), 2),
        (NoPlacement("no device"), 2),
        (FeedError("no input"), 2),
        (Unavailable("no card"), 2),
        (Timeout("too late"), 1),
        (DeviceLost("gone"), 1),
        (CompileError("no build", log="log"), 1),
        (MemoryError(), 1),
        (RuntimeError("what"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_an_error_is_one_line_and_a_status(
    error: BaseException, status: int, monkeypatch: pytest.MonkeyPatch, call: Any
) -> None:
    raising(monkeypatch, error)
    got = call("run")
    assert got.status == status
    assert got.out == ""
    assert got.err.startswith("crossdock: ")
    assert got.err.count("\n") == 1


def test_a_message_of_many_lines_and_escapes_becomes_one_harmless_line(
    monkeypatch: pytest.MonkeyPatch, call: Any
) -> None:
    raising(monkeypatch, FeedError("first\n  second \x1b[31mred"))
    assert call("run").err == "crossdock: first\\n second \\x1b[31mred\n"


def test_debug_adds_the_traceback_wherever_it_stands(
    monkeypatch: pytest.MonkeyPatch, call: Any
) -> None:
    raising(monkeypatch, FeedError("no input"))
    for args in (("--debug", "run"), ("run", "--debug")):
        got = call(*args)
        assert got.status == 2
        assert "Traceback" in got.err
        assert got.err.endswith("crossdock: no input\n")


@pytest.mark.parametrize("missing", [("click",), ("rich",), ("click", "rich")])
def test_a_missing_extra_is_named(
    missing: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, call: Any
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in missing else find(name)
    )
    got = call("devices")
    assert got.status == 1
    assert got.err == f"crossdock: needs {' and '.join(missing)}: pip install crossdock[cli]\n"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["no-such-command"], "No such command"),
        (["run"], "Missing argument 'MODEL'"),
        (["run", "m.onnx", "--wrong"], "--wrong"),
        (["run", "m.onnx", "--repeat", "0"], "--repeat"),
        (["run", "m.onnx", "--dim", "N"], "is not of the form NAME=N"),
        (["run", "m.onnx", "--shape", "x=a,b"], "is not of the form NAME=1,3,224,224"),
        (["plan", "m.onnx", "--memory", "cpu:0=lots"], "is not of the form ID=BYTES"),
        (["plan", "m.onnx", "--link", "cpu:0:cuda:0=0"], "is not of the form A:B=GB/s"),
    ],
)
def test_a_wrong_option_is_one_line_that_points_to_help(
    args: list[str], said: str, call: Any
) -> None:
    got = call(*args)
    assert got.status == 2
    assert said in got.err
    assert got.err.endswith("--help` lists what there is\n")
    assert got.err.count("\n") == 1


def test_a_missing_model_is_named(call: Any) -> None:
    got = call("run", "nowhere/model.onnx")
    assert got.status == 2
    assert got.err.startswith("crossdock: nowhere/model.onnx: ")


def test_a_file_that_is_no_model_is_named(call: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_text("no model at all")
    got = call("plan", path)
    assert (got.status, got.err.count("\n")) == (2, 1)
    assert str(path) in got.err


@pytest.mark.parametrize("option", ["--json", "--html", "--trace"])
def test_a_result_that_could_not_be_written_is_refused_before_the_work(
    option: str, call: Any, tmp_path: Path
) -> None:
    for path in (tmp_path / "none" / "file", tmp_path):
        got = call("run", "no-model.onnx", option, path)
        assert (got.status, got.err.count("\n")) == (2, 1)
        assert got.err.startswith(f"crossdock: {path}: cannot be written")


def test_help_lists_every_command() -> None:
    done = CliRunner().invoke(app, ["--help"])
    assert done.exit_code == 0
    for name in COMMANDS:
        assert f"\n  {name} " in done.output


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_explanation_of_each_option(name: str) -> None:
    done = CliRunner().invoke(app, [name, "--help"], prog_name="crossdock")
    assert done.exit_code == 0
    assert done.output.startswith(f"Usage: crossdock {name} ")
    command: Any = app.get_command(None, name)  # type: ignore[arg-type]
    assert command.help
    assert all(p.help for p in command.params if isinstance(p, click.Option))


def test_version(call: Any) -> None:
    assert call("--version").out == f"crossdock {__version__}\n"


def python(*args: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def test_python_m_crossdock_is_the_same_command() -> None:
    with python("-m", "crossdock", "nothing") as done:
        out, err = done.communicate(timeout=60)
    assert (done.returncode, out) == (2, "")
    assert err.startswith("crossdock: No such command 'nothing'")


def test_a_closed_pipe_is_quiet() -> None:
    with python("-m", "crossdock", "devices") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        err = process.stderr.read()
        assert process.wait(60) == 1
    assert err == ""


INTERRUPTED = """
import sys, time
from crossdock.runtime.cli import main
def wait(args):
    print("ready", flush=True)
    time.sleep(60)
main._invoke = wait
sys.exit(main.main(["run"]))
"""


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX's")
def test_an_interrupt_is_one_line_and_130() -> None:
    with python("-c", INTERRUPTED) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "crossdock: interrupted\n")
