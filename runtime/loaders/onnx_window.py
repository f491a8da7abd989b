"""Windows of ONNX convolutions and pools: attributes and automatic padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from crossdock.runtime.loaders.onnx_model import shown
from crossdock.runtime.loaders.onnx_table import Context


@dataclass(frozen=True)
class Window:
    """A window over ``len(kernel)`` spatial axes; pads are (begin, end) an axis."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]

    def reach(self, axis: int) -> int:
        """Cells from the first to the last cell of the dilated window along an axis."""
        return (self.kernel[axis] - 1) * self.dilations[axis] + 1

    def part(self, begin: int, end: int) -> Window:
        """The window over axes ``begin`` to ``end`` alone."""
        own = slice(begin, end)
        return Window(self.kernel[own], self.strides[own], self.dilations[own], self.pads[own])

    def options(self) -> dict[str, Any]:
        """The builder's options for two spatial axes; one axis gets a height of one before it."""
        flat = len(self.kernel) == 1
        return {
            "padding": [0, 0] * flat + [p for pair in self.pads for p in pair],
            "strides": [1] * flat + list(self.strides),
            "dilations": [1] * flat + list(self.dilations),
        }


def spatial(ctx: Context, kernel: Sequence[int] | None = None) -> Window:
    """Read a window's attributes for operand 0; ``kernel`` is the filter's where there is one."""
    x, node = ctx.x(), ctx.node
    sizes = x.shape[2:]
    count = len(sizes)
    if count < 1:
        raise ctx.malformed(f"an input of rank {len(x.shape)} has no spatial dimensions")
    given = node.get_ints("kernel_shape")
    if kernel is not None and given is not None and tuple(given) != tuple(kernel):
        raise ctx.malformed(f"kernel_shape {list(given)} differs from the filter {list(kernel)}")
    shape = kernel if kernel is not None else given
    if shape is None:
        raise ctx.malformed("attribute 'kernel_shape' is missing")
    strides = node.get_ints("strides") or (1,) * count
    dilations = node.get_ints("dilations") or (1,) * count
    for name, values in (("kernel", shape), ("strides", strides), ("dilations", dilations)):
        if len(values) != count or min(values) < 1:
            raise ctx.malformed(f"{name} {list(values)} for {count} spatial dimensions")
    window = Window(tuple(shape), strides, dilations, ((0, 0),) * count)
    return Window(tuple(shape), strides, dilations, _pads(ctx, window, sizes))


def explicit_pads(ctx: Context, count: int) -> tuple[tuple[int, int], ...]:
    """The attribute ``pads`` (all begins, then all ends), zeros by default."""
    pads = ctx.node.get_ints("pads") or (0,) * (2 * count)
    if len(pads) != 2 * count or min(pads) < 0:
        raise ctx.malformed(f"pads {list(pads)} for {count} spatial dimensions")
    return tuple(zip(pads[:count], pads[count:], strict=True))


def _pads(ctx: Context, window: Window, sizes: Sequence[int]) -> tuple[tuple[int, int], ...]:
    mode = ctx.node.get_str("auto_pad", "NOTSET")
    if mode == "VALID":
        return window.pads
    if mode in ("NOTSET", ""):
        return explicit_pads(ctx, len(sizes))
    if mode not in ("SAME_UPPER", "SAME_LOWER"):
        raise ctx.malformed(f"auto_pad {shown(mode)}")
    pads = []
    for i, size in enumerate(sizes):
        out = -(-size // window.strides[i])
        total = max(0, (out - 1) * window.strides[i] + window.reach(i) - size)
        pads.append(halves(total, upper=mode == "SAME_UPPER"))
    return tuple(pads)


def halves(total: int, *, upper: bool) -> tuple[int, int]:
    """A padding in two halves, the odd cell at the upper end or the lower one."""
    small = total // 2
    return (small, total - small) if upper else (total - small, small)
