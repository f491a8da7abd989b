"""A plan: what runs where, in which order, after which waits, at which predicted times. Data only.

A plan is immutable, serialisable and not executable code. It names the graph it was made for by
digest and the devices by fingerprint, and says why it is stale when it is.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from crossdock.kernels.precision import HIGHEST
from crossdock.runtime import plan_data
from crossdock.runtime.errors import PlanError
from crossdock.runtime.plan_parts import Edit, Goal, Horizon, ImageRow, Rung, Streamed

SCHEMA = "crossdock-plan/6"
HOST = "cpu:0"
"""The device whose memory is the host's: graph inputs and outputs live there."""


@dataclass(frozen=True)
class Constraints:
    """What a placement must respect.

    Attributes:
        pin: device id by node name, op name or shell-style pattern of node names.
        forbid: device ids that a node, op or pattern must not run on.
        memory: bytes that a session may take with one run in flight (tensors, weights, scratch),
            by device id, or by the physical id of a card, for all devices that lead to it; as many
            runs are in flight as fit. Weights that have no room are brought by each run, or ops
            run elsewhere (``degrade``).
        max_share: largest share of the predicted seconds of all ops that may be spent on a device,
            from 0 to 1, by device id.
        residency: the devices that the results of a node, op, pattern or graph input may live on:
            whatever reads them is on one of these, and they are copied nowhere else. A graph's
            inputs have to lie on one of these, on the host unless ``feeds_on`` says otherwise, and
            outputs stay on a device (``outputs="device"``) where the host is none of them; runs
            that have them elsewhere are refused.
    """

    pin: Mapping[str, str] = field(default_factory=dict)
    forbid: Mapping[str, tuple[str, ...] | list[str] | str] = field(default_factory=dict)
    memory: Mapping[str, int | float] = field(default_factory=dict)
    max_share: Mapping[str, float] = field(default_factory=dict)
    residency: Mapping[str, tuple[str, ...] | list[str] | str] = field(default_factory=dict)


@dataclass(frozen=True)
class Choice:
    """One device's offer for an op: its best kernel there and cost, or why it has none.

    Seconds; ``finish`` is when the op would have ended there given all placements before it.
    ``cause`` is the code of ``reason`` (``kernels.refusal.Cause``). ``transfer_in`` is how much
    later than they are made the op's inputs are there, ``queue_wait`` how long it then waits for
    the device.
    """

    device: str
    kernel: str
    seconds: float | None
    low: float | None
    high: float | None
    source: str
    finish: float | None = None
    reason: str = ""
    cause: str = "ok"
    transfer_in: float | None = None
    queue_wait: float | None = None

    def __str__(self) -> str:
        if self.seconds is None:
            return f"{self.device} no: {self.reason}"
        return f"{self.device} {self.seconds * 1e3:.3f} ms ({self.source})"


@dataclass(frozen=True)
class Step:
    """One step of a queue.

    ``kind`` is "launch" (an op on a device's compute queue) or "copy" (one value between a device
    and the host or, where the target's device copies from the source's itself, two devices, on a
    transfer queue). A copy without ``inputs`` takes a graph's input from where its caller has it,
    one without ``outputs`` gives the caller an output on the device that made it (both ends may be
    one device), and one with neither brings a weight (``Plan.streamed``). ``waits`` are indices of
    steps on other queues that must be done first; steps of one queue run in order. Times in seconds
    from the start of the run.
    ``rounds`` is the format that a launch rounds float32 operands to (``kernels.precision``).
    ``replay`` says which captured graph a launch is part of or why of none, on a device with such.
    """

    index: int
    kind: str
    device: str
    queue: str
    name: str
    inputs: tuple[str | None, ...]
    outputs: tuple[str, ...]
    waits: tuple[int, ...]
    start: float
    seconds: float
    low: float
    high: float
    source: str
    op: str = ""
    kernel: str = ""
    rounds: str = ""
    src: str = ""
    dst: str = ""
    nbytes: int = 0
    detail: str = ""
    reason: str = ""
    replay: str = ""
    choices: tuple[Choice, ...] = ()

    @property
    def finish(self) -> float:
        """Predicted end in seconds from the start of the run."""
        return self.start + self.seconds

    @property
    def arrives(self) -> bool:
        """Whether it copies a graph's input from the device on which the caller has it."""
        return self.kind == "copy" and not self.inputs and bool(self.outputs)

    @property
    def departs(self) -> bool:
        """Whether it copies an output to where it stays on its device."""
        return self.kind == "copy" and not self.outputs and bool(self.inputs)

    @property
    def brings_weight(self) -> bool:
        """Whether it copies a weight, and no value of the run."""
        return self.kind == "copy" and not self.inputs and not self.outputs

    @property
    def moves(self) -> str:
        """What a copy does, in a word."""
        return "keep" if self.departs else "take" if self.arrives else "copy"


