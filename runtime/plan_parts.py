"""What a plan says about itself beyond its steps: what it was made for. Data only."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Goal:
    """What a plan was made for, and what it comes to.

    Attributes:
        objective: "latency", "throughput", "energy", or weights of them.
        value: the objective's predicted value in ``unit``: seconds of a run, seconds between the
            ends of successive runs, joules of a run; of a mix, over the best single device's.
        bound: no placement has a smaller value; 0 where nothing is known.
        interval: predicted seconds between the ends of successive runs in flight together.
        joules: predicted joules of a run by itself; None where the watts are not known.
    """

    objective: str = "latency"
    value: float = 0.0
    unit: str = "s"
    bound: float = 0.0
    interval: float = 0.0
    joules: float | None = None

    def __str__(self) -> str:
        if self.unit == "s":
            said = f"{self.value * 1e3:.3f} ms " + (
                "between runs" if self.objective == "throughput" else "a run"
            )
        elif self.unit == "J":
            said = f"{self.value:.4g} J a run"
        else:
            said = f"{self.value:.3f} of the best single device's"
        parts = [f"objective {self.objective}: {said}"]
        if self.objective != "throughput" and self.interval > 0.0:
            parts.append(f"{self.interval * 1e3:.3f} ms between runs in flight together")
        if self.objective != "energy" and self.joules is not None:
            parts.append(f"{self.joules:.4g} J a run")
        return ", ".join(parts)
