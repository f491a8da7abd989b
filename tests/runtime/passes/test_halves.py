"""Graphs of half-precision types are fused as those of float32 are, and lose no more."""

from __future__ import annotations

import numpy as np
import pytest

import crossdock as xd
from crossdock.kernels import table
from crossdock.kernels.reference import evaluate
from crossdock.runtime import passes
from crossdock.runtime.builder import GraphBuilder, Operand
from crossdock.runtime.calls import is_alias, op_call
from crossdock.runtime.graph import Graph
from crossdock.runtime.tensor import Array, to_numpy
from tests.cards import WITH_CUDNN

HALVES = ("float16", "bfloat16")
ROUNDING = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
CHAIN = 16
"""Values, one after the other, that are rounded between an input and a result, with a margin."""
ROWS, HEADS, WIDTH = 16, 4, 8
COLUMNS = HEADS * WIDTH


def drawn(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


class Block:
    """Layers of one element type."""

    def __init__(self, dtype: str) -> None:
        self.b, self.dtype, self.seed = GraphBuilder("block"), dtype, 0

    def constant(self, array: Array) -> Operand:
        return self.b.constant(np.asarray(array).astype(to_numpy(self.dtype)))

    def input(self, name: str, *shape: int) -> Operand:
        return self.b.input(name, shape, self.dtype)

    def weights(self, *shape: int) -> Operand:
        self.seed += 1
        return self.constant(drawn(*shape, seed=self.seed) / np.sqrt(np.prod(shape[:-1])))

    def dense(self, x: Operand, rows: int, columns: int) -> Operand:
        return self.b.add(self.b.matmul(x, self.weights(rows, columns)), self.weights(columns))

    def heads(self, x: Operand, order: tuple[int, ...] = (0, 2, 1, 3)) -> Operand:
        split = self.b.reshape(x, [1, ROWS, HEADS, WIDTH])
        return self.b.transpose(split, permutation=list(order))

    def gelu(self, x: Operand) -> Operand:
        b = self.b
        more = b.add(b.erf(b.div(x, self.constant(np.sqrt(2)))), self.constant(1))
        return b.mul(b.mul(x, more), self.constant(0.5))


def encoder(dtype: str) -> Graph:
    """A layer of an encoder, as exporters write it."""
    block = Block(dtype)
    b, x, mask = block.b, block.input("x", 1, ROWS, COLUMNS), block.input("mask", 1, 1, 1, ROWS)
    q, k, v = (block.dense(x, COLUMNS, COLUMNS) for _ in range(3))
    scores = b.matmul(block.heads(q), block.heads(k, (0, 2, 3, 1)))
    scores = b.add(b.div(scores, block.constant(np.sqrt(WIDTH))), mask)
    seen = b.matmul(b.softmax(scores, 3), block.heads(v))
    seen = b.reshape(b.transpose(seen, permutation=[0, 2, 1, 3]), [1, ROWS, COLUMNS])
    y = b.add(block.dense(seen, COLUMNS, COLUMNS), x)
    return b.build({"y": block.dense(block.gelu(block.dense(y, COLUMNS, 64)), 64, COLUMNS)})


def convolutions(dtype: str) -> Graph:
    """A convolution with a normalisation, and one whose result is added to another."""
    block = Block(dtype)
    b, x = block.b, block.input("x", 1, 8, 12, 12)
    first = b.conv2d(x, block.weights(8, 8, 3, 3), padding=[1, 1, 1, 1])
    mean, spread = block.weights(8), block.constant(np.linspace(0.5, 2, 8))
    y = b.relu(b.batch_normalization(first, mean, spread))
    y = b.conv2d(y, block.weights(8, 8, 3, 3), bias=block.weights(8), padding=[1, 1, 1, 1])
    return b.build({"y": b.relu(b.add(y, x))})


GRAPHS = {"encoder": encoder, "convolutions": convolutions}
LIBRARIES = {
    "encoder": {"cublaslt.fused_matmul", "cudnn.attention"},
    "convolutions": {"cudnn.fused_conv2d.relu"},
}


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", GRAPHS)
def test_the_same_ops_are_left(name: str, dtype: str) -> None:
    fused = passes.run(GRAPHS[name](dtype))
    assert [n.op for n in fused.nodes] == [n.op for n in passes.run(GRAPHS[name]("float32")).nodes]
    assert len(fused.nodes) < len(GRAPHS[name](dtype).nodes) / 2


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", GRAPHS)
def test_a_cards_libraries_do_several_ops_at_once(name: str, dtype: str) -> None:
    fused = passes.run(GRAPHS[name](dtype))
    calls = [op_call(fused, node) for node in fused.nodes if not is_alias(node)]
    best = {table.candidates(call, WITH_CUDNN).fitting[0].name for call in calls}
    assert best >= LIBRARIES[name]


@pytest.mark.parametrize("device", ["cpu:0", "opencl:0"])
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", GRAPHS)
def test_results_are_those_of_float64(name: str, dtype: str, device: str) -> None:
    if device not in {d.id for d in xd.devices()}:
        pytest.skip("no OpenCL device here")
    graph = GRAPHS[name](dtype)
    feeds = {
        n: drawn(*spec.dims, seed=7 + i).astype(to_numpy(dtype))
        for i, (n, spec) in enumerate(graph.inputs.items())
    }
    want = np.asarray(evaluate(graph, feeds, dtype="float64")["y"], np.float64)
    with xd.compile(graph, device, measure=False) as session:
        got = np.asarray(session.run(feeds)["y"], np.float64)
        assert not session.receipt.notes
    assert got.dtype == np.float64
    assert np.abs(got - want).max() <= CHAIN * ROUNDING[dtype] * np.abs(want).max()
