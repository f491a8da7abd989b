"""Separable interpolation: along each axis an output cell is a weighted sum of source cells.

``Taps`` are computed on the host in float64; ``resample`` applies them in array code, one axis
after the other. resample2d and the extension op resize differ in how they make taps only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from crossdock.kernels import ops_math
from crossdock.runtime.tensor import Array


@dataclass(frozen=True)
class Taps:
    """Source cells and their weights, both of shape [output size, cells a result]."""

    cells: Array
    weights: Array

    @property
    def is_copy(self) -> bool:
        """True where every output cell is one source cell."""
        return self.cells.shape[1] == 1 and bool((self.weights == 1).all())

    def is_identity(self, size: int) -> bool:
        """True where output cell i is source cell i of ``size``."""
        cells = np.arange(self.cells.shape[0])
        picked = (self.cells == cells[:, None]) | (self.weights == 0)
        whole = np.where(self.cells == cells[:, None], self.weights, 0).sum(axis=1) == 1
        return self.cells.shape[0] == size and bool(picked.all() and whole.all())


def source_positions(out: int, scale: float) -> Array:
    """Half-pixel centres: where output cells lie on the source axis, as float64."""
    return (np.arange(out) + 0.5) / scale - 0.5


def resample(xp: Any, x: Any, taps: Mapping[int, Taps]) -> Any:
    """Interpolate along each axis of ``taps``; integers are computed in float and rounded."""
    if all(t.is_copy for t in taps.values()):
        for axis, tap in taps.items():
            x = xp.take(x, xp.asarray(tap.cells[:, 0]), axis=axis)
        return x
    dtype = x.dtype
    wide = ops_math.widen(x) if dtype.kind == "f" or ops_math.is_half(x) else x.astype("float32")
    for axis, tap in taps.items():
        wide = _along(xp, wide, axis, tap)
    if dtype.kind not in "iu":
        return wide.astype(dtype)
    limits = np.iinfo(dtype)
    return xp.clip(xp.rint(wide), limits.min, limits.max).astype(dtype)


def _along(xp: Any, x: Any, axis: int, tap: Taps) -> Any:
    shape = [1] * x.ndim
    shape[axis] = tap.cells.shape[0]
    total: Any = None
    for k in range(tap.cells.shape[1]):
        weights = xp.asarray(tap.weights[:, k].astype(x.dtype)).reshape(shape)
        part = xp.take(x, xp.asarray(tap.cells[:, k]), axis=axis) * weights
        total = part if total is None else total + part
    return total
