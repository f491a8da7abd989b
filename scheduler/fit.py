"""Execution time of a kernel as a function of its work, from measured shapes.

The mean is a sum of nonnegative parts: a constant, operations, the units of the work (inner loops,
lines), and bytes at a rate that hangs on how much data there is (each cache has its own). A
Gaussian process over log work and the work's features models what the mean leaves, and gives the
interval (C. E. Rasmussen, C. K. I. Williams, "Gaussian Processes for Machine Learning", MIT Press
2006, algorithms 2.1 and 5.1; the kernel is Matern's with 3/2, a length of its own learnt for every
feature).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from crossdock.scheduler.problem import Floats
from crossdock.scheduler.work import Work

Z80 = 1.2816  # standard normal quantile of a two-sided 80 % interval
MOST_SHAPES = 400
LEARN_SHAPES = 160  # that lengths are learnt from
NOISE = 0.03  # relative spread of a measured shape, at least
FAR = 1.5  # a log residual beyond this counts as this much
KNOTS = np.log2([16e3, 128e3, 1e6, 4e6, 16e6, 64e6])  # data sizes between which rates change
LENGTHS = (1.5, 3.0, 6.0, 12.0)  # tried for all features, in their standard deviations
SHORTEST, LONGEST = 0.4, 60.0


def nonnegative_least_squares(a: Floats, b: Floats) -> Floats:
    """Minimiser of ``|a x - b|`` over x >= 0.

    Args:
        a: float64 (rows, k). b: float64 (rows,).

    Returns:
        float64 (k,).

    C. L. Lawson, R. J. Hanson, "Solving Least Squares Problems", 1974, algorithm NNLS.
    """
    scale = np.maximum(np.abs(a).max(axis=0), 1e-300)
    gram, rhs = (a / scale).T @ (a / scale), (a / scale).T @ b
    x = np.zeros(len(rhs))
    used = np.zeros(len(rhs), bool)
    for _ in range(3 * len(rhs)):
        slope = np.where(used, -np.inf, rhs - gram @ x)
        if slope.max() <= 1e-10 * max(1.0, float(np.abs(rhs).max())):
            break
        used[slope.argmax()] = True
        while True:
            found = np.zeros(len(rhs))
            pick = np.flatnonzero(used)
            found[pick] = np.linalg.lstsq(gram[np.ix_(pick, pick)], rhs[pick], rcond=None)[0]
            if (found[pick] > 0.0).all():
                x = found
                break
            low = pick[found[pick] <= 0.0]
            step = float((x[low] / np.maximum(x[low] - found[low], 1e-300)).min())
            x = x + step * (found - x)
            used &= x > 1e-14
            x[~used] = 0.0
    result: Floats = x / scale
    return result


@dataclass(frozen=True, slots=True)
class Shape:
    """What was learnt of a kernel's residuals: lengths (k,) by feature, signal and noise variance.

    It changes slowly with the shapes measured, and takes most of the time of a fit.
    """

    lengths: tuple[float, ...]
    signal: float
    noise: float


@dataclass(frozen=True, slots=True)
class Fit:
    """A fitted kernel: the mean's coefficients and the process over its log residuals."""

    mean: Floats  # (columns,)
    level: float
    centre: Floats  # (k,) of the features, and their spread
    spread: Floats
    points: Floats  # (s, k) standardised features of the shapes, over the lengths
    weights: Floats  # (s,)
    inverse: Floats  # (s, s) inverse of kernel matrix plus noise
    shape: Shape

    def predict(self, work: Work) -> tuple[float, float, float]:
        """(seconds, low, high) of an 80 % interval."""
        base = float((_columns([work]) @ self.mean)[0])
        here = (_points([work]) - self.centre) / self.spread / np.array(self.shape.lengths)
        near = self.shape.signal * _kernel(here, self.points)[0]
        left = self.shape.signal + self.shape.noise - float(near @ self.inverse @ near)
        half = Z80 * float(np.sqrt(max(left, self.shape.noise)))
        middle = max(base, 1e-9) * float(np.exp(self.level + near @ self.weights))
        return middle, middle * float(np.exp(-half)), middle * float(np.exp(half))


def fit(works: Sequence[Work], seconds: Sequence[float], shape: Shape | None = None) -> Fit | None:
    """Fit shapes (at least three); None where the work says nothing about the time.

    ``shape`` is what was learnt before; without, it is learnt now.
    """
    works, times = list(works)[-MOST_SHAPES:], np.array(seconds, np.float64)[-MOST_SHAPES:]
    columns = _columns(works)
    mean = _robust_mean(columns, times)
    base = columns @ mean
    if not (base > 0.0).all():
        return None
    rest = np.log(times / base)
    level = float(np.median(rest))
    rest = np.clip(rest - level, -FAR, FAR)
    points = _points(works)
    centre, spread = points.mean(axis=0), np.maximum(points.std(axis=0), 1e-3)
    points = (points - centre) / spread
    if shape is None or len(shape.lengths) != points.shape[1]:
        shape = learn(points, rest)
    scaled = points / np.array(shape.lengths)
    matrix = shape.signal * _kernel(scaled, scaled) + shape.noise * np.eye(len(rest))
    inverse: Floats = np.linalg.inv(matrix).astype(np.float64)
    return Fit(mean, level, centre, spread, scaled, inverse @ rest, inverse, shape)


