"""What ``compile(deterministic=True)`` fixes: which kernels run, where, and in what order.

Everything that a plan hangs on is then the graph, the arguments, the devices and this package:
no measurement, no clock, no state of the process.
"""

from __future__ import annotations

from dataclasses import replace

from crossdock.runtime.config import Config
from crossdock.runtime.errors import PlanError
from crossdock.scheduler.objective import Objective

POLICY = "heft"
"""Places where no policy is asked for: "auto" searches for as long as a clock lets it."""


def determined(config: Config) -> Config:
    """The configuration with what could differ between two runs switched off.

    Raises:
        PlanError: it asks for what cannot be had with it.
    """
    asked = "deterministic=True"
    if config.search:
        raise PlanError(f"{asked} and search=True: a search ends by the clock; leave one out")
    if config.objective != Objective() or config.constraints.max_share:
        raise PlanError(
            f"{asked} places for latency, with costs that are not measured; leave out objective "
            "and max_share"
        )
    if config.strict and config.plan is not None:
        raise PlanError(
            f"{asked} and strict=True choose every kernel by themselves; leave out plan, or strict"
        )
    policy = POLICY if config.policy == "auto" else config.policy
    return replace(config, policy=policy, measure=False, split=False)
