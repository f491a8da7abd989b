"""Convolutions as graphs of cuDNN, with what is added to them and a ReLU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from crossdock.devices.cuda_dnn import Asked, Placed, Y
from crossdock.devices.program import ArrayCall, In, Out, Scratch, Slot

X, W, BIAS, BESIDE = 1, 2, 4, 5
"""Numbers of a convolution's operands."""


@dataclass(frozen=True)
class Convolution(Asked):
    """y = f(x * w + bias + beside), with a bias and an image that is added if there are any.

    ``image``, ``kernel`` and ``result`` are sizes in the order NCHW and OIHW, whatever ``layout``
    and ``filter_layout`` say of how elements lie; ``result`` and what is added lie as the image
    does. ``padding`` is top, bottom, left, right. There are as many groups as the image has
    channels for each of the filter's. f is max(x, 0) with ``relu``.
    """

    image: tuple[int, ...]
    kernel: tuple[int, ...]
    result: tuple[int, ...]
    padding: tuple[int, ...]
    steps: tuple[int, ...]
    dilations: tuple[int, ...]
    layout: str
    filter_layout: str
    bias: bool = False
    beside: bool = False
    relu: bool = False

    def tensors(self) -> dict[int, Placed]:
        """The image, the filter, the result, and what is added."""
        by_image = partial(strides, layout=self.layout)
        kernel = strides(self.kernel, self.filter_layout, "oihw")
        found = {
            X: Placed("x", self.image, by_image(self.image), self.dtype),
            W: Placed("w", self.kernel, kernel, self.dtype),
            Y: Placed("y", self.result, by_image(self.result), self.dtype),
        }
        if self.bias:
            column = (1, self.result[1], 1, 1)
            found[BIAS] = Placed("bias", column, by_image(column), self.dtype)
        if self.beside:
            found[BESIDE] = Placed("beside", self.result, by_image(self.result), self.dtype)
        return found

    def nodes(self, dnn: Any, graph: Any, made: Mapping[int, Any]) -> Any:  # noqa: ARG002 - Asked's
        """The convolution and what follows it."""
        top, bottom, left, right = self.padding
        y = graph.conv_fprop(
            image=made[X],
            weight=made[W],
            pre_padding=[top, left],
            post_padding=[bottom, right],
            stride=list(self.steps),
            dilation=list(self.dilations),
        )
        if self.beside:  # before the bias: the other way round cuDNN has few engines, or none
            y = graph.add(a=y, b=made[BESIDE])
        if self.bias:
            y = graph.bias(input=y, bias=made[BIAS])
        return graph.relu(input=y) if self.relu else y

    def step(
        self,
        bias: Slot | None = None,
        beside: Slot | None = None,
        y: Slot = Out(0),  # noqa: B008 - immutable
        workspace: Slot = Scratch(0),  # noqa: B008 - immutable
    ) -> ArrayCall:
        """The call as a step, over flat arrays."""
        added = {BIAS: bias, BESIDE: beside}
        given = {number: slot for number, slot in added.items() if slot is not None}
        return self.call({X: In(0), W: In(1), **given}, y, workspace)

    def __str__(self) -> str:
        n, c, h, w = self.image
        o, _, kh, kw = self.kernel
        return f"{kh}x{kw} convolution of {n}x{c}x{h}x{w} to {o} channels in {self.dtype}"


def strides(sizes: Sequence[int], layout: str, order: str = "nchw") -> tuple[int, ...]:
    """Strides of sizes given in ``order`` whose elements lie without gaps in ``layout``."""
    found, step = {}, 1
    for axis in reversed(layout):
        found[axis] = step
        step *= sizes[order.index(axis)]
    return tuple(found[axis] for axis in order)
