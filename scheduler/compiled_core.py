"""Data layout and small compiled helpers shared by the compiled seeds and search.

Imported only when the compiled search is asked for: it needs numba.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
from numba import njit
from numpy.typing import NDArray

from crossdock.scheduler.limits import Limits
from crossdock.scheduler.problem import Floats, Ints, Problem
from crossdock.scheduler.result import Links
from crossdock.scheduler.tensors import tensor_bytes

Function = TypeVar("Function", bound=Callable[..., Any])
Bools = NDArray[np.bool_]
BIG = 1e300  # stands for an impossible time; stays finite so that comparisons stay cheap


def _sources_stamp() -> str:
    """Hash of all compiled files: numba caches a function by its own file alone."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("compiled_*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


STAMP = _sources_stamp()


def compiled(function: Function, **options: bool) -> Function:
    """Compile ``function`` with numba, cached on disk until any compiled file changes."""
    dispatcher = njit(cache=True, **options)(function)
    # A cached caller holds its callees' code, so that its cache must fall with theirs.
    stored = getattr(getattr(dispatcher, "_cache", None), "_cache_file", None)
    if hasattr(stored, "_source_stamp"):
        stored._source_stamp = STAMP  # noqa: SLF001 - numba has no public way
    return cast("Function", dispatcher)


def kernel(function: Function) -> Function:
    """Compile a function that allocates nothing, without reference counting.

    That makes it ten times as fast where its arguments are tuples of dozens of arrays.
    """
    return compiled(function, _nrt=False)


class Graph(NamedTuple):
    """A problem as flat arrays; n tasks, m devices, e edges in consumer and producer order."""

    cost: Floats  # (n, m), BIG where a task cannot run
    lane: Ints  # (m,) exclusive resource of a device
    lanes: int
    latency: Floats  # (m, m), BIG where unreachable
    inv_bw: Floats  # (m, m)
    topo: Ints  # (n,)
    pred_ptr: Ints  # (n + 1,)
    pred: Ints  # (e,) producers of a task
    pred_bytes: Floats  # (e,)
    pred_tensor: Ints  # (e,)
    succ_ptr: Ints  # (n + 1,)
    succ: Ints  # (e,)
    succ_bytes: Floats  # (e,)
    succ_tensor: Ints  # (e,)
    tensors: int
    mixed: Bools  # (tensors,) edges of different sizes, so that the copies differ by device
    tail: Floats  # (n, m) least time after the task's finish on the device
    serial: bool
    held: Floats  # (n,) bytes a task keeps on its device
    room: Floats  # (m,) bytes a device has


def compile_graph(problem: Problem, links: Links, limits: Limits) -> Graph:
    """Flat arrays of ``problem`` under a link model and memory limits."""
    size, tensor = problem.edge_bytes, problem.edge_tensor
    preds, succs = problem.preds, problem.succs
    largest = tensor_bytes(problem)
    mixed = np.zeros(len(largest), np.bool_)
    mixed[tensor[size < largest[tensor]]] = links == "serial"
    bare = Graph(
        cost=np.where(np.isfinite(problem.cost), problem.cost, BIG),
        lane=problem.resource.copy(),
        lanes=int(problem.resource.max()) + 1,
        latency=np.where(np.isfinite(problem.latency), problem.latency, BIG),
        inv_bw=problem.inv_bw.copy(),
        topo=problem.topo,
        pred_ptr=preds.ptr,
        pred=preds.task,
        pred_bytes=size[preds.edge],
        pred_tensor=tensor[preds.edge],
        succ_ptr=succs.ptr,
        succ=succs.task,
        succ_bytes=size[succs.edge],
        succ_tensor=tensor[succs.edge],
        tensors=len(largest),
        mixed=mixed,
        tail=np.zeros((problem.n, problem.m)),
        serial=links == "serial",
        held=limits.held.copy(),
        room=limits.room.copy(),
    )
    fill_tails(bare)
    return bare


@kernel
def fill_tails(g: Graph) -> None:
    """Fill ``g.tail`` in reverse topological order; BIG where nothing can follow."""
    n, m = g.cost.shape
    for q in range(n - 1, -1, -1):
        t = g.topo[q]
        for d in range(m):
            worst = 0.0
            for k in range(g.succ_ptr[t], g.succ_ptr[t + 1]):
                c = g.succ[k]
                best = BIG
                for e in range(m):
                    v = g.cost[c, e] + g.tail[c, e]
                    if e != d:
                        v += g.latency[d, e] + g.succ_bytes[k] * g.inv_bw[d, e]
                    best = min(best, v)
                worst = max(worst, best)
            g.tail[t, d] = worst


@kernel
def copy_into(target: np.ndarray, source: np.ndarray) -> None:
    """Copy a short vector; slice assignment would allocate."""
    for i in range(len(target)):
        target[i] = source[i]


@kernel
def random_u64(state: np.ndarray) -> np.uint64:
    """Next number of a xorshift64* generator (S. Vigna, ACM TOMS 42(4), 2016)."""
    x = state[0]
    x ^= x >> np.uint64(12)
    x ^= x << np.uint64(25)
    x ^= x >> np.uint64(27)
    state[0] = x
    return x * np.uint64(2685821657736338717)


@kernel
def uniform(state: np.ndarray) -> float:
    """Uniform in [0, 1)."""
    return float(random_u64(state) >> np.uint64(11)) * 1.1102230246251565e-16


@kernel
def below(state: np.ndarray, n: int) -> int:
    """Uniform integer in [0, n)."""
    return int(uniform(state) * n)


def random_state(seed: int) -> np.ndarray:
    """Generator state of a seed, uint64 (1,)."""
    mixed = (seed * 0x9E3779B97F4A7C15 + 0x1234567DEADBEEF) % 2**64
    return np.array([mixed or 1], np.uint64)
