"""Ops that move elements on the host: the same elements as numpy's, in every element size."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossdock.devices.base import Bound
from crossdock.devices.program import In, Out
from crossdock.kernels.cpu_copy import Walk, copy_call, dense
from crossdock.runtime.tensor import Array
from tests.kernels.cpu_run import check, device

DTYPES = ("int8", "float16", "float32", "int64")


def drawn(*shape: int, dtype: str = "float32") -> Array:
    return np.random.default_rng(0).integers(-100, 100, shape).astype(dtype)


CASES: list[tuple[str, list[tuple[int, ...]], dict[str, Any]]] = [
    ("transpose", [(30, 50)], {"permutation": [1, 0]}),
    ("transpose", [(2, 3, 40, 5)], {"permutation": [0, 2, 3, 1]}),
    ("transpose", [(2, 3, 40, 5)], {"permutation": [3, 1, 2, 0]}),
    ("transpose", [(4, 30, 64)], {"permutation": [1, 0, 2]}),
    ("transpose", [(1, 7)], {"permutation": [1, 0]}),
    ("slice", [(20, 33)], {"starts": [2, 3], "sizes": [10, 25]}),
    ("slice", [(20, 33)], {"starts": [2, 3], "sizes": [10, 25], "strides": [2, 3]}),
    ("slice", [(5, 20, 33)], {"starts": [0, 2, 0], "sizes": [5, 10, 33]}),
    ("slice", [(100,)], {"starts": [1], "sizes": [98]}),
    ("reverse", [(5, 7, 30)], {"axes": [0, 2]}),
    ("expand", [(1, 30)], {"new_shape": [20, 30]}),
    ("expand", [(30, 1)], {"new_shape": [3, 30, 50]}),
    ("expand", [()], {"new_shape": [2, 3]}),
    ("tile", [(3, 5)], {"repetitions": [2, 3]}),
    ("split", [(6, 40)], {"splits": [10, 30], "axis": 1}),
    ("split", [(6, 40)], {"splits": 3, "axis": 0}),
    ("concat", [(3, 5, 7), (3, 2, 7), (3, 9, 7)], {"axis": 1}),
    ("concat", [(300,), (5,)], {"axis": 0}),
    (
        "pad",
        [(3, 5, 7)],
        {"beginning_padding": [0, 2, 0], "ending_padding": [0, 3, 0], "mode": "reflection"},
    ),
    ("pad", [(64,)], {"beginning_padding": [7], "ending_padding": [0], "mode": "reflection"}),
    (
        "pad",
        [(3, 5, 7)],
        {"beginning_padding": [0, 0, 9], "ending_padding": [0, 0, 2], "mode": "edge"},
    ),
    ("pad", [(3, 5, 7)], {"beginning_padding": [0, 1, 2], "ending_padding": [1, 0, 3], "value": 7}),
]


@pytest.mark.parametrize(("op", "shapes", "attrs"), CASES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_move(op: str, shapes: list[tuple[int, ...]], attrs: dict[str, Any], dtype: str) -> None:
    arrays = [drawn(*shape, dtype=dtype) for shape in shapes]
    for threads in (1, 2):
        check(op, arrays, attrs, name=f"cpu.{op}", threads=threads)


def test_large_copies_are_shared_by_threads() -> None:
    arrays = [drawn(700, 900)]
    check("transpose", arrays, {"permutation": [1, 0]}, name="cpu.transpose", threads=2)
    check("concat", arrays * 2, {"axis": 1}, name="cpu.concat", threads=2)
    check("concat", arrays * 2, {"axis": 0}, name="cpu.concat", threads=2)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["int32", "int64", "uint32"])
def test_gather(axis: int, dtype: str, kind: str) -> None:
    low = 0 if kind[0] == "u" else -12
    indices = np.random.default_rng(0).integers(low, 12, (3, 4)).astype(kind)
    check("gather", [drawn(5, 6, 7, dtype=dtype), indices], {"axis": axis}, name="cpu.gather")


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(st.integers(1, 20), st.sampled_from([1, 2, -1])), min_size=1, max_size=4
    ).flatmap(lambda dims: st.tuples(st.just(dims), st.permutations(range(len(dims)))))
)
def test_any_walk(case: tuple[list[tuple[int, int]], list[int]]) -> None:
    """A strided, reversed, permuted view, copied into a dense array."""
    dims, order = case
    base = np.arange(np.prod([n * abs(s) for n, s in dims]), dtype=np.float32)
    whole = base.reshape([n * abs(s) for n, s in dims])
    view = whole[tuple(slice(None, None, s) for _, s in dims)].transpose(order)
    first = (view.__array_interface__["data"][0] - base.__array_interface__["data"][0]) // 4
    source = Walk(In(0), first, tuple(s // 4 for s in view.strides))
    step = copy_call("float32", view.shape, source, Walk(Out(0), 0, dense(view.shape)))
    host = device()
    target = host.allocate(4 * view.size)
    buffers = {In(0): host.upload(base, "source"), Out(0): target}
    host.queues["compute"].execute(host.record([Bound(host.compile(step), buffers)]))
    got = np.empty(view.shape, np.float32)
    host.queues["download"].read(target, got)
    np.testing.assert_array_equal(got, view)
