"""Networks as torch modules with the same weights, and the ways in which torch runs them."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from bench.gpu_check.nets import Net, weight

Array = np.ndarray[Any, np.dtype[Any]]
Value = Any
Run = Callable[[], Any]


class TorchLayers:
    """``Layers`` over tensors; ``weights`` gives one for a name, a shape, a scale and a mean."""

    def __init__(self, weights: Callable[[str, tuple[int, ...], float, float], Value]) -> None:
        self.weight = weights

    def conv(
        self, x: Value, name: str, shape: tuple[int, int, int], stride: int = 1, groups: int = 1
    ) -> Value:
        """A convolution with bias."""
        outer, inner, size = shape
        filters = self.weight(name, (outer, inner, size, size), (inner * size * size) ** -0.5, 0.0)
        bias = self.weight(f"{name}.bias", (outer,), 0.1, 0.0)
        return functional.conv2d(x, filters, bias, stride, size // 2, 1, groups)

    def batch_norm(self, x: Value, name: str, channels: int) -> Value:
        """Batch normalisation."""
        mean = self.weight(f"{name}.mean", (channels,), 0.1, 0.0)
        variance = self.weight(f"{name}.variance", (channels,), 0.1, 1.0)
        return functional.batch_norm(x, mean, variance, *self._affine(name, channels))

    def _affine(self, name: str, width: int) -> tuple[Value, Value]:
        scale = self.weight(f"{name}.scale", (width,), 0.1, 1.0)
        return scale, self.weight(f"{name}.bias", (width,), 0.1, 0.0)

    def group_norm(self, x: Value, name: str, shape: tuple[int, ...], groups: int) -> Value:
        """Group normalisation."""
        return functional.group_norm(x, groups, *self._affine(name, shape[1]))

    def layer_norm(self, x: Value, name: str, width: int) -> Value:
        """Layer normalisation over the last axis."""
        return functional.layer_norm(x, (width,), *self._affine(name, width))

    def linear(self, x: Value, name: str, inner: int, outer: int) -> Value:
        """X W + b."""
        bias = self.weight(f"{name}.bias", (outer,), 0.1, 0.0)
        return functional.linear(x, self.weight(name, (outer, inner), inner**-0.5, 0.0), bias)

    def embed(self, ids: Value, name: str, rows: int, width: int) -> Value:
        """Rows of a table."""
        return functional.embedding(ids, self.weight(name, (rows, width), 1.0, 0.0))

    def attend(self, q: Value, k: Value, v: Value, scale: float) -> Value:
        """Attention by torch's fused function."""
        return functional.scaled_dot_product_attention(q, k, v, scale=scale)

    def relu(self, x: Value) -> Value:
        """The larger of x and 0."""
        return functional.relu(x)

    def relu6(self, x: Value) -> Value:
        """X clamped to [0, 6]."""
        return functional.relu6(x)

    def gelu(self, x: Value) -> Value:
        """X Phi(x)."""
        return functional.gelu(x)

    def silu(self, x: Value) -> Value:
        """X sigmoid(x)."""
        return functional.silu(x)

    def add(self, a: Value, b: Value) -> Value:
        """The sum."""
        return a + b

    def max_pool(self, x: Value) -> Value:
        """Largest of 3x3."""
        return functional.max_pool2d(x, 3, 2, 1)

    def mean(self, x: Value) -> Value:
        """The mean of an image's pixels."""
        return x.mean((2, 3))

    def double(self, x: Value) -> Value:
        """Each pixel four times."""
        return functional.interpolate(x, scale_factor=2.0, mode="nearest")

    def concat(self, a: Value, b: Value) -> Value:
        """Side by side in the channels."""
        return torch.cat((a, b), 1)

    def reshape(self, x: Value, shape: tuple[int, ...]) -> Value:
        """The same elements in another shape."""
        return x.reshape(shape)

    def transpose(self, x: Value, axes: tuple[int, ...]) -> Value:
        """The axes in another order."""
        return x.permute(axes)


class TorchNet(torch.nn.Module):  # type: ignore[misc,unused-ignore]
    """A network for a batch; its weights are buffers of the module."""

    def __init__(self, net: Net, batch: int, dtype: str, where: str) -> None:
        super().__init__()
        self.net, self.batch = net, batch
        kind = getattr(torch, dtype)

        def made(name: str, shape: tuple[int, ...], scale: float, around: float) -> Value:
            tensor = torch.from_numpy(weight(name, shape, scale, around)).to(where, kind)
            if tensor.dim() == 4 and kind is torch.float16:
                tensor = tensor.contiguous(memory_format=torch.channels_last)
            self.register_buffer(_plain(name), tensor)
            return tensor

        given = [torch.from_numpy(a).to(where) for a in net.feeds(batch, dtype).values()]
        with torch.inference_mode(False), torch.no_grad():
            net.made(TorchLayers(made), *given, batch)

    def forward(self, *inputs: Value) -> Value:
        """The network's output."""
        layers = TorchLayers(lambda name, *_: getattr(self, _plain(name)))
        return self.net.made(layers, *inputs, self.batch)


def _plain(name: str) -> str:
    return name.replace(".", "_").replace(" ", "_")


def tf32(allowed: bool) -> None:
    """Let torch's products and convolutions of float32 round their inputs to TF32, or not."""
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


class Peers:
    """Torch's ways of running one network.

    From arrays of the host to an array of the host; or, ``resident``, from tensors of the device to
    a tensor of the device, and then a run ends when the device is done.
    """

    def __init__(
        self,
        net: Net,
        batch: int,
        dtype: str,
        where: str,
        feeds: Mapping[str, Array],
        *,
        resident: bool = False,
    ) -> None:
        self.where, self.resident = where, resident
        self.module = TorchNet(net, batch, dtype, where).eval()
        host = {name: torch.from_numpy(array) for name, array in feeds.items()}
        self.feeds = {n: t.to(where) for n, t in host.items()} if resident else host

    def _end(self, output: Value) -> Any:
        """The output where it is wanted, complete."""
        if not self.resident:
            return output.cpu().numpy()
        if self.where == "cuda":
            torch.cuda.synchronize()
        return output

    def _through(self, call: Callable[..., Value]) -> Run:
        def run() -> Any:
            with torch.no_grad():
                return self._end(call(*(tensor.to(self.where) for tensor in self.feeds.values())))

        return run

    def eager(self) -> Run:
        """Op by op."""
        return self._through(self.module)

    def compiled(self) -> Run:
        """``torch.compile`` for these shapes, with its own CUDA graphs."""
        torch.compiler.reset()  # it counts the modules that it has compiled, and gives up at eight
        mode = "reduce-overhead" if self.where == "cuda" else "default"
        return self._through(torch.compile(self.module, mode=mode, dynamic=False))

    def graphs(self) -> Run:
        """The eager launches captured once in a CUDA graph, inputs copied into their place."""
        still = [tensor.to(self.where, copy=True) for tensor in self.feeds.values()]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side), torch.no_grad():
            for _ in range(3):  # libraries choose and allocate before the capture
                self.module(*still)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.no_grad(), torch.cuda.graph(graph):
            output = self.module(*still)

        def run() -> Any:
            for place, tensor in zip(still, self.feeds.values(), strict=True):
                place.copy_(tensor)
            graph.replay()
            return self._end(output)

        return run


def give_back() -> None:
    """Free the memory that torch keeps of networks that are gone: others need it."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def on_host(array: Any) -> Array:
    """A tensor, or what crossdock left on a device, as an array of the host."""
    return np.asarray(array.cpu() if isinstance(array, torch.Tensor) else array)
