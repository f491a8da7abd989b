"""What is known about the placement of one op, as data and as text."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from crossdock.kernels.refusal import Cause
from crossdock.runtime import plan_data
from crossdock.runtime.flips import Flip


@dataclass(frozen=True)
class Candidate:
    """One kernel on one device.

    Attributes:
        device, kernel: what it is; a device on which nothing fits has a row without a kernel.
        cause: a code (``kernels.refusal.Cause``): "ok" where it may run the op; ``reason`` says it.
        launch, compute: seconds of the launch, and of the rest; ``low`` and ``high`` are the ends
            of the 80 % interval of both together, ``source`` where they are from.
        transfer_in: how much later than they are made the inputs are there, in seconds.
        queue_wait: seconds that the op then waits for the device.
        finish: when it would end, all other ops as planned.
        whole: predicted seconds of the run, planned anew with the op on this device.
        head_room: bytes that stay free on the device with the op there; below 0 it does not fit.
        chosen: whether it is the one that runs.
    """

    device: str
    kernel: str
    cause: str
    reason: str = ""
    launch: float | None = None
    compute: float | None = None
    low: float | None = None
    high: float | None = None
    source: str = "unknown"
    transfer_in: float | None = None
    queue_wait: float | None = None
    finish: float | None = None
    whole: float | None = None
    head_room: int | None = None
    chosen: bool = False

    @property
    def seconds(self) -> float | None:
        """Launch and compute together."""
        if self.launch is None or self.compute is None:
            return None
        return self.launch + self.compute


@dataclass(frozen=True)
class Explanation:
    """All about the placement of one op.

    Attributes:
        runner_up: the best other device, or the best other kernel where there is one device only
            ("device/kernel" then); empty without one.
        margin: how much later it would be on the runner-up, in seconds: the whole run by ``scope``
            "whole", the op's end by "local", the kernel's time by "kernel".
        sigma: standard deviation of the margin, from the intervals of what the two do differently.
        confidence: probability that the winner stays the winner (normal approximation).
        flips: the smallest changes that move it.
        objective: what the plan was made for; margins are of latency whatever it is.
    """

    name: str
    op: str
    device: str
    kernel: str
    reason: str
    candidates: tuple[Candidate, ...]
    runner_up: str = ""
    margin: float | None = None
    sigma: float | None = None
    confidence: float | None = None
    scope: str = ""
    flips: tuple[Flip, ...] = ()
    objective: str = "latency"

    @property
    def sigmas(self) -> float | None:
        """The margin in standard deviations."""
        if self.margin is None or self.sigma is None:
            return None
        return self.margin / self.sigma if self.sigma > 0 else math.copysign(1e9, self.margin)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {**plan_data.plain(self), "sigmas": self.sigmas}


_SEARCH = "sooner, which the search did not see"
_SOONER = {
    "whole": _SEARCH,
    "local": _SEARCH,
    "kernel": "sooner, but not for sure, as a kernel for any op has to be",
}
"""What is said of a runner-up that is predicted to be faster, by scope."""


def lines(found: Explanation) -> list[str]:
    """An explanation as text."""
    made = [_line(row) for row in found.candidates]
    if found.margin is not None:
        what = {"whole": "the run would end", "local": "the op would end",
                "kernel": "the op would take"}[found.scope]  # fmt: skip
        later = "later" if found.margin >= 0 else _SOONER[found.scope]
        made.append(
            f"on {found.runner_up} {what} {abs(found.margin) * 1e3:.4f} ms {later} "
            f"({found.sigmas or 0:.1f} sigma, confidence {found.confidence or 0:.1%})"
        )
    if found.objective != "latency":
        made.append(f"placed for {found.objective}: a margin of latency does not decide alone")
    return made + [f"to move it: {flip}" for flip in found.flips]


def _line(row: Candidate) -> str:
    mark = "->" if row.chosen else "  "
    kernel = f" {row.kernel}" if row.kernel else ""
    if row.seconds is None or row.cause != Cause.OK:
        return f" {mark} {row.device}{kernel} [{row.cause}] {row.reason}"
    parts = [
        f"launch {_ms(row.launch)}", f"compute {_ms(row.compute)} ({row.source})",
        f"transfer in {_ms(row.transfer_in)}", f"queue wait {_ms(row.queue_wait)}",
        f"would end {_ms(row.finish)}",
    ]  # fmt: skip
    parts += [f"run {_ms(row.whole)}"] if row.whole is not None else []
    parts += [f"{row.head_room} B free"] if row.head_room is not None else []
    return f" {mark} {row.device}{kernel}: {', '.join(parts)}"


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:.4f} ms"
