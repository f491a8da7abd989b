"""A plan: what runs where, in which order, after which waits, at which predicted times. Data only.

A plan is immutable, serialisable and not executable code. It names the graph it was made for by
digest and the devices by fingerprint, and says why it is stale when it is.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from crossdock.runtime.errors import PlanError, StalePlan

SCHEMA = "crossdock-plan/1"
HOST = "cpu:0"
"""The device whose memory is the host's: graph inputs and outputs live there."""


@dataclass(frozen=True)
class Constraints:
    """What a placement must respect.

    Attributes:
        pin: device id by node name, op name or shell-style pattern of node names.
        forbid: device ids that a node, op or pattern must not run on.
        memory: bytes that tensors and weights may take, by device id.
    """

    pin: Mapping[str, str] = field(default_factory=dict)
    forbid: Mapping[str, tuple[str, ...] | list[str] | str] = field(default_factory=dict)
    memory: Mapping[str, int | float] = field(default_factory=dict)


@dataclass(frozen=True)
class Choice:
    """One device's offer for an op: its best kernel there and cost, or why it has none.

    Seconds; ``finish`` is when the op would have ended there given all placements before it.
    """

    device: str
    kernel: str
    seconds: float | None
    low: float | None
    high: float | None
    source: str
    finish: float | None = None
    reason: str = ""

    def __str__(self) -> str:
        if self.seconds is None:
            return f"{self.device} no: {self.reason}"
        return f"{self.device} {self.seconds * 1e3:.3f} ms ({self.source})"


@dataclass(frozen=True)
class Step:
    """One step of a queue.

    ``kind`` is "launch" (an op on a device's compute queue) or "copy" (one value between a device
    and the host, on a transfer queue). ``waits`` are indices of steps on other queues that must be
    done first; steps of one queue run in order. Times in seconds from the start of the run.
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
    src: str = ""
    dst: str = ""
    nbytes: int = 0
    detail: str = ""
    reason: str = ""
    choices: tuple[Choice, ...] = ()

    @property
    def finish(self) -> float:
        """Predicted end in seconds from the start of the run."""
        return self.start + self.seconds


@dataclass(frozen=True)
class DevicePlan:
    """A device's part: identity, arena and resident bytes, and predicted time were it alone."""

    id: str
    name: str
    physical_id: str
    fingerprint: str
    resource_group: str
    arena_bytes: int
    resident_bytes: int
    offsets: Mapping[str, int]
    single_seconds: float | None

    @property
    def peak_bytes(self) -> int:
        """Bytes the plan takes on the device: arena and weights."""
        return self.arena_bytes + self.resident_bytes


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
    """The whole plan; ``predicted`` seconds with an 80 % interval."""

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
    splits: tuple[Split, ...] = ()
    schema: str = SCHEMA

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
        """The transfers, in order."""
        return tuple(s for s in self.steps if s.kind == "copy")

    def shares(self) -> dict[str, float]:
        """Share of the ops on each device."""
        launches = self.launches()
        counts = {d.id: sum(s.device == d.id for s in launches) for d in self.devices}
        return {device: n / max(1, len(launches)) for device, n in counts.items()}

    def explain(self) -> str:
        """The plan as text, one line a step, with a head and a foot."""
        head = [
            f"plan of {self.graph_name!r} by policy {self.policy!r}: predicted "
            f"{self.predicted * 1e3:.3f} ms ({self.low * 1e3:.3f} to {self.high * 1e3:.3f}), "
            f"lower bound {self.lower_bound * 1e3:.3f} ms"
        ]
        for part in self.devices:
            alone = part.single_seconds
            said = "cannot run it alone" if alone is None else f"alone {alone * 1e3:.3f} ms"
            head.append(
                f"  {part.id} {part.name}: {self.shares()[part.id]:.0%} of the ops, {said}, "
                f"arena {part.arena_bytes} B, weights {part.resident_bytes} B"
            )
        head += [f"  {split}" for split in self.splits]
        return "\n".join([*head, *(step_line(step) for step in self.steps)])

    def explain_op(self, name: str) -> str:
        """All that was considered for one op; raises PlanError for an unknown name."""
        for step in self.launches():
            if step.name == name or name in step.outputs:
                lines = [step_line(step)]
                for choice in step.choices:
                    mark = "->" if choice.device == step.device else "  "
                    at = (
                        "" if choice.finish is None else f", would end {choice.finish * 1e3:.3f} ms"
                    )
                    lines.append(f" {mark} {choice} {choice.kernel}{at}")
                return "\n".join(lines)
        close = [s.name for s in self.launches() if name.lower() in s.name.lower()][:5]
        hint = f"; did you mean {', '.join(close)}?" if close else ""
        raise PlanError(f"no op {name!r} in the plan of {self.graph_name!r}{hint}")

    def to_json(self) -> dict[str, Any]:
        """Plain data; equal plans give equal data."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Any) -> Plan:
        """Read what ``to_json`` gave; raises PlanError naming what is wrong."""
        schema = data.get("schema") if isinstance(data, Mapping) else None
        if schema != SCHEMA:
            raise PlanError(f"plan schema {schema!r} is not {SCHEMA!r}; plan again")
        made: Plan = _read(cls, data, "the plan")
        _check_steps(made)
        return made

    def digest(self) -> str:
        """SHA-256 of the plan's data."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    def check_fresh(self, graph: str, fingerprints: Mapping[str, str]) -> None:
        """Raise StalePlan naming what changed since the plan was made.

        Args:
            graph: digest of the graph to run.
            fingerprints: of the devices that are here, by id.
        """
        if graph != self.graph:
            raise StalePlan(f"the plan of {self.graph_name!r} is for another graph; plan again")
        for part in self.devices:
            here = fingerprints.get(part.id)
            if here is None:
                raise StalePlan(f"the plan needs {part.id} ({part.name}), which is not here")
            if here != part.fingerprint:
                raise StalePlan(
                    f"{part.id} is not the device the plan was made for ({part.name}); plan again"
                )


