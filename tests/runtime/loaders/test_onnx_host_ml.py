"""Labels, features and trees of ai.onnx.ml."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from crossdock.runtime.errors import MalformedModel
from tests.runtime.loaders.onnx_hosts import run_host, words


def ml(op: str, *inputs: Any, opset: int = 5, **attrs: Any) -> Any:
    return run_host(op, *inputs, opset=opset, domain="ai.onnx.ml", **attrs)[0]


def test_labels() -> None:
    x = words("Amy", "Dori", "Sally")
    table = {"keys_strings": ["Amy", "Sally", "Amy"], "values_int64s": [5, 6, 7]}
    assert ml("LabelEncoder", x, **table).tolist() == [7, -1, 6]
    assert ml("LabelEncoder", x, **table, default_int64=9).tolist() == [7, 9, 6]
    floats = np.array([np.nan, 1], np.float32)
    named = ml("LabelEncoder", floats, keys_floats=[float("nan")], values_strings=["none"])
    assert named.tolist() == ["none", "_Unused"]
    tensors = {"keys_tensor": np.array([1, 2], np.int32), "values_tensor": np.array([0.5, 1.5])}
    default = {"default_tensor": np.array([9.0])}
    got = ml("LabelEncoder", np.array([[2, 3]], np.int32), **tensors, **default)
    assert (got.dtype, got.tolist()) == (np.float64, [[1.5, 9.0]])


def test_labels_of_the_first_version() -> None:
    classes = {"classes_strings": ["a", "b", "a"]}
    assert ml("LabelEncoder", words("a", "c"), opset=1, **classes).tolist() == [0, -1]
    assert ml("LabelEncoder", np.array([1, 9]), opset=1, **classes).tolist() == ["b", "_Unused"]


def test_misuse_of_labels() -> None:
    x = words("a")
    with pytest.raises(MalformedModel, match="1 keys for 2 values"):
        ml("LabelEncoder", x, keys_strings=["a"], values_int64s=[1, 2])
    with pytest.raises(MalformedModel, match="where its keys are"):
        ml("LabelEncoder", np.array([1]), keys_strings=["a"], values_int64s=[1])
    with pytest.raises(MalformedModel, match=r"keys_\*"):
        ml("LabelEncoder", x, values_int64s=[1])
    with pytest.raises(MalformedModel, match="default_tensor"):
        ml("LabelEncoder", x, keys_strings=["a"], values_int64s=[1], default_tensor=np.zeros(2))


def test_features() -> None:
    x = np.array([[1.0, 2.0, 3.0]], np.float32)
    assert ml("Binarizer", x, threshold=2.0).tolist() == [[0, 0, 1]]
    assert ml("ArrayFeatureExtractor", x, np.array([[2, 0]])).tolist() == [[3, 1]]
    assert ml("ArrayFeatureExtractor", words("a", "b"), np.array([1])).tolist() == [["b"]]
    with pytest.raises(MalformedModel, match="out of range"):
        ml("ArrayFeatureExtractor", x, np.array([3]))


TREE: dict[str, Any] = {
    "n_targets": 2,
    "tree_roots": [0],
    "nodes_modes": np.array([0, 6], np.uint8),
    "nodes_splits": np.array([1.0, 0.0], np.float32),
    "nodes_featureids": [0, 1],
    "nodes_trueleafs": [1, 1],
    "nodes_truenodeids": [0, 1],
    "nodes_falseleafs": [0, 1],
    "nodes_falsenodeids": [1, 2],
    "membership_values": np.array([3, 4, np.nan], np.float32),
    "leaf_weights": np.array([10, 20, 30], np.float32),
    "leaf_targetids": [0, 1, 0],
}
X = np.array([[1, 0], [2, 4], [2, 5], [np.nan, 3]], np.float32)


def test_a_tree() -> None:
    assert ml("TreeEnsemble", X, **TREE).tolist() == [[10, 0], [0, 20], [30, 0], [0, 20]]
    tracked = {**TREE, "nodes_missing_value_tracks_true": [1, 0]}
    assert ml("TreeEnsemble", X, **tracked)[3].tolist() == [10, 0]


@pytest.mark.parametrize(
    ("mode", "want"),
    list(enumerate([[1, 1, 0], [1, 0, 0], [0, 1, 1], [0, 0, 1], [0, 1, 0], [1, 0, 1]])),
)
def test_comparisons(mode: int, want: list[int]) -> None:
    stump = {
        **TREE, "n_targets": 1, "nodes_modes": np.array([mode, mode], np.uint8),
        "nodes_falseleafs": [1, 1], "leaf_weights": np.array([1, 0, 0], np.float32),
        "leaf_targetids": [0, 0, 0],
    }  # fmt: skip
    x = np.array([[0, 0], [1, 0], [2, 0]], np.float32)
    assert ml("TreeEnsemble", x, **stump)[:, 0].tolist() == want


@pytest.mark.parametrize(("how", "want"), list(enumerate([15, 30, 10, 20])))
def test_aggregates(how: int, want: float) -> None:
    two = {
        **TREE, "tree_roots": [0, 1], "n_targets": 1, "leaf_targetids": [0, 0, 0],
        "aggregate_function": how,
    }  # fmt: skip
    x = np.array([[1, 4]], np.float32)
    assert ml("TreeEnsemble", x, **two).tolist() == [[want]]


def test_transforms() -> None:
    small = {**TREE, "leaf_weights": np.array([0.25, 0.5, 0.75], np.float32)}

    def row(number: int) -> list[float]:
        found: list[float] = ml("TreeEnsemble", X[:1], **small, post_transform=number)[0].tolist()
        return found

    e = np.exp(0.25)
    assert row(1) == pytest.approx([e / (e + 1), 1 / (e + 1)])
    assert row(2) == pytest.approx([e / (e + 1), 0.5])
    assert row(3) == [1, 0]
    assert row(4) == pytest.approx([-0.6744898, -np.inf])


@pytest.mark.parametrize(
    ("attrs", "what"),
    [
        ({"nodes_falsenodeids": [0, 2]}, "circle"),
        ({"nodes_falsenodeids": [7, 2]}, "node that is not there"),
        ({"nodes_truenodeids": [7, 1]}, "leaf that is not there"),
        ({"nodes_featureids": [0, 2]}, "out of range"),
        ({"nodes_modes": np.array([0, 7], np.uint8)}, "out of range"),
        ({"leaf_targetids": [0, 2, 0]}, "targets"),
        ({"tree_roots": [2]}, "root"),
        ({"membership_values": np.array([3.0], np.float32)}, "sets"),
        ({"nodes_splits": np.array([1.0], np.float32)}, "differ in length"),
        ({"post_transform": 5}, "post_transform 5"),
        ({"aggregate_function": 4}, "aggregate_function 4"),
    ],
)
def test_misuse_of_trees(attrs: dict[str, Any], what: str) -> None:
    with pytest.raises(MalformedModel, match=what):
        ml("TreeEnsemble", X, **{**TREE, **attrs})
