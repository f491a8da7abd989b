"""Rules of differentiation: from the slope at an ONNX node's result to those at its inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from crossdock.runtime.builder import GraphBuilder, Operand
from crossdock.runtime.errors import MalformedModel, UnsupportedModel
from crossdock.runtime.loaders.onnx_model import OnnxNode
from crossdock.runtime.tensor import to_numpy


@dataclass(frozen=True, slots=True)
class Chain:
    """A node written into the IR: its operands, its (first) result, and the slope there."""

    b: GraphBuilder
    node: OnnxNode
    opset: int
    operands: tuple[Operand | None, ...]
    y: Operand
    slope: Operand

    def x(self, index: int = 0) -> Operand:
        """Operand ``index``, which must be there."""
        operand = self.operands[index] if index < len(self.operands) else None
        if operand is None:
            raise MalformedModel(f"{self.node}: input {index} is missing")
        return operand

    def number(self, value: float) -> Operand:
        """A number of the slope's type."""
        return self.b.constant(np.array(value).astype(to_numpy(self.slope.dtype)))

    def fitted(self, slope: Operand, like: Operand) -> Operand:
        """A slope summed over the axes along which an operand was broadcast."""
        shape, want = sizes(slope), sizes(like)
        lead = len(shape) - len(want)
        axes = [i for i, d in enumerate(shape) if i < lead or (want[i - lead] == 1 and d != 1)]
        if axes:
            slope = self.b.reduce_sum(slope, axes=axes, keep_dimensions=True)
        return self.reshaped(slope, want)

    def reshaped(self, x: Operand, shape: Sequence[int]) -> Operand:
        """An operand in another shape."""
        return x if list(sizes(x)) == list(shape) else self.b.reshape(x, list(shape))


def sizes(operand: Operand) -> tuple[int, ...]:
    """The shape of an operand; shapes are static by now."""
    return tuple(int(d) for d in operand.shape)


Rule = Callable[[Chain], Sequence[Operand | None]]
_RULES: dict[str, Rule] = {}


def rule_of(node: OnnxNode) -> Rule | None:
    """The rule for a node's operator, or None."""
    return None if node.domain else _RULES.get(node.op)


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Decorator: the rule for operators."""

    def register(function: Rule) -> Rule:
        _RULES.update(dict.fromkeys(names, function))
        return function

    return register


def _local(slope_of: Callable[[GraphBuilder, Chain, Operand, Operand], Operand]) -> Rule:
    """The rule of an elementwise operator from the slope of its result by its operand."""

    def apply(c: Chain) -> list[Operand]:
        return [c.b.mul(c.slope, slope_of(c.b, c, c.x(), c.y))]

    return apply


def _erf_slope(b: GraphBuilder, c: Chain, x: Operand, _y: Operand) -> Operand:
    return b.mul(b.exp(b.neg(b.mul(x, x))), c.number(2 / math.sqrt(math.pi)))


_LOCAL: dict[str, Callable[[GraphBuilder, Chain, Operand, Operand], Operand]] = {
    "Abs": lambda b, _c, x, _y: b.sign(x),
    "Cos": lambda b, _c, x, _y: b.neg(b.sin(x)),
    "Erf": _erf_slope,
    "Exp": lambda _b, _c, _x, y: y,
    "Log": lambda b, _c, x, _y: b.reciprocal(x),
    "Neg": lambda _b, c, _x, _y: c.number(-1),
    "Reciprocal": lambda b, _c, _x, y: b.neg(b.mul(y, y)),
    "Relu": lambda b, c, x, _y: b.where(b.greater(x, c.number(0)), c.number(1), c.number(0)),
    "Sigmoid": lambda b, c, _x, y: b.mul(y, b.sub(c.number(1), y)),
    "Sin": lambda b, _c, x, _y: b.cos(x),
    "Softplus": lambda b, _c, x, _y: b.sigmoid(x),
    "Sqrt": lambda b, c, _x, y: b.div(c.number(0.5), y),
    "Tanh": lambda b, c, _x, y: b.sub(c.number(1), b.mul(y, y)),
}
"""Elementwise operators: the slope of the result by the operand."""

_RULES.update({name: _local(slope_of) for name, slope_of in _LOCAL.items()})


@rule("LeakyRelu")
def leaky_relu(c: Chain) -> list[Operand]:
    """The slope, or a share of it below zero."""
    share = c.number(c.node.get_float("alpha", 0.01))
    below = c.b.lesser(c.x(), c.number(0))
    return [c.b.mul(c.slope, c.b.where(below, share, c.number(1)))]


@rule("Identity")
def identity(c: Chain) -> list[Operand]:
    """The slope itself."""
    return [c.slope]


@rule("Cast")
def cast(c: Chain) -> list[Operand | None]:
    """The slope in the operand's type, where that is a float."""
    floats = ("float16", "bfloat16", "float32", "float64")
    return [c.b.cast(c.slope, c.x().dtype) if c.x().dtype in floats else None]


