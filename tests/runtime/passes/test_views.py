"""Strides of values that are views of others."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from crossdock.kernels.reference import evaluate
from crossdock.runtime.builder import GraphBuilder, Operand
from crossdock.runtime.passes.views import View, dense, reshaped, views

DIMS = st.lists(st.integers(1, 4), min_size=1, max_size=4)


@given(st.lists(st.integers(1, 4), min_size=2, max_size=4), st.data())
def test_reshaped_strides_are_numpy_s(dims: list[int], data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(dims))))
    array = np.arange(np.prod(dims)).reshape(dims).transpose(order)
    wanted = data.draw(st.permutations([*array.shape, 1]))
    strides = tuple(s // array.itemsize for s in array.strides)
    found = reshaped(array.shape, strides, wanted)
    if found is None:  # numpy copies, too: the memory is not shared
        assert not np.shares_memory(array.reshape(wanted), array)
        return
    there = np.lib.stride_tricks.as_strided(array, wanted, [s * array.itemsize for s in found])
    np.testing.assert_array_equal(there, array.reshape(wanted))


def step(b: GraphBuilder, x: Operand, data: st.DataObject) -> Operand:
    dims = [int(d) for d in x.shape]
    kind = data.draw(st.sampled_from(["reshape", "transpose", "slice", "split", "gather", "mul"]))
    if kind == "reshape":
        return b.reshape(x, data.draw(st.permutations([*dims, 1]))[: len(dims) + 1])
    if kind == "transpose":
        return b.transpose(x, permutation=data.draw(st.permutations(range(len(dims)))))
    axis = data.draw(st.integers(0, len(dims) - 1))
    if kind == "slice" and dims[axis] > 1:
        starts = [int(i == axis) for i in range(len(dims))]
        return b.slice(x, starts, [d - s for d, s in zip(dims, starts, strict=True)])
    if kind == "split" and dims[axis] > 1:
        return b.split(x, [1, dims[axis] - 1], axis=axis)[1]
    if kind == "gather" and len(dims) > 1:
        return b.gather(x, b.constant(np.int64(dims[axis] - 1)), axis=axis)
    return b.mul(x, b.constant(np.float32(2)))


@settings(max_examples=100, deadline=None)
@given(DIMS, st.data())
def test_a_view_has_the_elements_of_its_root(dims: list[int], data: st.DataObject) -> None:
    b = GraphBuilder("views")
    value = b.input("x", dims)
    for _ in range(data.draw(st.integers(1, 5))):
        value = step(b, value, data)
    graph = b.build({"y": value})
    x = np.arange(np.prod(dims), dtype=np.float32).reshape(dims)
    want = evaluate(graph, {"x": x})["y"]
    found = list(views(graph, graph.producers(), graph.outputs["y"]))
    assert found[-1] == View(graph.outputs["y"], want.shape, dense(want.shape))
    for view in found:
        if view.root == "x":
            flat = x.reshape(-1)[view.offset :]
            strides = [4 * s for s in view.strides]
            there = np.lib.stride_tricks.as_strided(flat, view.dims, strides)
            np.testing.assert_array_equal(there * view.factor, want)
