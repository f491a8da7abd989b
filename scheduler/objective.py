"""What a placement is made for, as the caller says it: terms and their weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from crossdock.runtime.errors import PlanError

TERMS = ("latency", "throughput", "energy")
UNITS = {"latency": "s", "throughput": "s", "energy": "J"}


@dataclass(frozen=True, slots=True)
class Objective:
    """Weights of the terms, at least 0, with a sum of 1."""

    latency: float = 1.0
    throughput: float = 0.0
    energy: float = 0.0

    @classmethod
    def of(cls, given: object) -> Objective:
        """From a term's name, or a mapping from terms to weights; raises PlanError."""
        wanted = {given: 1.0} if isinstance(given, str) else given
        if isinstance(wanted, Objective):
            return wanted
        if not isinstance(wanted, Mapping) or not wanted or set(wanted) - set(TERMS):
            raise PlanError(
                f"objective {given!r}: give {', '.join(map(repr, TERMS))}, or weights such as "
                "{'latency': 0.5, 'energy': 0.5}"
            )
        weights = {name: _weight(given, wanted.get(name, 0.0)) for name in TERMS}
        total = sum(weights.values())
        if not total > 0.0:
            raise PlanError(f"objective {given!r}: give a weight greater than 0")
        return cls(**{name: weight / total for name, weight in weights.items()})

    @property
    def weights(self) -> dict[str, float]:
        """The terms that count, by name."""
        found = {"latency": self.latency, "throughput": self.throughput, "energy": self.energy}
        return {name: weight for name, weight in found.items() if weight > 0.0}

    @property
    def mixed(self) -> bool:
        """Whether several terms count."""
        return len(self.weights) > 1

    def __str__(self) -> str:
        if not self.mixed:
            return next(iter(self.weights))
        return " + ".join(f"{weight:.3g} {name}" for name, weight in self.weights.items())


def _weight(given: object, weight: object) -> float:
    if not isinstance(weight, int | float) or not 0.0 <= weight < math.inf:
        raise PlanError(f"objective {given!r}: weights are numbers of at least 0, not {weight!r}")
    return float(weight)