@rule("Add", "Sum")
def add(c: Chain) -> list[Operand]:
    """The slope for every operand."""
    return [c.fitted(c.slope, c.x(i)) for i in range(len(c.operands))]


@rule("Sub")
def sub(c: Chain) -> list[Operand]:
    """The slope, and its negative."""
    return [c.fitted(c.slope, c.x(0)), c.fitted(c.b.neg(c.slope), c.x(1))]


@rule("Mul")
def mul(c: Chain) -> list[Operand]:
    """The slope times the other operand."""
    return [c.fitted(c.b.mul(c.slope, c.x(1 - i)), c.x(i)) for i in range(2)]


@rule("Div")
def div(c: Chain) -> list[Operand]:
    """By the divisor; and minus the quotient by it."""
    part = c.b.div(c.slope, c.x(1))
    return [c.fitted(part, c.x(0)), c.fitted(c.b.neg(c.b.mul(part, c.y)), c.x(1))]


@rule("Pow")
def power(c: Chain) -> list[Operand]:
    """By the base: exponent times the next lower power. By the exponent: the logarithm's part."""
    b = c.b
    exponent = b.cast(c.x(1), c.slope.dtype)
    lower = b.pow(c.x(0), b.sub(exponent, c.number(1)))
    base = b.mul(c.slope, b.mul(exponent, lower))
    # 0 ** p is flat in p, although the logarithm of 0 is not finite.
    positive = b.greater(c.x(0), c.number(0))
    log = b.where(positive, b.log(b.where(positive, c.x(0), c.number(1))), c.number(0))
    return [c.fitted(base, c.x(0)), c.fitted(b.mul(c.slope, b.mul(c.y, log)), c.x(1))]


@rule("Where")
def where(c: Chain) -> list[Operand | None]:
    """Each side has the slope where it was taken."""
    b, zero = c.b, c.number(0)
    yes, no = b.where(c.x(0), c.slope, zero), b.where(c.x(0), zero, c.slope)
    return [None, c.fitted(yes, c.x(1)), c.fitted(no, c.x(2))]


