"""Samples of kernels, and what they say: medians, intervals, drift."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from crossdock.scheduler.fit import Z80, Shape
from crossdock.scheduler.linkmodel import LinkModel
from crossdock.scheduler.work import DeviceRates, Estimate, Source, Work

FEW = 3  # shapes, or samples within graphs, from which on they count
PACES = 64  # newest paces of a device that are remembered
ENOUGH = 20  # misses from which on they scale intervals
NARROWEST, WIDEST = 0.4, 20.0  # factors that they may scale by
MISSES = 256  # newest misses of a kind of prediction
STIFF = 0.5  # squared log paces that what is assumed of a kernel counts as
MOST_SEEN = 40.0  # squared log paces after which old ones fade
LEAST_CHANGE = 0.1  # of the log pace, from which on samples say what it does
MOST_ELASTIC = 1.6
RECENT = 16  # newest samples that decide whether the kernel's speed has drifted


@dataclass(slots=True)
class Samples:
    """The last samples of one shape, alone and within graphs, and its work."""

    seconds: deque[float]
    running: deque[float]
    work: Work | None
    count: int


@dataclass
class Content:
    """All that a cost model knows; plain data, which ``cost_json`` writes and reads.

    Attributes:
        keep: samples kept a key.
        kernels: samples by (fingerprint, variant) and key.
        rates, links: of devices, and of pairs of them, by fingerprint.
        paces: newest paces a device was seen at.
        calibrated: devices whose kernels were timed at shapes of all kinds.
        learnt: what fits learnt by (fingerprint, variant, family), and from how many shapes.
        elasticity: by (fingerprint, kind of kernel), how much times went with the pace beyond what
            is assumed: sums of squared log paces, and of them times the logs of what was left.
        misses: how far the newest predictions were off, over half their interval (both in
            logarithms), by fingerprint and kind of prediction.
    """

    keep: int
    kernels: dict[tuple[str, str], dict[str, Samples]] = field(default_factory=dict)
    rates: dict[str, DeviceRates] = field(default_factory=dict)
    links: dict[tuple[str, str], LinkModel] = field(default_factory=dict)
    paces: dict[str, deque[float]] = field(default_factory=dict)
    calibrated: set[str] = field(default_factory=set)
    learnt: dict[tuple[str, str, str], tuple[int, Shape]] = field(default_factory=dict)
    elasticity: dict[tuple[str, str], tuple[float, float]] = field(default_factory=dict)
    misses: dict[tuple[str, str], deque[float]] = field(default_factory=dict)

    def entry(self, fingerprint: str, variant: str, key: str) -> Samples:
        """The samples of a key; empty ones are added where there are none."""
        shapes = self.kernels.setdefault((fingerprint, variant), {})
        if key not in shapes:
            shapes[key] = Samples(deque(maxlen=self.keep), deque(maxlen=self.keep), None, 0)
        return shapes[key]

    def add(self, other: Content) -> None:
        """Take over what another holds; its samples count as the newer ones."""
        for (fingerprint, variant), shapes in other.kernels.items():
            for key, s in shapes.items():
                entry = self.entry(fingerprint, variant, key)
                entry.seconds.extend(s.seconds)
                entry.running.extend(s.running)
                entry.count += s.count
                entry.work = s.work or entry.work
        for pace_of, paces in other.paces.items():
            self.paces.setdefault(pace_of, deque(maxlen=PACES)).extend(paces)
        for mark, misses in other.misses.items():
            self.misses.setdefault(mark, deque(maxlen=MISSES)).extend(misses)
        self.rates.update(other.rates)
        self.links.update(other.links)
        self.learnt.update(other.learnt)
        self.elasticity.update(other.elasticity)
        self.calibrated |= other.calibrated


def moved(assumed: float, paces: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """What samples of one shape, each at a pace, add to its kernel's sums of elasticity."""
    x, y = np.log(paces), np.log(seconds)
    x, y = x - x.mean(), y - np.median(y)
    if np.ptp(x) < LEAST_CHANGE:
        return 0.0, 0.0
    return float(x @ x), float(x @ (np.clip(y, -1.0, 1.0) - assumed * x))


