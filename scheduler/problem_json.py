"""JSON form of a Problem: devices, links (both directions), tasks, edges.

Beyond the plain form, these optional keys carry what it has no room for: ``resource_group`` of a
device, ``directed`` on a one-way link, ``scratch_bytes`` of a task, a fourth edge item (the tensor
number) where a producer has several tensors, and ``group_capacity`` at the top.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from crossdock.runtime.errors import GraphError
from crossdock.scheduler.problem import DeviceSpec, Floats, LinkSpec, Problem
from crossdock.scheduler.problem_build import (
    EdgeTable,
    TaskTable,
    assemble,
    check_width,
    edge_table,
)


def from_json(instance: Mapping[str, Any]) -> Problem:
    """Read a problem; null or infinite costs mean "cannot run there".

    Raises:
        GraphError: a missing or malformed field, named.
        NoPlacement: a task that no device can run.
    """
    try:
        raw_devices, raw_tasks = instance["devices"], instance["tasks"]
        device_at = {d["id"]: i for i, d in enumerate(raw_devices)}
        task_at = {t["id"]: i for i, t in enumerate(raw_tasks)}
        devices = [
            DeviceSpec(
                id=name,
                mem_bytes=_number(d.get("mem_bytes"), math.inf),
                resource_group=d.get("resource_group"),
                kind=str(d.get("kind", "")),
            )
            for name, d in zip(_names(raw_devices), raw_devices, strict=True)
        ]
        tasks = _tasks(raw_tasks, devices)
        edges = _edges_of(instance["edges"], task_at)
        links = [
            LinkSpec(
                device_at[x["a"]],
                device_at[x["b"]],
                _number(x["lat"], 0.0),
                _number(x["bw"], math.inf),
                both=not x.get("directed", False),
            )
            for x in instance.get("links", [])
        ]
    except GraphError:
        raise
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise GraphError(f"scheduling instance: bad or missing field {error}") from error
    return assemble(
        Problem,
        tasks,
        edges,
        devices,
        links,
        host=None,
        group_capacity=instance.get("group_capacity", {}),
        pins={},
        forbids={},
        task_ids=list(task_at),
        device_keys=list(device_at),
    )


def to_json(problem: Problem) -> dict[str, Any]:
    """Write a problem; ``from_json`` of the result is the same problem."""
    result: dict[str, Any] = {
        "devices": [_device(problem, d) for d in range(problem.m)],
        "links": _links(problem),
        "tasks": [_task(problem, t) for t in range(problem.n)],
        "edges": _edges(problem),
    }
    if problem.group_capacity:
        result["group_capacity"] = dict(problem.group_capacity)
    return result


def _number(value: Any, default: float) -> float:
    return default if value is None else float(value)


def _tasks(rows: Sequence[Mapping[str, Any]], devices: Sequence[DeviceSpec]) -> TaskTable:
    """Columns at once: a graph of thousands of tasks is read in milliseconds."""
    names = _names(rows)
    for name, t in zip(names, rows, strict=True):
        check_width(name, t["cost"], len(devices))
    cells = [c for t in rows for c in t["cost"]]
    at = {d.id: i for i, d in enumerate(devices)}
    return TaskTable(
        names,
        _column(cells, math.inf).reshape(len(rows), len(devices)),
        _column([t.get("out_bytes") for t in rows], math.nan),
        _column([t.get("param_bytes") for t in rows], 0.0),
        _column([t.get("scratch_bytes") for t in rows], 0.0),
        {
            (i, at[d]): why
            for i, t in enumerate(rows)
            for d, why in (t.get("reasons") or {}).items()
            if d in at
        },
    )


def _column(values: Sequence[Any], default: float) -> Floats:
    """Numbers, ``default`` for null."""
    column = np.array(values, np.float64)
    for i in np.flatnonzero(np.isnan(column)).tolist():
        if values[i] is None:
            column[i] = default
    return column


def _edges_of(rows: Sequence[Sequence[Any]], task_at: Mapping[Any, int]) -> EdgeTable:
    names = [str(e[3]) if len(e) > 3 else None for e in rows]
    return edge_table(
        [task_at[e[0]] for e in rows],
        [task_at[e[1]] for e in rows],
        _column([e[2] for e in rows], 0.0),
        names,
    )


def _names(items: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names where they are given and unique, else the ids."""
    names = [str(x.get("name") or x["id"]) for x in items]
    return names if len(set(names)) == len(names) else [str(x["id"]) for x in items]


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _device(p: Problem, d: int) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "id": p.device_keys[d],
        "name": p.device_ids[d],
        "kind": p.device_kinds[d],
        "mem_bytes": _finite(p.mem_bytes[d]),
    }
    if p.groups[d] != p.device_ids[d]:
        entry["resource_group"] = p.groups[d]
    return entry


def _task(p: Problem, t: int) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "id": p.task_ids[t],
        "name": p.task_names[t],
        "cost": [_finite(c) for c in p.cost[t]],
        "out_bytes": float(p.out_bytes[t]),
        "param_bytes": float(p.param_bytes[t]),
    }
    if p.scratch_bytes[t]:
        entry["scratch_bytes"] = float(p.scratch_bytes[t])
    reasons = {p.device_ids[d]: p.reasons[t, d] for d in range(p.m) if (t, d) in p.reasons}
    if reasons:
        entry["reasons"] = reasons
    return entry


def _edges(p: Problem) -> list[list[Any]]:
    tensors: dict[int, set[int]] = {}
    for a, x in zip(p.edge_src.tolist(), p.edge_tensor.tolist(), strict=True):
        tensors.setdefault(a, set()).add(x)
    rows: list[list[Any]] = []
    for a, b, size, x in zip(
        p.edge_src.tolist(),
        p.edge_dst.tolist(),
        p.edge_bytes.tolist(),
        p.edge_tensor.tolist(),
        strict=True,
    ):
        row = [p.task_ids[a], p.task_ids[b], size]
        rows.append([*row, x] if len(tensors[a]) > 1 else row)
    return rows


def _links(p: Problem) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for a in range(p.m):
        for b in range(p.m):
            if a == b or math.isinf(p.latency[a, b]):
                continue
            same = p.latency[a, b] == p.latency[b, a] and p.inv_bw[a, b] == p.inv_bw[b, a]
            if same and b < a:
                continue
            bw = 1.0 / p.inv_bw[a, b] if p.inv_bw[a, b] else math.inf
            row = {"a": p.device_keys[a], "b": p.device_keys[b], "lat": float(p.latency[a, b])}
            row["bw"] = _finite(bw)
            rows.append(row if same else {**row, "directed": True})
    return rows