@rule("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def reshape(c: Chain) -> list[Operand]:
    """The slope in the operand's shape."""
    return [c.reshaped(c.slope, sizes(c.x()))]


@rule("Expand")
def expand(c: Chain) -> list[Operand]:
    """Summed where the operand was repeated."""
    return [c.fitted(c.slope, c.x())]


@rule("Transpose")
def transpose(c: Chain) -> list[Operand]:
    """The axes back in their places."""
    rank = len(c.x().shape)
    order = c.node.get_ints("perm") or tuple(reversed(range(rank)))
    back = [order.index(i) for i in range(rank)]
    return [c.b.transpose(c.slope, permutation=back)]


@rule("Concat")
def concat(c: Chain) -> list[Operand]:
    """The slice that each operand became."""
    axis = c.node.get_int("axis") % max(len(c.y.shape), 1)
    parts, start = [], 0
    for i in range(len(c.operands)):
        extents = sizes(c.x(i))
        starts = [start if a == axis else 0 for a in range(len(extents))]
        parts.append(c.b.slice(c.slope, starts, list(extents)))
        start += extents[axis]
    return parts


@rule("ReduceSum", "ReduceMean")
def reduce(c: Chain) -> list[Operand]:
    """The slope for every element that was summed; of a mean, its share."""
    x, rank = c.x(), len(c.x().shape)
    axes = {a % max(rank, 1) for a in _axes(c)} or set(range(rank))
    if not _axes(c) and c.node.get_int("noop_with_empty_axes"):
        axes = set()
    kept = [1 if i in axes else d for i, d in enumerate(sizes(x))]
    count = math.prod(sizes(x)[i] for i in axes) if c.node.op == "ReduceMean" else 1
    share = c.b.mul(c.reshaped(c.slope, kept), c.number(1 / max(count, 1)))
    return [c.b.expand(share, list(sizes(x)))]


def _axes(c: Chain) -> tuple[int, ...]:
    if len(c.operands) < 2 or c.operands[1] is None:
        return c.node.get_ints("axes") or ()
    value = c.x(1).value
    if value is None:
        raise UnsupportedModel(f"{c.node}: a gradient over axes that are computed is not supported")
    return tuple(int(v) for v in value.reshape(-1))


@rule("Softmax")
def softmax(c: Chain) -> list[Operand]:
    """Since opset 13, along one axis: y * (slope - sum of slope * y)."""
    if c.opset < 13:
        raise UnsupportedModel(f"{c.node}: its gradient before opset 13 is not supported")
    b, rank = c.b, len(c.y.shape)
    axis = c.node.get_int("axis", -1) % max(rank, 1)
    total = b.reduce_sum(b.mul(c.slope, c.y), axes=[axis], keep_dimensions=True)
    return [b.mul(c.y, b.sub(c.slope, total))]


@rule("MatMul")
def matmul(c: Chain) -> list[Operand]:
    """Slope by b transposed, and a transposed by slope; a vector is a row, or a column."""
    b, x, w = c.b, c.x(0), c.x(1)
    rows = (1, *sizes(x)) if len(x.shape) == 1 else sizes(x)
    columns = (*sizes(w), 1) if len(w.shape) == 1 else sizes(w)
    left, right = c.reshaped(x, rows), c.reshaped(w, columns)
    batch = sizes(c.y)[: len(c.y.shape) - (len(x.shape) > 1) - (len(w.shape) > 1)]
    slope = c.reshaped(c.slope, (*batch, rows[-2], columns[-1]))
    by_left = c.fitted(b.matmul(slope, _swapped(c, right)), left)
    by_right = c.fitted(b.matmul(_swapped(c, left), slope), right)
    return [c.reshaped(by_left, sizes(x)), c.reshaped(by_right, sizes(w))]


def _swapped(c: Chain, x: Operand) -> Operand:
    """A stack of matrices, each transposed."""
    rank = len(x.shape)
    return c.b.transpose(x, permutation=[*range(rank - 2), rank - 1, rank - 2])


@rule("Gemm")
def gemm(c: Chain) -> list[Operand]:
    """As of a matrix product, with its factors and transpositions."""
    b, node = c.b, c.node
    flip_a, flip_b = node.get_int("transA") != 0, node.get_int("transB") != 0
    slope = b.mul(c.slope, c.number(node.get_float("alpha", 1.0)))
    left = _swapped(c, c.x(0)) if flip_a else c.x(0)
    right = _swapped(c, c.x(1)) if flip_b else c.x(1)
    by_left = b.matmul(slope, _swapped(c, right))
    by_right = b.matmul(_swapped(c, left), slope)
    made = [
        _swapped(c, by_left) if flip_a else by_left,
        _swapped(c, by_right) if flip_b else by_right,
    ]
    if len(c.operands) > 2 and c.operands[2] is not None:
        scaled = b.mul(c.slope, c.number(node.get_float("beta", 1.0)))
        made.append(c.fitted(scaled, c.x(2)))
    return made
