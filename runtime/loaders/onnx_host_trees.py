"""Ensembles of decision trees: TreeEnsemble of ai.onnx.ml, opset 5."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from crossdock.runtime.loaders.onnx_host import HostCall, HostValue, host_op
from crossdock.runtime.loaders.onnx_host_tools import sized
from crossdock.runtime.tensor import Array

_MEMBER = 6
_COMPARE: tuple[Callable[[Array, Array], Any], ...] = (
    np.less_equal,
    np.less,
    np.greater_equal,
    np.greater,
    np.equal,
    np.not_equal,
)
"""Comparisons of a feature with a threshold, by their number in nodes_modes."""


@dataclass(frozen=True, slots=True)
class _Forest:
    """Interior nodes by place: what they test, and where they lead (``leaf``: to a leaf)."""

    modes: Array
    splits: Array
    features: Array
    missing: Array
    members: dict[int, Array]
    targets: tuple[Array, Array]
    leafs: tuple[Array, Array]


@host_op("TreeEnsemble", since=5, domain="ai.onnx.ml")
def tree_ensemble(call: HostCall) -> HostValue:
    """The leaves that a row reaches, one a tree, aggregated by target."""
    x = call.array()
    if x.ndim != 2 or x.dtype.kind != "f":
        raise call.malformed(f"features of {x.dtype}{list(x.shape)}, not [N, F] floats")
    forest = _forest(call, x.shape[1])
    count = call.node.get_int("n_targets")
    weights, ids = _attribute(call, "leaf_weights"), _attribute(call, "leaf_targetids")
    if weights.size != ids.size or not _within(ids, count):
        raise call.malformed(f"leaf_targetids do not fit {count} targets")
    roots = _attribute(call, "tree_roots")
    if not _within(roots, forest.modes.size):
        raise call.malformed("a root that is no node")
    total = _Total(
        sized(call, [len(x), count], x.dtype), call.node.get_int("aggregate_function", 1)
    )
    for root in roots.tolist():
        call.check()
        leaves = _walk(call, forest, x, root)
        if not _within(leaves, weights.size):
            raise call.malformed("a node leads to a leaf that is not there")
        total.add(ids[leaves], weights[leaves])
    number = call.node.get_int("post_transform")
    if total.how not in range(4) or number not in range(len(_TRANSFORMS)):
        raise call.malformed(f"aggregate_function {total.how} or post_transform {number}")
    return np.asarray(_TRANSFORMS[number](total.result(roots.size)), x.dtype)


def _within(places: Array, size: int) -> bool:
    return not places.size or (int(places.min()) >= 0 and int(places.max()) < size)


class _Total:
    """Leaves' weights by row and target."""

    def __init__(self, shape: tuple[int, ...], how: int) -> None:
        self.how = how
        self.sums = np.zeros(shape, np.float64)
        self.low = np.full(shape, np.inf)
        self.high = np.full(shape, -np.inf)

    def add(self, targets: Array, weights: Array) -> None:
        """One weight a row, for a target of the row's own."""
        at = (np.arange(len(targets)), targets)
        self.sums[at] += weights
        self.low[at] = np.minimum(self.low[at], weights)
        self.high[at] = np.maximum(self.high[at], weights)

    def result(self, trees: int) -> Array:
        """The average, sum, least or greatest; zero for a target without leaves."""
        if self.how == 0:
            return self.sums / max(trees, 1)
        ends = {1: self.sums, 2: self.low, 3: self.high}[self.how]
        return np.where(np.isinf(self.low) & np.isinf(self.high), 0, ends)


def _attribute(call: HostCall, name: str, default: Array | None = None) -> Array:
    """An attribute, a tensor or a list of integers, as a flat array."""
    call_value = call.node.attrs.get(name)
    if isinstance(call_value, np.ndarray):
        return call_value.reshape(-1)
    if call_value is None and default is not None:
        return default
    call.node.require(name)
    return np.array(call.node.get_ints(name) or (), np.int64)


