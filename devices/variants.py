"""Launches that come in several variants, of which the fastest is taken where they were timed.

A variant does the same over the same operands, cut into work-groups in another way. The choice is
kept for every process by the device and all that the variants are: texts, sizes and numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Generic, TypeVar

from crossdock.devices import kept_choices
from crossdock.devices.choice import Choice, Timing, summary
from crossdock.devices.program import GridLaunch, Scalar
from crossdock.runtime import kept
from crossdock.runtime.errors import CompileError

T = TypeVar("T")

FIRST = "the rule's choice"
"""What the first variant is: that of a rule of thumb."""

_CHOSEN: dict[str, dict[str, str]] = {}
"""Choices of this process, which has them without a cache folder, too."""


class Built(Choice, Generic[T]):
    """A launch compiled for a device: by its first variant, or by the one that was chosen."""

    def __init__(
        self, launch: GridLaunch, fingerprint: str, build: Callable[[GridLaunch], T]
    ) -> None:
        """``build`` makes a variant's kernel; ``fingerprint`` is the device's.

        Raises:
            CompileError: the first variant does not build.
        """
        self._variants = (launch, *launch.others)
        self._fingerprint, self._build = fingerprint, build
        self._settled = False
        self.step, self.kernel = self._chosen() or (launch, build(launch))
        if launch.variant and not self._settled:
            self.said = f"{launch.variant}, {FIRST}, not timed"

    def _chosen(self) -> tuple[GridLaunch, T] | None:
        """The variant that was measured to be the fastest, if it still builds."""
        if len(self._variants) < 2:
            return None
        found = _CHOSEN.get(self._name) or kept_choices.load(self._name)
        if found is None or not isinstance(found.get("said"), str):
            return None
        for step in self._variants:
            if step.variant == found.get("variant"):
                with suppress(CompileError):  # it is chosen anew then
                    made = step, self._build(step)
                    self.said, self._settled = found["said"], True
                    _CHOSEN[self._name] = found
                    return made
        return None

    @cached_property
    def _name(self) -> str:
        """What a choice is kept by."""
        told = [
            (v.source, v.entry, v.grid, v.block, v.defines, v.variant, _numbers(v))
            for v in self._variants
        ]
        return kept.key("variants", self._fingerprint, repr(told))

    def algorithms(self) -> int:
        """How many variants there are; 0 where one was chosen, or there is no other."""
        return 0 if self._settled or len(self._variants) < 2 else len(self._variants)

    def take(self, index: int) -> None:
        """Be another variant from now on; raises CompileError where it does not build."""
        step = self._variants[index]
        if step is not self.step:
            self.kernel, self.step = self._build(step), step

    def keep(self, index: int, timings: Sequence[Timing]) -> None:
        """Keep the choice."""
        names = [step.variant for step in self._variants]
        self.take(index)
        self.said, self._settled = summary(names, index, timings, FIRST), True
        found = {"variant": names[index], "said": self.said}
        _CHOSEN[self._name] = found
        kept_choices.save(self._name, found)


def _numbers(launch: GridLaunch) -> list[str]:
    """The numbers among a launch's arguments; which memory it is given does not matter."""
    return [repr(arg.value) if isinstance(arg, Scalar) else "" for arg in launch.args]
