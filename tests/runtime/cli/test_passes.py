"""Leaving passes out from the command line, and verifying them on a model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from crossdock.runtime import passes
from crossdock.runtime.graph import Graph


@pytest.mark.parametrize("command", ["run", "plan", "explain", "accuracy", "profile"])
def test_a_pass_that_there_is_not_is_one_line_with_those_there_are(
    call: Any, model: Path, command: str
) -> None:
    got = call(command, model, "--no-pass", "nope")
    assert got.status == 2
    assert got.err.count("\n") == 1
    assert f"no pass 'nope'; there are {next(iter(passes.PASSES))}, " in got.err


def test_a_pass_left_out_shows_in_the_plan(call: Any, model: Path) -> None:
    common = ("plan", model, "--dim", "N=2", "--device", "cpu:0", "--measure", "0", "--json", "-")
    fused = call(*common).json
    out = ("fuse-elementwise", "fuse-epilogue")
    plain = call(*common, *(word for name in out for word in ("--no-pass", name))).json
    assert fused["passes"] == list(passes.PASSES)
    assert plain["passes"] == [p for p in passes.PASSES if p not in out]
    assert fused["graph"] != plain["graph"] or len(fused["steps"]) == len(plain["steps"])


def test_a_plan_saved_without_a_pass_runs(call: Any, model: Path, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    common = (model, "--dim", "N=2", "--device", "cpu:0", "--measure", "0")
    assert call("plan", *common, "--no-pass", "prune", "--save", file).status == 0
    assert call("run", *common, "--plan", file).status == 0
    got = call("run", *common, "--plan", file, "--no-pass", "fold-constants")
    assert got.status == 2
    assert "was made with the pass 'fold-constants', which is to be left out" in got.err


def test_sound_passes_are_verified(call: Any, model: Path) -> None:
    got = call("verify", "--passes", model, "--dim", "N=2", "--device", "cpu:0")
    assert got.status == 0, got.out + got.err
    for name in (*passes.PASSES, "every pass keeps the answer", "float64 reference"):
        assert name in got.out


def test_a_wrong_pass_is_found(call: Any, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(graph: Graph, keep: frozenset[str] = frozenset()) -> Graph:
        nodes = (replace(n, op="neg") if n.op == "relu" else n for n in graph.nodes)
        return replace(graph, nodes=tuple(nodes))

    monkeypatch.setattr(passes, "PASSES", {"spoil": wrong, **passes.PASSES})
    common = ("verify", "--passes", model, "--dim", "N=2", "--device", "cpu:0")
    got = call(*common)
    assert got.status == 1
    assert "pass 'spoil' is the first with a wrong answer at op 'left'" in got.out
    data = call(*common, "--json", "-").json
    assert data["culprit"]["name"] == "spoil"
    assert [row["name"] for row in data["passes"]] == ["", "spoil", *list(passes.PASSES)[1:]]
    assert call(*common, "--no-pass", "spoil").status == 0


def test_one_model_or_random_graphs_are_verified(call: Any, model: Path) -> None:
    got = call("verify", "--passes", model, "--graphs", "3")
    assert got.status == 2
    assert "--passes checks one model, --graphs random ones; give one" in got.err
