"""Limits: what may be set, and that each of them is held to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import crossdock as xd
from crossdock.runtime import free_memory, ready
from crossdock.runtime.errors import (
    FeedError,
    IterationLimit,
    LimitError,
    LoadError,
    MalformedModel,
    OutOfMemory,
)
from crossdock.runtime.limits import Limits
from tests.runtime.hostile.encoded import _nested_ifs
from tests.runtime.hostile.kit import info, model, node, seed_model
from tests.runtime.hostile.loops import SAME, looped


def load(proto: Any, **limits: Any) -> Any:
    data = proto if isinstance(proto, bytes) else proto.SerializeToString()
    return xd.load(data, limits=Limits(**limits))


def chain(count: int) -> Any:
    ops = [node("Neg", f"v{i}", f"v{i + 1}") for i in range(count)]
    return model(ops, [info("v0")], [info(f"v{count}")])


def run(graph: Any, feeds: Any = None) -> dict[str, Any]:
    with xd.compile(graph, devices=["cpu:0"], measure=False) as session:
        return session.run(feeds or {})


@pytest.mark.parametrize(
    ("name", "value"),
    [("nodes", 0), ("depth", -1), ("iterations", 1.5), ("seconds", float("nan")), ("nodes", True),
     ("tensor_bytes", "1"), ("seconds", 0)],
)  # fmt: skip
def test_a_limit_is_a_number_above_zero(name: str, value: Any) -> None:
    with pytest.raises(LoadError, match=f"Limits.{name} is"):
        Limits(**{name: value})


def test_limits_are_limits() -> None:
    for read in (xd.load, xd.load_tensors):
        with pytest.raises(LoadError, match=r"limits is a crossdock\.Limits, not int"):
            read("any.npz", limits=5)


@pytest.mark.parametrize("what", [b"tensors.npz", 5, None])
def test_tensors_come_from_a_path(what: Any) -> None:
    with pytest.raises(LoadError, match="give a path"):
        xd.load_tensors(what)


def test_nodes() -> None:
    assert len(load(chain(9), nodes=9).nodes) == 9
    with pytest.raises(LimitError, match=r"more than 8 nodes; raise Limits\.nodes"):
        load(chain(9), nodes=8)
    with pytest.raises(LimitError, match="8 nodes"):
        xd.load(chain(9), limits=Limits(nodes=8))  # a ModelProto, which has no bytes to walk


def test_depth() -> None:
    assert load(_nested_ifs(5), depth=6)
    with pytest.raises(LimitError, match=r"more than 5 graphs in one another at byte \d+"):
        load(_nested_ifs(5), depth=5)


def test_tensors_grow_with_what_is_brought() -> None:
    tile = model([node("Tile", "x s", "y")], [info("x", shape=(100,))], ["y"], s=np.array([40]))
    assert load(tile, tensor_bytes=1, growth=40)
    with pytest.raises(LimitError, match=r"16,000 bytes, over the limit of 15,912"):
        load(tile, tensor_bytes=1, growth=39)
    assert load(tile, tensor_bytes=16_000, growth=1)


def test_what_is_folded_together() -> None:
    """Constants beyond the budget are left to the run, and come out the same."""
    doubling = [node("Add", f"v{i} v{i}", f"v{i + 1}") for i in range(6)]
    proto = model(doubling, [], ["v6"], v0=np.ones(1000, np.float32))
    assert not load(proto).nodes[:-1]
    few = load(proto, tensor_bytes=8_000, growth=1)
    assert len(few.nodes) == 4
    assert (run(few)["v6"] == 64).all()


def test_iterations_of_all_loops_together() -> None:
    assert run(load(looped(SAME, 9), iterations=9))
    with pytest.raises(IterationLimit, match=r"takes 9 iterations, over the limit of 8"):
        run(load(looped(SAME, 9), iterations=8))


def test_seconds() -> None:
    with pytest.raises(LimitError, match=r"not done after 1e-09 s; raise Limits\.seconds"):
        load(chain(600), seconds=1e-9)


def test_file_bytes(tmp_path: Path) -> None:
    data = seed_model().SerializeToString()
    path = tmp_path / "m.onnx"
    path.write_bytes(data)
    assert xd.load(path, limits=Limits(file_bytes=len(data)))
    for source in (data, path):
        with pytest.raises(LimitError, match=r"raise Limits\.file_bytes"):
            xd.load(source, limits=Limits(file_bytes=len(data) - 1))


def test_the_byte_where_a_file_breaks() -> None:
    data = seed_model().SerializeToString()
    with pytest.raises(MalformedModel, match=rf"from byte {len(data)} on: a field claims 9 bytes"):
        xd.load(data + b"\x3a\x09")


def test_a_run_that_does_not_fit_the_memory_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    b = xd.GraphBuilder()
    x = b.input("x", (1 << 13, 1))
    graph = b.build({"y": b.matmul(x, b.transpose(x))})
    monkeypatch.setattr(ready, "free_bytes", lambda: 100_000_000)
    with pytest.raises(OutOfMemory, match="of the machine's memory, and 100,000,000 are free"):
        xd.compile(graph, devices=["cpu:0"], measure=False)


def test_free_memory_is_a_number_here() -> None:
    assert 0 < free_memory.free_bytes() <= free_memory.UNKNOWN


def test_arguments_that_are_none() -> None:
    graph = load(seed_model())
    for given in (3, {"x": 3}, {"x": "ab"}, {3: [1.5]}):
        with pytest.raises(FeedError, match=r"shapes"):
            xd.compile(graph, shapes=given, measure=False)  # type: ignore[arg-type]
    with xd.compile(graph, devices=["cpu:0"], measure=False) as session:
        for timeout in ("x", float("nan"), -1, True):
            with pytest.raises(FeedError, match="timeout="):
                session.run({}, timeout=timeout)  # type: ignore[arg-type]
