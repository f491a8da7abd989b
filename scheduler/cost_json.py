"""The JSON form of a cost model's content."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import Any

from crossdock.runtime.errors import PlanError
from crossdock.scheduler.fit import Shape
from crossdock.scheduler.linkmodel import LinkModel
from crossdock.scheduler.samples import MISSES, PACES, Content, Samples
from crossdock.scheduler.work import DeviceRates, Work

SCHEMA = "crossdock-costs/3"


def to_json(content: Content) -> dict[str, Any]:
    """Plain data; ``from_json`` gives equal content."""
    return {
        "schema": SCHEMA,
        "keep": content.keep,
        "rates": {
            f: {"flops": dict(r.flops), "bandwidth": r.bandwidth, "launch_s": r.launch_s}
            for f, r in sorted(content.rates.items())
        },
        "links": [
            {
                "src": a,
                "dst": b,
                "latency_s": x.latency_s,
                "points": [list(p) for p in x.points],
            }
            for (a, b), x in sorted(content.links.items())
        ],
        "calibrated": sorted(content.calibrated),
        "paces": {f: list(p) for f, p in sorted(content.paces.items())},
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
            for (f, v, family), (count, shape) in sorted(content.learnt.items())
        ],
        "elasticity": [
            {"device": f, "variant": v, "square": square, "cross": cross}
            for (f, v), (square, cross) in sorted(content.elasticity.items())
        ],
        "misses": [
            {"device": f, "kind": kind, "ratios": list(found)}
            for (f, kind), found in sorted(content.misses.items())
        ],
        "kernels": [
            {"device": f, "variant": v, "key": k, **_samples_json(s)}
            for (f, v), shapes in sorted(content.kernels.items())
            for k, s in sorted(shapes.items())
        ],
    }


def from_json(data: Mapping[str, Any]) -> Content:
    """Read what ``to_json`` gave.

    Raises:
        PlanError: not such data; the message names what is wrong.
    """
    try:
        if data["schema"] != SCHEMA:
            raise ValueError(f"schema {data['schema']!r} is not {SCHEMA!r}")
        content = Content(int(data["keep"]))
        for f, r in data["rates"].items():
            flops = {str(k): float(v) for k, v in r["flops"].items()}
            rates = DeviceRates(flops, float(r["bandwidth"]), float(r["launch_s"]))
            content.rates[str(f)] = rates
        for x in data["links"]:
            points = tuple((float(size), float(rate)) for size, rate in x["points"])
            content.links[x["src"], x["dst"]] = LinkModel(float(x["latency_s"]), points)
        for f, paces in data["paces"].items():
            seen = content.paces.setdefault(str(f), deque(maxlen=PACES))
            seen.extend(_positive(pace) for pace in paces)
        content.calibrated = {str(f) for f in data["calibrated"]}
        for row in data["learnt"]:
            mark = (str(row["device"]), str(row["variant"]), str(row["family"]))
            lengths = tuple(_positive(x) for x in row["lengths"])
            shape = Shape(lengths, _positive(row["signal"]), _positive(row["noise"]))
            content.learnt[mark] = (int(row["count"]), shape)
        for row in data["elasticity"]:
            sums = (abs(_finite(row["square"])), _finite(row["cross"]))
            content.elasticity[str(row["device"]), str(row["variant"])] = sums
        for row in data["kernels"]:
            work = None if row["work"] is None else _work(row["work"])
            entry = content.entry(str(row["device"]), str(row["variant"]), str(row["key"]))
            entry.seconds.extend(_positive(x) for x in row["seconds"])
            entry.running.extend(_positive(x) for x in row["running"])
            entry.work, entry.count = work, int(row["count"])
        for row in data["misses"]:
            found = deque((abs(float(x)) for x in row["ratios"]), maxlen=MISSES)
            content.misses[str(row["device"]), str(row["kind"])] = found
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise PlanError(f"cost data is damaged ({error}); delete it and probe again") from error
    return content


def _samples_json(s: Samples) -> dict[str, Any]:
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


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{value!r} is not a number")
    return number


def _positive(value: Any) -> float:
    number = float(value)
    if not (math.isfinite(number) and number > 0.0):
        raise ValueError(f"{value!r} is not a positive number")
    return number