def _check_steps(plan: Plan) -> None:
    known = {HOST, *plan.device_ids()}
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
            raise PlanError(
                f"the plan is damaged: step #{i} ({step.name!r}) has a wrong index, kind, device, "
                "queue or wait; plan again"
            )


def _number(value: object) -> bool:
    whole = isinstance(value, int) and not isinstance(value, bool)
    return whole or (isinstance(value, float) and math.isfinite(value))


_FITS: dict[str, Callable[[object], bool]] = {
    "str": lambda v: isinstance(v, str),
    "bool": lambda v: isinstance(v, bool),
    "int": lambda v: isinstance(v, int) and not isinstance(v, bool) and v >= 0,
    "float": _number,
    "float | None": lambda v: v is None or _number(v),
    "str | None": lambda v: v is None or isinstance(v, str),
}
"""What values of a field may be, by its annotation."""


def _read(cls: type[Any], data: object, where: str) -> Any:
    """An object of one of this file's classes from plain data; raises PlanError."""
    if not isinstance(data, Mapping):
        raise PlanError(f"{where} is damaged: {type(data).__name__} instead of fields; plan again")
    fields = {f.name: f for f in dataclasses.fields(cls)}
    wrong = sorted(str(name) for name in set(data) ^ set(fields))
    if wrong:
        raise PlanError(f"{where} is damaged: missing or unknown {', '.join(wrong)}; plan again")
    return cls(**{n: _value(str(f.type), data[n], f"{where}.{n}") for n, f in fields.items()})


def _value(kind: str, value: object, where: str) -> Any:
    nested = {"Choice": Choice, "Step": Step, "DevicePlan": DevicePlan, "Split": Split}
    if kind.startswith("tuple[") and isinstance(value, list | tuple):
        inner = kind.removeprefix("tuple[").removesuffix(", ...]")
        return tuple(_value(inner, v, f"{where}[{i}]") for i, v in enumerate(value))
    if kind == "Mapping[str, int]" and isinstance(value, Mapping):
        return {_value("str", k, where): _value("int", v, where) for k, v in value.items()}
    if kind in nested:
        return _read(nested[kind], value, where)
    fits = _FITS.get(kind)
    if fits is None or not fits(value):
        raise PlanError(f"{where} is damaged: {value!r} is no {kind}; plan again")
    return value


def step_line(step: Step) -> str:
    """One line: number, queue, what, waits, prediction, reason."""
    waits = f" wait {','.join(f'#{w}' for w in step.waits)}" if step.waits else ""
    if step.kind == "copy":
        what = f"copy {step.name} {step.src}->{step.dst} {step.nbytes} B"
    else:
        what = f"{step.op} {step.name} [{step.kernel}]"
    reason = f" | {step.reason}" if step.reason else ""
    return (
        f"#{step.index} {step.queue} {what}{waits} pred {step.seconds * 1e3:.4f} ms "
        f"({step.source}){reason}"
    )
