"""What the nodes of the fake cuDNN's graphs compute."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

POINTWISE: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "relu": lambda x: np.fmax(x, 0),
    "rsqrt": lambda x: 1 / np.sqrt(x),
}


def normalized(
    x: np.ndarray,
    scale: np.ndarray | None,
    bias: np.ndarray | None,
    epsilon: np.float32,
    axes: tuple[int, ...],
) -> np.ndarray:
    """Over axes, in float64."""
    wide = x.astype(np.float64)
    away = wide - wide.mean(axes, keepdims=True)
    y = away / np.sqrt((away * away).mean(axes, keepdims=True) + epsilon)
    y = y if scale is None else y * scale
    return np.asarray(y if bias is None else y + bias, np.float32)


def attended(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    scale: float,
    bias: np.ndarray | None,
    from_end: bool,
    bound: int | None,
    shares: np.dtype[Any],
) -> np.ndarray:
    """Attention with float32 scores by powers of two; shares are rounded, sums float64.

    A bias of minus infinity makes a row NaN, as versions of cuDNN did.
    """
    each = q.shape[1] // k.shape[1]
    k, v = (np.repeat(one, each, 1) for one in (k, v))
    scores = (np.einsum("bhqd,bhkd->bhqk", q, k) * np.float32(scale)).astype(np.float32)
    if bias is not None:
        scores = scores + np.where(np.isneginf(bias), np.float32(np.nan), bias)
    if bound is not None:
        rows, keys = scores.shape[2:]
        last = np.arange(rows)[:, None] + bound + (keys - rows) * from_end
        scores = np.where(np.arange(keys) <= last, scores, np.float32(-np.inf))
    powers = scores * np.float32(math.log2(math.e))
    raised = np.exp2(powers - powers.max(3, keepdims=True))
    total = raised.sum(3, keepdims=True)
    weighed = np.einsum("bhqk,bhke->bhqe", raised.astype(shares).astype(np.float64), v)
    return np.asarray(weighed / total, np.float32)


def convolved(
    image: np.ndarray,
    weight: np.ndarray,
    pads: list[tuple[int, int]],
    steps: list[int],
    dilation: list[int],
) -> np.ndarray:
    """A convolution of NCHW with OIHW, summed in float64."""
    x = np.pad(image.astype(np.float64), [(0, 0), (0, 0), *pads])
    reach = [(weight.shape[2 + i] - 1) * dilation[i] + 1 for i in range(2)]
    windows = np.lib.stride_tricks.sliding_window_view(x, reach, (2, 3))
    windows = windows[:, :, :: steps[0], :: steps[1], :: dilation[0], :: dilation[1]]
    groups = image.shape[1] // weight.shape[1]
    n, _, h, w, kh, kw = windows.shape
    by_group = windows.reshape(n, groups, -1, h, w, kh, kw)
    filters = weight.astype(np.float64).reshape(groups, -1, *weight.shape[1:])
    made = np.einsum("ngchwij,gocij->ngohw", by_group, filters, optimize=True)
    return np.asarray(made.reshape(n, -1, h, w), np.float32)
