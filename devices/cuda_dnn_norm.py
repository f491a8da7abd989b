"""Normalisations as graphs of cuDNN."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from crossdock.devices.cuda_dnn import Asked, Placed, Y
from crossdock.devices.program import ArrayCall, In, Out, Scratch, Slot

X, SCALE, BIAS, MEAN, VARIANCE = 1, 2, 4, 5, 6
"""Numbers of a normalisation's operands."""


@dataclass(frozen=True)
class Affine(Asked):
    """y = n(x) * scale + bias, where there are the last two.

    ``sizes`` and ``strides`` are those of x and y, ``vector`` and ``vector_strides`` those of every
    other operand, of which x has as many dimensions.
    """

    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    vector: tuple[int, ...]
    vector_strides: tuple[int, ...]
    epsilon: float
    scale: bool
    bias: bool

    def tensors(self) -> dict[int, Placed]:
        """x, y, and the vectors."""
        found = {
            number: Placed(name, self.sizes, self.strides, self.dtype)
            for number, name in ((X, "x"), (Y, "y"))
        }
        for number, name in self.vectors().items():
            found[number] = Placed(name, self.vector, self.vector_strides, self.dtype)
        return found

    def vectors(self) -> dict[int, str]:
        """The operands beside x, by number."""
        there = {SCALE: ("scale", self.scale), BIAS: ("bias", self.bias)}
        return {number: name for number, (name, given) in there.items() if given}

    def number(self, dnn: Any, graph: Any) -> Any:
        """The tensor of epsilon: in float32, for a Python float would make it a double."""
        return graph.tensor_scalar(np.float32(self.epsilon), dnn.scalar_type.RUNTIME_PARAM)

    def step(self, slots: Mapping[int, Slot]) -> ArrayCall:
        """The call as a step, over flat arrays; ``slots`` are the vectors' by number."""
        return self.call({X: In(0), **slots}, Out(0), Scratch(0))


@dataclass(frozen=True)
class Normalization(Affine):
    """The mean and the variance are those of x over some dimensions.

    ``node`` is cuDNN's: ``layernorm`` takes the dimensions in which ``vector`` is not 1, and the
    operands beside x are as large in them; ``instancenorm`` those behind the second.
    """

    node: str = "layernorm"

    def nodes(self, dnn: Any, graph: Any, made: Mapping[int, Any]) -> Any:
        """One node of cuDNN's."""
        epsilon = self.number(dnn, graph)
        results = getattr(graph, self.node)(
            norm_forward_phase=dnn.norm_forward_phase.INFERENCE,
            input=made[X],
            scale=made.get(SCALE),
            bias=made.get(BIAS),
            epsilon=epsilon,
        )
        return results[0]

    def __str__(self) -> str:
        return f"{self.node} of {'x'.join(map(str, self.sizes))} in {self.dtype}"


@dataclass(frozen=True)
class Standardization(Affine):
    """The mean and the variance are operands."""

    multiplies: ClassVar[bool] = False

    def vectors(self) -> dict[int, str]:
        """The mean and the variance besides."""
        return {**super().vectors(), MEAN: "mean", VARIANCE: "variance"}

    def nodes(self, dnn: Any, graph: Any, made: Mapping[int, Any]) -> Any:
        """A chain of pointwise ones: cuDNN's own node would want the inverse of the deviation."""
        epsilon = self.number(dnn, graph)
        factor = graph.rsqrt(input=graph.add(a=made[VARIANCE], b=epsilon))
        if self.scale:
            factor = graph.mul(a=factor, b=made[SCALE])
        y = graph.mul(a=graph.sub(a=made[X], b=made[MEAN]), b=factor)
        return graph.add(a=y, b=made[BIAS]) if self.bias else y

    def __str__(self) -> str:
        return f"standardization of {'x'.join(map(str, self.sizes))} in {self.dtype}"