def middle(seconds: Sequence[float]) -> float:
    """Lower median: of two samples the smaller one, so that one spike never wins."""
    return sorted(seconds)[(len(seconds) - 1) // 2]


def summarise(seconds: Sequence[float], count: int) -> Estimate:
    """Estimate from samples, oldest first: median, with an interval for the next run.

    If the newest samples' median left the older ones' by four deviations and 10 %, the kernel's
    speed has drifted and only the newest count.
    """
    window = list(seconds)
    old, new = window[:-RECENT], window[-RECENT:]
    if len(old) >= RECENT:
        shift = abs(middle(new) - middle(old))
        if shift > max(4.0 * _deviation(old), 0.1 * middle(old)):
            window = new
    centre = middle(window)
    floor = 0.05 if len(window) >= 5 else 0.08
    half = Z80 * max(_deviation(window), floor * centre) * math.sqrt(1.0 + 1.0 / len(window))
    low, high = max(0.0, centre - half), centre + half
    if len(window) >= 20:
        low = min(centre, float(np.quantile(window, 0.1)))
        high = max(centre, float(np.quantile(window, 0.9)))
    return Estimate(centre, low, high, Source.MEASURED, count)


def _deviation(seconds: Sequence[float]) -> float:
    """Standard deviation from the median absolute deviation."""
    centre = middle(seconds)
    return 1.4826 * middle([abs(x - centre) for x in seconds])


def alone(s: Samples, ratio: float) -> float:
    """Seconds of a shape alone, where need be by the ratio of a graph's to them."""
    return middle(tuple(s.seconds)) if s.seconds else middle(tuple(s.running)) / ratio


def far(measured: Estimate, model: Estimate, times: float = 1.0) -> bool:
    """Whether a measured time is so many times above what a model thinks possible."""
    return (
        measured.seconds is not None
        and model.high is not None
        and measured.seconds > times * model.high
    )


def ratios(shapes: Iterable[Samples]) -> list[float]:
    """Logarithms of the time within graphs over the time alone."""
    return [
        math.log(middle(tuple(s.running)) / middle(tuple(s.seconds)))
        for s in shapes
        if s.seconds and len(s.running) >= FEW
    ]


def honest(estimate: Estimate, misses: Sequence[float]) -> Estimate:
    """The estimate with its interval scaled so that it would have held 80 % of the misses.

    G. Shafer, V. Vovk, "A Tutorial on Conformal Prediction", JMLR 9, 2008, section 4.2.
    """
    if len(misses) < ENOUGH or estimate.seconds is None or not estimate.seconds > 0.0:
        return estimate
    down, up = half_widths(estimate)
    scale = float(np.clip(np.quantile(misses, 0.8), NARROWEST, WIDEST))
    low, high = (estimate.seconds * math.exp(x * scale) for x in (-down, up))
    return Estimate(estimate.seconds, low, high, estimate.source, estimate.samples)


def half_widths(estimate: Estimate) -> tuple[float, float]:
    """Logarithms of the estimate over its lower end, and of its upper end over it."""
    assert estimate.seconds is not None
    assert estimate.low is not None
    assert estimate.high is not None
    low = max(estimate.low, 1e-3 * estimate.seconds)
    return math.log(estimate.seconds / low), math.log(max(estimate.high, low) / estimate.seconds)


def widened(estimate: Estimate, spread: float) -> Estimate:
    """The estimate with a further source of uncertainty: of its logarithm, a deviation."""
    if not estimate.seconds or spread <= 0.0:
        return estimate
    down, up = (math.hypot(half, Z80 * spread) for half in half_widths(estimate))
    low, high = estimate.seconds * math.exp(-down), estimate.seconds * math.exp(up)
    return Estimate(estimate.seconds, low, high, estimate.source, estimate.samples)


def scaled_by_shapes(
    rates: DeviceRates | None, roofline: Estimate, shapes: Iterable[Samples], factor: float
) -> Estimate:
    """One or two measured shapes scale the roofline: fitted, with a wide interval."""
    found = []
    for s in shapes:
        ideal = rates.seconds(s.work) if rates and s.work else None
        if ideal:
            found.append(alone(s, 1.0) / ideal)
    if not found or roofline.seconds is None:
        return roofline
    seconds = roofline.seconds * math.exp(float(np.mean(np.log(found)))) * factor
    return Estimate(seconds, seconds / 2.0, seconds * 2.0, Source.FITTED, len(found))
