"""Canonical attributes, and symbols in shapes: what kernels and later stages get to see."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from crossdock.runtime.builder import GraphBuilder, Operand
from crossdock.runtime.errors import ShapeError
from tests.cases import Make

Shape = tuple[Any, ...]

CANONICAL: list[tuple[Callable[[GraphBuilder, Make], Any], dict[str, Any]]] = [
    (lambda b, x: b.conv2d(x(1, 2, 5, 5), x(3, 2, 3, 3)),
     {"padding": (0, 0, 0, 0), "strides": (1, 1), "dilations": (1, 1), "groups": 1}),
    (lambda b, x: b.conv_transpose2d(x(1, 2, 4, 4), x(2, 3, 3, 3), strides=[2, 2]),
     {"output_sizes": (9, 9), "output_padding": (0, 0)}),
    (lambda b, x: b.conv_transpose2d(x(1, 2, 4, 4), x(2, 3, 3, 3), strides=[2, 2],
                                     output_sizes=[10, 9]),
     {"output_sizes": (10, 9), "output_padding": (1, 0)}),
    (lambda b, x: b.max_pool2d(x(1, 2, 5, 6)),
     {"window_dimensions": (5, 6), "output_sizes": (1, 1), "padding": (0, 0, 0, 0)}),
    (lambda b, x: b.transpose(x(1, 2, 3)), {"permutation": (2, 1, 0)}),
    (lambda b, x: b.reduce_sum(x(1, 2, 3)), {"axes": (0, 1, 2)}),
    (lambda b, x: b.reduce_sum(x(1, 2, 3), axes=[2, 0]), {"axes": (0, 2)}),
    (lambda b, x: b.reverse(x(1, 2)), {"axes": (0, 1)}),
    (lambda b, x: b.layer_normalization(x(1, 2, 3)), {"axes": (1, 2)}),
    (lambda b, x: b.layer_normalization(x(1, 2, 3), axes=[2, 1]), {"axes": (2, 1)}),
    (lambda b, x: b.split(x(6), 3)[0], {"splits": (2, 2, 2)}),
    (lambda b, x: b.slice(x(6), [1], [2]), {"starts": (1,), "sizes": (2,), "strides": (1,)}),
    (lambda b, x: b.clamp(x(3), min_value=float("nan"), max_value=2),
     {"min_value": -float("inf"), "max_value": 2.0}),
    (lambda b, x: b.clamp(x(3, dtype="uint8"), min_value=-5, max_value=2.7),
     {"min_value": 0, "max_value": 2}),
    (lambda b, x: b.clamp(x(3, dtype="int64"), max_value=9007199254740993),
     {"max_value": 9007199254740993}),
    (lambda b, x: b.resample2d(x(1, 1, 4, 6), scales=[1.5, 0.5]),
     {"sizes": (6, 3), "axes": (2, 3), "scales": (1.5, 0.5)}),
    (lambda b, x: b.pad(x(3, dtype="int8"), [1], [1], value=300), {"value": 127}),
]  # fmt: skip


@pytest.mark.parametrize(("call", "want"), CANONICAL, ids=range(len(CANONICAL)))
def test_kernels_see_concrete_attributes(
    call: Callable[[GraphBuilder, Make], Operand], want: dict[str, Any]
) -> None:
    make = Make()
    graph = make.b.build({"y": call(make.b, make)})
    attrs = graph.nodes[-1].attrs
    assert {name: attrs[name] for name in want} == want
    assert not any(value is None for value in attrs.values())


SYMBOLIC: list[tuple[str, Callable[[GraphBuilder, Make], Any], Shape]] = [
    ("add", lambda b, x: b.add(x("N", 3), x(3)), ("N", 3)),
    ("relu", lambda b, x: b.relu(x("N", "M")), ("N", "M")),
    ("matmul", lambda b, x: b.matmul(x("N", 3, "T"), x("T", 5)), ("N", 3, 5)),
    ("gemm", lambda b, x: b.gemm(x("N", 3), x(3, 5), c=x(5)), ("N", 5)),
    ("softmax", lambda b, x: b.softmax(x("N", 10), 1), ("N", 10)),
    ("transpose", lambda b, x: b.transpose(x("N", 3, "T")), ("T", 3, "N")),
    ("reduce_mean", lambda b, x: b.reduce_mean(x("N", 3), axes=[0]), (3,)),
    ("concat", lambda b, x: b.concat([x("N", 3), x("N", 4)], 1), ("N", 7)),
    ("split", lambda b, x: b.split(x("N", 4), 2, axis=1)[0], ("N", 2)),
    ("reshape", lambda b, x: b.reshape(x("N", 2, 3), ["N", 6]), ("N", 6)),
    ("layer_normalization", lambda b, x: b.layer_normalization(x("N", "T", 8), axes=[2]),
     ("N", "T", 8)),
    ("batch_normalization", lambda b, x: b.batch_normalization(x("N", 3, "H"), x(3), x(3)),
     ("N", 3, "H")),
    ("conv2d", lambda b, x: b.conv2d(x("N", 3, 8, 8), x(4, 3, 3, 3)), ("N", 4, 6, 6)),
    ("max_pool2d", lambda b, x: b.max_pool2d(x("N", 3, 8, 8)), ("N", 3, 1, 1)),
    ("gather", lambda b, x: b.gather(x("N", 3), x("K", dtype="int32"), axis=1), ("N", "K")),
    ("slice", lambda b, x: b.slice(x("N", 9), [0, 2], ["N", 4]), ("N", 4)),
    ("pad", lambda b, x: b.pad(x("N", 9), [0, 1], [0, 1]), ("N", 11)),
    ("expand", lambda b, x: b.expand(x("N", 1), ["N", 9]), ("N", 9)),
    ("tile", lambda b, x: b.tile(x("N", 3), [1, 2]), ("N", 6)),
    ("arg_max", lambda b, x: b.arg_max(x("N", 9), 1), ("N",)),
    ("lstm", lambda b, x: b.lstm(x(4, "N", 3), x(1, 20, 3), x(1, 20, 5), 4, 5)[0], (1, "N", 5)),
    ("resample2d", lambda b, x: b.resample2d(x("N", 3, 4, 4), sizes=[8, 8]), ("N", 3, 8, 8)),
]  # fmt: skip


@pytest.mark.parametrize(("op", "call", "shape"), SYMBOLIC, ids=[op for op, _, _ in SYMBOLIC])
def test_symbols_go_through(
    op: str, call: Callable[[GraphBuilder, Make], Operand], shape: Shape
) -> None:
    make = Make()
    operand = call(make.b, make)
    assert operand.spec.shape == shape
    bound = make.b.build({"y": operand}).bind({"N": 2, "T": 3, "M": 4, "K": 5, "H": 6})
    sizes = {"N": 2, "T": 3, "M": 4, "K": 5, "H": 6}
    assert bound.output_specs["y"].shape == tuple(sizes.get(d, d) for d in shape)


@pytest.mark.parametrize(
    "call",
    [
        lambda b, x: b.conv2d(x(1, 3, "H", 8), x(4, 3, 3, 3)),
        lambda b, x: b.split(x("N"), 2),
        lambda b, x: b.concat([x("N"), x("N")], 0),
        lambda b, x: b.tile(x("N"), [2]),
        lambda b, x: b.pad(x("N"), [1], [0]),
        lambda b, x: b.max_pool2d(x(1, 3, "H", "W")),
        lambda b, x: b.resample2d(x(1, 3, "H", "W"), scales=[2.0, 2.0]),
    ],
)
def test_arithmetic_on_a_symbol_asks_for_its_size(call: Callable[[Any, Make], Any]) -> None:
    make = Make()
    with pytest.raises(ShapeError, match="needs a size for dimension"):
        call(make.b, make)


def test_symbols_of_two_names_do_not_broadcast() -> None:
    make = Make()
    with pytest.raises(ShapeError, match="dimension M against N"):
        make.b.add(make("N"), make("M"))
    assert make.b.add(make("N"), make(1)).spec.shape == ("N",)
    assert make.b.add(make("N"), make(4)).spec.shape == (4,)
