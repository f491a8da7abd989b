"""Checks and assembly of a Problem from its specifications."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from crossdock.runtime.errors import GraphError
from crossdock.scheduler.problem import (
    DeviceRef,
    DeviceSpec,
    EdgeSpec,
    Floats,
    Ints,
    LinkSpec,
    Problem,
    TaskRef,
    TaskSpec,
    require,
)

_T = TypeVar("_T", bound=np.generic)


class EdgeTable(NamedTuple):
    """Edges as arrays; (e,) each."""

    src: Ints
    dst: Ints
    nbytes: Floats
    tensor: Ints  # unique over the problem


class TaskTable(NamedTuple):
    """Tasks as arrays."""

    names: Sequence[str]
    cost: Floats  # (n, m)
    out_bytes: Floats  # (n,) NaN: that of the largest outgoing edge
    param_bytes: Floats  # (n,)
    scratch_bytes: Floats  # (n,)
    reasons: dict[tuple[int, int], str]  # why a task cannot run, by (task, device)


def assemble(
    cls: type[Problem],
    tasks: Sequence[TaskSpec] | TaskTable,
    edges: Sequence[EdgeSpec | tuple[TaskRef, TaskRef, float]] | EdgeTable,
    devices: Sequence[DeviceSpec],
    links: Sequence[LinkSpec],
    *,
    host: DeviceRef | None,
    group_capacity: Mapping[str, int],
    pins: Mapping[TaskRef, DeviceRef | Iterable[DeviceRef]],
    forbids: Mapping[tuple[TaskRef, DeviceRef], str],
    task_ids: Sequence[Any] | None = None,
    device_keys: Sequence[Any] | None = None,
) -> Problem:
    """Build the arrays of a Problem; arguments as in :meth:`Problem.build`."""
    device_at = _index([d.id for d in devices], "device")
    require(len(devices) > 0, "a placement problem needs at least one device")
    rows = tasks if isinstance(tasks, TaskTable) else _task_table(tasks, device_at)
    names, cost, reasons = rows.names, rows.cost, rows.reasons
    task_at = _index(names, "task")
    _check_costs(names, cost)
    _apply_pins(cost, reasons, pins, task_at, device_at)
    for (task, device), why in forbids.items():
        cell = (_find(task, task_at, "task"), _find(device, device_at, "device"))
        cost[cell] = math.inf
        reasons[cell] = why
    table = edges if isinstance(edges, EdgeTable) else _edge_table(edges, task_at)
    src, dst, nbytes, tensor = table
    latency, inv_bw = _link_tables(links, device_at)
    if host is not None:
        stage_through(_find(host, device_at, "device"), latency, inv_bw)
    largest = np.zeros(len(names))
    np.maximum.at(largest, src, nbytes)
    out = np.where(np.isnan(rows.out_bytes), largest, rows.out_bytes)
    groups = tuple(d.resource_group or d.id for d in devices)
    problem = cls(
        task_names=tuple(names),
        device_ids=tuple(d.id for d in devices),
        cost=_frozen(cost),
        out_bytes=_frozen(_sizes(out, "out_bytes")),
        param_bytes=_frozen(_sizes(rows.param_bytes, "param_bytes")),
        scratch_bytes=_frozen(_sizes(rows.scratch_bytes, "scratch_bytes")),
        edge_src=_frozen(src),
        edge_dst=_frozen(dst),
        edge_bytes=_frozen(nbytes),
        edge_tensor=_frozen(tensor),
        mem_bytes=_frozen(_sizes([d.mem_bytes for d in devices], "mem_bytes")),
        resource=_frozen(exclusive_resources(groups, group_capacity)),
        groups=groups,
        group_capacity=dict(group_capacity),
        latency=_frozen(latency),
        inv_bw=_frozen(inv_bw),
        reasons=reasons,
        task_ids=tuple(task_ids if task_ids is not None else range(len(names))),
        device_keys=tuple(device_keys if device_keys is not None else (d.id for d in devices)),
        device_kinds=tuple(d.kind for d in devices),
    )
    problem.check_placeable()
    assert len(problem.topo) == problem.n  # computed here, where a cycle is the caller's error
    return problem


def exclusive_resources(groups: Sequence[str], capacity: Mapping[str, int]) -> Ints:
    """Number the exclusive resources: one a group, or ``capacity`` of them, dealt in turn.

    A capacity between 1 and the group's size is met by fixed partners: device i of the group
    shares resource i modulo the capacity. That never overlaps more tasks than allowed.
    """
    first: dict[str, list[int]] = {}
    taken = 0
    resource = np.zeros(len(groups), np.int64)
    sizes = {g: groups.count(g) for g in groups}
    seen: dict[str, int] = {}
    for i, group in enumerate(groups):
        if group not in first:
            slots = max(1, min(sizes[group], int(capacity.get(group, 1))))
            first[group] = list(range(taken, taken + slots))
            taken += slots
        slot = seen.get(group, 0)
        seen[group] = slot + 1
        resource[i] = first[group][slot % len(first[group])]
    return resource


def stage_through(host: int, latency: Floats, inv_bw: Floats) -> None:
    """Give pairs without a link a route through ``host``, in place: hops one after the other."""
    m = len(latency)
    for a in range(m):
        for b in range(m):
            staged = latency[a, host] + latency[host, b]
            if a != b and math.isinf(latency[a, b]) and math.isfinite(staged):
                latency[a, b] = staged
                inv_bw[a, b] = inv_bw[a, host] + inv_bw[host, b]


def _frozen(array: NDArray[_T]) -> NDArray[_T]:
    array.flags.writeable = False
    return array


def _index(names: Sequence[str], what: str) -> dict[str, int]:
    at = {name: i for i, name in enumerate(names)}
    if len(at) < len(names):
        twice = next(n for i, n in enumerate(names) if at[n] != i)
        raise GraphError(f"{what} {twice!r} is given twice; names must be unique")
    return at


def _find(ref: int | str, at: Mapping[str, int], what: str) -> int:
    if isinstance(ref, str):
        require(ref in at, f"unknown {what} {ref!r}")
        return at[ref]
    require(0 <= ref < len(at), f"{what} index {ref} is not in 0..{len(at) - 1}")
    return int(ref)


def _task_table(tasks: Sequence[TaskSpec], device_at: Mapping[str, int]) -> TaskTable:
    cost = np.full((len(tasks), len(device_at)), math.inf)
    for i, task in enumerate(tasks):
        if isinstance(task.cost, Mapping):
            for device, seconds in task.cost.items():
                cost[i, _find(device, device_at, "device")] = seconds
            continue
        check_width(task.name, task.cost, len(device_at))
        cost[i] = task.cost
    reasons = {
        (i, device_at[d]): why
        for i, t in enumerate(tasks)
        for d, why in t.reasons.items()
        if d in device_at
    }
    return TaskTable(
        [t.name for t in tasks],
        cost,
        np.array([math.nan if t.out_bytes is None else t.out_bytes for t in tasks]),
        np.array([t.param_bytes for t in tasks]),
        np.array([t.scratch_bytes for t in tasks]),
        reasons,
    )


def check_width(name: str, cost: Sequence[Any], devices: int) -> None:
    """Raise GraphError unless a task has a cost for every device."""
    if len(cost) != devices:
        raise GraphError(f"task {name!r} has {len(cost)} costs for {devices} devices")


def _check_costs(names: Sequence[str], cost: Floats) -> None:
    bad = np.flatnonzero(~(cost >= 0.0).all(axis=1))
    if bad.size:
        name = names[int(bad[0])]
        raise GraphError(f"task {name!r} has a negative or NaN cost; use inf where it cannot run")


def _apply_pins(
    cost: Floats,
    reasons: dict[tuple[int, int], str],
    pins: Mapping[TaskRef, DeviceRef | Iterable[DeviceRef]],
    task_at: Mapping[str, int],
    device_at: Mapping[str, int],
) -> None:
    for task, allowed in pins.items():
        t = _find(task, task_at, "task")
        refs = [allowed] if isinstance(allowed, int | str) else list(allowed)
        keep = {_find(d, device_at, "device") for d in refs}
        label = ", ".join(str(d) for d in refs)
        for d in set(range(len(device_at))) - keep:
            if math.isfinite(cost[t, d]):
                reasons[t, d] = f"pinned to {label}"
            cost[t, d] = math.inf


def _edge_table(
    edges: Sequence[EdgeSpec | tuple[TaskRef, TaskRef, float]], task_at: Mapping[str, int]
) -> EdgeTable:
    specs = [edge if isinstance(edge, EdgeSpec) else EdgeSpec(*edge) for edge in edges]
    return edge_table(
        [_find(e.src, task_at, "task") for e in specs],
        [_find(e.dst, task_at, "task") for e in specs],
        [e.nbytes for e in specs],
        [e.tensor for e in specs],
    )


def edge_table(
    src: Sequence[int],
    dst: Sequence[int],
    nbytes: Sequence[float] | Floats,
    names: Sequence[str | None],
) -> EdgeTable:
    """Edges from task indices, sizes and names of tensors, which are those of the producer."""
    numbers: dict[tuple[int, str | None], int] = {}
    tensor = [numbers.setdefault(key, len(numbers)) for key in zip(src, names, strict=True)]
    return EdgeTable(
        np.array(src, np.int64),
        np.array(dst, np.int64),
        _sizes(nbytes, "edge bytes"),
        np.array(tensor, np.int64),
    )


def _link_tables(links: Sequence[LinkSpec], device_at: Mapping[str, int]) -> tuple[Floats, Floats]:
    m = len(device_at)
    latency = np.full((m, m), math.inf)
    inv_bw = np.zeros((m, m))
    for link in links:
        a, b = _find(link.src, device_at, "device"), _find(link.dst, device_at, "device")
        if not (link.latency_s >= 0.0 and link.bytes_per_s > 0.0):
            name = f"link {link.src!r} to {link.dst!r}"
            raise GraphError(f"{name}: latency must be >= 0 and bandwidth > 0")
        for x, y in ((a, b), (b, a)) if link.both else ((a, b),):
            latency[x, y] = link.latency_s
            inv_bw[x, y] = 1.0 / link.bytes_per_s
    np.fill_diagonal(latency, 0.0)
    np.fill_diagonal(inv_bw, 0.0)
    return latency, inv_bw


def _sizes(values: Sequence[float] | Floats, what: str) -> Floats:
    array = np.asarray(values, np.float64)
    require(bool((array >= 0.0).all()), f"{what} must be numbers of at least 0")
    return array
