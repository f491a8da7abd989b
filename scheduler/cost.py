"""The cost model: measured samples per kernel variant and shape, and what follows from them."""

from __future__ import annotations

import hashlib
import json
import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from crossdock.runtime.errors import PlanError
from crossdock.scheduler.fit import Z80, Fit, Shape, fit
from crossdock.scheduler.linkmodel import LinkModel
from crossdock.scheduler.work import DeviceRates, Estimate, Source, Work

SCHEMA = "crossdock-costs/2"
KEEP = 64  # samples kept a key
RECENT = 16  # newest samples that decide whether the kernel's speed has drifted
OUTLIER = 10.0  # a shape's only samples this far above the fit's interval are not believed
ROOFLINE_LOW, ROOFLINE_HIGH = 0.8, 4.0  # share of the roofline that kernels take, 80 % interval


FEW = 3  # shapes, or samples within graphs, from which on they count
PACES = 64  # newest paces of a device that are remembered


@dataclass(slots=True)
class _Samples:
    """The last samples of one shape, alone and within graphs, and its work."""

    seconds: deque[float]
    running: deque[float]
    work: Work | None
    count: int


Variant = tuple[str, str]
"""Fingerprint of a device and name of a kernel."""


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
        self._keep = keep
        self._kernels: dict[Variant, dict[str, _Samples]] = {}
        self._rates: dict[str, DeviceRates] = {}
        self._links: dict[tuple[str, str], LinkModel] = {}
        self._paces: dict[str, deque[float]] = {}
        self._calibrated: set[str] = set()
        self._fits: dict[tuple[str, str, str], Fit | None] = {}
        self._shapes: dict[tuple[str, str, str], tuple[int, Shape]] = {}
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
    ) -> None:
        """Add measured runs at pace 1, oldest first; ``work`` lets them inform other shapes.

        ``running``: they were taken within a graph.
        """
        runs = [float(x) for x in seconds]
        if not all(math.isfinite(x) and x > 0.0 for x in runs):
            raise ValueError(f"measured seconds of {variant!r} must be finite and positive")
        if not runs:
            return
        entry = self._entry(fingerprint, variant, key)
        (entry.running if running else entry.seconds).extend(runs)
        entry.count += len(runs)
        entry.work = work or entry.work
        self._changed(fingerprint, variant)

    def _entry(self, fingerprint: str, variant: str, key: str) -> _Samples:
        shapes = self._kernels.setdefault((fingerprint, variant), {})
        empty = _Samples(deque(maxlen=self._keep), deque(maxlen=self._keep), None, 0)
        return shapes.setdefault(key, empty)

    def _changed(self, fingerprint: str, variant: str) -> None:
        for mark in [m for m in self._fits if m[:2] == (fingerprint, variant)]:
            del self._fits[mark]
        self._contexts.clear()
        self._version = None

    def mark_calibrated(self, fingerprint: str) -> None:
        """Note that a device's kernels have been timed at shapes of all kinds."""
        self._calibrated.add(fingerprint)
        self._version = None

    def is_calibrated(self, fingerprint: str) -> bool:
        """Whether a device has been calibrated."""
        return fingerprint in self._calibrated

    def note_pace(self, fingerprint: str, pace: float) -> None:
        """Add a pace that a device was seen at."""
        self._paces.setdefault(fingerprint, deque(maxlen=PACES)).append(float(pace))
        self._version = None

    def pace(self, fingerprint: str) -> float:
        """The usual pace of a device: 1 where none was noted."""
        seen = self._paces.get(fingerprint)
        return middle(tuple(seen)) if seen else 1.0

    def set_rates(self, fingerprint: str, rates: DeviceRates) -> None:
        """Set the roofline of a device."""
        self._rates[fingerprint] = rates
        self._version = None

    def rates(self, fingerprint: str) -> DeviceRates | None:
        """The roofline of a device, if it was set."""
        return self._rates.get(fingerprint)

    def set_link(self, src: str, dst: str, model: LinkModel) -> None:
        """Set the link between two fingerprints, one direction."""
        self._links[src, dst] = model
        self._version = None

    def link(self, src: str, dst: str) -> LinkModel | None:
        """The link from ``src`` to ``dst``, if it was set."""
        return self._links.get((src, dst))

    def samples(
        self, fingerprint: str, variant: str, key: str, *, running: bool = False
    ) -> tuple[float, ...]:
        """The kept samples of a key at pace 1, oldest first; those within graphs if ``running``."""
        entry = self._kernels.get((fingerprint, variant), {}).get(key)
        if entry is None:
            return ()
        return tuple(entry.running if running else entry.seconds)

    def estimate(
        self, fingerprint: str, variant: str, key: str, work: Work | None = None
    ) -> Estimate:
        """Seconds of one run, from the best source; unknown without samples or usable work."""
        entry = self._kernels.get((fingerprint, variant), {}).get(key)
        if entry is None:
            return self.modelled(fingerprint, variant, work)
        work = work or entry.work
        factor = self._factor(fingerprint, work)
        if len(entry.running) >= FEW or not entry.seconds:
            return summarise(tuple(entry.running), entry.count).scaled(factor)
        ratio, spread = self.context(fingerprint, variant)
        alone = summarise(tuple(entry.seconds), entry.count)
        measured = _widened(alone.scaled(factor * ratio), spread)
        if len(entry.seconds) < FEW and _far(measured, self.modelled(fingerprint, variant, work)):
            model = self.modelled(fingerprint, variant, work, leave_out=key)
            if _far(measured, model, OUTLIER):
                return model
        return measured

    def _factor(self, fingerprint: str, work: Work | None) -> float:
        """From pace 1 to the usual pace."""
        return 1.0 if work is None else float(self.pace(fingerprint) ** work.arithmetic)

    def context(self, fingerprint: str, variant: str) -> tuple[float, float]:
        """Time within graphs over time alone, and the spread of its logarithm, for a variant.

        From the shapes that have both; from all the device's where the variant has too few.
        """
        mark = (fingerprint, variant)
        if mark not in self._contexts:
            own = _ratios(self._kernels.get(mark, {}).values())
            if len(own) < FEW:
                own = [
                    r
                    for (device, _), shapes in self._kernels.items()
                    if device == fingerprint
                    for r in _ratios(shapes.values())
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
            for k, s in self._kernels.get((fingerprint, variant), {}).items()
            if s.work is not None and s.work.family == work.family and k != leave_out
        }
        ratio, spread = self.context(fingerprint, variant)
        factor = self._factor(fingerprint, work)
        if len(shapes) >= FEW:
            made = self._fit(fingerprint, variant, work.family, shapes, leave_out)
            if made is not None:
                seconds, low, high = made.predict(work)
                found = Estimate(seconds, low, high, Source.FITTED, len(shapes))
                return _widened(found.scaled(factor * ratio), spread)
        roofline = self._roofline(fingerprint, work)
        return _scaled_by_shapes(
            self._rates.get(fingerprint), roofline, shapes.values(), factor * ratio
        )

    def _fit(
        self,
        fingerprint: str,
        variant: str,
        family: str,
        shapes: Mapping[str, _Samples],
        leave_out: str | None,
    ) -> Fit | None:
        mark = (fingerprint, variant, family)
        if leave_out is None and mark in self._fits:
            return self._fits[mark]
        count, shape = self._shapes.get(mark, (0, None))
        rows = list(shapes.values())
        works = [s.work for s in rows if s.work is not None]
        ratio = self.context(fingerprint, variant)[0]
        times = [alone(s, ratio) for s in rows]
        made = fit(works, times, shape if count and len(rows) < 2 * count else None)
        if made is not None and made.shape is not shape:
            self._shapes[mark] = (len(rows), made.shape)
        if leave_out is None:
            self._fits[mark] = made
        return made

    def _roofline(self, fingerprint: str, work: Work) -> Estimate:
        rates = self._rates.get(fingerprint)
        seconds = rates.seconds(work) if rates else None
        if seconds is None:
            return Estimate.unknown()
        low, high = seconds * ROOFLINE_LOW, seconds * ROOFLINE_HIGH
        return Estimate(seconds, low, high, Source.ROOFLINE)

    def without(self, keys: Iterable[str]) -> CostModel:
        """A new model that has never seen these keys; what was learnt of kernels stays."""
        left = frozenset(keys)
        result = CostModel(keep=self._keep).merge(self)
        for mark, shapes in result._kernels.items():  # noqa: SLF001 - our own
            for key in left & shapes.keys():
                del shapes[key]
            result._contexts[mark] = self.context(*mark)  # noqa: SLF001
        return result

    def merge(self, other: CostModel) -> CostModel:
        """A new model with both contents; the other's samples count as the newer ones."""
        result = CostModel(keep=max(self._keep, other._keep))
        for model in (self, other):
            for (fingerprint, variant), shapes in model._kernels.items():  # noqa: SLF001 - our own
                for key, s in shapes.items():
                    mark = (fingerprint, variant, key)
                    result.record_many(*mark, s.seconds, s.work)
                    result.record_many(*mark, s.running, s.work, running=True)
                    kept = len(s.seconds) + len(s.running)
                    result._entry(*mark).count += s.count - kept
            for fingerprint, paces in model._paces.items():  # noqa: SLF001
                for pace in paces:
                    result.note_pace(fingerprint, pace)
            result._shapes.update(model._shapes)  # noqa: SLF001
            result._calibrated |= model._calibrated  # noqa: SLF001
            result._rates.update(model._rates)  # noqa: SLF001
            result._links.update(model._links)  # noqa: SLF001
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
        return {
            "schema": SCHEMA,
            "keep": self._keep,
            "rates": {
                f: {"flops": dict(r.flops), "bandwidth": r.bandwidth, "launch_s": r.launch_s}
                for f, r in sorted(self._rates.items())
            },
            "links": [
                {
                    "src": a,
                    "dst": b,
                    "latency_s": x.latency_s,
                    "points": [list(p) for p in x.points],
                }
                for (a, b), x in sorted(self._links.items())
            ],
            "calibrated": sorted(self._calibrated),
            "paces": {f: list(p) for f, p in sorted(self._paces.items())},
            "learnt": [
                {
                    "device": f,
                    "variant": v,
                    "family": family,
                    "count": count,
                    "lengths": list(shape.lengths),
                    "signal": shape.signal,
                    "noise": shape.noise,
                }
                for (f, v, family), (count, shape) in sorted(self._shapes.items())
            ],
            "kernels": [
                {"device": f, "variant": v, "key": k, **_samples_json(s)}
                for (f, v), shapes in sorted(self._kernels.items())
                for k, s in sorted(shapes.items())
            ],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> CostModel:
        """Read a model written by ``to_json``.

        Raises:
            PlanError: not such data; the message names what is wrong.
        """
        try:
            if data["schema"] != SCHEMA:
                raise ValueError(f"schema {data['schema']!r} is not {SCHEMA!r}")
            model = cls(keep=int(data["keep"]))
            for f, r in data["rates"].items():
                flops = {str(k): float(v) for k, v in r["flops"].items()}
                rates = DeviceRates(flops, float(r["bandwidth"]), float(r["launch_s"]))
                model.set_rates(str(f), rates)
            for x in data["links"]:
                points = tuple((float(size), float(rate)) for size, rate in x["points"])
                model.set_link(x["src"], x["dst"], LinkModel(float(x["latency_s"]), points))
            for f, paces in data["paces"].items():
                for pace in paces:
                    model.note_pace(str(f), _positive(pace))
            model._calibrated = {str(f) for f in data["calibrated"]}
            for row in data["learnt"]:
                mark = (str(row["device"]), str(row["variant"]), str(row["family"]))
                lengths = tuple(_positive(x) for x in row["lengths"])
                shape = Shape(lengths, _positive(row["signal"]), _positive(row["noise"]))
                model._shapes[mark] = (int(row["count"]), shape)
            for row in data["kernels"]:
                work = None if row["work"] is None else _work(row["work"])
                where = (str(row["device"]), str(row["variant"]), str(row["key"]))
                model.record_many(*where, row["seconds"], work)
                model.record_many(*where, row["running"], work, running=True)
                model._entry(*where).count = int(row["count"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PlanError(f"cost data is damaged ({error}); delete it and probe again") from error
        return model


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
    floor = 0.02 if len(window) >= 5 else 0.08
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


def alone(s: _Samples, ratio: float) -> float:
    """Seconds of a shape alone, where need be by the ratio of a graph's to them."""
    return middle(tuple(s.seconds)) if s.seconds else middle(tuple(s.running)) / ratio


def _far(measured: Estimate, model: Estimate, times: float = 1.0) -> bool:
    """Whether a measured time is so many times above what a model thinks possible."""
    return (
        measured.seconds is not None
        and model.high is not None
        and measured.seconds > times * model.high
    )


def _ratios(shapes: Iterable[_Samples]) -> list[float]:
    """Logarithms of the time within graphs over the time alone."""
    return [
        math.log(middle(tuple(s.running)) / middle(tuple(s.seconds)))
        for s in shapes
        if s.seconds and len(s.running) >= FEW
    ]


def _widened(estimate: Estimate, spread: float) -> Estimate:
    """The estimate with a further source of uncertainty: of its logarithm, a deviation."""
    if estimate.seconds is None or estimate.low is None or estimate.high is None or spread <= 0.0:
        return estimate
    middle_, more = estimate.seconds, Z80 * spread
    down = math.hypot(math.log(middle_ / max(estimate.low, 1e-3 * middle_)), more)
    up = math.hypot(math.log(estimate.high / middle_), more)
    low, high = middle_ * math.exp(-down), middle_ * math.exp(up)
    return Estimate(middle_, low, high, estimate.source, estimate.samples)


def _scaled_by_shapes(
    rates: DeviceRates | None, roofline: Estimate, shapes: Iterable[_Samples], factor: float
) -> Estimate:
    """One or two measured shapes scale the roofline: fitted, with a wide interval."""
    ratios = []
    for s in shapes:
        ideal = rates.seconds(s.work) if rates and s.work else None
        if ideal:
            ratios.append(alone(s, 1.0) / ideal)
    if not ratios or roofline.seconds is None:
        return roofline
    seconds = roofline.seconds * math.exp(float(np.mean(np.log(ratios)))) * factor
    return Estimate(seconds, seconds / 2.0, seconds * 2.0, Source.FITTED, len(ratios))


def _samples_json(s: _Samples) -> dict[str, Any]:
    work = None
    if s.work is not None:
        work = {name: getattr(s.work, name) for name in Work.__slots__}
        work |= {"features": list(s.work.features), "units": list(s.work.units)}
    return {
        "work": work,
        "seconds": list(s.seconds),
        "running": list(s.running),
        "count": s.count,
    }


def _work(row: Mapping[str, Any]) -> Work:
    parts = {name: tuple(float(x) for x in row[name]) for name in ("features", "units")}
    return Work(**{**row, **parts})


def _positive(value: Any) -> float:
    number = float(value)
    if not (math.isfinite(number) and number > 0.0):
        raise ValueError(f"{value!r} is not a positive number")
    return number
