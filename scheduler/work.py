"""Estimates, work and device rates: the terms in which costs are stated."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass


class Source(enum.Enum):
    """Where an estimate comes from, best first."""

    MEASURED = "measured"
    FITTED = "fitted"
    ROOFLINE = "roofline"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Estimate:
    """Predicted seconds with an 80 % interval and where the number came from.

    ``unknown`` is a state: ``seconds``, ``low`` and ``high`` are then all ``None``, never zero.

    Raises:
        ValueError: numbers missing, not finite, negative or out of order for a known source.
    """

    seconds: float | None
    low: float | None
    high: float | None
    source: Source
    samples: int = 0

    def __post_init__(self) -> None:
        """Check that numbers and source agree."""
        numbers = (self.low, self.seconds, self.high)
        if self.source is Source.UNKNOWN:
            if any(x is not None for x in numbers):
                raise ValueError("an unknown estimate has no numbers")
            return
        finite = [x for x in numbers if x is not None and math.isfinite(x) and x >= 0.0]
        if len(finite) < 3 or not finite[0] <= finite[1] <= finite[2]:
            raise ValueError(
                f"estimate needs finite 0 <= low <= seconds <= high, got {numbers} "
                f"({self.source.value}); use Estimate.unknown() when there is none"
            )

    @classmethod
    def unknown(cls) -> Estimate:
        """The state of not knowing."""
        return cls(None, None, None, Source.UNKNOWN)

    @property
    def known(self) -> bool:
        """Whether there is a number."""
        return self.seconds is not None

    def scaled(self, factor: float) -> Estimate:
        """The same estimate for ``factor`` times the seconds."""
        if self.seconds is None or self.low is None or self.high is None:
            return self
        return Estimate(
            self.seconds * factor, self.low * factor, self.high * factor, self.source, self.samples
        )


MOST_WITH_PACE = 0.85
TRAFFIC = 0.7
"""Operations that take as long as a byte moved, where the pace makes no difference to it."""


@dataclass(frozen=True, slots=True)
class Work:
    """What one run of a kernel does: operations and bytes moved.

    Attributes:
        flops, bytes_read, bytes_written: operations and traffic.
        op_class, dtype: choose the peak rate, e.g. ``("gemm", "float32")``.
        family, features: what the time hangs on beside that; works of one family have as many
            features, and are fitted together.
        units: counts whose sum, each at a price of its own, the time may be; as many in a family.
    """

    flops: float
    bytes_read: float
    bytes_written: float
    op_class: str = ""
    dtype: str = "float32"
    family: str = ""
    features: tuple[float, ...] = ()
    units: tuple[float, ...] = ()

    @property
    def nbytes(self) -> float:
        """Bytes read plus bytes written."""
        return self.bytes_read + self.bytes_written

    @property
    def arithmetic(self) -> float:
        """Share of the time that goes with the processor's pace, by what is done a byte.

        The constants are of convolutions (0.8), products by a vector (0.4) and activations (0.15)
        while a neighbour on the same core slowed the pace by half.
        """
        if self.flops <= 0.0:
            return 0.0
        return MOST_WITH_PACE * self.flops / (self.flops + TRAFFIC * self.nbytes)


@dataclass(frozen=True, slots=True)
class DeviceRates:
    """What a device can do at best, as probed.

    Attributes:
        flops: operations a second by ``"op_class:dtype"``, ``dtype`` or ``"*"`` (tried in turn).
        bandwidth: bytes a second to and from its memory.
        launch_s: seconds to start a kernel.
    """

    flops: Mapping[str, float]
    bandwidth: float
    launch_s: float

    def peak(self, work: Work) -> float | None:
        """Operations a second for this class and dtype, None when it was not probed."""
        for key in (f"{work.op_class}:{work.dtype}", work.dtype, "*"):
            if key in self.flops:
                return self.flops[key]
        return None

    def seconds(self, work: Work) -> float | None:
        """Roofline time: launch plus the larger of compute and memory time.

        S. Williams, A. Waterman, D. Patterson, "Roofline", CACM 52(4), 2009.
        """
        peak = self.peak(work)
        if self.bandwidth <= 0.0 or (work.flops > 0.0 and not peak):
            return None
        compute = work.flops / peak if peak else 0.0
        return self.launch_s + max(compute, work.nbytes / self.bandwidth)
