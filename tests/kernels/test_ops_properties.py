"""Properties of shapes and values on drawn inputs, against numpy where it has the function."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hn

from crossdock.kernels.reference import evaluate
from crossdock.runtime.builder import GraphBuilder, Operand
from crossdock.runtime.errors import ShapeError
from crossdock.runtime.tensor import Array
from tests.cases import Make

SHAPES = hn.array_shapes(min_dims=0, max_dims=4, min_side=1, max_side=4)
SOLID = hn.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=5)


def run(op: str, *arrays: Array, **attrs: Any) -> Any:
    """One op on arrays."""
    b = GraphBuilder()
    made = getattr(b, op)(
        *(b.input(f"x{i}", a.shape, a.dtype.name) for i, a in enumerate(arrays)), **attrs
    )
    if isinstance(made, Operand):
        made = (made,)
    outputs = evaluate(
        b.build({f"y{i}": m for i, m in enumerate(made)}),
        {f"x{i}": a for i, a in enumerate(arrays)},
    )
    results = list(outputs.values())
    return results[0] if len(results) == 1 else results


def ramp(shape: tuple[int, ...]) -> Array:
    """Distinct values."""
    return np.arange(math.prod(shape), dtype=np.float32).reshape(shape)


@given(hn.mutually_broadcastable_shapes(num_shapes=2, max_dims=5, max_side=4))
def test_shapes_broadcast_as_in_numpy(shapes: hn.BroadcastableShapes) -> None:
    make = Make()
    a, b = (make(*shape) for shape in shapes.input_shapes)
    assert make.b.add(a, b).shape == shapes.result_shape


@given(SHAPES, SHAPES)
def test_what_numpy_refuses_to_broadcast_is_refused(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    make = Make()
    try:
        want = np.broadcast_shapes(a, b)
    except ValueError:
        with pytest.raises(ShapeError, match=r"add: b .* does not broadcast with a"):
            make.b.add(make(*a), make(*b))
    else:
        assert make.b.add(make(*a), make(*b)).shape == want


@given(st.data())
def test_matmul_has_numpy_s_shapes_and_values(data: st.DataObject) -> None:
    shapes = data.draw(hn.mutually_broadcastable_shapes(signature="(m,k),(k,n)->(m,n)", max_dims=2))
    a, b = (ramp(s) for s in shapes.input_shapes)
    np.testing.assert_array_equal(run("matmul", a, b), a @ b)


@given(SOLID, st.data())
def test_reductions_have_numpy_s_shapes(shape: tuple[int, ...], data: st.DataObject) -> None:
    axes = data.draw(st.lists(st.integers(0, len(shape) - 1), unique=True))
    keep = data.draw(st.booleans())
    x = ramp(shape)
    got = run("reduce_max", x, axes=axes, keep_dimensions=keep)
    np.testing.assert_array_equal(got, x.max(axis=tuple(axes), keepdims=keep))


@given(SOLID, st.data())
def test_a_transpose_and_its_inverse_give_the_input(
    shape: tuple[int, ...], data: st.DataObject
) -> None:
    order = data.draw(st.permutations(range(len(shape))))
    x = ramp(shape)
    there = run("transpose", x, permutation=order)
    np.testing.assert_array_equal(there, np.transpose(x, order))
    back = run("transpose", there, permutation=[int(i) for i in np.argsort(order)])
    np.testing.assert_array_equal(back, x)


@given(SOLID, st.data())
def test_slices_are_numpy_s(shape: tuple[int, ...], data: st.DataObject) -> None:
    starts = [data.draw(st.integers(0, n - 1)) for n in shape]
    sizes = [data.draw(st.integers(1, n - s)) for n, s in zip(shape, starts, strict=True)]
    strides = [data.draw(st.integers(1, 3)) for _ in shape]
    x = ramp(shape)
    window = zip(starts, sizes, strides, strict=True)
    want = x[tuple(slice(a, a + n, step) for a, n, step in window)]
    np.testing.assert_array_equal(
        run("slice", x, starts=starts, sizes=sizes, strides=strides), want
    )


@given(SOLID, st.data())
def test_split_and_concat_undo_each_other(shape: tuple[int, ...], data: st.DataObject) -> None:
    axis = data.draw(st.integers(0, len(shape) - 1))
    cuts = sorted(data.draw(st.sets(st.integers(1, shape[axis] - 1)))) if shape[axis] > 1 else []
    sizes = np.diff([0, *cuts, shape[axis]]).tolist()
    b = GraphBuilder()
    parts = b.split(b.input("x", shape), sizes, axis=axis)
    graph = b.build({"y": b.concat(parts, axis)})
    x = ramp(shape)
    np.testing.assert_array_equal(evaluate(graph, {"x": x})["y"], x)


@given(SOLID, st.data())
def test_gather_takes_and_wraps(shape: tuple[int, ...], data: st.DataObject) -> None:
    axis = data.draw(st.integers(0, len(shape) - 1))
    n = shape[axis]
    chosen = data.draw(hn.arrays(np.int32, SHAPES, elements=st.integers(-n, n - 1)))
    x = ramp(shape)
    got = run("gather", x, np.asarray(chosen), axis=axis)
    np.testing.assert_array_equal(got, np.take(x, chosen, axis=axis))


@given(
    st.tuples(*[st.integers(1, 9)] * 2),
    st.tuples(*[st.integers(1, 4)] * 2),
    st.tuples(*[st.integers(1, 3)] * 2),
    st.tuples(*[st.integers(1, 2)] * 2),
    st.tuples(*[st.integers(0, 2)] * 4),
)
def test_a_convolution_is_a_sum_over_its_window(
    size: tuple[int, int],
    kernel: tuple[int, int],
    strides: tuple[int, int],
    dilations: tuple[int, int],
    padding: tuple[int, int, int, int],
) -> None:
    """Against the definition, written out; and conv_transpose2d is the adjoint of conv2d."""
    rng = np.random.default_rng(0)
    x, w = rng.integers(-3, 4, (1, 2, *size)), rng.integers(-3, 4, (3, 2, *kernel))
    x, w = x.astype(np.float32), w.astype(np.float32)
    attrs = {"padding": padding, "strides": strides, "dilations": dilations}
    padded = np.pad(x, ((0, 0), (0, 0), padding[:2], padding[2:]))
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    if any(p < s for p, s in zip(padded.shape[2:], spans, strict=True)):
        with pytest.raises(ShapeError, match="larger than the padded input"):
            run("conv2d", x, w, **attrs)
        return
    y = run("conv2d", x, w, **attrs)
    want = np.zeros_like(y)
    for i, j in np.ndindex(*y.shape[2:]):
        top, left = i * strides[0], j * strides[1]
        window = padded[
            0, :, top : top + spans[0] : dilations[0], left : left + spans[1] : dilations[1]
        ]
        want[0, :, i, j] = (w * window).sum(axis=(1, 2, 3))
    np.testing.assert_array_equal(y, want)
    back = rng.integers(-3, 4, y.shape).astype(np.float32)
    lost = [(p - s) % t for p, s, t in zip(padded.shape[2:], spans, strides, strict=True)]
    adjoint = run("conv_transpose2d", back, w, **attrs, output_padding=lost)
    assert adjoint.shape == x.shape
    assert (adjoint * x).sum() == (y * back).sum()


@given(hn.arrays(np.float32, SOLID, elements=st.floats(-50, 50, width=32)), st.data())
def test_softmax_sums_to_one(x: Array, data: st.DataObject) -> None:
    axis = data.draw(st.integers(0, x.ndim - 1))
    total = run("softmax", x, axis=axis).sum(axis=axis, dtype=np.float64)
    np.testing.assert_allclose(total, 1, rtol=1e-5)


@given(
    hn.arrays(np.int64, SOLID, elements=st.integers(-(2**63), 2**63 - 1)),
    st.integers(-(2**63), 2**63 - 1),
    st.integers(-(2**63), 2**63 - 1),
)
def test_clamp_is_exact_for_int64(x: Array, low: int, high: int) -> None:
    low, high = min(low, high), max(low, high)
    got = run("clamp", x, min_value=low, max_value=high)
    want = np.array([min(max(int(v), low), high) for v in x.reshape(-1)], np.int64)
    np.testing.assert_array_equal(got.reshape(-1), want)
