"""Budgets for what a model's text or numbers may ask for, and the count of what is used of them.

A file of a few bytes can ask for 2^62 iterations, or for a tensor of a terabyte. Every amount of
work that a model decides is held against a ``Limits`` before anything is allocated or begun.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, fields

from crossdock.runtime.errors import IterationLimit, LimitError, LoadError
from crossdock.runtime.free_memory import free_bytes
from crossdock.runtime.settings import max_iterations

MAX_RANK = 32
"""Dimensions that a tensor of a file may have; numpy has 64, and no kernel more than 12."""

ITERATIONS_A_STAGE = 50
FREE_STAGES = 64
"""What is in a loop is converted and planned anew for shapes not met before: as often as this, and
once for so many of the iterations that there may be."""

FOLD_FLOPS = 1e9
"""Operations that an op may take to be folded; a longer one is left to the devices."""

SMALL = 1 << 24
"""Bytes that are allocated without a look at what is free."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a file may make crossdock do; the defaults fit models that people run.

    Attributes:
        file_bytes: size of a file, and of everything that it unpacks to. (A protobuf has at most
            2 GiB in any case; weights beyond it are external data.)
        nodes: nodes of a model, functions and conditionals written out.
        depth: graphs in one another, and functions that call each other.
        iterations: iterations of all loops in one run, nested ones included; a fiftieth of them
            (or 64) may have shapes not met before. Default: ``CROSSDOCK_MAX_ITERATIONS``, or
            50,000.
        tensor_bytes: a tensor that a model makes, and all constants that it has folded together.
        growth: a tensor may also be this many times as large as all that the model and its inputs
            bring along. So weights and inputs raise the budget, and a few bytes do not.
        seconds: a load, or the loops of one run; None for no limit. ``Session.run`` has a
            ``timeout`` for the whole of a run.

    Raises:
        LoadError: a limit is no positive number.
    """

    file_bytes: int = 1 << 36
    nodes: int = 200_000
    depth: int = 32
    iterations: int = field(default_factory=max_iterations)
    tensor_bytes: int = 1 << 29
    growth: int = 64
    seconds: float | None = None

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name == "seconds" and value is None:
                continue
            kinds = (int, float) if item.name == "seconds" else (int,)
            if type(value) not in kinds or not value > 0 or not math.isfinite(value):
                raise LoadError(f"Limits.{item.name} is {value!r}; give a number above 0")

    def tensor(self, brought: int) -> int:
        """Bytes that a tensor may have where inputs and constants have ``brought``."""
        return max(self.tensor_bytes, self.growth * brought)


def limits_of(given: object) -> Limits:
    """What was given as ``limits=``; the default where that is None."""
    if given is None:
        return Limits()
    if not isinstance(given, Limits):
        raise LoadError(f"limits is a crossdock.Limits, not {type(given).__name__}")
    return given


class Budget:
    """What one load or one run has used of its limits.

    ``brought`` are the bytes of inputs and constants that it works on.
    """

    def __init__(self, limits: Limits, brought: int = 0) -> None:
        self.limits = limits
        self.brought = brought
        self.nodes = 0
        self.iterations = 0
        self.stages = 0
        self.folded = 0
        self._until = None if limits.seconds is None else time.monotonic() + limits.seconds

    def check(self, where: str) -> None:
        """Raise LimitError where the time is up."""
        if self._until is not None and time.monotonic() > self._until:
            raise LimitError(
                f"{where}: not done after {self.limits.seconds} s; raise Limits.seconds if the "
                "model may take longer"
            )

    def node(self, where: str) -> None:
        """Count a node; raises LimitError where there are too many."""
        self.nodes += 1
        if self.nodes > self.limits.nodes:
            raise too_many_nodes(self.limits, where)
        if not self.nodes % 256:
            self.check(where)

    def trips(self, count: int | None, where: str) -> None:
        """Refuse a loop that is certain to take ``count`` iterations (None: endless) at once."""
        if count is None or self.iterations + count > self.limits.iterations:
            asked = "never ends" if count is None else f"takes {count:,} iterations"
            raise self._too_many(f"{where}: {asked}, over the limit of")

    def _too_many(self, what: str) -> IterationLimit:
        return IterationLimit(
            f"{what} {self.limits.iterations:,} iterations; raise CROSSDOCK_MAX_ITERATIONS or "
            "Limits.iterations if that is right"
        )

    def stage(self, where: str) -> None:
        """Count a graph inside of a loop that is converted anew; raises IterationLimit."""
        self.stages += 1
        most = max(FREE_STAGES, self.limits.iterations // ITERATIONS_A_STAGE)
        if self.stages > most:
            raise self._too_many(f"{where}: {most:,} iterations had shapes of their own, with")

    def iterate(self, where: str) -> None:
        """Count an iteration of a loop before it is done.

        Raises:
            IterationLimit: there are too many.
            LimitError: the time is up.
        """
        self.iterations += 1
        if self.iterations > self.limits.iterations:
            raise self._too_many(f"{where}: still going after the limit of")
        self.check(where)

    def tensor(self, nbytes: int, where: str, brought: int = 0) -> None:
        """Check the size of a tensor to be made in this process; ``brought`` adds to the inputs.

        Raises:
            LimitError: it is over the budget, or over what is free.
        """
        self.size(nbytes, where, brought)
        require_free(nbytes, where)

    def size(self, nbytes: int, where: str, brought: int = 0) -> None:
        """Check the size of a tensor that a graph will make, somewhere."""
        most = self.limits.tensor(self.brought + brought)
        if nbytes > most:
            raise LimitError(
                f"{where}: would make a tensor of {nbytes:,} bytes, over the limit of {most:,}; "
                "raise Limits.tensor_bytes if that is right"
            )

    def folds(self, nbytes: int) -> bool:
        """Whether a constant may be made of others; False leaves the op to the run."""
        fits = self.folded + nbytes <= self.limits.tensor(self.brought)
        if fits and (nbytes <= SMALL or nbytes <= free_bytes()):
            self.folded += nbytes
            return True
        return False


def too_many_nodes(limits: Limits, where: str) -> LimitError:
    """The error for a model with more nodes than it may have."""
    return LimitError(
        f"{where}: unfolds to more than {limits.nodes:,} nodes; raise Limits.nodes if that is right"
    )


def require_free(nbytes: int, where: str) -> None:
    """Raise LimitError where a large allocation is more than what is free."""
    if nbytes <= SMALL:
        return
    free = free_bytes()
    if nbytes > free:
        raise LimitError(
            f"{where}: takes {nbytes:,} bytes, and {free:,} are free; use a smaller one, or a "
            "machine with more memory"
        )