def learn(points: Floats, rest: Floats) -> Shape:
    """Lengths, signal and noise of the greatest likelihood, by a coordinate search.

    Args:
        points: float64 (s, k) standardised features. rest: float64 (s,) log residuals.
    """
    step = max(1, len(rest) // LEARN_SHAPES)
    points, rest = points[::step], rest[::step]
    size = max(float(np.median(np.abs(rest))) * 1.4826, NOISE) ** 2
    starts = [
        Shape((length,) * points.shape[1], signal * size, noise**2)
        for length in LENGTHS
        for signal in (1.0, 4.0)
        for noise in (NOISE, 3.0 * NOISE)
    ]
    scored = [(_evidence(points, rest, s), s) for s in starts]
    best, shape = max(scored, key=lambda pair: pair[0])
    for _ in range(2):
        before = best
        for change in _changes(points.shape[1]):
            for factor in (2.0, 0.5):
                tried = _changed(shape, change, factor)
                value = _evidence(points, rest, tried)
                if value > best:
                    best, shape = value, tried
                    break
        if best - before < 0.5:
            break
    return shape


def _changes(features: int) -> list[int]:
    """What a search step changes: a feature's length, or (-1, -2) signal or noise."""
    return [-1, -2, *range(features)]


def _changed(shape: Shape, at: int, factor: float) -> Shape:
    if at == -1:
        return Shape(shape.lengths, shape.signal * factor, shape.noise)
    if at == -2:
        return Shape(shape.lengths, shape.signal, max(shape.noise * factor, NOISE**2 / 4.0))
    lengths = list(shape.lengths)
    lengths[at] = min(LONGEST, max(SHORTEST, lengths[at] * factor**1.5))
    return Shape(tuple(lengths), shape.signal, shape.noise)


def _evidence(points: Floats, rest: Floats, shape: Shape) -> float:
    """Log marginal likelihood, without its constant."""
    scaled = points / np.array(shape.lengths)
    matrix = shape.signal * _kernel(scaled, scaled) + shape.noise * np.eye(len(rest))
    lower = np.linalg.cholesky(matrix)
    half = np.linalg.solve(lower, rest)
    return float(-0.5 * half @ half - np.log(np.diag(lower)).sum())


def _robust_mean(columns: Floats, times: Floats) -> Floats:
    """Relative-error fit, reweighted three times so that single bad shapes do not pull it."""
    weight = np.ones(len(times))
    mean = np.zeros(columns.shape[1])
    for _ in range(3):
        scaled = columns / times[:, None] * weight[:, None]
        mean = nonnegative_least_squares(scaled, weight)
        miss = np.abs(columns @ mean / times - 1.0)
        scale = max(float(np.median(miss)) * 1.4826, 1e-3)
        weight = 1.0 / np.sqrt(np.maximum(1.0, miss / (2.0 * scale)))
    return mean


def _columns(works: Sequence[Work]) -> Floats:
    """Parts of the mean, float64 (s, 2 + units + knots)."""
    nbytes = np.array([w.nbytes for w in works], np.float64)
    parts = np.array([(1.0, w.flops, *w.units) for w in works], np.float64)
    return np.concatenate([parts, _near_knots(nbytes) * nbytes[:, None]], axis=1)


def _near_knots(nbytes: Floats) -> Floats:
    """How much each knot counts for these sizes, float64 (s, knots); rows sum to 1."""
    size = np.clip(np.log2(np.maximum(nbytes, 1.0)), KNOTS[0], KNOTS[-1])
    rows: Floats = np.stack(
        [np.interp(size, KNOTS, np.eye(len(KNOTS))[k]) for k in range(len(KNOTS))], axis=1
    )
    return rows


def _points(works: Sequence[Work]) -> Floats:
    """Features, float64 (s, 3 + k): log2 of operations and bytes, and the works' own."""
    rows = [(w.flops, w.bytes_read, w.bytes_written) for w in works]
    own = np.array([w.features for w in works], np.float64).reshape(len(works), -1)
    return np.concatenate([np.log2(1.0 + np.array(rows, np.float64)), own], axis=1)


def _kernel(a: Floats, b: Floats) -> Floats:
    """Matern's kernel with 3/2, float64 (len(a), len(b))."""
    square = (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1)[None, :] - 2.0 * a @ b.T
    gap = np.sqrt(3.0 * np.maximum(square, 0.0))
    near: Floats = (1.0 + gap) * np.exp(-gap)
    return near
