"""Networks written once for two makers: crossdock's builder and torch give the same function.

A network is a function of a ``Layers`` and its inputs. Weights have names, and are drawn from a
generator seeded by the name, so that both makers have the same ones in whatever order they ask.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Value = Any
"""A builder's operand, or a torch tensor."""
TOKENS, VOCABULARY = 128, 30522


class Layers(Protocol):
    """What networks are made of; images are NCHW, sizes static."""

    def conv(
        self, x: Value, name: str, shape: tuple[int, int, int], stride: int = 1, groups: int = 1
    ) -> Value:
        """A convolution with bias and same padding; ``shape`` is (channels out, in, window)."""

    def batch_norm(self, x: Value, name: str, channels: int) -> Value:
        """Batch normalisation with the statistics of the weights."""

    def group_norm(self, x: Value, name: str, shape: tuple[int, ...], groups: int) -> Value:
        """Group normalisation (Wu & He 2018) of an image of a shape."""

    def layer_norm(self, x: Value, name: str, width: int) -> Value:
        """Layer normalisation over the last axis."""

    def linear(self, x: Value, name: str, inner: int, outer: int) -> Value:
        """X W + b over the last axis."""

    def embed(self, ids: Value, name: str, rows: int, width: int) -> Value:
        """Rows of a table by int32 ids."""

    def attend(self, q: Value, k: Value, v: Value, scale: float) -> Value:
        """Softmax(q k' scale) v over the last two axes."""

    def relu(self, x: Value) -> Value:
        """The larger of x and 0."""

    def relu6(self, x: Value) -> Value:
        """X clamped to [0, 6]."""

    def gelu(self, x: Value) -> Value:
        """X Phi(x), exactly."""

    def silu(self, x: Value) -> Value:
        """X sigmoid(x)."""

    def add(self, a: Value, b: Value) -> Value:
        """The sum, broadcast."""

    def max_pool(self, x: Value) -> Value:
        """Largest of 3x3 with stride 2 and padding 1."""

    def mean(self, x: Value) -> Value:
        """The mean of an image's pixels: (N, C)."""

    def double(self, x: Value) -> Value:
        """Each pixel four times."""

    def concat(self, a: Value, b: Value) -> Value:
        """Side by side in the channels."""

    def reshape(self, x: Value, shape: tuple[int, ...]) -> Value:
        """The same elements in another shape."""

    def transpose(self, x: Value, axes: tuple[int, ...]) -> Value:
        """The axes in another order."""


@functools.cache
def weight(name: str, shape: tuple[int, ...], scale: float, around: float = 0.0) -> Array:
    """Normal numbers of a name, float32; drawn once, for every batch and precision."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    return (around + scale * rng.standard_normal(shape, dtype=np.float32)).astype(np.float32)


@dataclass(frozen=True)
class Net:
    """A network: its inputs' shapes and types for a batch, and the function."""

    name: str
    inputs: Callable[[int], dict[str, tuple[tuple[int, ...], str]]]
    made: Callable[..., Value]

    def feeds(self, batch: int, dtype: str = "float32") -> dict[str, Array]:
        """Inputs: numbers of about 1, or ids."""
        rng = np.random.default_rng(batch)
        return {
            name: rng.integers(0, 1000, shape).astype(kind)
            if kind == "int32"
            else rng.standard_normal(shape).astype(dtype)
            for name, (shape, kind) in self.inputs(batch).items()
        }


def _conv_bn(f: Layers, x: Value, name: str, shape: tuple[int, int, int], *how: int) -> Value:
    return f.batch_norm(f.conv(x, f"{name}.conv", shape, *how), f"{name}.bn", shape[0])


def resnet50(f: Layers, x: Value, batch: int) -> Value:
    """ResNet-50 (He et al. 2016), the stride in the 3x3 convolution."""
    del batch
    x = f.max_pool(f.relu(_conv_bn(f, x, "stem", (64, 3, 7), 2)))
    width = 64
    for stage, (depth, inner) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512))):
        for i in range(depth):
            name, stride = f"s{stage}.{i}", 2 if i == 0 and stage else 1
            y = f.relu(_conv_bn(f, x, f"{name}.a", (inner, width, 1)))
            y = f.relu(_conv_bn(f, y, f"{name}.b", (inner, inner, 3), stride))
            y = _conv_bn(f, y, f"{name}.c", (4 * inner, inner, 1))
            if i == 0:
                x = _conv_bn(f, x, f"{name}.short", (4 * inner, width, 1), stride)
            x, width = f.relu(f.add(x, y)), 4 * inner
    return f.linear(f.mean(x), "head", width, 1000)


MOBILE = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1),
          (6, 160, 3, 2), (6, 320, 1, 1))  # fmt: skip
"""MobileNetV2's blocks (Sandler et al. 2018, table 2): expansion, channels, repeats, stride."""


def mobilenet(f: Layers, x: Value, batch: int) -> Value:
    """MobileNetV2."""
    del batch
    x, width = f.relu6(_conv_bn(f, x, "stem", (32, 3, 3), 2)), 32
    for block, (expansion, outer, repeats, first) in enumerate(MOBILE):
        for i in range(repeats):
            name, inner, stride = f"b{block}.{i}", width * expansion, first if i == 0 else 1
            y = x
            if expansion > 1:
                y = f.relu6(_conv_bn(f, y, f"{name}.up", (inner, width, 1)))
            y = f.relu6(_conv_bn(f, y, f"{name}.deep", (inner, 1, 3), stride, inner))
            y = _conv_bn(f, y, f"{name}.down", (outer, inner, 1))
            x, width = (f.add(x, y) if stride == 1 and width == outer else y), outer
    x = f.relu6(_conv_bn(f, x, "last", (1280, width, 1)))
    return f.linear(f.mean(x), "head", 1280, 1000)


