"""Rules of the operators: what breaks one raises at the call, naming op, operand and rule."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from crossdock.kernels import table
from crossdock.kernels.ops_rules import RULES, bare
from crossdock.runtime.builder import GraphBuilder
from crossdock.runtime.errors import GraphError, ShapeError
from crossdock.runtime.tensor import WEBNN_DTYPES, TensorSpec
from tests.cases import Make

BROKEN: list[tuple[str, str, Callable[[GraphBuilder, Make], Any]]] = [
    ("input", "beyond 2.63", lambda b, x: b.input("huge", (2**40, 2**40))),
    ("expand", "beyond 2.63", lambda b, x: b.expand(x(1), [2**40, 2**40])),
    ("add", "b .*broadcast.*4 against 3", lambda b, x: b.add(x(3), x(4))),
    ("add", "b must have the element type of a", lambda b, x: b.add(x(3), x(3, dtype="int32"))),
    ("where", "condition must be one of uint8", lambda b, x: b.where(x(3), x(3), x(3))),
    ("where", "false_value", lambda b, x: b.where(x(3, dtype="uint8"), x(3), x(4))),
    ("logical_and", "a must be one of uint8", lambda b, x: b.logical_and(x(3), x(3))),
    ("cast", "data_type must be one of", lambda b, x: b.cast(x(3), "int4")),
    ("clamp", "min_value must not be above", lambda b, x: b.clamp(x(3), min_value=2, max_value=1)),
    ("clamp", "min_value must be a number", lambda b, x: b.clamp(x(3), min_value="1")),
    ("elu", "alpha must be a number", lambda b, x: b.elu(x(3), alpha="a")),
    ("relu", "input must be one of", lambda b, x: b.relu(x(3, dtype="uint32"))),
    ("prelu", "slope .*does not broadcast with input", lambda b, x: b.prelu(x(3), x(4))),
    ("reshape", "does not hold the elements", lambda b, x: b.reshape(x(2, 3), [7])),
    ("reshape", r"new_shape\[0\] must be 0 or more", lambda b, x: b.reshape(x(2, 3), [-1])),
    ("reshape", "new_shape must be a list", lambda b, x: b.reshape(x(2, 3), 6)),
    ("transpose", "permutation must order", lambda b, x: b.transpose(x(2, 3), permutation=[0, 0])),
    ("transpose", "permutation must order", lambda b, x: b.transpose(x(2, 3), permutation=[0])),
    ("reverse", "axes must be below", lambda b, x: b.reverse(x(2, 3), axes=[2])),
    ("reverse", "axes must not repeat", lambda b, x: b.reverse(x(2, 3), axes=[1, 1])),
    ("slice", "starts must have 2 values", lambda b, x: b.slice(x(2, 3), [0], [1, 1])),
    ("slice", "sizes must have 2 values", lambda b, x: b.slice(x(2, 3), [0, 0], [1])),
    ("slice", "inside the input", lambda b, x: b.slice(x(2, 3), [0, 1], [1, 3])),
    ("slice", "strides.*1 or more", lambda b, x: b.slice(x(4), [0], [4], strides=[0])),
    ("slice", "no dimension may be 0", lambda b, x: b.slice(x(4), [0], [0])),
    ("split", "does not divide", lambda b, x: b.split(x(5), 2)),
    ("split", "must add up", lambda b, x: b.split(x(5), [2, 2])),
    ("split", "axis must be below", lambda b, x: b.split(x(5), 5, axis=1)),
    ("split", "splits must be 1 or more", lambda b, x: b.split(x(5), 0)),
    ("split", "rank 1 or more", lambda b, x: b.split(x(), 1)),
    ("concat", "at least one operand", lambda b, x: b.concat([], 0)),
    ("concat", "axis must be below", lambda b, x: b.concat([x(2, 3), x(2, 3)], 2)),
    ("concat", r"inputs\[1\].*but for axis 0", lambda b, x: b.concat([x(2, 3), x(2, 4)], 0)),
    ("concat", r"inputs\[1\].*but for axis 0", lambda b, x: b.concat([x(2, 3), x(2)], 0)),
    ("concat", "element type", lambda b, x: b.concat([x(2), x(2, dtype="int8")], 0)),
    ("expand", "does not broadcast to", lambda b, x: b.expand(x(2, 3), [2, 4])),
    ("expand", "does not broadcast to", lambda b, x: b.expand(x(2, 3), [3])),
    ("tile", "repetitions must have 2 values", lambda b, x: b.tile(x(2, 3), [2])),
    ("tile", "no dimension may be 0", lambda b, x: b.tile(x(2), [0])),
    ("pad", "beginning_padding must have 2", lambda b, x: b.pad(x(2, 3), [1], [1, 1])),
    ("pad", "mode must be one of", lambda b, x: b.pad(x(2), [1], [1], mode="symmetric")),
    ("pad", "narrower than the input", lambda b, x: b.pad(x(2), [2], [0], mode="reflection")),
    ("triangular", "rank 2 or more", lambda b, x: b.triangular(x(3))),
    ("gather", "axis must be below", lambda b, x: b.gather(x(3), x(2, dtype="int32"), axis=1)),
    ("gather", "indices must be one of", lambda b, x: b.gather(x(3), x(2))),
    ("gather", "indices must be one of", lambda b, x: b.gather(x(3), x(2, dtype="uint8"))),
    ("gather_elements", "but for axis 0",
     lambda b, x: b.gather_elements(x(3, 4), x(2, 5, dtype="int32"))),
    ("gather_elements", "but for axis 0",
     lambda b, x: b.gather_elements(x(3, 4), x(2, dtype="int32"))),
    ("gather_nd", "at most the rank", lambda b, x: b.gather_nd(x(3), x(1, 2, dtype="int32"))),
    ("scatter_elements", "updates must have the shape of indices",
     lambda b, x: b.scatter_elements(x(3), x(2, dtype="int32"), x(3))),
    ("scatter_nd", r"updates must have shape \[1,4\]",
     lambda b, x: b.scatter_nd(x(3, 4), x(1, 1, dtype="int32"), x(1, 3))),
    ("reduce_sum", "axes must be below", lambda b, x: b.reduce_sum(x(3), axes=[1])),
    ("reduce_sum", r"axes\[0\] must be 0 or more", lambda b, x: b.reduce_sum(x(3), axes=[-1])),
    ("reduce_sum", "keep_dimensions must be True",
     lambda b, x: b.reduce_sum(x(3), keep_dimensions=1)),
    ("reduce_mean", "input must be one of", lambda b, x: b.reduce_mean(x(3, dtype="int32"))),
    ("reduce_l1", "input must be one of", lambda b, x: b.reduce_l1(x(3, dtype="uint8"))),
    ("arg_max", "axis must be below", lambda b, x: b.arg_max(x(3), 1)),
    ("arg_max", "output_data_type", lambda b, x: b.arg_max(x(3), 0, output_data_type="int8")),
    ("cumulative_sum", "input must be one of",
     lambda b, x: b.cumulative_sum(x(3, dtype="int8"), 0)),
    ("matmul", "inner sizes", lambda b, x: b.matmul(x(2, 3), x(4, 5))),
    ("matmul", "a must have rank 2 or more", lambda b, x: b.matmul(x(3), x(3, 4))),
    ("matmul", "does not broadcast", lambda b, x: b.matmul(x(2, 3, 4), x(3, 4, 5))),
    ("matmul", "a must be one of",
     lambda b, x: b.matmul(x(2, 2, dtype="int32"), x(2, 2, dtype="int32"))),
    ("gemm", "a must have rank 2", lambda b, x: b.gemm(x(1, 2, 3), x(3, 4))),
    ("gemm", "inner sizes", lambda b, x: b.gemm(x(2, 3), x(3, 4), b_transpose=True)),
    ("gemm", "c .*broadcast", lambda b, x: b.gemm(x(2, 3), x(3, 4), c=x(3))),
    ("conv2d", "input must have rank 4", lambda b, x: b.conv2d(x(3, 4, 4), x(1, 3, 1, 1))),
    ("conv2d", "input channels", lambda b, x: b.conv2d(x(1, 3, 4, 4), x(2, 4, 3, 3))),
    ("conv2d", "groups 3 must divide",
     lambda b, x: b.conv2d(x(1, 3, 4, 4), x(4, 1, 3, 3), groups=3)),
    ("conv2d", r"bias must have shape \[2\]",
     lambda b, x: b.conv2d(x(1, 3, 4, 4), x(2, 3, 3, 3), bias=x(3))),
    ("conv2d", "larger than the padded input",
     lambda b, x: b.conv2d(x(1, 3, 2, 2), x(2, 3, 3, 3))),
    ("conv2d", "padding must have 4",
     lambda b, x: b.conv2d(x(1, 3, 4, 4), x(2, 3, 3, 3), padding=[1, 1])),
    ("conv2d", r"strides\[0\] must be 1 or more",
     lambda b, x: b.conv2d(x(1, 3, 4, 4), x(2, 3, 3, 3), strides=[0, 1])),
    ("conv2d", "groups must be 1 or more",
     lambda b, x: b.conv2d(x(1, 3, 4, 4), x(2, 3, 3, 3), groups=0)),
    ("conv2d", "input_layout must be one of",
     lambda b, x: b.conv2d(x(1, 3, 4, 4), x(2, 3, 3, 3), input_layout="hwc")),
    ("conv2d", "filter_layout must be one of",
     lambda b, x: b.conv2d(x(1, 3, 4, 4), x(2, 3, 3, 3), filter_layout="iohw")),
    ("conv_transpose2d", "output_padding must be smaller",
     lambda b, x: b.conv_transpose2d(x(1, 2, 4, 4), x(2, 3, 3, 3), output_padding=[1, 0])),
    ("conv_transpose2d", "output_sizes height must be 6 to 6",
     lambda b, x: b.conv_transpose2d(x(1, 2, 4, 4), x(2, 3, 3, 3), output_sizes=[9, 6])),
    ("conv_transpose2d", "input channels",
     lambda b, x: b.conv_transpose2d(x(1, 3, 4, 4), x(2, 3, 3, 3))),
    ("average_pool2d", "input must be one of",
     lambda b, x: b.average_pool2d(x(1, 1, 4, 4, dtype="int32"))),
    ("max_pool2d", "window_dimensions must have 2",
     lambda b, x: b.max_pool2d(x(1, 1, 4, 4), window_dimensions=[2])),
    ("max_pool2d", "output_sizes must be",
     lambda b, x: b.max_pool2d(x(1, 1, 4, 4), window_dimensions=[2, 2], output_sizes=[9, 9])),
    ("max_pool2d", "output_shape_rounding must be one of",
     lambda b, x: b.max_pool2d(x(1, 1, 4, 4), output_shape_rounding="round")),
    ("resample2d", "consecutive", lambda b, x: b.resample2d(x(1, 1, 4, 4), axes=[1, 3])),
    ("resample2d", "scales must be positive",
     lambda b, x: b.resample2d(x(1, 1, 4, 4), scales=[0.0, 1.0])),
    ("resample2d", "mode must be one of", lambda b, x: b.resample2d(x(1, 1, 4, 4), mode="cubic")),
    ("batch_normalization", r"mean must have shape \[3\]",
     lambda b, x: b.batch_normalization(x(2, 3), x(2), x(3))),
    ("batch_normalization", "scale",
     lambda b, x: b.batch_normalization(x(2, 3), x(3), x(3), scale=x(1))),
    ("instance_normalization", "input must have rank 4",
     lambda b, x: b.instance_normalization(x(2, 3, 4))),
    ("layer_normalization", r"scale must have shape \[4,3\]",
     lambda b, x: b.layer_normalization(x(3, 4), axes=[1, 0], scale=x(3, 4))),
    ("layer_normalization", "axes must not repeat",
     lambda b, x: b.layer_normalization(x(3, 4), axes=[1, 1])),
    ("softmax", "axis must be below", lambda b, x: b.softmax(x(3), 1)),
    ("softmax", "rank 1 or more", lambda b, x: b.softmax(x(), 0)),
    ("quantize_linear", "zero_point must have the shape of scale",
     lambda b, x: b.quantize_linear(x(4), x(2), x(1, dtype="int8"))),
    ("dequantize_linear", "must divide",
     lambda b, x: b.dequantize_linear(x(4, dtype="int8"), x(3), x(3, dtype="int8"))),
    ("lstm", "steps must be the input's first",
     lambda b, x: b.lstm(x(3, 1, 2), x(1, 8, 2), x(1, 8, 2), 2, 2)),
    ("lstm", r"weight must have shape \[1,8,2\]",
     lambda b, x: b.lstm(x(3, 1, 2), x(1, 6, 2), x(1, 8, 2), 3, 2)),
    ("lstm", r"weight must have shape \[2,8,2\]",
     lambda b, x: b.lstm(x(3, 1, 2), x(1, 8, 2), x(1, 8, 2), 3, 2, direction="both")),
    ("gru", "activations must have 2",
     lambda b, x: b.gru(x(3, 1, 2), x(1, 6, 2), x(1, 6, 2), 3, 2, activations=["relu"])),
    ("gru", "layout must be one of",
     lambda b, x: b.gru(x(3, 1, 2), x(1, 6, 2), x(1, 6, 2), 3, 2, layout="nrz")),
    ("gru_cell", r"hidden_state must have shape \[1,2\]",
     lambda b, x: b.gru_cell(x(1, 2), x(6, 2), x(6, 2), x(1, 3), 2)),
    ("lstm_cell", "hidden_size must be 1 or more",
     lambda b, x: b.lstm_cell(x(1, 2), x(8, 2), x(8, 2), x(1, 2), x(1, 2), 0)),
    ("resize", "needs sizes or scales", lambda b, x: b.resize(x(1, 1, 2, 2))),
    ("lrn", "size must be 1 or more", lambda b, x: b.lrn(x(1, 2), 0)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("op", "rule", "call"), BROKEN, ids=[f"{op}-{i}" for i, (op, _, _) in enumerate(BROKEN)]
)
def test_a_broken_rule_raises_at_the_call(
    op: str, rule: str, call: Callable[[GraphBuilder, Make], Any]
) -> None:
    make = Make()
    with pytest.raises(GraphError) as caught:
        call(make.b, make)
    text = str(caught.value)
    assert text.startswith(f"{op}: ")
    assert re.search(rule, text), text
    assert "\n" not in text


def test_broken_rules_cover_the_operators_that_have_rules_of_their_own() -> None:
    named = {op for op, _, _ in BROKEN}
    assert len(named) >= 40


UNARY = sorted(
    name
    for name, spec in table.ops().items()
    if name in RULES and tuple(spec.operands) in (("input",), ("a",)) and not spec.params
    and not spec.extension
)  # fmt: skip


@pytest.mark.parametrize("op", UNARY)
@pytest.mark.parametrize("dtype", WEBNN_DTYPES)
def test_element_types_are_those_of_the_rules(op: str, dtype: str) -> None:
    b = GraphBuilder()
    rule = next(iter(RULES[op].values()))
    x = b.input("x", (2, 3, 4, 5), dtype)
    if dtype in rule.dtypes:
        assert getattr(b, op)(x).dtype in (dtype, "uint8")
    else:
        with pytest.raises(ShapeError, match=f"{op}: .* must be one of"):
            getattr(b, op)(x)


# Rows of the specification's table, typed in by hand: op, operand, allowed element types.
F = {"float32", "float16"}
SIGNED = F | {"int64", "int32", "int8"}
SUMS = F | {"int32", "uint32", "int64", "uint64"}
INDICES = {"int32", "uint32", "int64"}
TYPES: list[tuple[str, str, set[str]]] = [
    ("add", "a", set(WEBNN_DTYPES)), ("abs", "input", SIGNED), ("neg", "input", SIGNED),
    ("relu", "input", SIGNED), ("sign", "input", SIGNED), ("prelu", "input", SIGNED),
    ("exp", "input", F), ("sigmoid", "input", F), ("softmax", "input", F),
    ("matmul", "a", F), ("conv2d", "input", F), ("reduce_mean", "input", F),
    ("reduce_sum", "input", SUMS), ("reduce_product", "input", SUMS), ("reduce_l1", "input", SUMS),
    ("reduce_max", "input", set(WEBNN_DTYPES)), ("cumulative_sum", "input", SUMS),
    ("max_pool2d", "input", set(WEBNN_DTYPES)), ("average_pool2d", "input", F),
    ("gather", "indices", INDICES), ("gather_nd", "indices", INDICES),
    ("scatter_nd", "indices", INDICES), ("scatter_elements", "indices", INDICES),
    ("resample2d", "input", F | {"uint8", "int8"}), ("where", "condition", {"uint8"}),
    ("logical_not", "a", {"uint8"}), ("is_nan", "a", set(WEBNN_DTYPES)),
    ("quantize_linear", "zero_point", {"uint8", "int8", "uint32", "int32"}),
    ("dequantize_linear", "input", {"uint8", "int8", "uint32", "int32"}),
    ("dequantize_linear", "scale", F),
]  # fmt: skip


@pytest.mark.parametrize(("op", "operand", "allowed"), TYPES)
def test_the_rules_are_the_specification_s(op: str, operand: str, allowed: set[str]) -> None:
    assert RULES[op][operand].dtypes & set(WEBNN_DTYPES) == allowed


@pytest.mark.parametrize(
    ("op", "attrs", "operands"),
    [
        ("gather", {"axis": 0}, [(0, 3), (2,)]),
        ("gather_elements", {"axis": 1}, [(3, 0), (3, 2)]),
        ("gather_nd", {}, [(3, 0), (2, 2)]),
        ("scatter_elements", {"axis": 0, "reduction": "none"}, [(0, 3), (2, 3), (2, 3)]),
        ("scatter_nd", {"reduction": "none"}, [(0, 3), (2, 1), (2, 3)]),
    ],
)
def test_no_index_is_in_an_axis_without_elements(
    op: str, attrs: dict[str, Any], operands: list[tuple[int, ...]]
) -> None:
    """Formats have such shapes, though the builder has not: clamped indices are outside, too."""
    dtypes = ("float32", "int32", "float32")
    specs = [TensorSpec(t, s) for t, s in zip(dtypes, operands, strict=False)]
    with pytest.raises(ShapeError, match=f"{op}: indices .* address axis . of input .*empty"):
        table.op(op).infer(specs, attrs)
    if len(specs) == 2:
        none = specs[1].with_shape((0, *specs[1].shape[1:]))
        table.op(op).infer([specs[0] if op != "gather_elements" else none, none], attrs)


def test_there_is_every_operator_of_the_specification() -> None:
    webnn = {name for name, spec in table.ops().items() if not spec.extension}
    assert len(webnn) == 95


def test_types_beyond_webnn_follow_their_class() -> None:
    make = Make()
    assert make.b.exp(make(3, dtype="float64")).dtype == "float64"
    assert make.b.abs(make(3, dtype="int16")).dtype == "int16"
    assert make.b.max(make(3, dtype="uint16"), make(3, dtype="uint16")).dtype == "uint16"
    assert make.b.logical_not(make(3, dtype="bool")).dtype == "uint8"
    with pytest.raises(ShapeError, match="exp"):
        make.b.exp(make(3, dtype="int16"))
    with pytest.raises(ShapeError, match="add"):
        make.b.add(make(3, dtype="bool"), make(3, dtype="bool"))


def test_every_rule_names_an_operand() -> None:
    for name, rules in RULES.items():
        assert list(rules) == [bare(mark) for mark in table.op(name).operands]
        assert all(rule.like in ("", *rules) for rule in rules.values())


def test_numpy_integers_are_integers() -> None:
    make = Make()
    shape = np.array([3, 2])
    assert make.b.reshape(make(2, 3), list(shape)).shape == (3, 2)
    assert make.b.softmax(make(2, 3), np.int64(1)).shape == (2, 3)
