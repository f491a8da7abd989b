"""Sequences and optionals."""

from __future__ import annotations

import numpy as np
import pytest

from crossdock.runtime.errors import MalformedModel
from crossdock.runtime.loaders.onnx_host import EMPTY
from tests.runtime.loaders.onnx_hosts import run_host, words

A, B, C = (np.array([i], np.float32) for i in range(3))


def test_a_sequence_is_built_and_read() -> None:
    (made,) = run_host("SequenceConstruct", A, B)
    (longer,) = run_host("SequenceInsert", made, C, np.array(-1))
    assert [t.item() for t in longer] == [0, 2, 1]
    assert [t.item() for t in run_host("SequenceInsert", made, C)[0]] == [0, 1, 2]
    assert [t.item() for t in run_host("SequenceErase", longer, np.array(-3))[0]] == [2, 1]
    assert [t.item() for t in run_host("SequenceErase", longer)[0]] == [0, 2]
    assert run_host("SequenceAt", longer, np.array(-1))[0].item() == 1
    assert run_host("SequenceLength", longer)[0] == 3
    assert run_host("SequenceEmpty", dtype=8)[0] == []
    assert len(made) == 2, "what it was made from stays as it is"


@pytest.mark.parametrize("at", [2, -3])
def test_positions_out_of_range(at: int) -> None:
    with pytest.raises(MalformedModel, match=f"position {at} is out of range"):
        run_host("SequenceAt", [A, B], np.array(at))
    with pytest.raises(MalformedModel, match="out of range"):
        run_host("SequenceErase", [A, B], np.array(at))


def test_a_position_at_the_end_takes_an_insertion() -> None:
    assert len(run_host("SequenceInsert", [A], B, np.array(1))[0]) == 2
    with pytest.raises(MalformedModel, match="out of range"):
        run_host("SequenceInsert", [A], B, np.array(2))


def test_misuse_of_sequences() -> None:
    with pytest.raises(MalformedModel, match="different types"):
        run_host("SequenceConstruct", A, words("a"))
    with pytest.raises(MalformedModel, match="no sequence"):
        run_host("SequenceLength", A)
    with pytest.raises(MalformedModel, match="empty sequence"):
        run_host("SequenceErase", [])
    with pytest.raises(MalformedModel, match="empty sequence"):
        run_host("ConcatFromSequence", [], axis=0)
    with pytest.raises(MalformedModel, match="do not fit"):
        run_host("ConcatFromSequence", [A, np.zeros((1, 2), np.float32)], axis=0)
    with pytest.raises(MalformedModel, match="not an integer"):
        run_host("SequenceAt", [A], np.array(0.0))


X = np.arange(10).reshape(2, 5)


def test_split_into_parts() -> None:
    def shapes(split: object, **attrs: int) -> list[tuple[int, ...]]:
        inputs = [X] if split is None else [X, split]
        return [p.shape for p in run_host("SplitToSequence", *inputs, **attrs)[0]]

    assert shapes(None) == [(1, 5), (1, 5)]
    assert shapes(None, axis=-1, keepdims=0) == [(2,)] * 5
    assert shapes(np.array(2), axis=1) == [(2, 2), (2, 2), (2, 1)]
    assert shapes(np.array([4, 0, 1]), axis=1, keepdims=0) == [(2, 4), (2, 0), (2, 1)]
    assert shapes(np.array(9), axis=1) == [(2, 5)]
    with pytest.raises(MalformedModel, match="add up to 5"):
        shapes(np.array([4, 2]), axis=1)
    with pytest.raises(MalformedModel, match="parts of 0"):
        shapes(np.array(0))
    assert run_host("SplitToSequence", X[:0])[0] == []


def test_parts_go_together_again() -> None:
    (parts,) = run_host("SplitToSequence", X, axis=1)
    assert (run_host("ConcatFromSequence", parts, axis=-1)[0] == X).all()
    (rows,) = run_host("SplitToSequence", X, keepdims=0)
    assert (run_host("ConcatFromSequence", rows, axis=-1, new_axis=1)[0] == X.T).all()


def test_optionals() -> None:
    assert run_host("Optional", A)[0] is A
    (empty,) = run_host("Optional", type="float")
    assert empty is EMPTY
    assert not run_host("OptionalHasElement", empty)[0]
    assert not run_host("OptionalHasElement")[0]
    assert run_host("OptionalHasElement", [A])[0]
    assert run_host("OptionalGetElement", [A])[0][0] is A
    assert run_host("Identity", empty)[0] is EMPTY
    with pytest.raises(MalformedModel, match="empty"):
        run_host("OptionalGetElement", empty)
    with pytest.raises(MalformedModel, match="missing"):
        run_host("OptionalHasElement", opset=15)
