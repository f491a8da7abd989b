"""ONNX operators on shapes, indices and reductions against onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import helper, numpy_helper

from crossdock.runtime.errors import MalformedModel, UnsafeModel
from crossdock.runtime.loaders import load

X = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
N = np.arange(24, dtype=np.int64).reshape(2, 3, 4)
FLAGS = (np.arange(24) % 3 == 0).reshape(2, 3, 4)


def ints(*values: int) -> Any:
    return np.array(values, np.int64)


@pytest.mark.parametrize("x", [X, N, FLAGS], ids=["float", "int", "bool"])
@pytest.mark.parametrize("opset", [7, 13, 14])
def test_reshape(check: Any, x: Any, opset: int) -> None:
    for shape in ((6, 4), (0, -1), (2, 0, 2, 2), (-1,), (1, 2, 3, 4)):
        check("Reshape", x, ints(*shape), opset=opset, fixed=[1])


def test_reshape_without_zeros_meaning_anything(check: Any) -> None:
    check("Reshape", X, ints(4, 6), opset=14, fixed=[1], allowzero=1)


@pytest.mark.parametrize("axis", [-3, -1, 0, 1, 2, 3])
def test_flatten(check: Any, axis: int) -> None:
    check("Flatten", X, opset=13, axis=axis)
    if axis >= 0:
        check("Flatten", X, opset=9, axis=axis)


def test_squeeze_and_unsqueeze(check: Any) -> None:
    x = X.reshape(1, 2, 1, 12)
    check("Squeeze", x, opset=7)
    check("Squeeze", x, opset=7, axes=[0])
    check("Squeeze", x, opset=11, axes=[-2, 0])
    check("Squeeze", x, opset=13)
    check("Squeeze", x, ints(2), opset=13, fixed=[1])
    check("Unsqueeze", X, opset=7, axes=[0, 4])
    check("Unsqueeze", X, opset=11, axes=[-1])
    check("Unsqueeze", X, ints(1, -1), opset=13, fixed=[1])


def test_transpose(check: Any) -> None:
    check("Transpose", X, opset=7)
    check("Transpose", FLAGS, opset=13, perm=[1, 2, 0])
    check("Transpose", X, opset=13, perm=[0, 1, 2])


def test_concat(check: Any) -> None:
    check("Concat", X, X[:, :1], opset=7, axis=1)
    check("Concat", N, N, N, opset=13, axis=-1)
    check("Concat", X, opset=13, axis=0)
    check("Concat", X[:, :0], X, opset=13, axis=1, fixed=[0])


def test_split(check: Any) -> None:
    check("Split", X, opset=7, outputs=2, axis=2)
    check("Split", X, opset=7, outputs=2, axis=1, split=[1, 2])
    check("Split", X, ints(1, 3), opset=13, outputs=2, axis=-1, fixed=[1])
    check("Split", X, opset=13, outputs=3, axis=1)
    check("Split", X, opset=18, outputs=2, axis=1, num_outputs=2)
    check("Split", X, opset=18, outputs=["a", "", "c"], axis=1, num_outputs=3, oracle="onnx")


def test_slice_by_attribute(check: Any) -> None:
    check("Slice", X, opset=7, starts=[1], ends=[3], axes=[1])
    check("Slice", X, opset=7, starts=[0, -2], ends=[1, 1 << 40])


@pytest.mark.parametrize(
    ("starts", "ends", "axes", "steps"),
    [
        ([1], [3], [1], None),
        ([0, 1, 1], [2, 3, 3], None, None),
        ([-1], [-10], [2], [-1]),
        ([3], [0], [2], [-2]),
        ([0, -100], [100, 100], [2, 1], [3, 2]),
        ([1], [-(1 << 62)], [0], [-1]),
    ],
)
@pytest.mark.parametrize("opset", [10, 13])
def test_slice(check: Any, starts: Any, ends: Any, axes: Any, steps: Any, opset: int) -> None:
    operands = [None if v is None else ints(*v) for v in (starts, ends, axes, steps)]
    while operands[-1] is None:
        operands.pop()
    fixed = range(1, 1 + len(operands))
    check("Slice", X, *operands, opset=opset, fixed=fixed)
    check("Slice", FLAGS, *operands, opset=opset, fixed=fixed)


def test_expand(check: Any) -> None:
    for shape in ((2, 3, 4), (5, 1, 1, 1), (1,), (3, 4)):
        check("Expand", X, ints(*shape), opset=8, fixed=[1])
    check("Expand", FLAGS[:1, :, :1], ints(2, 1, 4), opset=13, fixed=[1])


def test_tile(check: Any) -> None:
    check("Tile", X, ints(1, 2, 3), opset=7, fixed=[1])
    check("Tile", N, ints(1, 1, 1), opset=13, fixed=[1])


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_depth_and_space(check: Any, mode: str) -> None:
    x = np.arange(96, dtype=np.float32).reshape(2, 8, 2, 3)
    check("DepthToSpace", x, opset=11, blocksize=2, mode=mode)
    check("DepthToSpace", x, opset=13, blocksize=2, mode=mode)
    y = np.arange(96, dtype=np.float32).reshape(2, 2, 4, 6)
    check("SpaceToDepth", y, opset=13, blocksize=2)
    check("SpaceToDepth", y, opset=28, blocksize=2, mode=mode, oracle="onnx")


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge"])
def test_pad(check: Any, mode: str) -> None:
    pads = [0, 1, 2, 1, 0, 1]
    if mode == "reflect":
        pads = [0, 1, 2, 1, 0, 1]
    check("Pad", X, opset=7, pads=pads, mode=mode, **({"value": 1.5} if mode == "constant" else {}))
    for opset in (11, 13, 18):
        check("Pad", X, ints(*pads), opset=opset, mode=mode, fixed=[1])
    if mode == "constant":
        check("Pad", X, ints(*pads), np.array(2.5, np.float32), opset=13, fixed=[1, 2])
        check("Pad", X, ints(0, -1, 1, 0, 0, -2), opset=13, fixed=[1])
    value = np.array(0, np.float32)
    check("Pad", X, ints(1, 2), value, ints(-1), opset=18, mode=mode, fixed=[1, 2, 3])


def test_pad_that_wraps(check: Any) -> None:
    check("Pad", X, ints(0, 1, 2, 0, 3, 1), opset=19, mode="wrap", fixed=[1])


def test_gather(check: Any) -> None:
    for axis in (0, 1, -1):
        indices = ints(1, 0, -1) if axis else ints(1, -2)
        check("Gather", X, indices, opset=11, axis=axis)
        check("Gather", X, indices, opset=13, axis=axis, fixed=[1])
    check("Gather", N, np.array([[0, 1]], np.int32), opset=7, axis=1)
    check("Gather", FLAGS, np.array(1), opset=13, axis=2)


def test_gather_elements_and_nd(check: Any) -> None:
    check("GatherElements", X, ints(*[0, 1, 1, -1]).reshape(1, 1, 4), opset=11, axis=0)
    check("GatherND", X, ints(0, 1, 1, 2).reshape(2, 2), opset=11)
    check("GatherND", X, ints(1, 0).reshape(2, 1), opset=12, batch_dims=1)
    check("GatherND", X, np.zeros((2, 3, 1), np.int64) + 2, opset=13, batch_dims=2)


def test_scatter(check: Any) -> None:
    indices = ints(0, 2, 1, 1).reshape(1, 1, 4)
    updates = np.full((1, 1, 4), 9, np.float32)
    check("Scatter", X, indices, updates, opset=9, axis=1)
    check("ScatterElements", X, indices, updates, opset=11, axis=1)
    check("ScatterElements", X, indices, updates, opset=18, axis=-2)
    where = ints(0, 1, 1, 2).reshape(2, 2)
    check("ScatterND", X, where, np.full((2, 4), 9, np.float32), opset=13)


def test_compress(check: Any) -> None:
    check("Compress", X, np.array([False, True, True]), opset=9, axis=1, fixed=[1])
    check("Compress", X, np.array([False, True, True]), opset=11, fixed=[1])


def test_trilu(check: Any) -> None:
    for upper in (0, 1):
        check("Trilu", X, opset=14, upper=upper)
        check("Trilu", X, np.array(-1), opset=14, upper=upper, fixed=[1])


def test_reverse_sequence(check: Any) -> None:
    x = X.reshape(4, 3, 2)
    check("ReverseSequence", x, ints(1, 4, 2), opset=10, fixed=[1])
    check(
        "ReverseSequence",
        x,
        ints(1, 3, 2, 0),
        opset=10,
        batch_axis=0,
        time_axis=1,
        fixed=[1],
        oracle="onnx",
    )


def test_center_crop_pad(check: Any) -> None:
    check("CenterCropPad", X, ints(4, 1, 7), opset=18, fixed=[1], oracle="onnx")
    check("CenterCropPad", X, ints(1, 4), opset=18, axes=[0, -2], fixed=[1], oracle="onnx")


@pytest.mark.parametrize(
    "op",
    [
        "ReduceL1",
        "ReduceL2",
        "ReduceLogSum",
        "ReduceLogSumExp",
        "ReduceMax",
        "ReduceMean",
        "ReduceMin",
        "ReduceProd",
        "ReduceSum",
        "ReduceSumSquare",
    ],
)
def test_reductions(check: Any, op: str) -> None:
    x = (X + 1) / 10
    after = 13 if op == "ReduceSum" else 18
    for opset in (7, 11, after - 1):
        check(op, x, opset=opset)
        check(op, x, opset=opset, axes=[0, 2])
        check(op, x, opset=opset, axes=[1], keepdims=0)
    check(op, x, opset=after)
    check(op, x, ints(-1), opset=after, fixed=[1], keepdims=0)
    check(op, x, ints(), opset=after, fixed=[1])
    check(op, x, opset=after, noop_with_empty_axes=1, oracle="onnx")


def test_reductions_of_integers(check: Any) -> None:
    x = N.astype(np.int32)
    for op in ("ReduceSum", "ReduceMax", "ReduceMin", "ReduceMean", "ReduceProd", "ReduceL1"):
        check(op, x[:, :, 1:2], opset=11, axes=[1])


def test_reductions_of_bools(check: Any) -> None:
    check("ReduceMax", FLAGS, ints(1), opset=20, fixed=[1])
    check("ReduceMin", FLAGS, ints(1), opset=20, fixed=[1])


def test_log_sum_exp_of_large_numbers(check: Any) -> None:
    check("ReduceLogSumExp", X * 100, ints(2), opset=18, fixed=[1])


@pytest.mark.parametrize("op", ["ArgMax", "ArgMin"])
def test_index_of_extremes(check: Any, op: str) -> None:
    x = np.array([[3, 1, 3, 1], [2, 2, 2, 2]], np.float32)
    check(op, x, opset=7)
    check(op, x, opset=11, axis=-1, keepdims=0)
    for last in (0, 1):
        check(op, x, opset=13, axis=1, select_last_index=last)


def test_running_sums(check: Any) -> None:
    for exclusive in (0, 1):
        for reverse in (0, 1):
            check(
                "CumSum", X, np.array(1), opset=11, fixed=[1], exclusive=exclusive, reverse=reverse
            )
    check("CumSum", N, np.array(-1, np.int32), opset=14, fixed=[1])


def test_lp_normalization(check: Any) -> None:
    for p in (1, 2):
        check("LpNormalization", X + 1, opset=7, p=p, axis=1)


# --- shapes and constants -------------------------------------------------------------------------


def test_shape_and_size(check: Any) -> None:
    check("Shape", X, opset=7)
    check("Size", X, opset=13)
    for start, end in ((1, 3), (-1, 100), (-100, -1), (2, 1)):
        check("Shape", X, opset=15, start=start, end=end)


@pytest.mark.parametrize(
    "attrs",
    [
        {"value": numpy_helper.from_array(X)},
        {"value": numpy_helper.from_array(FLAGS)},
        {"value_float": 1.5},
        {"value_floats": [1.5, 2.5]},
        {"value_int": 3},
        {"value_ints": [3, 4]},
    ],
)
def test_constant(make: Any, compare: Any, attrs: Any) -> None:
    nodes = [helper.make_node("Constant", [], ["y"], **attrs)]
    compare(make(nodes, {"x": X}, ["y"], 13), {"x": X})


def test_constant_of_shape(check: Any, make: Any) -> None:
    check("ConstantOfShape", ints(2, 3), opset=9, fixed=[0])
    fill = helper.make_tensor("v", 7, [1], [5])
    check("ConstantOfShape", ints(4), opset=20, fixed=[0], value=fill)
    nodes = [helper.make_node("ConstantOfShape", ["s"], ["y"])]
    with pytest.raises(UnsafeModel, match="would make a tensor of"):
        load(make(nodes, {"x": X}, ["y"], constants={"s": ints(1 << 20, 1 << 20)}))
    with pytest.raises(MalformedModel, match="no shape"):
        load(make(nodes, {"x": X}, ["y"], constants={"s": ints(-1)}))


def test_equal_fills_share_their_memory(make: Any) -> None:
    nodes = [helper.make_node("ConstantOfShape", ["s"], [f"w{i}"]) for i in range(3)]
    nodes.append(helper.make_node("Sum", ["x", "w0", "w1", "w2"], ["y"]))
    graph = load(make(nodes, {"x": X}, ["y"], 9, {"s": ints(2, 3, 4)}))
    assert len({a.ctypes.data for a in graph.constants.values()}) == 1


def test_range(check: Any) -> None:
    for values in ((3, 9, 3), (10, 4, -2), (1, 1, 1)):
        check("Range", *(np.array(v) for v in values), opset=11, fixed=[0, 1, 2])
    check("Range", *(np.array(v, np.float32) for v in (0, 1, 0.3)), opset=11, fixed=[0, 1, 2])


def test_eye_like(check: Any) -> None:
    check("EyeLike", X[0], opset=9, k=1)
    check("EyeLike", X[0], opset=9, dtype=7)


def test_one_hot(check: Any) -> None:
    values = np.array([0.5, 2], np.float32)
    indices = ints(0, 2, -1, 9).reshape(2, 2)
    for axis in (-1, 0, 1):
        check("OneHot", indices, np.array(4), values, opset=11, axis=axis, fixed=[1])


def test_non_zero_of_a_constant(check: Any, make: Any) -> None:
    check("NonZero", X % 3, opset=13, fixed=[0])
    model = make([helper.make_node("NonZero", ["x"], ["y"])], {"x": X}, ["y"])
    assert load(model).staged is not None


def test_bit_cast_of_a_constant(check: Any) -> None:
    check("BitCast", X, opset=26, fixed=[0], to=6, oracle="onnx")
    check("BitCast", X, opset=26, to=1, oracle="onnx")


def test_what_exporters_write_to_reshape_folds_away(make: Any) -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Slice", ["s", "zero", "one"], ["n"]),
        helper.make_node("Cast", ["n"], ["f"], to=1),
        helper.make_node("Mul", ["f", "three"], ["g"]),
        helper.make_node("Cast", ["g"], ["i"], to=7),
        helper.make_node("Squeeze", ["i", "zero"], ["j"]),
        helper.make_node("Unsqueeze", ["j", "zero"], ["k"]),
        helper.make_node("Concat", ["k", "rest"], ["t"], axis=0),
        helper.make_node("Reshape", ["x", "t"], ["y"]),
    ]
    constants = {
        "zero": ints(0),
        "one": ints(1),
        "three": np.array(3, np.float32),
        "rest": ints(-1),
    }
    graph = load(make(nodes, {"x": X}, ["y"], 13, constants))
    assert [n.op for n in graph.nodes] == ["reshape"]
    assert graph.output_specs["y"].shape == (6, 4)
    assert not graph.constants
