"""What a caller is told: one line that prints, of bounded length, of a type of ours."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

import crossdock as xd
from crossdock.runtime import errors
from crossdock.runtime.errors import LONGEST, Error, ExecutionError, MalformedModel, OutOfMemory
from crossdock.runtime.loaders import load, onnx_host
from crossdock.runtime.loaders.onnx_convert import Converter
from crossdock.runtime.loaders.onnx_host import HostCall, run_entry
from crossdock.runtime.loaders.onnx_model import OnnxNode
from tests.runtime.hostile.kit import info, model, node

ODD = "\u202egnp\n\x1b[31m\u2028" + "n" * 3000
KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, Error)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_message_is_one_line_that_prints(kind: type[Error]) -> None:
    error = kind(f"it is {ODD}; what to do")
    text = str(error)
    assert text.isprintable()
    assert text.startswith(r"it is \u202egnp\n\x1b[31m\u2028nnn")
    assert text.endswith("; what to do")
    assert len(text) <= LONGEST
    for again in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert str(again) == text
    assert str(kind(text)) == text


def test_numbers_of_an_error_go_with_its_copies() -> None:
    error = OutOfMemory("none left", device="sim:a", wanted=5, free=3)
    made = copy.copy(error)
    assert (str(made), made.device, made.wanted, made.free) == ("none left", "sim:a", 5, 3)


def graph() -> xd.Graph:
    b = xd.GraphBuilder(ODD)
    x = b.input(ODD, (2,))
    return b.build({"y": b.log(x, label=ODD)})


def fed(session: xd.Session, **more: Any) -> Any:
    return session.run({ODD: np.zeros(2, np.float32)}, **more)


def closed(session: xd.Session) -> Any:
    session.close()
    return fed(session)


CALLS: list[Callable[[xd.Session], Any]] = [
    closed,
    lambda s: s.run({}),
    lambda s: s.run({ODD: np.zeros(3, np.float32)}),
    lambda s: s.run({ODD: np.zeros(2, np.float64)}),
    lambda s: s.run({ODD: np.zeros(2, np.float32), ODD + "2": 1}),
    lambda s: s.run(3),  # type: ignore[arg-type]
    lambda s: fed(s, timeout=1e-9),
    lambda s: s.submit({}).result(9),
    lambda s: s.plan.explain_op(ODD + "2"),
    lambda s: s.graph.bind(shapes={ODD: (3,)}),
    lambda s: s.graph.bind(shapes={ODD + "2": (3,)}),
    fed,  # which makes an infinity
]


@pytest.mark.parametrize("call", CALLS, ids=lambda c: inspect.getsource(c).strip()[:40])
def test_names_of_a_graph_are_escaped_and_cut(call: Callable[[xd.Session], Any]) -> None:
    with xd.compile(graph(), ["cpu:0"], measure=False, check_finite=True) as session:
        with pytest.raises(Error) as caught:
            call(session)
        text = str(caught.value)
    assert text.isprintable()
    assert len(text) <= LONGEST
    assert "nnn" in text


BARE = [KeyError("k"), IndexError("i"), TypeError("t"), ValueError("v"), ZeroDivisionError("z")]


@pytest.mark.parametrize("bare", BARE, ids=repr)
def test_no_bare_error_comes_out_of_a_load(
    bare: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def outputs(*args: object) -> Any:
        raise bare

    monkeypatch.setattr(Converter, "outputs", outputs)
    relu = node("Relu", "x", "y", name="here")
    with pytest.raises(MalformedModel, match=r"node 'here' \(Relu\)") as caught:
        load(model([relu], [info("x")], [info("y")]))
    assert caught.value.__cause__ is bare


@pytest.mark.parametrize("bare", BARE, ids=repr)
def test_no_bare_error_comes_out_of_a_function_of_the_host(bare: Exception) -> None:
    def broken(call: HostCall) -> Any:
        raise bare

    entry = onnx_host.HostEntry("Odd", "", 1, broken)
    call = HostCall(OnnxNode("Odd", "", (), ("y",)), 1, (), onnx_host.no_body)
    with pytest.raises(ExecutionError, match=f"failed on the host: {type(bare).__name__}"):
        run_entry(entry, call)


@pytest.mark.parametrize("submitted", [False, True])
def test_a_host_without_memory_is_told_in_a_word_of_ours(
    submitted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **more: object) -> Any:
        raise MemoryError

    with xd.compile(graph(), ["cpu:0"], measure=False) as session:
        right = fed(session, timeout=60)
        with monkeypatch.context() as patch:
            patch.setattr("crossdock.runtime.session.arrays_of", full)
            future = session.submit({ODD: np.zeros(2, np.float32)}, timeout=60)
            run = partial(future.result, 60) if submitted else partial(fed, session, timeout=60)
            with pytest.raises(OutOfMemory, match="the host has too little memory to run it"):
                run()
            assert isinstance(future.exception(60), OutOfMemory)
        assert np.array_equal(fed(session, timeout=60)["y"], right["y"])
