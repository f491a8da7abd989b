"""The trained models on every device and over two, on real input, beside onnxruntime."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import cards
from tests.models import real

BOTH = "cpu:0+opencl:0"
QUICK = {"mtcnn-pnet", "mtcnn-rnet"}
"""Models whose kernels PoCL builds in some seconds; it takes a third of a second for each."""

TOLERANCE = {"basic-pitch": 5e-4}
"""Over the largest value. basic-pitch takes logarithms of bands' powers: where a band is nearly
silent, both runtimes are 1e-5 to 1e-4 off the result in double precision."""


def places() -> list[Any]:
    """Every model on every set of devices; on PoCL, most are slow."""
    made = []
    for name in real.MODELS:
        for where in ("cpu:0", "opencl:0", BOTH, "cuda:0"):
            quick = where == "cpu:0" or (name in QUICK and where != "cuda:0")
            made.append(pytest.param(name, where, marks=() if quick else pytest.mark.slow))
    return made


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A CUDA card on the fake cupy, which runs kernels on the OpenCL device."""
    with cards.installed(monkeypatch):
        yield


@pytest.mark.parametrize(("name", "where"), places())
def test_outputs_are_onnxruntimes(
    models_dir: Path, request: pytest.FixtureRequest, name: str, where: str
) -> None:
    if where == "cuda:0":
        request.getfixturevalue("card")
    graph = real.bound(real.inputs.model_path(name), real.feeds(name))
    with real.compiled(graph, where) as session:
        found = session.run(real.feeds(name))
        ran = {op.device for op in session.receipt.ops}
    if where != BOTH or graph.staged is None:  # what runs in stages has no ops to be pinned yet
        assert ran >= set(where.split("+"))
    want = real.wanted(name)
    assert list(found) == list(want)
    for output, (off, relative) in real.errors(found, want).items():
        assert found[output].shape == want[output].shape
        assert off < 1e-6 or relative < TOLERANCE.get(name, 5e-5), (output, off, relative)
