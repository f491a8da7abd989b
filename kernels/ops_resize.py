"""Taps of the extension op resize: coordinate modes, nearest modes, linear and cubic kernels.

The modes are those of the ONNX operator Resize (opset 19), and one that opset 11 had; the cubic
kernel is Keys's (IEEE Transactions on Acoustics, Speech and Signal Processing 29, 1981, equation
4, parameter free).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from crossdock.kernels.ops_resample import Taps
from crossdock.runtime.tensor import Array

MODES = ("nearest", "linear", "cubic")

NEAREST: dict[str, Callable[[Array], Array]] = {
    "round_prefer_floor": lambda at: np.ceil(at - 0.5),
    "round_prefer_ceil": lambda at: np.floor(at + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}

Position = Callable[[Array, float, int, int, tuple[float, float]], Array]


def _half_pixel(at: Array, scale: float, size: int, out: int, roi: Any) -> Array:  # noqa: ARG001
    return (at + 0.5) / scale - 0.5


def _tf_half_pixel(at: Array, scale: float, size: int, out: int, roi: Any) -> Array:  # noqa: ARG001
    return (at + 0.5) / scale


def _symmetric(at: Array, scale: float, size: int, out: int, roi: Any) -> Array:  # noqa: ARG001
    adjustment = out / (scale * size)
    offset = size / 2 * (1 - adjustment)
    return offset + (at + 0.5) / scale - 0.5


def _pytorch(at: Array, scale: float, size: int, out: int, roi: Any) -> Array:
    if out > 1:
        return _half_pixel(at, scale, size, out, roi)
    return np.zeros(out)


def _align(at: Array, scale: float, size: int, out: int, roi: Any) -> Array:  # noqa: ARG001
    step = (size - 1) / max(out - 1, 1)
    return np.asarray(at * step)


def _asymmetric(at: Array, scale: float, size: int, out: int, roi: Any) -> Array:  # noqa: ARG001
    return at / scale


def _crop(at: Array, scale: float, size: int, out: int, roi: Any) -> Array:  # noqa: ARG001
    start, end = roi
    if out > 1:
        return np.asarray((start + at * ((end - start) / (out - 1))) * (size - 1))
    return np.full(out, 0.5 * (start + end) * (size - 1))


POSITIONS: dict[str, Position] = {
    "half_pixel": _half_pixel,
    "half_pixel_symmetric": _symmetric,
    "tf_half_pixel_for_nn": _tf_half_pixel,
    "pytorch_half_pixel": _pytorch,
    "align_corners": _align,
    "asymmetric": _asymmetric,
    "tf_crop_and_resize": _crop,
}


def resize_taps(size: int, index: int, attrs: Mapping[str, Any]) -> tuple[Taps, Array]:
    """Taps along the ``index``-th resized axis, and which output cells lie outside the source."""
    out, scale = attrs["sizes"][index], attrs["scales"][index]
    mode = attrs["coordinate_transformation_mode"]
    roi = (attrs["roi"][index], attrs["roi"][len(attrs["axes"]) + index])
    at = POSITIONS[mode](np.arange(out, dtype=np.float64), scale, size, out, roi)
    outside = np.zeros(out, dtype=bool)
    if mode == "tf_crop_and_resize":
        outside = (at < 0) | (at > size - 1)
    if attrs["mode"] == "nearest":
        cells = np.clip(NEAREST[attrs["nearest_mode"]](at), 0, size - 1)
        return Taps(cells.astype(np.int64)[:, None], np.ones((out, 1))), outside
    return _weighted(at, scale, size, attrs), outside


def _weighted(at: Array, scale: float, size: int, attrs: Mapping[str, Any]) -> Taps:
    """Linear or cubic taps; with antialias the kernel is stretched when shrinking."""
    cubic = attrs["mode"] == "cubic"
    stretch = max(1.0, 1.0 / scale) if attrs["antialias"] else 1.0
    half = (2.0 if cubic else 1.0) * stretch
    count = int(np.ceil(half)) * 2
    first = np.floor(at).astype(np.int64) - count // 2 + 1
    cells = first[:, None] + np.arange(count)
    distance = np.abs(at[:, None] - cells) / stretch
    weights = _cubic(distance, attrs["cubic_coeff_a"]) if cubic else np.maximum(1 - distance, 0)
    inside = (cells >= 0) & (cells < size)
    if attrs["exclude_outside"]:
        weights = np.where(inside, weights, 0.0)
    if attrs["exclude_outside"] or stretch != 1.0:
        weights = weights / weights.sum(axis=1, keepdims=True)
    return Taps(np.clip(cells, 0, size - 1), weights)


def _cubic(x: Array, a: float) -> Array:
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))
