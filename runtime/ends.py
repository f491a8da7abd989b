"""Where the inputs and outputs of a plan go from and to: the copies that begin and end a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

from crossdock.runtime.plan import HOST, Step
from crossdock.runtime.segments import Segment


@dataclass(frozen=True)
class Ends:
    """Which segments copy a value between the host and a device, by the value's root.

    ``ups`` has the segment of each device that the value is copied to, ``downs`` the one that
    copies it to the host; ``read`` are the values that ops on the host read. ``takes`` has the
    segments that copy an input from the device on which the plan has it, ``keeps`` the one that
    copies an output to where it stays.
    """

    ups: Mapping[str, Mapping[str, int]]
    downs: Mapping[str, int]
    read: frozenset[str]
    takes: Mapping[str, tuple[int, ...]]
    keeps: Mapping[str, int]

    @cached_property
    def callers(self) -> frozenset[int]:
        """The segments whose one end is an array of the caller's."""
        return frozenset((*chain.from_iterable(self.takes.values()), *self.keeps.values()))

    def host_reads(self, root: str, besides: AbstractSet[str] = frozenset()) -> bool:
        """Whether a value has to be on the host for ops there, or for devices but some."""
        return root in self.read or bool(self.ups.get(root, {}).keys() - besides)


def ends(steps: Sequence[Step], parts: Sequence[Segment], roots: Mapping[str, str]) -> Ends:
    """The ends of a plan that is cut into segments."""
    ups: dict[str, dict[str, int]] = {}
    downs: dict[str, int] = {}
    read: set[str] = set()
    takes: dict[str, tuple[int, ...]] = {}
    keeps: dict[str, int] = {}
    for part in parts:
        for step in (steps[i] for i in part.steps):
            if step.kind != "copy":
                if step.device == HOST:
                    read.update(roots[v] for v in step.inputs if v is not None)
                continue
            if step.arrives:
                takes[step.name] = (*takes.get(step.name, ()), part.index)
            elif step.departs:
                keeps[roots[step.name]] = part.index
            for value in step.outputs if step.inputs else ():
                if step.src == HOST:
                    ups.setdefault(roots[value], {})[step.dst] = part.index
                elif step.dst == HOST:
                    downs[roots[value]] = part.index
    return Ends(ups, downs, frozenset(read), takes, keeps)
