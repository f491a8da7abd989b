"""Operators whose results' sizes hang on values."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from crossdock.runtime.errors import MalformedModel
from tests.runtime.loaders.onnx_hosts import run_host, words

SMALL = hnp.arrays(
    np.int64,
    hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=4),
    elements=st.integers(0, 2),
)


@given(SMALL)
def test_non_zero_is_numpys(x: Any) -> None:
    (got,) = run_host("NonZero", x)
    assert got.dtype == np.int64
    assert (got == np.array(np.nonzero(x))).all()


def test_non_zero_of_scalars_and_strings() -> None:
    assert run_host("NonZero", np.array(3.0))[0].shape == (0, 1)
    assert run_host("NonZero", np.array(0.0))[0].shape == (0, 0)
    assert run_host("NonZero", words("", "a"))[0].tolist() == [[1]]


@given(SMALL, st.booleans(), st.booleans())
def test_unique_restores_its_input(x: Any, ordered: bool, along: bool) -> None:
    axis = x.ndim - 1
    attrs = {"axis": -1} if along else {}
    y, first, inverse, counts = run_host("Unique", x, outputs=4, sorted=int(ordered), **attrs)
    flat = x if along else x.reshape(-1)
    axis = axis if along else 0
    assert (np.take(y, inverse, axis) == flat).all()
    assert (np.take(flat, first, axis) == y).all()
    assert counts.sum() == flat.shape[axis]
    rows = [tuple(r.reshape(-1)) for r in np.moveaxis(y, axis, 0)]
    assert len(set(rows)) == len(rows) or not flat.size
    assert rows == sorted(rows) if ordered else first.tolist() == sorted(first.tolist())


def test_unique_of_strings_and_halves() -> None:
    y, first, *_ = run_host("Unique", words("b", "a", "b"), outputs=4)
    assert (y.tolist(), first.tolist()) == (["a", "b"], [1, 0])
    x = np.array([2, 1, 2], ml_dtypes.bfloat16)
    assert run_host("Unique", x, opset=28, outputs=4)[0].tolist() == [1, 2]
    table = words("b", "a", "b", "a").reshape(2, 2)
    assert run_host("Unique", table, outputs=4, axis=0)[0].tolist() == [["b", "a"]]
    with pytest.raises(MalformedModel, match="axis 2"):
        run_host("Unique", table, outputs=4, axis=2)


def test_compress() -> None:
    x = np.arange(6).reshape(2, 3)
    assert run_host("Compress", x, np.array([False, True]))[0].tolist() == [1]
    assert run_host("Compress", x, np.array([False, True]), axis=-1)[0].tolist() == [[1], [4]]
    assert run_host("Compress", words("a", "b"), np.array([False, True]))[0].tolist() == ["b"]
    with pytest.raises(MalformedModel, match="selects 2 of 2"):
        run_host("Compress", x, np.array([False, False, True]), axis=0)
    with pytest.raises(MalformedModel, match="condition"):
        run_host("Compress", x, np.array([0, 1]), axis=0)


BOXES = np.array([[[0, 0, 1, 1], [0, 0.1, 1, 1.1], [1, 1, 0, 0], [0, 10, 1, 11]]], np.float32)
SCORES = np.array([[[0.9, 0.75, 0.9, 0.5]]], np.float32)


def kept(*limits: Any, boxes: Any = BOXES, scores: Any = SCORES, **attrs: Any) -> list[Any]:
    given = [
        None if v is None else np.array([v], t)
        for v, t in zip(limits, (np.int64, np.float32, np.float32), strict=False)
    ]
    rows: list[Any] = run_host("NonMaxSuppression", boxes, scores, *given, **attrs)[0].tolist()
    return rows


def test_non_max_suppression() -> None:
    assert kept(3, 0.5) == [[0, 0, 0], [0, 0, 3]]
    assert kept(3, 1.0) == [[0, 0, 0], [0, 0, 2], [0, 0, 1]]
    assert kept(3, 0.5, 0.5) == [[0, 0, 0]]
    assert kept(1, 1.0) == [[0, 0, 0]]
    assert kept() == []
    assert kept(-1, 0.5) == []
    assert kept(9, None, 0.8) == [[0, 0, 0]]
    centred = np.array([[[0.5, 0.5, 1, 1], [0.5, 0.6, 1, 1]]], np.float32)
    assert kept(9, 0.5, boxes=centred, scores=SCORES[..., :2], center_point_box=1) == [[0, 0, 0]]


def test_boxes_without_area_suppress_nothing() -> None:
    boxes = np.zeros((1, 2, 4), np.float32)
    assert len(kept(9, 0.0, boxes=boxes, scores=SCORES[..., :2])) == 2


def test_misuse_of_suppression() -> None:
    with pytest.raises(MalformedModel, match="do not fit"):
        kept(1, scores=SCORES[..., :2])
    with pytest.raises(MalformedModel, match="overlap of 2"):
        kept(1, 2.0)
