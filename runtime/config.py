"""How a session plans and runs: what ``compile`` was asked for."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from crossdock.devices.base import DeviceInfo
from crossdock.kernels.precision import HIGHEST, Permission
from crossdock.runtime.checks import Checks
from crossdock.runtime.fallback import ALLOW, Fallback
from crossdock.runtime.plan import Constraints, Plan
from crossdock.runtime.sites import ON_HOST, Sites
from crossdock.scheduler.objective import Objective

Progress = Callable[[str, int, int], None]
"""Called with what is done, how many of them are done, and how many there are."""
NOT_STRICT = ("flush-subnormals",)
"""Graph passes that change results, if by far less than rounding does."""

RUNS_AT_ONCE = 16
WAITING = 1024
MEASURE_SECONDS = 20.0

PREPARING = threading.RLock()
"""Held while measuring and planning: the process's cost model has one writer, and what is timed
should not be disturbed by another timing."""


@dataclass(frozen=True)
class Config:
    """How a session plans and runs; the arguments of ``compile``. No ``devices``: all there are.

    ``watched``: no run on the host is left to its caller, who could not be told that it hangs.
    ``lost`` are devices that constraints may still name; ``broken`` says why one, of these or of
    those there are, computes nothing.
    """

    devices: tuple[str, ...] | None = None
    policy: str = "auto"
    objective: Objective = field(default_factory=Objective)
    constraints: Constraints = field(default_factory=Constraints)
    expected_runs: int = 1000
    threads: int | None = None
    measure: bool | float = True
    skip_passes: tuple[str, ...] = ()
    runs_at_once: int = RUNS_AT_ONCE
    search: bool = False
    watts: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    fallback: Fallback = ALLOW
    plan: Plan | None = None
    split: bool = True
    strict: bool = False
    check_finite: bool = False
    watchdog: float = math.inf
    watched: bool = False
    checks: Checks | None = None
    waiting: int = WAITING
    deterministic: bool = False
    precision: str = HIGHEST
    lost: tuple[DeviceInfo, ...] = ()
    broken: Mapping[str, str] = field(default_factory=dict)
    sites: Sites = ON_HOST
    outputs: str = "host"

    @property
    def budget(self) -> float:
        """Seconds that measuring may take."""
        return MEASURE_SECONDS if self.measure is True else float(self.measure)

    @property
    def looks(self) -> bool:
        """Whether what runs copy or compute is looked at."""
        return self.check_finite or self.checks is not None

    @property
    def permission(self) -> Permission:
        """What kernels may lose."""
        return Permission(strict=self.strict, precision=self.precision)
