"""How good predictions were: errors, coverage of intervals, and rank correlation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from crossdock.runtime.tensor import Array


@dataclass(frozen=True, slots=True)
class Pair:
    """A predicted time with its interval, and the measured one; seconds."""

    predicted: float
    low: float
    high: float
    measured: float

    @property
    def error(self) -> float:
        """(predicted - measured) / measured."""
        return (self.predicted - self.measured) / self.measured


@dataclass(frozen=True, slots=True)
class Metrics:
    """Over a number of pairs; shares and errors of one.

    Attributes:
        count: of pairs.
        mape: mean absolute percentage error, as a share.
        median_ape: median of the absolute percentage errors.
        within_10, within_15: share of the pairs whose error is at most 10 % and 15 %.
        coverage: share measured within the predicted interval (80 % are to be expected).
        rank: Spearman's correlation of predicted and measured; None below three pairs or where
            all are equal.
    """

    count: int
    mape: float
    median_ape: float
    within_10: float
    within_15: float
    coverage: float
    rank: float | None


def metrics(pairs: Sequence[Pair]) -> Metrics | None:
    """Summarise pairs with a measured time greater than zero; None where there is none."""
    kept = [p for p in pairs if p.measured > 0]
    if not kept:
        return None
    error = np.abs([p.error for p in kept])
    inside = [p.low <= p.measured <= p.high for p in kept]
    return Metrics(
        count=len(kept),
        mape=float(error.mean()),
        median_ape=float(np.median(error)),
        within_10=float((error <= 0.10).mean()),
        within_15=float((error <= 0.15).mean()),
        coverage=float(np.mean(inside)),
        rank=spearman([p.predicted for p in kept], [p.measured for p in kept]),
    )


def spearman(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Spearman's rank correlation, ties sharing their mean rank (Spearman 1904)."""
    if len(a) < 3:
        return None
    x, y = _ranks(a), _ranks(b)
    x, y = x - x.mean(), y - y.mean()
    scale = float(np.sqrt((x * x).sum() * (y * y).sum()))
    return float((x * y).sum() / scale) if scale > 0 else None


def _ranks(values: Sequence[float]) -> Array:
    _, inverse, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    mean = ends - (counts - 1) / 2
    ranks: Array = mean[inverse]
    return ranks
