"""Graphs that two devices can share: branches, batches, heads, towers, ensembles.

Each function returns a graph; its inputs are float32. Sizes are such that one core takes a few
milliseconds to some tens of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import crossdock as xd


class _Layers:
    """Layers with weights of their own, drawn from one generator."""

    def __init__(self, name: str) -> None:
        self.b = xd.GraphBuilder(name)
        self._rng = np.random.default_rng(0)

    def weights(self, *shape: int) -> Any:
        """A constant scaled by what is summed up, so that values stay near 1."""
        size = int(np.prod(shape[1:])) if len(shape) == 4 else shape[0]
        return self.b.constant((self._rng.standard_normal(shape) / size**0.5).astype(np.float32))

    def dense(self, x: Any, units: int) -> Any:
        """relu(x W + b)."""
        bias = self.weights(units)
        return self.b.relu(self.b.add(self.b.matmul(x, self.weights(x.shape[-1], units)), bias))

    def conv(self, x: Any, channels: int, size: int = 3) -> Any:
        """Relu of a convolution, NCHW, the image's size kept."""
        pad = size // 2
        filters = self.weights(channels, x.shape[1], size, size)
        made = self.b.conv2d(x, filters, bias=self.weights(channels), padding=[pad] * 4)
        return self.b.relu(made)


def matmul_branches() -> Any:
    """Two chains of six products with one matrix each, and their sum."""
    n = _Layers("matmul branches")
    x = n.b.input("x", (512, 512))
    ends = []
    for _ in range(2):
        y, w = x, n.weights(512, 512)
        for _ in range(6):
            y = n.b.tanh(n.b.matmul(y, w))
        ends.append(y)
    return n.b.build({"y": n.b.add(*ends)})


def conv_branches() -> Any:
    """Two branches of four 3x3 convolutions, added."""
    n = _Layers("conv branches")
    x = n.b.input("x", (1, 48, 48, 48))
    ends = []
    for _ in range(2):
        y = x
        for _ in range(4):
            y = n.conv(y, 48)
        ends.append(y)
    return n.b.build({"y": n.b.add(*ends)})


def inception() -> Any:
    """Two blocks of four branches (1x1; 1x1 and 3x3; 1x1 and 5x5; pool and 1x1), concatenated."""
    n = _Layers("inception")
    x = n.b.input("x", (1, 96, 28, 28))
    y = x
    for _ in range(2):
        pooled = n.b.max_pool2d(y, window_dimensions=[3, 3], padding=[1] * 4)
        branches = [
            n.conv(y, 64, 1),
            n.conv(n.conv(y, 64, 1), 96),
            n.conv(n.conv(y, 24, 1), 32, 5),
            n.conv(pooled, 32, 1),
        ]
        y = n.b.concat(branches, axis=1)
    return n.b.build({"y": y})


def two_towers() -> Any:
    """Two inputs, a tower of dense layers each, and the cosine-like product of their ends."""
    n = _Layers("two towers")
    ends = []
    for name in ("user", "item"):
        y = n.b.input(name, (256, 512))
        for units in (768, 512, 256):
            y = n.dense(y, units)
        ends.append(y)
    return n.b.build({"score": n.b.reduce_sum(n.b.mul(*ends), axes=[1])})


def batch_mlp() -> Any:
    """A chain of dense layers on a batch: nothing to share but the batch."""
    n = _Layers("batch MLP")
    y = n.b.input("x", (512, 512))
    for units in (768, 768, 512, 128):
        y = n.dense(y, units)
    return n.b.build({"y": n.b.softmax(y, axis=1)})


def batch_conv() -> Any:
    """A chain of convolutions and pools on a batch of images."""
    n = _Layers("batch conv")
    y = n.b.input("x", (16, 3, 56, 56))
    for channels in (32, 48, 64):
        y = n.conv(y, channels)
        y = n.b.max_pool2d(y, window_dimensions=[2, 2], strides=[2, 2])
    y = n.b.reduce_mean(y, axes=[2, 3])
    return n.b.build({"y": n.dense(y, 64)})


def attention() -> Any:
    """Self-attention of six heads with its projections and a feed-forward block, on a batch."""
    n = _Layers("attention")
    batch, length, heads, width = 16, 64, 6, 384
    x = n.b.input("x", (batch, length, width))

    def split(y: Any) -> Any:
        apart = n.b.reshape(y, [batch, length, heads, width // heads])
        return n.b.transpose(apart, permutation=[0, 2, 1, 3])

    q, k, v = (split(n.b.matmul(x, n.weights(width, width))) for _ in range(3))
    joined = n.b.transpose(_attend(n, q, k, v), permutation=[0, 2, 1, 3])
    y = n.b.matmul(n.b.reshape(joined, [batch, length, width]), n.weights(width, width))
    y = n.b.add(x, y)
    return n.b.build({"y": n.b.matmul(n.dense(y, 768), n.weights(768, width))})


def attention_heads() -> Any:
    """Sixteen heads' attention, and what each head makes of its result."""
    n = _Layers("attention heads")
    q, k, v = (n.b.input(name, (16, 192, 64)) for name in "qkv")
    y = n.b.matmul(_attend(n, q, k, v), n.weights(16, 64, 256))
    return n.b.build({"y": n.b.relu(y)})


def _attend(n: _Layers, q: Any, k: Any, v: Any) -> Any:
    order = [*range(len(k.shape) - 2), len(k.shape) - 1, len(k.shape) - 2]
    scores = n.b.matmul(q, n.b.transpose(k, permutation=order))
    scaled = n.b.mul(scores, n.b.constant(0.125, "float32"))
    return n.b.matmul(n.b.softmax(scaled, axis=len(q.shape) - 1), v)


def fire() -> Any:
    """Three SqueezeNet fire modules: a squeezing 1x1, then 1x1 and 3x3 side by side."""
    n = _Layers("fire")
    y = n.b.input("x", (1, 64, 48, 48))
    for squeeze, expand in ((16, 64), (16, 64), (32, 128)):
        s = n.conv(y, squeeze, 1)
        y = n.b.concat([n.conv(s, expand, 1), n.conv(s, expand)], axis=1)
    return n.b.build({"y": y})


def ensemble() -> Any:
    """Two models of one input, of different kinds, averaged."""
    n = _Layers("ensemble")
    x = n.b.input("x", (64, 1, 16, 16))
    y = n.conv(n.conv(x, 24), 24)
    first = n.dense(n.b.reshape(y, [64, 24 * 256]), 10)
    z = n.b.reshape(x, [64, 256])
    for units in (1024, 1024):
        z = n.dense(z, units)
    second = n.dense(z, 10)
    mean = n.b.mul(n.b.add(first, second), n.b.constant(0.5, "float32"))
    return n.b.build({"y": mean})


GRAPHS: dict[str, Callable[[], Any]] = {
    made.__name__: made
    for made in (
        matmul_branches,
        conv_branches,
        inception,
        two_towers,
        batch_mlp,
        batch_conv,
        attention,
        attention_heads,
        fire,
        ensemble,
    )
}
"""The coexecution set by name."""
