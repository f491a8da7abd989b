"""The cost model: measured samples per kernel variant and shape, and what follows from them."""

from __future__ import annotations

import hashlib
import json
import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from crossdock.scheduler.fit import Fit, fit
from crossdock.scheduler.linkmodel import LinkModel
from crossdock.scheduler.samples import (
    FEW,
    MISSES,
    MOST_ELASTIC,
    MOST_SEEN,
    PACES,
    RECENT,
    STIFF,
    Content,
    Samples,
    alone,
    far,
    half_widths,
    honest,
    middle,
    moved,
    ratios,
    scaled_by_shapes,
    summarise,
    widened,
)
from crossdock.scheduler.work import DeviceRates, Estimate, Source, Work

KEEP = 64  # samples kept a key
REFIT = 16  # a variant is fitted anew when one in so many of its shapes is news
OUTLIER = 10.0  # a shape's only samples this far above the fit's interval are not believed
ROOFLINE_LOW, ROOFLINE_HIGH = 0.8, 4.0  # share of the roofline that kernels take, 80 % interval

RUNNING, ALONE, FITTED = KINDS = ("running", "alone", "fitted")
"""Kinds of predictions: from times within graphs, from the kernel's alone, from other shapes."""

Variant = tuple[str, str]
"""Fingerprint of a device and name of a kernel."""


def _kin(variant: str) -> str:
    """The kind of op of a kernel's name: ``cpu.conv2d`` of ``cpu.conv2d.panel``."""
    return ".".join(variant.split(".")[:2])


