"""The page of a plan: self-contained, and never markup from a model."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossdock.runtime.cli.page import embed


class Elements(HTMLParser):
    """Every element with its attributes, and the text of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag != "meta":
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open:
            self.texts.setdefault(self._open[-1], []).append(data)


@pytest.fixture
def html(call: Any, model: Path, machine_file: Path, tmp_path: Path) -> str:
    path = tmp_path / "plan.html"
    got = call("plan", model, "--machine", machine_file, "--dim", "N=65536", "--html", path)
    assert got.status == 0, got.err
    return path.read_text(encoding="utf-8")


def test_the_page_has_no_element_that_a_model_named(html: str) -> None:
    made = Elements(html)
    assert [tag for tag, _ in made.found] == [
        "html", "head", "meta", "meta", "meta", "title", "style", "body", "script", "script",
    ]  # fmt: skip
    assert made.texts["title"] == ["two <i>branches</i> - crossdock plan"]


def test_the_page_loads_nothing(html: str) -> None:
    made = Elements(html)
    assert not [a for _, attrs in made.found for a in attrs if a in ("src", "href")]
    policy = next(a["content"] for t, a in made.found if t == "meta" and "http-equiv" in a)
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    style = "".join(made.texts["style"])
    assert "url(" not in style
    assert "@import" not in style
    for text, name in ((style, "style"), (made.texts["script"][-1], "script")):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{name}-src 'sha256-{digest}'" in policy


def test_scripts_never_make_markup_of_text(html: str) -> None:
    script = Elements(html).texts["script"][-1]
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert way not in script
    assert re.findall(r"https?://[^\"]+", script) == ["http://www.w3.org/2000/svg"]


def data_of(html: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(Elements(html).texts["script"][0])
    return data


def test_the_data_holds_steps_candidates_and_a_drawing(html: str) -> None:
    data = data_of(html)
    ops = [s for s in data["steps"] if s["kind"] == "launch"]
    assert {s["op"] for s in ops} >= {"matmul", "softmax"}
    assert {c["device"] for s in ops for c in s["choices"]} == {"cpu:0", "cuda:0"}
    assert all(0 <= s["start"] <= data["replay"] for s in data["steps"])
    assert data["measured"] is None
    boxes = data["graph"]["boxes"]
    assert sorted(b["step"] for b in boxes if b["kind"] == "op") == [
        i for i, s in enumerate(data["steps"]) if s["kind"] == "launch"
    ]
    assert [b["title"] for b in boxes if b["kind"] == "input"] == ["x"]
    for edge in data["graph"]["edges"]:
        assert boxes[edge["from"]]["y"] < boxes[edge["to"]]["y"]


def test_a_run_lays_its_times_beside_the_predicted_ones(
    call: Any, model: Path, tmp_path: Path
) -> None:
    path = tmp_path / "run.html"
    got = call("run", model, "--dim", "N=8", "--device", "cpu:0", "--measure", "0", "--html", path)
    assert got.status == 0, got.err
    data = data_of(path.read_text(encoding="utf-8"))
    assert data["measured"] > 0
    assert all(len(s["measured"]) >= 1 for s in data["steps"])


@given(st.text())
def test_embedded_data_comes_back_and_cannot_end_its_element(text: str) -> None:
    made = embed({"name": text})
    assert json.loads(made) == {"name": text}
    assert not set(made) & set("<>&")
