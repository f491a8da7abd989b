"""Every operator of any rank at rank 8, on the host and on OpenCL, against float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import crossdock as xd
from crossdock.kernels import table
from crossdock.kernels.ops_rules import RULES
from crossdock.kernels.reference import evaluate
from crossdock.runtime.support import MAX_RANK
from crossdock.runtime.tensor import to_numpy
from tests.kernels.grid_run import opencl_ids, opened

WHOLE = (2, 1, 3, 2, 2, 1, 2, 3)
OTHER = (1, 2, 3, 1, 2, 2, 2, 1)
"""Broadcast with ``WHOLE``: no two neighbouring dimensions join."""
IDS = ["cpu:0", opencl_ids()[0]]
Leaf = Callable[..., Any]
UNARY = (
    "abs", "ceil", "cos", "erf", "exp", "floor", "log", "neg", "reciprocal", "round_even", "sin",
    "sign", "sqrt", "tan", "elu", "gelu", "hard_sigmoid", "hard_swish", "leaky_relu", "linear",
    "relu", "sigmoid", "softplus", "softsign", "tanh", "clamp", "is_nan", "is_infinite", "identity",
    "triangular",
)  # fmt: skip
BINARY = (
    "add", "sub", "mul", "div", "max", "min", "pow", "equal", "not_equal", "greater",
    "greater_or_equal", "lesser", "lesser_or_equal",
)  # fmt: skip
REDUCE = (
    "reduce_l1", "reduce_l2", "reduce_log_sum", "reduce_log_sum_exp", "reduce_max", "reduce_mean",
    "reduce_min", "reduce_product", "reduce_sum", "reduce_sum_square",
)  # fmt: skip


def zeros(*shape: int, dtype: str = "int32") -> Any:
    return np.zeros(shape, dtype)


CALLS: dict[str, Callable[[xd.GraphBuilder, Leaf], Any]] = {
    "arg_max": lambda b, x: b.arg_max(x(), 4),
    "arg_min": lambda b, x: b.arg_min(x(), 0, keep_dimensions=True),
    "batch_normalization": lambda b, x: b.batch_normalization(x(), x(3), x(3), axis=2),
    "cast": lambda b, x: b.cast(x(), "int32"),
    "concat": lambda b, x: b.concat([x(), x()], 4),
    "cumulative_sum": lambda b, x: b.cumulative_sum(x(), 2),
    "dequantize_linear": lambda b, x: b.dequantize_linear(
        b.cast(x(), "int8"),
        x(2, 1, 3, 1, 1, 1, 1, 1),
        b.constant(zeros(2, 1, 3, 1, 1, 1, 1, 1, dtype="int8")),
    ),
    "expand": lambda b, x: b.expand(x(*OTHER), [2, 2, 3, 4, 2, 2, 2, 3]),
    "gather": lambda b, x: b.gather(x(), b.constant(np.array([1, 0, -1], np.int32)), axis=4),
    "gather_elements": lambda b, x: b.gather_elements(x(), b.constant(zeros(*WHOLE)), axis=2),
    "gather_nd": lambda b, x: b.gather_nd(x(), b.constant(zeros(2, 3))),
    "layer_normalization": lambda b, x: b.layer_normalization(x(), axes=[7, 2, 0]),
    "logical_and": lambda b, x: b.logical_and(b.cast(x(), "uint8"), b.cast(x(), "uint8")),
    "logical_not": lambda b, x: b.logical_not(b.cast(x(), "uint8")),
    "logical_or": lambda b, x: b.logical_or(b.cast(x(), "uint8"), b.cast(x(), "uint8")),
    "logical_xor": lambda b, x: b.logical_xor(b.cast(x(), "uint8"), b.cast(x(), "uint8")),
    "matmul": lambda b, x: b.matmul(x(), x(1, 2, 1, 2, 1, 2, 3, 4)),
    "pad": lambda b, x: b.pad(x(), [1, 0, 1, 0, 1, 0, 1, 1], [2] * 8, mode="edge"),
    "prelu": lambda b, x: b.prelu(b.neg(x()), x(3, 1, 1, 1, 1, 1)),
    "quantize_linear": lambda b, x: b.quantize_linear(
        x(), x(1, 1, 3, 1, 2, 1, 1, 3), b.constant(zeros(1, 1, 3, 1, 2, 1, 1, 3, dtype="int8"))
    ),
    "reshape": lambda b, x: b.relu(b.reshape(x(), [3, 2, 2, 1, 1, 2, 2, 3])),
    "reverse": lambda b, x: b.reverse(x(), axes=[0, 2, 4, 6]),
    "scatter_elements": lambda b, x: b.scatter_elements(
        x(), b.constant(zeros(1, *WHOLE[1:])), x(1, *WHOLE[1:]), axis=0
    ),
    "scatter_nd": lambda b, x: b.scatter_nd(x(), b.constant(zeros(1, 2)), x(1, *WHOLE[2:])),
    "slice": lambda b, x: b.slice(
        x(), [1, 0, 1, 0, 0, 0, 1, 0], [1, 1, 2, 2, 2, 1, 1, 3], strides=[1] * 7 + [2]
    ),
    "softmax": lambda b, x: b.softmax(x(), 3),
    "split": lambda b, x: b.split(x(), 2, axis=4),
    "tile": lambda b, x: b.tile(x(), [2, 1, 1, 2, 1, 2, 1, 2]),
    "transpose": lambda b, x: b.transpose(x(), permutation=[7, 3, 0, 2, 6, 1, 5, 4]),
    "where": lambda b, x: b.where(b.greater(x(), x(*OTHER)), x(*OTHER), x(1)),
}
CALLS.update({op: lambda b, x, op=op: getattr(b, op)(x()) for op in UNARY})  # type: ignore[misc]
CALLS.update({op: lambda b, x, op=op: getattr(b, op)(x(), x(*OTHER)) for op in BINARY})  # type: ignore[misc]
CALLS.update({op: lambda b, x, op=op: getattr(b, op)(x(), axes=[0, 2, 4, 7]) for op in REDUCE})  # type: ignore[misc]


def test_every_operator_of_any_rank_is_here() -> None:
    webnn = [op for op, spec in table.ops().items() if not spec.extension]
    assert {op for op in webnn if next(iter(RULES[op].values())).high is None} == set(CALLS)
    assert len(WHOLE) == MAX_RANK


@pytest.mark.parametrize("device_id", IDS)
@pytest.mark.parametrize("op", CALLS)
def test_at_rank_eight(op: str, device_id: str) -> None:
    opened(device_id)
    b = xd.GraphBuilder()

    def leaf(*shape: int) -> Any:
        return b.input(f"x{len(b._inputs)}", shape or WHOLE)

    made = CALLS[op](b, leaf)
    results = made if isinstance(made, tuple) else (made,)
    graph = b.build({f"y{i}": result for i, result in enumerate(results)})
    rng = np.random.default_rng(0)
    feeds = {n: rng.uniform(0.1, 3.0, s.dims).astype(np.float32) for n, s in graph.inputs.items()}
    with xd.compile(graph, devices=[device_id], measure=False) as session:
        outputs = session.run(feeds)
        assert {o.device for o in session.receipt.ops} <= {device_id}
    for name, want in evaluate(graph, feeds, dtype="float64").items():
        got = outputs[name]
        assert got.dtype == to_numpy(graph.output_specs[name].dtype)
        # float32, at most 36 terms; a quantised value may fall on the other side of a half
        off = 1 if op == "quantize_linear" else 1e-6
        np.testing.assert_allclose(got.astype(np.float64), want, rtol=2e-5, atol=off)
