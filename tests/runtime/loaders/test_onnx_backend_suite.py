"""The whole of onnx.backend.test on each device: 2,033 cases of operators and small models."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import cards
from tests.fakes.cuda_machine import Machine
from tests.runtime.loaders import onnx_suite

CASES = 2033
"""What onnx 1.23 has; a newer one may have more."""

FLOOR = 2020
"""Cases that must pass on the processor."""


@pytest.fixture(autouse=True)
def onnx_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the suite writes what it feeds to real models."""
    monkeypatch.setenv("ONNX_HOME", str(tmp_path))


SHARE = 3
"""One in so many cases runs at once. They come by name, so that it is one in so many of an
operator's, too; the operators' own tests are in this folder."""


def test_one_in_three_cases_on_the_processor() -> None:
    nobody = onnx_suite.backend_on("cpu:0", onnx_suite.Outcome(), [""])
    every = [name for name, _ in onnx_suite.cases(nobody)]
    left = set(every) - set(every[::SHARE])
    outcome = onnx_suite.run_suite("cpu:0", leave=left)
    wanted = {case: why for case, why in onnx_suite.excluded("cpu:0").items() if case not in left}
    assert outcome.wrong(wanted) == []
    assert len(outcome.passed) >= FLOOR // SHARE - len(wanted)
    assert outcome.strays == {}


@pytest.mark.slow
def test_on_the_processor() -> None:
    outcome = onnx_suite.run_suite("cpu:0")
    assert outcome.wrong(onnx_suite.excluded("cpu:0")) == []
    assert len(outcome.passed) >= FLOOR
    assert len(outcome.passed) + len(outcome.failed) >= CASES
    assert outcome.strays == {}


def test_every_exclusion_has_a_reason() -> None:
    rows = [*onnx_suite.excluded("cpu:0").values(), *onnx_suite.excluded("opencl:0").values()]
    assert not [r.reason for r in rows if r.reason.startswith(onnx_suite.UNEXPLAINED)]


@pytest.mark.slow
def test_on_opencl(opencl: Any) -> None:
    """What the processor cannot pass is left out: it is not about the device."""
    outcome = onnx_suite.run_suite("opencl:0", leave=onnx_suite.excluded("cpu:0"))
    assert outcome.wrong(onnx_suite.excluded("opencl:0")) == []


@pytest.fixture
def card(opencl: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A card on the fake cupy, which runs kernels on the OpenCL device and checks their use."""
    with cards.installed(monkeypatch, Machine(memory=4 << 30)):  # vgg19 has 575 MB of weights
        yield "cuda:0"


@pytest.mark.slow
def test_on_the_fake_card(card: str) -> None:
    outcome = onnx_suite.run_suite(card, leave=onnx_suite.excluded("cpu:0"))
    assert outcome.wrong(onnx_suite.excluded(card)) == []


def test_the_table_is_brought_up_to_date() -> None:
    old = [
        {"reason": "random", "chance": True, "cases": ["test_f"]},
        {"reason": "odd", "cases": ["test_a", "test_b"]},
        {"reason": "unexplained: E", "cases": ["test_c", "test_d"]},
        {"reason": "slow there", "devices": ["opencl:0"], "cases": ["test_e"]},
    ]
    outcome = onnx_suite.Outcome(
        ["test_b", "test_c", "test_e", "test_f"], {"test_a": "x", "test_d": "y 3"}
    )
    rows = onnx_suite.updated(outcome, old)
    assert rows == [
        {"reason": "random", "chance": True, "cases": ["test_f"]},
        {"reason": "odd", "cases": ["test_a"]},
        {"reason": "slow there", "devices": ["opencl:0"], "cases": ["test_e"]},
        {"reason": "unexplained: y #", "cases": ["test_d"]},
    ]
    table = {name: onnx_suite.Exclusion("odd") for name in ("test_a", "test_b")}
    wrong = outcome.wrong({**table, "test_f": onnx_suite.Exclusion("random", True)})
    assert wrong == ["test_d: y 3", "test_b passes; take it off the list"]
    assert tomllib.loads(onnx_suite.text_of(rows))["excluded"] == rows