def _attention(f: Layers, x: Value, name: str, shape: tuple[int, int, int], heads: int) -> Value:
    batch, length, width = shape
    each = width // heads

    def part(which: str) -> Value:
        y = f.reshape(f.linear(x, f"{name}.{which}", width, width), (batch, length, heads, each))
        return f.transpose(y, (0, 2, 1, 3))

    y = f.attend(part("q"), part("k"), part("v"), each**-0.5)
    y = f.reshape(f.transpose(y, (0, 2, 1, 3)), shape)
    return f.linear(y, f"{name}.out", width, width)


def minilm(f: Layers, ids: Value, batch: int) -> Value:
    """MiniLM (Wang et al. 2020): BERT of six layers, 384 wide, 12 heads, 128 tokens."""
    return _bert(f, ids, batch, layers=6, width=384, heads=12)


def bert(f: Layers, ids: Value, batch: int) -> Value:
    """BERT's base (Devlin et al. 2019): twelve layers, 768 wide, 12 heads, 128 tokens."""
    return _bert(f, ids, batch, layers=12, width=768, heads=12)


def _bert(f: Layers, ids: Value, batch: int, *, layers: int, width: int, heads: int) -> Value:
    shape = (batch, TOKENS, width)
    x = f.embed(ids, "words", VOCABULARY, width)
    x = f.layer_norm(x, "words.norm", width)
    for i in range(layers):
        y = _attention(f, x, f"l{i}", shape, heads)
        x = f.layer_norm(f.add(x, y), f"l{i}.norm", width)
        y = f.gelu(f.linear(x, f"l{i}.up", width, 4 * width))
        x = f.layer_norm(f.add(x, f.linear(y, f"l{i}.down", 4 * width, width)), f"l{i}.last", width)
    return x


UNET, SIDE = 320, 64
"""Channels and side of the first level of Stable Diffusion's UNet (Rombach et al. 2022)."""


def unet(f: Layers, x: Value, batch: int) -> Value:
    """One level of a diffusion UNet: a residual block and a transformer block, down, and up again.

    Without the embedding of the time step and the cross attention to the text.
    """
    kept = _transformer(f, _residual(f, x, "down", batch, UNET, UNET, SIDE), "tdown", batch, SIDE)
    y = f.conv(kept, "downsample", (UNET, UNET, 3), 2)
    y = _residual(f, y, "mid", batch, UNET, UNET, SIDE // 2)
    y = f.conv(f.double(y), "upsample", (UNET, UNET, 3))
    return _residual(f, f.concat(y, kept), "up", batch, 2 * UNET, UNET, SIDE)


def _residual(
    f: Layers, x: Value, name: str, batch: int, width: int, outer: int, side: int
) -> Value:
    y = f.silu(f.group_norm(x, f"{name}.n1", (batch, width, side, side), 32))
    y = f.conv(y, f"{name}.c1", (outer, width, 3))
    y = f.silu(f.group_norm(y, f"{name}.n2", (batch, outer, side, side), 32))
    y = f.conv(y, f"{name}.c2", (outer, outer, 3))
    return f.add(y, x if width == outer else f.conv(x, f"{name}.short", (outer, width, 1)))


def _transformer(f: Layers, x: Value, name: str, batch: int, side: int) -> Value:
    shape = (batch, side * side, UNET)
    y = f.group_norm(x, f"{name}.norm", (batch, UNET, side, side), 32)
    y = f.transpose(f.reshape(y, (batch, UNET, side * side)), (0, 2, 1))
    y = f.add(y, _attention(f, f.layer_norm(y, f"{name}.n1", UNET), f"{name}.self", shape, 8))
    z = f.gelu(f.linear(f.layer_norm(y, f"{name}.n2", UNET), f"{name}.up", UNET, 4 * UNET))
    y = f.add(y, f.linear(z, f"{name}.down", 4 * UNET, UNET))
    return f.add(x, f.reshape(f.transpose(y, (0, 2, 1)), (batch, UNET, side, side)))


def _image(channels: int, side: int) -> Callable[[int], dict[str, tuple[tuple[int, ...], str]]]:
    return lambda batch: {"x": ((batch, channels, side, side), "float32")}


def _tokens(batch: int) -> dict[str, tuple[tuple[int, ...], str]]:
    return {"ids": ((batch, TOKENS), "int32")}


NETS = (
    Net("resnet50", _image(3, 224), resnet50),
    Net("mobilenet", _image(3, 224), mobilenet),
    Net("minilm", _tokens, minilm),
    Net("unet block", _image(UNET, SIDE), unet),
    Net("bert base", _tokens, bert),
)


def _convolutions(f: Layers, x: Value, batch: int) -> Value:
    del batch
    y = f.relu(_conv_bn(f, f.conv(x, "a", (8, 3, 3), 2), "b", (8, 8, 3)))
    return f.linear(f.mean(y), "head", 8, 10)


def _one_layer(f: Layers, ids: Value, batch: int) -> Value:
    return _bert(f, ids, batch, layers=1, width=32, heads=2)


TINY = (
    Net("two convolutions", _image(3, 16), _convolutions),
    Net("attention", _tokens, _one_layer),
)
"""For rehearsals."""
