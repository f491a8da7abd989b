"""What explains a plan, made when it is first asked for: few are, and making it takes long."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

from crossdock.runtime.plan import Explainer, Plan


class LateExplainer:
    """Stands for the explainer that ``make`` gives."""

    def __init__(self, make: Callable[[], Explainer]) -> None:
        self._make = make

    @cached_property
    def made(self) -> Explainer:
        """The explainer."""
        return self._make()

    def text(self, plan: Plan, name: str) -> str:
        """All that is known about the placement of an op of the plan, by node name."""
        return self.made.text(plan, name)