@dataclass(frozen=True)
class DevicePlan:
    """A device's part: identity, bytes, and predicted time were it alone.

    ``arena_bytes`` and ``scratch_bytes`` are taken by each run in flight, ``resident_bytes``
    (weights) and ``packed_bytes`` (weights in a kernel's own layout) once. Weights that each
    run brings take at most ``region_bytes`` of the arena at any time.

    ``driver`` is the version the plan was made with; ``fingerprint`` hangs on it, among others.
    ``single_seconds`` has transfers and the share of the weights' upload in it, and
    ``single_overhead``: what runs take beyond their steps, as the plan's own prediction has it.
    """

    id: str
    name: str
    physical_id: str
    fingerprint: str
    resource_group: str
    arena_bytes: int
    resident_bytes: int
    offsets: Mapping[str, int]
    single_seconds: float | None
    driver: str = ""
    single_overhead: float = 0.0
    packed_bytes: int = 0
    scratch_bytes: int = 0
    region_bytes: int = 0

    @property
    def fixed_bytes(self) -> int:
        """Bytes that stay from run to run."""
        return self.resident_bytes + self.packed_bytes

    @property
    def run_bytes(self) -> int:
        """Bytes of each run in flight."""
        return self.arena_bytes + self.scratch_bytes

    @property
    def peak_bytes(self) -> int:
        """All that a session allocates on the device with one run in flight."""
        return self.fixed_bytes + self.run_bytes


class Explainer(Protocol):
    """What a plan was made from, and can say more than the plan does."""

    def text(self, plan: Plan, name: str) -> str:
        """All that is known about the placement of an op of the plan, by node name."""


@dataclass(frozen=True)
class Split:
    """Ops that were cut into parts for several devices, or why they were not.

    They were found from the op ``seed``, cut along ``axis`` of its result into ``sizes``, one part
    a device. ``gain`` is what that saves over the best device alone, in seconds, as predicted.
    """

    seed: str
    axis: int
    ops: tuple[str, ...]
    devices: tuple[str, ...]
    sizes: tuple[int, ...]
    gain: float
    taken: bool
    reason: str

    def __str__(self) -> str:
        more = f" and {len(self.ops) - 1} more" if len(self.ops) > 1 else ""
        parts = ", ".join(f"{n} on {d}" for n, d in zip(self.sizes, self.devices, strict=True))
        said = "split" if self.taken else "not split"
        return f"{said} {self.seed}{more} along axis {self.axis} ({parts}): {self.reason}"


