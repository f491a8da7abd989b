"""Networks as crossdock's graphs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

import crossdock as xd
from bench.gpu_check.nets import Net, weight

Value = Any


class GraphLayers:
    """``Layers`` of a ``GraphBuilder``; weights are of ``dtype``."""

    def __init__(self, b: xd.GraphBuilder, dtype: str) -> None:
        self.b = b
        self.dtype = dtype

    def weight(self, name: str, shape: tuple[int, ...], scale: float, around: float = 0.0) -> Value:
        """A weight as a constant."""
        return self.b.constant(weight(name, shape, scale, around).astype(self.dtype))

    def conv(
        self, x: Value, name: str, shape: tuple[int, int, int], stride: int = 1, groups: int = 1
    ) -> Value:
        """A convolution with bias."""
        outer, inner, size = shape
        filters = self.weight(name, (outer, inner, size, size), (inner * size * size) ** -0.5)
        bias = self.weight(f"{name}.bias", (outer,), 0.1)
        return self.b.conv2d(
            x, filters, bias=bias, padding=[size // 2] * 4, strides=[stride] * 2, groups=groups
        )

    def _affine(self, name: str, width: int) -> dict[str, Value]:
        return {
            "scale": self.weight(f"{name}.scale", (width,), 0.1, 1.0),
            "bias": self.weight(f"{name}.bias", (width,), 0.1),
        }

    def batch_norm(self, x: Value, name: str, channels: int) -> Value:
        """Batch normalisation."""
        mean = self.weight(f"{name}.mean", (channels,), 0.1)
        variance = self.weight(f"{name}.variance", (channels,), 0.1, 1.0)
        return self.b.batch_normalization(x, mean, variance, **self._affine(name, channels))

    def group_norm(self, x: Value, name: str, shape: tuple[int, ...], groups: int) -> Value:
        """Group normalisation: layer normalisation of groups, then a scale a channel."""
        batch, channels, high, wide = shape
        y = self.b.reshape(x, [batch, groups, channels // groups * high * wide])
        y = self.b.reshape(self.b.layer_normalization(y, axes=[2]), list(shape))
        affine = self._affine(name, channels)
        scale, bias = (self.b.reshape(affine[k], [channels, 1, 1]) for k in ("scale", "bias"))
        return self.b.add(self.b.mul(y, scale), bias)

    def layer_norm(self, x: Value, name: str, width: int) -> Value:
        """Layer normalisation over the last axis."""
        axes = [len(x.shape) - 1]
        return self.b.layer_normalization(x, axes=axes, **self._affine(name, width))

    def linear(self, x: Value, name: str, inner: int, outer: int) -> Value:
        """X W + b; W is stored as torch has it."""
        kept = weight(name, (outer, inner), inner**-0.5).astype(self.dtype)
        product = self.b.matmul(x, self.b.constant(np.ascontiguousarray(kept.T)))
        return self.b.add(product, self.weight(f"{name}.bias", (outer,), 0.1))

    def embed(self, ids: Value, name: str, rows: int, width: int) -> Value:
        """Rows of a table."""
        return self.b.gather(self.weight(name, (rows, width), 1.0), ids, axis=0)

    def attend(self, q: Value, k: Value, v: Value, scale: float) -> Value:
        """Attention, op by op; a pass makes one of them."""
        axes = len(q.shape) - 1
        across = self.b.transpose(k, permutation=[*range(axes - 1), axes, axes - 1])
        scores = self.b.mul(self.b.matmul(q, across), self.b.constant(scale, self.dtype))
        return self.b.matmul(self.b.softmax(scores, axis=axes), v)

    def relu(self, x: Value) -> Value:
        """The larger of x and 0."""
        return self.b.relu(x)

    def relu6(self, x: Value) -> Value:
        """X clamped to [0, 6]."""
        return self.b.clamp(x, min_value=0.0, max_value=6.0)

    def gelu(self, x: Value) -> Value:
        """X Phi(x)."""
        return self.b.gelu(x)

    def silu(self, x: Value) -> Value:
        """X sigmoid(x)."""
        return self.b.mul(x, self.b.sigmoid(x))

    def add(self, a: Value, b: Value) -> Value:
        """The sum."""
        return self.b.add(a, b)

    def max_pool(self, x: Value) -> Value:
        """Largest of 3x3."""
        return self.b.max_pool2d(x, window_dimensions=[3, 3], strides=[2, 2], padding=[1] * 4)

    def mean(self, x: Value) -> Value:
        """The mean of an image's pixels."""
        return self.b.reduce_mean(x, axes=[2, 3])

    def double(self, x: Value) -> Value:
        """Each pixel four times."""
        return self.b.resample2d(x, scales=[2.0, 2.0], axes=[2, 3])

    def concat(self, a: Value, b: Value) -> Value:
        """Side by side in the channels."""
        return self.b.concat([a, b], axis=1)

    def reshape(self, x: Value, shape: Sequence[int]) -> Value:
        """The same elements in another shape."""
        return self.b.reshape(x, list(shape))

    def transpose(self, x: Value, axes: Sequence[int]) -> Value:
        """The axes in another order."""
        return self.b.transpose(x, permutation=list(axes))


def graph(net: Net, batch: int, dtype: str = "float32") -> xd.Graph:
    """A network for a batch, its weights and floating-point inputs of ``dtype``."""
    b = xd.GraphBuilder(f"{net.name} {batch} {dtype}")
    inputs = [
        b.input(name, shape, kind if kind == "int32" else dtype)
        for name, (shape, kind) in net.inputs(batch).items()
    ]
    return b.build({"y": net.made(GraphLayers(b, dtype), *inputs, batch)})
