"""The placement problem: tasks with a cost per device, tensors between them, devices and links.

A :class:`Problem` is plain immutable data (numpy arrays plus names); every policy of the scheduler
is a pure function of it. Times are seconds for real plans (any one unit works), sizes are bytes.
The JSON form is in :mod:`crossdock.scheduler.problem_json`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossdock.runtime.errors import GraphError, NoPlacement
from crossdock.scheduler.dag import Csr, predecessors, successors, topological_order

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
TaskRef = int | str
DeviceRef = int | str


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """A device of a problem; devices with the same ``resource_group`` share compute.

    Tasks on devices of one group never overlap in predicted time, unless the group's capacity
    (``Problem.build(group_capacity=...)``) allows several at once. ``None``: a group of its own.
    """

    id: str
    mem_bytes: float = math.inf
    resource_group: str | None = None
    kind: str = ""


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """A task: seconds per device (``math.inf``: cannot run there, see ``reasons``).

    Args:
        name: unique name within the problem.
        cost: one value per device, in device order, or a mapping from device id to seconds;
            a device missing from the mapping cannot run the task.
        out_bytes: bytes of its output while live; default: its largest outgoing edge.
        param_bytes: bytes resident for the whole plan where the task runs (weights).
        scratch_bytes: bytes needed only while the task runs.
        reasons: why the task cannot run on a device, by device id, for explanations.
    """

    name: str
    cost: Sequence[float] | Mapping[str, float]
    out_bytes: float | None = None
    param_bytes: float = 0.0
    scratch_bytes: float = 0.0
    reasons: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EdgeSpec:
    """``nbytes`` flow from ``src`` to ``dst`` (task names or indices).

    Edges of one producer that carry the same ``tensor`` are sent to a device once under serial
    links. ``None`` stands for the one tensor of the producer.
    """

    src: TaskRef
    dst: TaskRef
    nbytes: float
    tensor: str | None = None


@dataclass(frozen=True, slots=True)
class LinkSpec:
    """A link from device ``src`` to ``dst``: ``latency_s + nbytes / bytes_per_s``.

    ``both`` makes the reverse direction the same; otherwise the link is one-way.
    """

    src: DeviceRef
    dst: DeviceRef
    latency_s: float
    bytes_per_s: float
    both: bool = False


@dataclass(frozen=True, eq=False)
class Problem:
    """An immutable placement problem of n tasks, e edges and m devices.

    Attributes:
        task_names, device_ids: n and m unique names; ``task_ids`` and ``device_keys`` are the
            ids of the JSON form, which may be numbers.
        cost: float64 (n, m), ``inf`` where a task cannot run.
        out_bytes, param_bytes, scratch_bytes: float64 (n,), memory of a task.
        edge_src, edge_dst: int64 (e,), task indices; edge_bytes: float64 (e,).
        edge_tensor: int64 (e,), tensor number, unique over the problem.
        mem_bytes: float64 (m,).
        resource: int64 (m,), exclusive resource of each device (devices of a group share one).
        groups: m group names; group_capacity: tasks of a group that may run at once.
        latency, inv_bw: float64 (m, m), ordered pairs; ``inf`` latency: unreachable.
        reasons: why ``cost[t, d]`` is infinite, by (task, device) index.
    """

    task_names: tuple[str, ...]
    device_ids: tuple[str, ...]
    cost: Floats
    out_bytes: Floats
    param_bytes: Floats
    scratch_bytes: Floats
    edge_src: Ints
    edge_dst: Ints
    edge_bytes: Floats
    edge_tensor: Ints
    mem_bytes: Floats
    resource: Ints
    groups: tuple[str, ...]
    group_capacity: Mapping[str, int]
    latency: Floats
    inv_bw: Floats
    reasons: Mapping[tuple[int, int], str]
    task_ids: tuple[Any, ...]
    device_keys: tuple[Any, ...]
    device_kinds: tuple[str, ...]

    @property
    def n(self) -> int:
        """Number of tasks."""
        return len(self.task_names)

    @property
    def m(self) -> int:
        """Number of devices."""
        return len(self.device_ids)

    @cached_property
    def preds(self) -> Csr:
        """Incoming edges of every task, compressed by consumer."""
        return predecessors(self.n, self.edge_src, self.edge_dst)

    @cached_property
    def succs(self) -> Csr:
        """Outgoing edges of every task, compressed by producer."""
        return successors(self.n, self.edge_src, self.edge_dst)

    @cached_property
    def topo(self) -> Ints:
        """A topological order of the tasks, int64 (n,)."""
        return topological_order(self.n, self.edge_src, self.edge_dst, self.task_names)

    @cached_property
    def shares_compute(self) -> bool:
        """Whether some resource group makes two devices exclude each other."""
        return len(set(self.resource.tolist())) < self.m

    @cached_property
    def tails(self) -> Floats:
        """Least time from a task's start on a device to the end of all that follows, (n, m).

        ``inf`` where the task cannot run there, or something after it cannot follow.
        """
        from crossdock.scheduler.bounds import tails

        return tails(self)

    def index(self, task: TaskRef) -> int:
        """Index of a task given by name or index."""
        return task if isinstance(task, int) else self._task_index[task]

    def device_index(self, device: DeviceRef) -> int:
        """Index of a device given by id or index."""
        return device if isinstance(device, int) else self.device_ids.index(device)

    @cached_property
    def _task_index(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.task_names)}

    def transfer_s(self, nbytes: float, src: int, dst: int) -> float:
        """Seconds that ``nbytes`` take from device ``src`` to ``dst``; 0 on one device."""
        if src == dst:
            return 0.0
        return float(self.latency[src, dst] + nbytes * self.inv_bw[src, dst])

    @classmethod
    def build(
        cls,
        tasks: Iterable[TaskSpec],
        edges: Iterable[EdgeSpec | tuple[TaskRef, TaskRef, float]],
        devices: Iterable[DeviceSpec],
        links: Iterable[LinkSpec] = (),
        *,
        host: DeviceRef | None = None,
        group_capacity: Mapping[str, int] | None = None,
        pins: Mapping[TaskRef, DeviceRef | Iterable[DeviceRef]] | None = None,
        forbids: Mapping[tuple[TaskRef, DeviceRef], str] | None = None,
    ) -> Problem:
        """Build a problem from specifications.

        Args:
            tasks: one TaskSpec a task.
            edges: EdgeSpecs or plain (src, dst, nbytes).
            devices: one DeviceSpec a device.
            links: without a link (or ``host``), two devices cannot exchange tensors.
            host: device through which pairs without a link of their own are staged; the staged
                route's latency is the sum of both hops', its inverse bandwidth likewise.
            group_capacity: tasks of a resource group that may run at once (default 1).
            pins: the device or devices a task is limited to.
            forbids: (task, device) pairs that are not allowed, with the reason.

        Raises:
            GraphError: unknown or duplicate names, wrong lengths, negative numbers, a cycle.
            NoPlacement: a task that no device can run.
        """
        from crossdock.scheduler.problem_build import assemble

        return assemble(
            cls,
            list(tasks),
            list(edges),
            list(devices),
            list(links),
            host=host,
            group_capacity=dict(group_capacity or {}),
            pins=dict(pins or {}),
            forbids=dict(forbids or {}),
        )

    @classmethod
    def from_json(cls, instance: Mapping[str, Any]) -> Problem:
        """Read the JSON form; raises GraphError that names the bad field."""
        from crossdock.scheduler.problem_json import from_json

        return from_json(instance)

    def to_json(self) -> dict[str, Any]:
        """Write the JSON form (plain lists, numbers and null)."""
        from crossdock.scheduler.problem_json import to_json

        return to_json(self)

    def check_placeable(self) -> None:
        """Raise NoPlacement naming the first task that no device can run, and why."""
        bad = np.flatnonzero(~np.isfinite(self.cost).any(axis=1))
        if bad.size:
            t = int(bad[0])
            why = "; ".join(
                f"{d}: {self.reasons.get((t, i), 'no kernel or cost')}"
                for i, d in enumerate(self.device_ids)
            )
            raise NoPlacement(f"task {self.task_names[t]!r}: no device can run it ({why})")


def require(condition: bool, message: str) -> None:
    """Raise GraphError with ``message`` unless ``condition`` holds."""
    if not condition:
        raise GraphError(message)