@dataclass(frozen=True)
class Plan:
    """The whole plan; ``predicted`` seconds with an 80 % interval.

    ``source`` says of ``predicted`` whether it is "composed" of the steps or "measured": the plan
    has run before. ``graph`` is the digest of the graph after the passes, ``passes`` names these in
    order, ``kernels`` is the digest of the kernel set, ``cost_model`` the version of the costs:
    with the devices' drivers and fingerprints, what a plan is fresh for. ``precision`` is what
    kernels were permitted to lose. ``splits``, then ``edits``, then ``rows`` make of the graph the
    one that the steps are of. ``streamed`` are the weights that do not stay on their devices:
    steps bring them in each run. ``stays`` names the outputs that are planned to stay where they
    are made. ``explainer`` holds what the plan was made from, ``algorithms`` by which algorithm of
    a library, or tile, an op runs and how that was chosen, by name, once it is ready to run, and
    ``told`` what the devices had to do without in its last run; none of them is part of the data.
    """

    graph: str
    graph_name: str
    policy: str
    devices: tuple[DevicePlan, ...]
    steps: tuple[Step, ...]
    predicted: float
    low: float
    high: float
    lower_bound: float
    expected_runs: int
    cost_model: str
    kernels: str = ""
    passes: tuple[str, ...] = ()
    source: str = "composed"
    splits: tuple[Split, ...] = ()
    goal: Goal = field(default_factory=Goal)
    rungs: tuple[Rung, ...] = ()
    edits: tuple[Edit, ...] = ()
    rows: tuple[ImageRow, ...] = ()
    streamed: tuple[Streamed, ...] = ()
    horizon: Horizon = field(default_factory=Horizon)
    precision: str = HIGHEST
    stays: tuple[str, ...] = ()
    schema: str = SCHEMA
    algorithms: Mapping[str, str] = field(
        default_factory=dict, compare=False, repr=False, metadata={"data": False}
    )
    told: tuple[str, ...] = field(default=(), compare=False, repr=False, metadata={"data": False})
    explainer: Explainer | None = field(
        default=None, compare=False, repr=False, metadata={"data": False}
    )

    def device(self, name: str) -> DevicePlan:
        """A device's part; raises PlanError for a device the plan does not have."""
        for part in self.devices:
            if part.id == name:
                return part
        raise PlanError(f"the plan has no device {name!r}; it has {self.device_ids()}")

    def device_ids(self) -> tuple[str, ...]:
        """Ids of the devices considered."""
        return tuple(d.id for d in self.devices)

    def launches(self) -> tuple[Step, ...]:
        """The ops, in order."""
        return tuple(s for s in self.steps if s.kind == "launch")

    def copies(self) -> tuple[Step, ...]:
        """The transfers between devices, in order."""
        return tuple(s for s in self.steps if s.kind == "copy" and s.src != s.dst)

    @property
    def feeds_on(self) -> dict[str, str]:
        """The devices of the inputs that it takes from elsewhere than the host, by name."""
        return {s.name: s.src for s in self.steps if s.arrives}

    @property
    def gap(self) -> float:
        """How far the prediction is above the lower bound, as a share of the bound."""
        over = self.predicted - self.lower_bound
        return max(0.0, over / self.lower_bound) if self.lower_bound > 0 else 0.0

    def best_single(self) -> DevicePlan | None:
        """The device that is predicted to be fastest alone; None where none can run all of it."""
        able = [d for d in self.devices if d.single_seconds is not None]
        return min(able, key=lambda d: d.single_seconds or 0.0, default=None)

    def comparison(self) -> str:
        """The prediction beside its lower bound and the best single device, in a line."""
        said = f"lower bound {self.lower_bound * 1e3:.3f} ms (gap {self.gap:.1%})"
        best = self.best_single()
        if best is None or best.single_seconds is None:
            return f"{said}, no device can run it alone"
        said += f", best single device {best.id} {best.single_seconds * 1e3:.3f} ms"
        used = {s.device for s in self.launches()}
        if used == {best.id}:
            return f"{said}: the plan"
        return f"{said}: {best.single_seconds / max(self.predicted, 1e-12):.2f} x the plan"

    def shares(self) -> dict[str, float]:
        """Share of the ops on each device."""
        launches = self.launches()
        counts = {d.id: sum(s.device == d.id for s in launches) for d in self.devices}
        return {device: n / max(1, len(launches)) for device, n in counts.items()}

    @property
    def replays(self) -> str:
        """How many ops are replayed in captured graphs, and why others are not; in a line."""
        found = [s.replay for s in self.launches() if s.replay]
        if not found:
            return ""
        why = Counter(s.removeprefix("not replayed: ") for s in found if s.startswith("not "))
        count = len(found) - why.total()
        reasons = "; ".join(f"{n} as {reason}" for reason, n in sorted(why.items()))
        head = f"{count} of {len(found)} ops are replayed in graphs of launches"
        return f"{head}; not replayed: {reasons}" if why else head

    def explain(self) -> str:
        """The plan as text, one line a step, with a head and a foot."""
        head = [
            f"plan of {self.graph_name!r} by policy {self.policy!r}: predicted "
            f"{self.predicted * 1e3:.3f} ms ({self.low * 1e3:.3f} to {self.high * 1e3:.3f}), "
            f"{self.comparison()}",
            f"  {self.goal.said(self.predicted)}",
            f"  {self.horizon.said(self.expected_runs)}",
            f"  passes: {', '.join(self.passes) or 'none'}",
        ]
        for part in self.devices:
            alone = part.single_seconds
            said = "cannot run it alone" if alone is None else f"alone {alone * 1e3:.3f} ms"
            head.append(
                f"  {part.id} {part.name}: {self.shares()[part.id]:.0%} of the ops, {said}, "
                f"arena {part.arena_bytes} B, scratch {part.scratch_bytes} B, "
                f"weights {part.fixed_bytes} B{self._brought(part)}"
            )
        told = (self.rounding,) if self.rounding else ()
        head += [f"  {said}" for said in (*told, *self.splits, *self.rungs)]
        if self.replays:
            head.append(f"  {self.replays}")
        head += [f"  in its last run: {said}" for said in self.told]
        return "\n".join([*head, *(self._line(step) for step in self.steps)])

    def _line(self, step: Step) -> str:
        """A step, and by which algorithm of a library, or tile, it runs."""
        said = self.algorithms.get(step.name) if step.kind == "launch" else None
        return f"{step_line(step)} | {said}" if said else step_line(step)

    def explain_op(self, name: str) -> str:
        """All that was considered for one op; raises PlanError for an unknown name.

        A plan just made decides again under changed conditions to say what would move the op, which
        takes up to some seconds; one that was read from a file has only what it holds.
        """
        step = self.find(name)
        told = [f"  in its last run: {said}" for said in self.told] if step.replay else []
        if step.name in self.algorithms:
            told.insert(0, f"  by {self.algorithms[step.name]}")
        if self.explainer is not None:
            return "\n".join([self.explainer.text(self, step.name), *told])
        lines = [step_line(step), *told]
        for choice in step.choices:
            mark = "->" if choice.device == step.device else "  "
            at = "" if choice.finish is None else f", would end {choice.finish * 1e3:.3f} ms"
            lines.append(f" {mark} {choice} {choice.kernel}{at}")
        return "\n".join(lines)

    def streamed_bytes(self) -> dict[str, int]:
        """Bytes of weights that each run brings, by device; those with none are left out."""
        found: dict[str, int] = {}
        for one in self.streamed:
            found[one.device] = found.get(one.device, 0) + one.nbytes
        return found

    def _brought(self, part: DevicePlan) -> str:
        nbytes = self.streamed_bytes().get(part.id, 0)
        if not nbytes:
            return ""
        took = sum(s.seconds for s in self.steps if s.brings_weight and s.device == part.id)
        return (
            f", {nbytes} B more brought each run in {took * 1e3:.3f} ms of the link through "
            f"{part.region_bytes} B of the arena"
        )

    @property
    def rounding(self) -> str:
        """Which formats kernels round operands to, for how many ops; "" where none may."""
        if self.precision == HIGHEST:
            return ""
        told, counts = f"precision {self.precision!r}:", self._roundings()
        kept = counts.pop("", 0)
        if not counts:
            return f"{told} no op is rounded; no kernel here that rounds fits one, or is faster"
        named = ", ".join(f"{n} in {name}" for name, n in sorted(counts.items()))
        return f"{told} {named}, {kept} in the types of their operands"

    def _roundings(self) -> Counter[str]:
        return Counter(s.rounds for s in self.launches())

    def find(self, name: str) -> Step:
        """The step of an op, by node name or by a value it makes; PlanError names close ones."""
        for step in self.launches():
            if step.name == name or name in step.outputs:
                return step
        close = [s.name for s in self.launches() if name.lower() in s.name.lower()][:5]
        hint = f"; did you mean {', '.join(close)}?" if close else ""
        raise PlanError(f"no op {name!r} in the plan of {self.graph_name!r}{hint}")

    def to_json(self) -> dict[str, Any]:
        """Plain data; equal plans give equal data."""
        made: dict[str, Any] = plan_data.plain(self)
        return made

    @classmethod
    def from_json(cls, data: Any) -> Plan:
        """Read what ``to_json`` gave; raises PlanError naming what is wrong."""
        schema = data.get("schema") if isinstance(data, Mapping) else None
        if schema != SCHEMA:
            raise PlanError(f"plan schema {plan_data.shown(schema)} is not {SCHEMA!r}; plan again")
        made: Plan = plan_data.read(cls, data, "the plan", _PARTS)
        check_steps(made)
        return made

    def dumps(self) -> str:
        """The plan as a file's text: equal plans give equal bytes."""
        return plan_data.dump(self.to_json())

    @classmethod
    def loads(cls, text: str | bytes) -> Plan:
        """Read what ``dumps`` gave, and nothing else: data that nobody vouches for is safe.

        Raises:
            PlanError: it is no plan; the message names what is wrong.
        """
        return cls.from_json(plan_data.parse(text, "the plan"))

    def digest(self) -> str:
        """SHA-256 of the plan's data."""
        return hashlib.sha256(self.dumps().encode()).hexdigest()


