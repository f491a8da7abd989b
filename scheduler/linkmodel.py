"""Transfer time of a link: latency plus size over a bandwidth that depends on the size."""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from crossdock.scheduler.fit import nonnegative_least_squares


@dataclass(frozen=True, slots=True)
class LinkModel:
    """``latency_s + nbytes / bandwidth(nbytes)``.

    Attributes:
        latency_s: seconds of an empty transfer.
        points: (nbytes, bytes_per_s) breakpoints by size; between them the bandwidth is
            interpolated over log size, outside it stays.

    Raises:
        ValueError: no points, sizes not increasing, or numbers out of range.
    """

    latency_s: float
    points: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        """Check ranges and order."""
        sizes = [x for x, _ in self.points]
        good = all(x > 0.0 and rate > 0.0 for x, rate in self.points)
        if not sizes or not good or sorted(set(sizes)) != sizes or not self.latency_s >= 0.0:
            raise ValueError(f"link model: bad latency or breakpoints {self!r}")

    def bandwidth(self, nbytes: float) -> float:
        """Bytes a second at this size."""
        points = self.points
        at = bisect.bisect_left(points, (nbytes,))
        if at == 0 or at == len(points):
            return points[min(at, len(points) - 1)][1]
        (below, slow), (above, fast) = points[at - 1], points[at]
        share = math.log(nbytes / below) / math.log(above / below)
        return slow + share * (fast - slow)

    def seconds(self, nbytes: float) -> float:
        """Time of one transfer of ``nbytes`` >= 0 bytes."""
        return self.latency_s + nbytes / self.bandwidth(nbytes)

    def affine(self, nbytes: float) -> tuple[float, float]:
        """(latency_s, bytes_per_s) that gives the same time at this size."""
        return self.latency_s, self.bandwidth(nbytes)

    @classmethod
    def fit(cls, samples: Iterable[tuple[float, float]]) -> LinkModel:
        """Model from (nbytes, seconds) samples, several a size welcome; medians are used.

        Raises:
            ValueError: no sample with a positive size and time.
        """
        by_size: dict[float, list[float]] = {}
        for nbytes, seconds in samples:
            if nbytes >= 0.0 and seconds > 0.0:
                by_size.setdefault(float(nbytes), []).append(seconds)
        rows = [(size, float(np.median(v))) for size, v in sorted(by_size.items())]
        if not any(size > 0.0 for size, _ in rows):
            raise ValueError("a link model needs samples of a positive size and time")
        times = np.array([t for _, t in rows])
        columns = np.array([(1.0, size) for size, _ in rows]) / times[:, None]
        latency = float(nonnegative_least_squares(columns, np.ones(len(rows)))[0])
        latency = min(latency, 0.95 * float(times.min()))
        points = [(size, size / (t - latency)) for size, t in rows if size > 0.0]
        return cls(latency, tuple(points))