def _forest(call: HostCall, features: int) -> _Forest:
    modes = _attribute(call, "nodes_modes")
    size = modes.size
    rows = {
        name: _attribute(call, f"nodes_{name}")
        for name in (
            "splits",
            "featureids",
            "truenodeids",
            "falsenodeids",
            "trueleafs",
            "falseleafs",
        )
    }
    missing = _attribute(call, "nodes_missing_value_tracks_true", np.zeros(size, np.int64))
    if any(row.size != size for row in (*rows.values(), missing)):
        raise call.malformed("its nodes_* attributes differ in length")
    if not _within(rows["featureids"], features) or not _within(modes, _MEMBER + 1):
        raise call.malformed(f"a feature or a mode out of range for {features} features")
    return _Forest(
        modes,
        rows["splits"],
        rows["featureids"],
        missing != 0,
        _members(call, modes),
        (rows["falsenodeids"], rows["truenodeids"]),
        (rows["falseleafs"] != 0, rows["trueleafs"] != 0),
    )


def _members(call: HostCall, modes: Array) -> dict[int, Array]:
    """The set that each membership node tests, by the node's place."""
    nodes = np.flatnonzero(modes == _MEMBER).tolist()
    values = _attribute(call, "membership_values", np.zeros(0, np.float32))
    ends = np.flatnonzero(np.isnan(values.astype(np.float64)))
    if len(ends) < len(nodes):
        raise call.malformed(f"{len(ends)} sets in membership_values for {len(nodes)} nodes")
    starts = [0, *(ends[:-1] + 1).tolist()] if len(ends) else []
    return {n: values[a:b] for n, a, b in zip(nodes, starts, ends.tolist(), strict=False)}


def _walk(call: HostCall, forest: _Forest, x: Array, root: int) -> Array:
    """The leaf that each row reaches in one tree."""
    place = np.full(len(x), root, np.int64)
    leaves = np.zeros(len(x), np.int64)
    going = np.arange(len(x))
    for _ in range(forest.modes.size):
        if not going.size:
            return leaves
        at = place[going]
        truth = _tested(forest, at, x[going, forest.features[at]]).astype(np.int64)
        to = np.where(truth, forest.targets[1][at], forest.targets[0][at])
        ends = np.where(truth, forest.leafs[1][at], forest.leafs[0][at])
        leaves[going[ends]] = to[ends]
        going, to = going[~ends], to[~ends]
        if not _within(to, forest.modes.size):
            raise call.malformed("a node leads to a node that is not there")
        place[going] = to
    if going.size:
        raise call.malformed("its nodes lead in a circle")
    return leaves


def _tested(forest: _Forest, at: Array, value: Array) -> Array:
    """Whether each value passes the test of its node; what is missing takes the node's side."""
    truth = np.zeros(len(at), np.bool_)
    for mode in np.unique(forest.modes[at]).tolist():
        some = forest.modes[at] == mode
        if mode == _MEMBER:
            pairs = zip(at[some].tolist(), value[some], strict=True)
            truth[some] = [bool((forest.members[n] == v).any()) for n, v in pairs]
        else:
            truth[some] = _COMPARE[mode](value[some], forest.splits[at[some]])
    return np.where(np.isnan(value), forest.missing[at], truth)


def _softmax(x: Array) -> Array:
    e = np.exp(x - np.max(x, -1, keepdims=True, initial=-np.inf))
    return np.asarray(e / e.sum(-1, keepdims=True))


def _softmax_zero(x: Array) -> Array:
    """Softmax of what is not zero; zeros stay."""
    some = x != 0
    e = np.where(some, np.exp(x - np.max(x, -1, keepdims=True, initial=-np.inf)), 0)
    total = e.sum(-1, keepdims=True)
    return np.asarray(e / np.where(total == 0, 1, total))


def _probit(x: Array) -> Array:
    """The inverse of the normal distribution function."""
    ends = {0.0: -np.inf, 1.0: np.inf}
    normal = NormalDist()
    flat = [normal.inv_cdf(v) if 0 < v < 1 else ends.get(v, np.nan) for v in x.reshape(-1).tolist()]
    return np.array(flat).reshape(x.shape)


_TRANSFORMS: tuple[Callable[[Array], Array], ...] = (
    lambda x: x,
    _softmax,
    lambda x: np.asarray(1 / (1 + np.exp(-x))),
    _softmax_zero,
    _probit,
)
"""What is done to the aggregated weights, by its number in post_transform."""
