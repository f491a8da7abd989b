"""What a plan says about itself beyond its steps: what it was made for. Data only."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Goal:
    """What a plan was made for, and what it comes to.

    Attributes:
        objective: "latency", "throughput", "energy", or weights of them.
        value: the objective's predicted value in ``unit``: seconds between the ends of successive
            runs, joules of a run; of a mix, over the best single device's; 0 for latency, which is
            the plan's ``predicted``.
        bound: no placement has a smaller value; 0 where nothing is known, and for latency, which
            has the plan's ``lower_bound``.
        interval: predicted seconds between the ends of successive runs in flight together.
        joules: predicted joules of a run by itself; None where the watts are not known.
    """

    objective: str = "latency"
    value: float = 0.0
    unit: str = "s"
    bound: float = 0.0
    interval: float = 0.0
    joules: float | None = None

    def said(self, predicted: float) -> str:
        """The goal in words, of a plan of which a run is ``predicted`` to take so many seconds."""
        if self.objective == "latency":
            said = f"{predicted * 1e3:.3f} ms a run"
        elif self.unit == "s":
            said = f"{self.value * 1e3:.3f} ms between runs"
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


@dataclass(frozen=True)
class Rung:
    """A way that was tried to fit a plan into a device's memory, in the order of the ladder.

    Attributes:
        name: "reorder", "recompute", "split", "spill", "stream" or "elsewhere".
        taken: whether the plan is this one; the last of a plan's rungs is. Of the last three those
            that fit are compared, and the fastest is.
        device: the device with least room for it.
        needs, budget: bytes of that device.
        seconds: predicted seconds that a run takes longer than without the budget.
        edits: what was done, in words.
    """

    name: str
    taken: bool
    device: str
    needs: int
    budget: int
    seconds: float
    edits: tuple[str, ...] = ()

    def __str__(self) -> str:
        still = "still " if self.needs > self.budget else ""
        fits = "takes" if self.taken else f"would {still}take"
        done = f" ({', '.join(self.edits)})" if self.edits else ""
        return (
            f"memory: {self.name}{done}: {self.device} {fits} {self.needs} B of {self.budget} B, "
            f"{self.seconds * 1e3:+.3f} ms a run"
        )


@dataclass(frozen=True)
class Edit:
    """A change of the graph for which its plan takes less memory; later ones may be of its nodes.

    Attributes:
        kind: "again" (a value is made a second time), "aside" (a copy of a value is read), or
            "split" (ops in parts that run one after the other).
        name: the value; of a split the op that it grew from.
        ops: who reads the new value; of a split the ops that are cut.
        device: where the new value is; of a split "".
        axis: of a split, of the first result of the op that it grew from.
        sizes: of its parts along that axis.
    """

    kind: str
    name: str
    ops: tuple[str, ...]
    device: str = ""
    axis: int = 0
    sizes: tuple[int, ...] = ()

    def __str__(self) -> str:
        if self.kind == "again":
            return f"{self.name} made again on {self.device}"
        if self.kind == "aside":
            return f"{self.name} kept on {self.device} meanwhile"
        return f"{self.name} and {len(self.ops) - 1} more in {len(self.sizes)} parts"


@dataclass(frozen=True)
class ImageRow:
    """Ops of a batch in one that takes image after image (``runtime.images``).

    Attributes:
        ops: the nodes, which are in a row in the graph.
        order: those of them that compute, in the order in which an image passes through them.
        kernels: of these, for one image and one thread.
    """

    ops: tuple[str, ...]
    order: tuple[str, ...]
    kernels: tuple[str, ...]


Key = tuple[str, int | None]
"""A weight: the constant's name and None, or an op's and the number of its packed constant."""


@dataclass(frozen=True)
class Streamed:
    """A weight that each run brings from the host for one op, and its place on the device.

    Attributes:
        name: of the step that copies it; no other step or value has it.
        device: where it is read.
        op: the node that reads it.
        weight: the constant, as the graph has it; "" for one in a kernel's own layout.
        pack: for such a one, which of the op's packed constants it is.
        offset: bytes from the start of the device's arena, where it lies until the op is done.
        nbytes: its size.
    """

    name: str
    device: str
    op: str
    weight: str
    pack: int | None
    offset: int
    nbytes: int

    @property
    def key(self) -> Key:
        """Which weight it is, wherever it is brought to."""
        return (self.weight, None) if self.pack is None else (self.op, self.pack)


@dataclass(frozen=True)
class Horizon:
    """What a plan takes before its first run, and over how many runs another would take less.

    Attributes:
        uploads, builds: seconds for weights to go to other devices, and for kernels to be built.
        sources: where the builds' seconds are from; what is unknown counts as none.
        crossover: runs from which on the plan for many runs takes less in all than that for few;
            None where one plan is the best for any number.
        other: where the other one of the two has its ops, with its seconds once and each run.
    """

    uploads: float = 0.0
    builds: float = 0.0
    sources: str = ""
    crossover: float | None = None
    other: str = ""
    other_once: float = 0.0
    other_run: float = 0.0

    def said(self, expected_runs: int) -> str:
        """The horizon in words, of a plan for so many runs."""
        begins = (
            f"before the first run: uploads {self.uploads * 1e3:.3f} ms, kernels "
            f"{self.builds * 1e3:.3f} ms ({self.sources or 'none'})"
        )
        if self.crossover is None:
            return begins
        side = "up to" if expected_runs < self.crossover else "from"
        return (
            f"{begins}; this plan is for {side} {self.crossover:.3g} runs, else {self.other} "
            f"({self.other_run * 1e3:.3f} ms a run, {self.other_once * 1e3:.3f} ms before)"
        )
