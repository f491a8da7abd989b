"""What follows a quantised product, collected op by op: scale, offset, bounds, rounding.

The value of a chain is ``bounds(float32(sum + bias) * scale + offset)``; each op that the chain
takes in changes one of these terms. Terms are float64 until the node is made.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from crossdock.kernels import table
from crossdock.runtime.graph import Graph, Node
from crossdock.runtime.limits import FOLD_FLOPS
from crossdock.runtime.tensor import Array, to_numpy

BYTES = ("uint8", "int8")
LARGEST = 1 << 28
"""Bytes of a constant that is worked out here."""


class Known:
    """Values of a graph that are constants, worked out where they are asked for."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.makers = graph.producers()
        self._found: dict[str, Array | None] = dict(graph.constants)

    def __call__(self, value: str | None) -> Array | None:
        """The array, or None where the value is none, no constant, or too large to work out."""
        if value is None:
            return None
        if value not in self._found:
            self._found[value] = self._made(value)
        return self._found[value]

    def _made(self, value: str) -> Array | None:
        node = self.makers.get(value)
        if node is None or len(node.outputs) != 1 or not node.operands:
            return None
        entry, graph = table.op(node.op), self.graph
        out = graph.specs[value]
        specs = [None if i is None else graph.specs[i] for i in node.inputs]
        if entry.host or out.nbytes > LARGEST:
            return None
        if entry.work(specs, [out], node.attrs).flops > FOLD_FLOPS:
            return None
        arrays = [self(i) for i in node.inputs]
        if any(a is None and i is not None for a, i in zip(arrays, node.inputs, strict=True)):
            return None
        with np.errstate(all="ignore"):
            made = entry.run(np, *arrays, **node.attrs)
        array = np.ascontiguousarray(made, to_numpy(out.dtype)).reshape(out.dims)
        array.flags.writeable = False
        return array


def along(array: Array, rank: int, axis: int, size: int) -> Array | None:
    """A parameter as one element or a row along ``axis`` (from the end), or None if it is neither.

    The array broadcasts to a result of that rank; ``size`` is the axis's.
    """
    if array.size == 1 and array.ndim <= rank:
        return array.reshape(())
    if array.ndim > rank or array.ndim < -axis or array.shape[axis] != size:
        return None
    return array.reshape(-1) if array.size == size else None


@dataclass
class Chain:
    """A product and what it has taken in.

    Attributes:
        value: the value the chain makes so far; its result has channels along ``axis``.
        real: whether the sum has been taken to float32.
        runtime: a value the result is multiplied by as well.
        zero: name of the result's zero point, once it is quantised.
    """

    known: Known
    value: str
    axis: int
    real: bool = False
    bias: Array | None = None
    scale: Array = field(default_factory=lambda: np.ones(()))
    offset: Array | None = None
    low: float = -math.inf
    high: float = math.inf
    runtime: str | None = None
    zero: str | None = None

    @property
    def free(self) -> bool:
        """Whether no bound has been set."""
        return (self.low, self.high) == (-math.inf, math.inf)

    def take(self, node: Node) -> bool:
        """Take in the op that reads the value; False where it is none of these."""
        taken = {
            "cast": self._cast, "add": self._add, "mul": self._mul, "relu": self._relu,
            "clamp": self._clamp, "quantize_linear": self._quantise,
        }  # fmt: skip
        rule = taken.get(node.op)
        if self.zero is not None or rule is None or not self._same_shape(node) or not rule(node):
            return False
        self.value = node.outputs[0]
        return True

    def _same_shape(self, node: Node) -> bool:
        specs = self.known.graph.specs
        return specs[node.outputs[0]].shape == specs[self.value].shape

    def _other(self, node: Node) -> str | None:
        others = [v for v in node.operands if v != self.value]
        return others[0] if len(others) == 1 else None

    def _row(self, value: str | None, dtype: str) -> Array | None:
        """A constant operand as one element, or one a channel."""
        array = self.known(value)
        if value is None or array is None or self.known.graph.specs[value].dtype != dtype:
            return None
        spec = self.known.graph.specs[self.value]
        return along(array, spec.rank, self.axis, spec.dims[self.axis])

    def _cast(self, node: Node) -> bool:
        if self.real or self.known.graph.specs[node.outputs[0]].dtype != "float32":
            return False
        self.real = True
        return True

    def _add(self, node: Node) -> bool:
        more = self._row(self._other(node), "float32" if self.real else "int32")
        if more is None or not self.free:
            return False
        if not self.real:
            self.bias = more if self.bias is None else self.bias + more
            return True
        wide = more.astype(np.float64)
        self.offset = wide if self.offset is None else self.offset + wide
        return True

    def _mul(self, node: Node) -> bool:
        other = self._other(node)
        if not self.real or not self.free or other is None:
            return False
        factor = self._row(other, "float32")
        if factor is not None:
            self.scale = self.scale * factor.astype(np.float64)
            self.offset = None if self.offset is None else self.offset * factor
            return True
        assert self.value is not None
        spec, mine = self.known.graph.specs[other], self.known.graph.specs[self.value]
        plain = self.runtime is None and self.offset is None and bool((self.scale == 1).all())
        one = spec.rank <= mine.rank and spec.size == 1
        row = spec.dims == (1,) * (spec.rank + self.axis) + (
            mine.dims[self.axis], *(1,) * (-1 - self.axis)
        )  # fmt: skip
        if spec.dtype != "float32" or not plain or not (one or row):
            return False
        self.runtime = other
        return True

    def _relu(self, node: Node) -> bool:  # noqa: ARG002 - a rule of the table
        self.low, self.high = max(self.low, 0.0), max(self.high, 0.0)
        return self.real

    def _clamp(self, node: Node) -> bool:
        low, high = node.attrs["min_value"], node.attrs["max_value"]
        low, high = (-math.inf if low is None else low), (math.inf if high is None else high)
        if not self.real or math.isnan(low) or math.isnan(high):
            return False
        self.low, self.high = (min(max(end, low), high) for end in (self.low, self.high))
        return True

    def _quantise(self, node: Node) -> bool:
        scale, zero = self.known(node.inputs[1]), node.inputs[2]
        specs = self.known.graph.specs
        if not self.real or self.runtime is not None or scale is None or zero is None:
            return False
        good = scale.size == 1 and float(scale.reshape(())) > 0 and specs[zero].dtype in BYTES
        if not good or self.known(zero) is None or specs[self.value].dtype != "float32":
            return False
        step = float(scale.reshape(()))
        self.scale = self.scale / step
        self.offset = None if self.offset is None else self.offset / step
        self.low, self.high = self.low / step, self.high / step
        self.zero = zero
        return True

    def terms(self) -> Mapping[str, Array]:
        """Bias, scale and offset as operands, those that are there."""
        made = {"scale": self.scale.astype(np.float32)}
        if self.bias is not None:
            made["bias"] = self.bias.astype(np.int32)
        if self.offset is not None:
            made["offset"] = self.offset.astype(np.float32)
        return made
