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
from crossdock.scheduler.fit import Z80, Fit, fit
from crossdock.scheduler.linkmodel import LinkModel
from crossdock.scheduler.work import DeviceRates, Estimate, Source, Work

SCHEMA = "crossdock-costs/1"
KEEP = 64  # samples kept a key
RECENT = 16  # newest samples that decide whether the kernel's speed has drifted
OUTLIER = 10.0  # a shape's only samples this far above the fit's interval are not believed
ROOFLINE_LOW, ROOFLINE_HIGH = 0.8, 4.0  # share of the roofline that kernels take, 80 % interval


@dataclass(slots=True)
class _Samples:
    """The last samples of one shape, and its work."""

    seconds: deque[float]
    work: Work | None
    count: int


class CostModel:
    """Samples by (device fingerprint, kernel variant, key), device rates and links.

    ``key`` names shapes, dtypes and attributes. Estimates come from the best source there is:
    measured, else fitted over the variant's other shapes, else the roofline, else unknown.
    One writer at a time; readers may share a model that nobody writes.
    """

    def __init__(self, *, keep: int = KEEP) -> None:
        """Start empty, keeping the last ``keep`` samples of a key."""
        self._keep = keep
        self._kernels: dict[tuple[str, str], dict[str, _Samples]] = {}
        self._rates: dict[str, DeviceRates] = {}
        self._links: dict[tuple[str, str], LinkModel] = {}
        self._fits: dict[tuple[str, str], Fit | None] = {}
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
    ) -> None:
        """Add measured runs, oldest first; ``work`` lets them inform other shapes."""
        runs = [float(x) for x in seconds]
        if not all(math.isfinite(x) and x > 0.0 for x in runs):
            raise ValueError(f"measured seconds of {variant!r} must be finite and positive")
        if not runs:
            return
        shapes = self._kernels.setdefault((fingerprint, variant), {})
        entry = shapes.setdefault(key, _Samples(deque(maxlen=self._keep), None, 0))
        entry.seconds.extend(runs)
        entry.count += len(runs)
        entry.work = work or entry.work
        self._fits.pop((fingerprint, variant), None)
        self._version = None

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

    def samples(self, fingerprint: str, variant: str, key: str) -> tuple[float, ...]:
        """The kept samples of a key, oldest first."""
        entry = self._kernels.get((fingerprint, variant), {}).get(key)
        return tuple(entry.seconds) if entry else ()

    def estimate(
        self, fingerprint: str, variant: str, key: str, work: Work | None = None
    ) -> Estimate:
        """Seconds of one run, from the best source; unknown without samples or usable work."""
        entry = self._kernels.get((fingerprint, variant), {}).get(key)
        if entry is None:
            return self._modelled(fingerprint, variant, work)
        measured = summarise(tuple(entry.seconds), entry.count)
        if len(entry.seconds) < 3 and (work or entry.work) is not None:
            model = self._modelled(fingerprint, variant, work or entry.work, leave_out=key)
            if model.high is not None and (measured.seconds or 0.0) > OUTLIER * model.high:
                return model
        return measured

    def _modelled(
        self, fingerprint: str, variant: str, work: Work | None, leave_out: str | None = None
    ) -> Estimate:
        if work is None:
            return Estimate.unknown()
        shapes = {
            k: s
            for k, s in self._kernels.get((fingerprint, variant), {}).items()
            if s.work is not None and k != leave_out
        }
        if len(shapes) >= 3:
            made = self._fit(fingerprint, variant, shapes, leave_out)
            if made is not None:
                seconds, low, high = made.predict(work)
                return Estimate(seconds, low, high, Source.FITTED, len(shapes))
        roofline = self._roofline(fingerprint, work)
        return _scaled_by_shapes(self._rates.get(fingerprint), roofline, shapes.values())

    def _fit(
        self,
        fingerprint: str,
        variant: str,
        shapes: Mapping[str, _Samples],
        leave_out: str | None,
    ) -> Fit | None:
        if leave_out is None and (fingerprint, variant) in self._fits:
            return self._fits[fingerprint, variant]
        works = [s.work for s in shapes.values() if s.work is not None]
        times = [middle(tuple(s.seconds)) for s in shapes.values()]
        made = fit(works, times)
        if leave_out is None:
            self._fits[fingerprint, variant] = made
        return made

    def _roofline(self, fingerprint: str, work: Work) -> Estimate:
        rates = self._rates.get(fingerprint)
        seconds = rates.seconds(work) if rates else None
        if seconds is None:
            return Estimate.unknown()
        low, high = seconds * ROOFLINE_LOW, seconds * ROOFLINE_HIGH
        return Estimate(seconds, low, high, Source.ROOFLINE)

    def merge(self, other: CostModel) -> CostModel:
        """A new model with both contents; the other's samples count as the newer ones."""
        result = CostModel(keep=max(self._keep, other._keep))
        for model in (self, other):
            for (fingerprint, variant), shapes in model._kernels.items():  # noqa: SLF001 - our own
                for key, s in shapes.items():
                    result.record_many(fingerprint, variant, key, s.seconds, s.work)
                    result._kernels[fingerprint, variant][key].count += s.count - len(s.seconds)
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
            for row in data["kernels"]:
                work = Work(**row["work"]) if row["work"] is not None else None
                where = (str(row["device"]), str(row["variant"]))
                model.record_many(*where, str(row["key"]), row["seconds"], work)
                model._kernels[where][str(row["key"])].count = int(row["count"])
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


def _scaled_by_shapes(
    rates: DeviceRates | None, roofline: Estimate, shapes: Iterable[_Samples]
) -> Estimate:
    """One or two measured shapes scale the roofline: fitted, with a wide interval."""
    ratios = []
    for s in shapes:
        ideal = rates.seconds(s.work) if rates and s.work else None
        if ideal:
            ratios.append(middle(tuple(s.seconds)) / ideal)
    if not ratios or roofline.seconds is None:
        return roofline
    seconds = roofline.seconds * math.exp(float(np.mean(np.log(ratios))))
    return Estimate(seconds, seconds / 2.0, seconds * 2.0, Source.FITTED, len(ratios))


def _samples_json(s: _Samples) -> dict[str, Any]:
    work = None
    if s.work is not None:
        work = {name: getattr(s.work, name) for name in Work.__slots__}
    return {"work": work, "seconds": list(s.seconds), "count": s.count}
