"""Sliding windows shared by convolution and pooling: layouts, output sizes, shifted views."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from crossdock.kernels.ops_rules import choice, fail, integers, size_of
from crossdock.runtime.tensor import Dim, TensorSpec

LAYOUTS = ("nchw", "nhwc")


@dataclass(frozen=True, slots=True)
class Image:
    """The dimensions of a 4-D image under a layout."""

    batch: Dim
    channels: Dim
    height: Dim
    width: Dim

    @classmethod
    def of(cls, spec: TensorSpec, layout: str) -> Image:
        """Read a spec."""
        n, *rest = spec.shape
        c, h, w = rest if layout == "nchw" else (rest[2], rest[0], rest[1])
        return cls(n, c, h, w)

    def shape(self, layout: str) -> tuple[Dim, ...]:
        """The shape under a layout."""
        if layout == "nchw":
            return (self.batch, self.channels, self.height, self.width)
        return (self.batch, self.height, self.width, self.channels)


def spatial_axes(layout: str) -> tuple[int, int]:
    """Height and width axis."""
    return (2, 3) if layout == "nchw" else (1, 2)


def spatial_sizes(op: str, spec: TensorSpec, layout: str) -> tuple[int, int]:
    """Height and width as numbers; raises ShapeError while one is a symbol."""
    height, width = (size_of(op, "input", spec, axis) for axis in spatial_axes(layout))
    return height, width


def window_attrs(op: str, attrs: dict[str, Any], layout: str = "layout") -> dict[str, Any]:
    """Read padding, strides, dilations and the layout, with their defaults filled in."""

    def read(name: str, count: int, default: int, low: int) -> tuple[int, ...]:
        given = attrs[name]
        return (
            (default,) * count if given is None else integers(op, name, given, count=count, low=low)
        )

    return attrs | {
        "padding": read("padding", 4, 0, 0),
        "strides": read("strides", 2, 1, 1),
        "dilations": read("dilations", 2, 1, 1),
        layout: choice(op, layout, attrs[layout], LAYOUTS),
    }


def reach(window: int, dilation: int) -> int:
    """Cells from the first to the last cell of a dilated window."""
    return (window - 1) * dilation + 1


def output_size(
    op: str, size: int, window: int, begin: int, end: int, stride: int, dilation: int, *, up: bool
) -> int:
    """Window positions along one axis, rounded down, or up; raises where none fits."""
    room = size + begin + end - reach(window, dilation)
    if room < 0:
        raise fail(
            op,
            f"the window (size {window}, dilation {dilation}) is larger than the padded input "
            f"({size} + {begin} + {end})",
        )
    return (room + stride - 1 if up else room) // stride + 1


def fitted(xp: Any, x: Any, attrs: Any, out: tuple[int, int], fill: float) -> Any:
    """An NCHW array padded with ``fill`` (or cut) to exactly what the windows of ``out`` reach."""
    top, bottom, left, right = attrs["padding"]
    window, strides, dilations = attrs["window"], attrs["strides"], attrs["dilations"]
    need = [(out[i] - 1) * strides[i] + reach(window[i], dilations[i]) for i in range(2)]
    height, width = x.shape[2], x.shape[3]
    if (top, bottom, left, right) == (0, 0, 0, 0) and need[0] <= height and need[1] <= width:
        return x
    full = (max(need[0], top + height + bottom), max(need[1], left + width + right))
    padded = xp.full((*x.shape[:2], *full), fill, dtype=x.dtype)
    padded[:, :, top : top + height, left : left + width] = x
    return padded


def shifted(x: Any, attrs: Any, out: tuple[int, int]) -> Iterator[tuple[int, int, Any]]:
    """For each cell of the window, a strided view of NCHW ``x`` with a value per position."""
    window, strides, dilations = attrs["window"], attrs["strides"], attrs["dilations"]
    for i in range(window[0]):
        for j in range(window[1]):
            top, left = i * dilations[0], j * dilations[1]
            yield (
                i,
                j,
                x[
                    :,
                    :,
                    top : top + (out[0] - 1) * strides[0] + 1 : strides[0],
                    left : left + (out[1] - 1) * strides[1] + 1 : strides[1],
                ],
            )


def to_nchw(x: Any, layout: str) -> Any:
    """An image array viewed as NCHW."""
    return x if layout == "nchw" else x.transpose(0, 3, 1, 2)


def from_nchw(x: Any, layout: str) -> Any:
    """An NCHW array viewed under a layout."""
    return x if layout == "nchw" else x.transpose(0, 2, 3, 1)