_PARTS: Mapping[str, type[Any]] = {
    "Choice": Choice,
    "Step": Step,
    "DevicePlan": DevicePlan,
    "Split": Split,
    "Goal": Goal,
    "Rung": Rung,
    "Edit": Edit,
    "ImageRow": ImageRow,
    "Streamed": Streamed,
    "Horizon": Horizon,
}


def check_steps(plan: Plan) -> None:
    """Raise PlanError for a plan with a step out of place, or one that waits for a later one."""
    known = {HOST, *plan.device_ids()}
    if len(set(plan.device_ids())) < len(plan.devices):
        raise plan_data.damaged("a device is given twice")
    for i, step in enumerate(plan.steps):
        ends = (step.src, step.dst) if step.kind == "copy" else ()
        sound = (
            step.index == i
            and step.kind in ("launch", "copy")
            and known.issuperset((step.device, *ends))
            and step.queue.rpartition("/")[0] == step.device
            and all(0 <= w < i for w in step.waits)
        )
        if not sound:
            raise plan_data.damaged(
                f"step #{i} ({step.name!r}) has a wrong index, kind, device, queue or wait"
            )


def step_line(step: Step) -> str:
    """One line: number, queue, what, waits, prediction, reason."""
    waits = f" wait {','.join(f'#{w}' for w in step.waits)}" if step.waits else ""
    if step.kind == "copy":
        how = f" by {step.detail}" if step.detail else ""
        what = f"{step.moves} {step.name} {step.src}->{step.dst} {step.nbytes} B{how}"
        if step.src == step.dst:
            where = f" {step.detail}" if step.detail else ""
            what = f"{step.moves} {step.name} on {step.dst} {step.nbytes} B{where}"
    else:
        rounded = f" in {step.rounds}" if step.rounds else ""
        what = f"{step.op} {step.name} [{step.kernel}]{rounded}"
    more = "".join(f" | {said}" for said in (step.reason, step.replay) if said)
    return (
        f"#{step.index} {step.queue} {what}{waits} pred {step.seconds * 1e3:.4f} ms "
        f"({step.source}){more}"
    )
