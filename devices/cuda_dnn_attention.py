"""Attention as a graph of cuDNN: one node that keeps the scores to itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from crossdock.devices.cuda_dnn import Asked, Placed, Y
from crossdock.devices.program import ArrayCall, In, Out, Scratch, Slot

QUERY, KEY, VALUE, BIAS = 1, 2, 4, 5
"""Numbers of an attention's operands."""
NAMES = ("query", "key", "value")


@dataclass(frozen=True)
class Attention(Asked):
    """y = softmax(scale query key' + bias) value, by heads.

    ``sizes``, ``strides`` and ``begins`` are those of query, key and value, [batch, heads, rows,
    features], in elements; ``result`` and ``result_strides`` those of y. Scores are float32, shares
    rounded to ``dtype``. ``bias`` are the sizes of a dense float32 one, each whole or 1; none: ().
    Query i sees key j where j <= i + ``reach``, or all of them where that is None; ``from_end``
    counts both from their last ones, with a reach of 0.
    """

    sizes: tuple[tuple[int, ...], ...]
    strides: tuple[tuple[int, ...], ...]
    begins: tuple[int, ...]
    result: tuple[int, ...]
    result_strides: tuple[int, ...]
    scale: float
    bias: tuple[int, ...] = ()
    reach: int | None = None
    from_end: bool = False

    def tensors(self) -> dict[int, Placed]:
        """Query, key, value, result, and the bias if there is one."""
        places = zip(NAMES, self.sizes, self.strides, self.begins, strict=True)
        found = {
            number: Placed(name, sizes, steps, self.dtype, begin)
            for number, (name, sizes, steps, begin) in zip((QUERY, KEY, VALUE), places, strict=True)
        }
        found[Y] = Placed("y", self.result, self.result_strides, self.dtype)
        if self.bias:
            _, heads, rows, keys = self.bias
            steps = (heads * rows * keys, rows * keys, keys, 1)
            found[BIAS] = Placed("bias", self.bias, steps, "float32")
        return found

    def nodes(self, dnn: Any, graph: Any, made: Mapping[int, Any]) -> Any:
        """One node of cuDNN's."""
        given: dict[str, Any] = {"bias": made[BIAS]} if self.bias else {}
        if self.reach is not None:
            corners = dnn.diagonal_alignment
            given["diagonal_alignment"] = (
                corners.BOTTOM_RIGHT if self.from_end else corners.TOP_LEFT
            )
            given["diagonal_band_right_bound"] = self.reach
        made_of, _ = graph.sdpa(
            q=made[QUERY],
            k=made[KEY],
            v=made[VALUE],
            generate_stats=False,
            attn_scale=self.scale,
            **given,
        )
        return made_of

    def step(self, bias: Slot | None = None, workspace: Slot = Scratch(0)) -> ArrayCall:  # noqa: B008 - immutable
        """The call as a step, over flat arrays."""
        given = {} if bias is None else {BIAS: bias}
        return self.call({QUERY: In(0), KEY: In(1), VALUE: In(2), **given}, Out(0), workspace)

    def __str__(self) -> str:
        query, key = ("x".join(map(str, sizes)) for sizes in self.sizes[:2])
        return f"attention of {query} to {key} in {self.dtype}"