class CostModel:
    """Samples by (device fingerprint, kernel variant, key), device rates and links.

    ``key`` names shapes, dtypes and attributes. Estimates come from the best source there is:
    measured, else fitted over the variant's other shapes, else the roofline, else unknown.

    Samples are seconds at pace 1 (``pace`` is how long arithmetic takes relative to a fixed
    reference; a device's clock and its neighbours change it), estimates seconds at the device's
    usual pace. Samples taken within graphs, where caches hold other data, count before those of
    kernels timed alone; what the ratio of the two is, kernels never seen in a graph inherit.

    One writer at a time; readers may share a model that nobody writes.
    """

    def __init__(self, *, keep: int = KEEP) -> None:
        """Start empty, keeping the last ``keep`` samples of a key."""
        self.content = Content(keep)
        self._fits: dict[tuple[str, str, str], Fit | None] = {}
        self._news: dict[Variant, int] = {}
        self._contexts: dict[Variant, tuple[float, float]] = {}
        self._version: str | None = None

    def record(
        self, fingerprint: str, variant: str, key: str, seconds: float, work: Work | None = None
    ) -> None:
        """Add one measured run.

        Raises:
            ValueError: ``seconds`` is not a finite positive number.
        """
        self.record_many(fingerprint, variant, key, [seconds], work)

    def record_many(
        self,
        fingerprint: str,
        variant: str,
        key: str,
        seconds: Iterable[float],
        work: Work | None = None,
        *,
        running: bool = False,
        anew: bool = False,
    ) -> None:
        """Add measured runs at pace 1, oldest first; ``work`` lets them inform other shapes.

        ``running``: they were taken within a graph. ``anew``: earlier ones are no longer true.
        """
        runs = [float(x) for x in seconds]
        if not all(math.isfinite(x) and x > 0.0 for x in runs):
            raise ValueError(f"measured seconds of {variant!r} must be finite and positive")
        if not runs:
            return
        if running:
            self._learn_misses(fingerprint, variant, key, runs, work)
        entry = self.content.entry(fingerprint, variant, key)
        samples = entry.running if running else entry.seconds
        if anew:
            samples.clear()
        samples.extend(runs)
        entry.count += len(runs)
        entry.work = work or entry.work
        self._changed(fingerprint, variant)

    def _learn_misses(
        self, fingerprint: str, variant: str, key: str, runs: Sequence[float], work: Work | None
    ) -> None:
        """Note how far the prediction was off that these runs would have had."""
        kind, before = self._predicted(fingerprint, variant, key, work)
        if before.seconds and kind in KINDS:
            taken = middle(runs) * self._factor(fingerprint, variant, work)
            down, up = half_widths(before)
            miss = math.log(taken / before.seconds)
            half = max(down if miss < 0.0 else up, 1e-3)
            misses = self.content.misses.setdefault((fingerprint, kind), deque(maxlen=MISSES))
            misses.append(abs(miss) / half)

    def _changed(self, fingerprint: str, variant: str) -> None:
        mark = (fingerprint, variant)
        self._news[mark] = self._news.get(mark, 0) + 1
        if self._news[mark] * REFIT >= len(self.content.kernels.get(mark, ())):
            self._news[mark] = 0
            for known in [m for m in self._fits if m[:2] == mark]:
                del self._fits[known]
        self._contexts.clear()
        self._version = None

    def mark_calibrated(self, fingerprint: str) -> None:
        """Note that a device's kernels have been timed at shapes of all kinds."""
        self.content.calibrated.add(fingerprint)
        self._version = None

    def is_calibrated(self, fingerprint: str) -> bool:
        """Whether a device has been calibrated."""
        return fingerprint in self.content.calibrated

    def note_pace(self, fingerprint: str, pace: float) -> None:
        """Add a pace that a device was seen at."""
        self.content.paces.setdefault(fingerprint, deque(maxlen=PACES)).append(float(pace))
        self._version = None

    def pace(self, fingerprint: str) -> float:
        """The usual pace of a device: 1 where none was noted."""
        seen = self.content.paces.get(fingerprint)
        return middle(tuple(seen)) if seen else 1.0

    def note_elasticity(
        self,
        fingerprint: str,
        variant: str,
        work: Work,
        paces: Sequence[float],
        seconds: Sequence[float],
    ) -> None:
        """Learn how a kernel goes with the pace, from runs of one shape, each at a pace."""
        added = moved(work.arithmetic, paces, seconds)
        mark = (fingerprint, _kin(variant))
        before = self.content.elasticity.get(mark, (0.0, 0.0))
        square, cross = (a + b for a, b in zip(before, added, strict=True))
        fade = min(1.0, MOST_SEEN / max(square, 1e-9))
        self.content.elasticity[mark] = (square * fade, cross * fade)
        self._version = None

    def elasticity(self, fingerprint: str, variant: str, work: Work) -> float:
        """The power of the pace that a kernel's time goes with: as assumed, and as seen.

        Kernels of one kind of op share what was seen, so that the pace never turns one into the
        faster one.
        """
        square, cross = self.content.elasticity.get((fingerprint, _kin(variant)), (0.0, 0.0))
        return min(MOST_ELASTIC, max(0.0, work.arithmetic + cross / (square + STIFF)))

    def set_rates(self, fingerprint: str, rates: DeviceRates) -> None:
        """Set the roofline of a device."""
        self.content.rates[fingerprint] = rates
        self._version = None

    def rates(self, fingerprint: str) -> DeviceRates | None:
        """The roofline of a device, if it was set."""
        return self.content.rates.get(fingerprint)

    def set_link(self, src: str, dst: str, model: LinkModel) -> None:
        """Set the link between two fingerprints, one direction."""
        self.content.links[src, dst] = model
        self._version = None

    def link(self, src: str, dst: str) -> LinkModel | None:
        """The link from ``src`` to ``dst``, if it was set."""
        return self.content.links.get((src, dst))

    def samples(
        self, fingerprint: str, variant: str, key: str, *, running: bool = False
    ) -> tuple[float, ...]:
        """The kept samples of a key at pace 1, oldest first; those within graphs if ``running``."""
        entry = self.content.kernels.get((fingerprint, variant), {}).get(key)
        if entry is None:
            return ()
        return tuple(entry.running if running else entry.seconds)

    def estimate(
        self, fingerprint: str, variant: str, key: str, work: Work | None = None
    ) -> Estimate:
        """Seconds of one run, from the best source; unknown without samples or usable work.

        Intervals are as wide as the device's newest predictions of this kind called for.
        """
        kind, found = self._predicted(fingerprint, variant, key, work)
        return honest(found, tuple(self.content.misses.get((fingerprint, kind), ())))

    def _predicted(
        self, fingerprint: str, variant: str, key: str, work: Work | None
    ) -> tuple[str, Estimate]:
        """The kind of prediction, and the estimate with the interval that its samples give."""
        entry = self.content.kernels.get((fingerprint, variant), {}).get(key)
        if entry is None or not (entry.seconds or entry.running):
            return FITTED, self.modelled(fingerprint, variant, work)
        work = work or entry.work
        factor = self._factor(fingerprint, variant, work)
        if len(entry.running) >= FEW or not entry.seconds:
            newest = tuple(entry.running)[-RECENT:]
            return RUNNING, summarise(newest, entry.count).scaled(factor)
        ratio, spread = self.context(fingerprint, variant)
        by_itself = summarise(tuple(entry.seconds), entry.count)
        measured = widened(by_itself.scaled(factor * ratio), spread)
        if len(entry.seconds) < FEW and far(measured, self.modelled(fingerprint, variant, work)):
            model = self.modelled(fingerprint, variant, work, leave_out=key)
            if far(measured, model, OUTLIER):
                return FITTED, model
        return ALONE, measured

    def _factor(self, fingerprint: str, variant: str, work: Work | None) -> float:
        """From pace 1 to the usual pace."""
        if work is None:
            return 1.0
        return float(self.pace(fingerprint) ** self.elasticity(fingerprint, variant, work))

    def context(self, fingerprint: str, variant: str) -> tuple[float, float]:
        """Time within graphs over time alone, and the spread of its logarithm, for a variant.

        From the shapes that have both; from all the device's where the variant has too few.
        """
        mark = (fingerprint, variant)
        if mark not in self._contexts:
            own = ratios(self.content.kernels.get(mark, {}).values())
            if len(own) < FEW:
                own = [
                    r
                    for (device, _), shapes in self.content.kernels.items()
                    if device == fingerprint
                    for r in ratios(shapes.values())
                ]
            self._contexts[mark] = (1.0, 0.0)
            if len(own) >= FEW:
                level = float(np.median(own))
                spread = 1.4826 * float(np.median(np.abs(np.array(own) - level)))
                self._contexts[mark] = (math.exp(level), spread)
        return self._contexts[mark]

    def modelled(
        self, fingerprint: str, variant: str, work: Work | None, leave_out: str | None = None
    ) -> Estimate:
        """The estimate for a shape as if ``leave_out``, a key, had never been measured."""
        if work is None:
            return Estimate.unknown()
        shapes = {
            k: s
            for k, s in self.content.kernels.get((fingerprint, variant), {}).items()
            if s.work is not None and s.work.family == work.family and k != leave_out
        }
        ratio, spread = self.context(fingerprint, variant)
        factor = self._factor(fingerprint, variant, work)
        if len(shapes) >= FEW:
            made = self._fit(fingerprint, variant, work.family, shapes, leave_out)
            if made is not None:
                seconds, low, high = made.predict(work)
                found = Estimate(seconds, low, high, Source.FITTED, len(shapes))
                return widened(found.scaled(factor * ratio), spread)
        roofline = self._roofline(fingerprint, work)
        return scaled_by_shapes(
            self.content.rates.get(fingerprint), roofline, shapes.values(), factor * ratio
        )

    def _fit(
        self,
        fingerprint: str,
        variant: str,
        family: str,
        shapes: Mapping[str, Samples],
        leave_out: str | None,
    ) -> Fit | None:
        mark = (fingerprint, variant, family)
        if leave_out is None and mark in self._fits:
            return self._fits[mark]
        count, shape = self.content.learnt.get(mark, (0, None))
        rows = list(shapes.values())
        works = [s.work for s in rows if s.work is not None]
        ratio = self.context(fingerprint, variant)[0]
        times = [alone(s, ratio) for s in rows]
        made = fit(works, times, shape if count and len(rows) < 2 * count else None)
        if made is not None and made.shape is not shape:
            self.content.learnt[mark] = (len(rows), made.shape)
        if leave_out is None:
            self._fits[mark] = made
        return made

    def _roofline(self, fingerprint: str, work: Work) -> Estimate:
        rates = self.content.rates.get(fingerprint)
        seconds = rates.seconds(work) if rates else None
        if seconds is None:
            return Estimate.unknown()
        low, high = seconds * ROOFLINE_LOW, seconds * ROOFLINE_HIGH
        return Estimate(seconds, low, high, Source.ROOFLINE)

    def without(self, keys: Iterable[str]) -> CostModel:
        """A new model that has never seen these keys; what was learnt of kernels stays."""
        left = frozenset(keys)
        result = CostModel(keep=self.content.keep).merge(self)
        for mark, shapes in result.content.kernels.items():
            for key in left & shapes.keys():
                del shapes[key]
            result._contexts[mark] = self.context(*mark)  # noqa: SLF001 - our own
        return result

    def merge(self, other: CostModel) -> CostModel:
        """A new model with both contents; the other's samples count as the newer ones."""
        result = CostModel(keep=max(self.content.keep, other.content.keep))
        result.content.add(self.content)
        result.content.add(other.content)
        return result

    @property
    def version(self) -> str:
        """Hash of the content, 12 hexadecimal digits; equal content, equal version."""
        if self._version is None:
            text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
            self._version = hashlib.sha256(text.encode()).hexdigest()[:12]
        return self._version

    def to_json(self) -> dict[str, Any]:
        """Plain data; ``from_json`` gives an equal model."""
        from crossdock.scheduler.cost_json import to_json

        return to_json(self.content)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> CostModel:
        """Read a model written by ``to_json``.

        Raises:
            PlanError: not such data; the message names what is wrong.
        """
        from crossdock.scheduler.cost_json import from_json

        model = cls()
        model.content = from_json(data)
        return model
