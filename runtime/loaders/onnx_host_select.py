"""ONNX operators that keep some elements: the sizes of their results hang on values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from crossdock.runtime.loaders.onnx_host import HostCall, HostValue, host_op
from crossdock.runtime.loaders.onnx_host_tools import axis_of, integer, is_string, number
from crossdock.runtime.tensor import Array


@host_op("NonZero", since=9)
def non_zero(call: HostCall) -> HostValue:
    """Indices of the elements that are not zero, or not empty: one row an axis."""
    x = call.array()
    kept = (x != "") if is_string(x) else (x != 0)
    found = np.flatnonzero(kept)
    if x.ndim == 0:
        return np.zeros((0, found.size), np.int64)
    return np.array(np.unravel_index(found, x.shape), np.int64).reshape(x.ndim, -1)


@host_op("Compress", since=9)
def compress(call: HostCall) -> HostValue:
    """Slices along an axis, or elements of the flattened tensor, where a condition holds."""
    x, condition = call.array(0), call.array(1)
    if condition.dtype != np.bool_ or condition.ndim != 1:
        raise call.malformed(f"condition is {condition.dtype}{list(condition.shape)}")
    axis = 0
    if "axis" in call.node.attrs:
        axis = axis_of(call, call.node.get_int("axis"), x.ndim)
    else:
        x = x.reshape(-1)
    places = np.flatnonzero(condition)
    if places.size and places[-1] >= x.shape[axis]:
        raise call.malformed(f"condition selects {places[-1]} of {x.shape[axis]} slices")
    return np.take(x, places, axis)


@host_op("Unique", since=11)
def unique(call: HostCall) -> tuple[HostValue, ...]:
    """Distinct elements or slices: themselves, their first places, inverse places, counts."""
    x = call.array()
    codes = _codes(x)
    axis = 0
    if "axis" in call.node.attrs:
        axis = axis_of(call, call.node.get_int("axis"), x.ndim)
        rows = np.moveaxis(codes.reshape(x.shape), axis, 0)
        # A column of zeros: slices without elements are all alike.
        flat = rows.reshape(rows.shape[0], int(np.prod(rows.shape[1:])))
        codes = _row_codes(np.pad(flat, ((0, 0), (0, 1))))
    else:
        x = x.reshape(-1)
    _, first, inverse, counts = np.unique(codes, True, True, True)
    if not call.node.get_int("sorted", 1):
        order = np.argsort(first, kind="stable")
        rank = np.empty_like(order)
        rank[order] = np.arange(order.size)
        first, inverse, counts = first[order], rank[inverse], counts[order]
    places = [np.asarray(v, np.int64).reshape(-1) for v in (first, inverse, counts)]
    return np.take(x, first, axis), *places


def _codes(x: Array) -> Array:
    """The rank of each element among the distinct ones, flat: orders any type alike."""
    flat = x.reshape(-1)
    if flat.dtype.name == "bfloat16":
        flat = flat.astype(np.float32)
    _, inverse = np.unique(flat, return_inverse=True)
    return np.asarray(inverse, np.int64).reshape(-1)


def _row_codes(rows: Array) -> Array:
    """The rank of each row among the distinct ones, in lexicographic order."""
    _, inverse = np.unique(rows, return_inverse=True, axis=0)
    return np.asarray(inverse, np.int64).reshape(-1)


@dataclass(frozen=True, slots=True)
class _Limits:
    """What a suppression keeps: boxes a class, overlap and score."""

    count: int
    overlap: float
    score: float | None


@host_op("NonMaxSuppression", since=10)
def non_max_suppression(call: HostCall) -> HostValue:
    """Boxes by falling score, without those that overlap a better one: [batch, class, box] rows.

    Intersection over union must exceed the threshold to suppress; a box at the score threshold
    itself is dropped, as ONNX's reference implementation does.
    """
    boxes, scores = call.array(0), call.array(1)
    if boxes.ndim != 3 or boxes.shape[2] != 4 or scores.ndim != 3:
        raise call.malformed(f"boxes {list(boxes.shape)} and scores {list(scores.shape)}")
    if (boxes.shape[0], boxes.shape[1]) != (scores.shape[0], scores.shape[2]):
        raise call.malformed(f"boxes {list(boxes.shape)} do not fit {list(scores.shape)} scores")
    limits = _limits(call)
    corners = _corners(boxes.astype(np.float32), call.node.get_int("center_point_box"))
    rows = [
        (batch, kind, box)
        for batch in range(scores.shape[0])
        for kind in range(scores.shape[1])
        for box in _kept(call, corners[batch], scores[batch, kind], limits)
    ]
    return np.array(rows, np.int64).reshape(-1, 3)


def _limits(call: HostCall) -> _Limits:
    count = integer(call, 2, "a number of boxes") if call.opt(2) is not None else 0
    overlap = number(call, 3, "an overlap") if call.opt(3) is not None else 0.0
    score = number(call, 4, "a score") if call.opt(4) is not None else None
    if not 0 <= overlap <= 1:
        raise call.malformed(f"an overlap of {overlap} is not from 0 to 1")
    return _Limits(max(count, 0), overlap, score)


def _corners(boxes: Array, centred: int) -> Array:
    """Boxes [batch, n, 4] as (low, low, high, high)."""
    a, b = boxes[..., :2], boxes[..., 2:]
    if centred:
        return np.concatenate([a - b / 2, a + b / 2], -1)
    return np.concatenate([np.minimum(a, b), np.maximum(a, b)], -1)


def _kept(call: HostCall, boxes: Array, scores: Array, limits: _Limits) -> list[int]:
    """Places of the boxes of one class that stay, best first; equal scores in their order."""
    order = np.argsort(-scores, kind="stable")
    if limits.score is not None:
        order = order[scores[order] > np.float32(limits.score)]
    kept: list[int] = []
    while order.size and len(kept) < limits.count:
        call.check()
        best, order = int(order[0]), order[1:]
        kept.append(best)
        order = order[~(_overlaps(boxes[best], boxes[order]) > np.float32(limits.overlap))]
    return kept


def _overlaps(box: Array, others: Array) -> Array:
    """Intersection over union of a box with others; 0 where an area is 0."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    shared = np.prod(np.maximum(high - low, 0), -1)
    area = np.prod(box[2:] - box[:2])
    areas = np.prod(others[:, 2:] - others[:, :2], -1)
    union = area + areas - shared
    some = (area > 0) & (areas > 0) & (union > 0)
    return np.where(some, shared / np.where(some, union, 1), 0)
