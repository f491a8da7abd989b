"""Execution time of a kernel as a function of its work, from measured shapes.

The mean is affine, ``a + b * flops + c * bytes`` with a, b, c >= 0, fitted to relative errors;
a Gaussian process over log work models what the affine part leaves (cache knees, tile
remainders) and gives the interval (C. E. Rasmussen, C. K. I. Williams, "Gaussian Processes for
Machine Learning", MIT Press 2006, algorithm 2.1).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from crossdock.scheduler.problem import Floats
from crossdock.scheduler.work import Work

Z80 = 1.2816  # standard normal quantile of a two-sided 80 % interval
MAX_SHAPES = 256
NOISE = 0.07  # relative spread of a single measured shape, from CPU kernels
LENGTHS = (0.5, 1.0, 2.0, 4.0)  # correlation lengths tried, in units of log work


def nonnegative_least_squares(a: Floats, b: Floats) -> Floats:
    """Exact minimiser of ``|a x - b|`` over x >= 0 for a few columns (k <= 4), by subsets.

    Args:
        a: float64 (rows, k). b: float64 (rows,).

    Returns:
        float64 (k,).
    """
    k = a.shape[1]
    best, best_error = np.zeros(k), float(b @ b)
    scale = np.maximum(np.abs(a).max(axis=0), 1e-300)
    for size in range(1, k + 1):
        for columns in itertools.combinations(range(k), size):
            pick = list(columns)
            x = np.linalg.lstsq(a[:, pick] / scale[pick], b, rcond=None)[0]
            if (x < 0.0).any():
                continue
            rest = a[:, pick] @ (x / scale[pick]) - b
            error = float(rest @ rest)
            if error < best_error * (1.0 - 1e-12):
                best, best_error = np.zeros(k), error
                best[pick] = x / scale[pick]
    return best


@dataclass(frozen=True, slots=True)
class Fit:
    """A fitted kernel: affine coefficients and the process over log residuals."""

    affine: Floats  # (3,)
    points: Floats  # (s, 3) log work of the shapes
    weights: Floats  # (s,)
    inverse: Floats  # (s, s) inverse of kernel matrix plus noise
    signal: float
    length: float
    noise: float

    def predict(self, work: Work) -> tuple[float, float, float]:
        """(seconds, low, high) of an 80 % interval."""
        base = float((_columns([work]) @ self.affine)[0])
        here = _log_work([work])
        near = self.signal * _kernel(here, self.points, self.length)[0]
        shift = float(near @ self.weights)
        spread = self.signal + self.noise - float(near @ self.inverse @ near)
        half = Z80 * float(np.sqrt(max(spread, self.noise)))
        middle = base * float(np.exp(shift))
        return middle, middle * float(np.exp(-half)), middle * float(np.exp(half))


def fit(works: Sequence[Work], seconds: Sequence[float]) -> Fit | None:
    """Fit shapes (at least three); None where the work says nothing about the time."""
    works, times = list(works)[-MAX_SHAPES:], np.array(seconds, np.float64)[-MAX_SHAPES:]
    affine = _robust_affine(_columns(works), times)
    base = _columns(works) @ affine
    if not (base > 0.0).all():
        return None
    rest = np.log(times / base)
    points = _log_work(works)
    best: tuple[float, Fit] | None = None
    signal = max(float(np.median(rest**2)) * 2.0, 1e-4)
    for length in LENGTHS:
        for share in (0.1, 0.5, 1.0):
            made = _process(points, rest, affine, signal, length, max(NOISE**2, share * signal))
            if best is None or made[0] > best[0]:
                best = made
    return best[1] if best else None


def _process(
    points: Floats, rest: Floats, affine: Floats, signal: float, length: float, noise: float
) -> tuple[float, Fit]:
    """Log likelihood of held-out shapes (leave one out) and the process."""
    matrix = signal * _kernel(points, points, length) + noise * np.eye(len(rest))
    inverse: Floats = np.linalg.inv(matrix).astype(np.float64)
    weights = inverse @ rest
    spread = 1.0 / np.diag(inverse)
    miss = weights * spread
    likelihood = float(-0.5 * (np.log(spread) + miss**2 / spread).sum())
    return likelihood, Fit(affine, points, weights, inverse, signal, length, noise)


def _robust_affine(columns: Floats, times: Floats) -> Floats:
    """Relative-error fit, reweighted three times so that single bad shapes do not pull it."""
    weight = np.ones(len(times))
    affine = np.zeros(columns.shape[1])
    for _ in range(3):
        scaled = columns / times[:, None] * weight[:, None]
        affine = nonnegative_least_squares(scaled, weight)
        miss = np.abs(columns @ affine / times - 1.0)
        scale = max(float(np.median(miss)) * 1.4826, 1e-3)
        weight = 1.0 / np.sqrt(np.maximum(1.0, miss / (2.0 * scale)))
    return affine


def _columns(works: Sequence[Work]) -> Floats:
    return np.array([(1.0, w.flops, w.nbytes) for w in works], np.float64)


def _log_work(works: Sequence[Work]) -> Floats:
    rows = [(w.flops, w.bytes_read, w.bytes_written) for w in works]
    return np.log1p(np.array(rows, np.float64))


def _kernel(a: Floats, b: Floats, length: float) -> Floats:
    gap = ((a[:, None, :] - b[None, :, :]) ** 2).sum(axis=2)
    near: Floats = np.exp(gap / (-2.0 * length**2))
    return near
