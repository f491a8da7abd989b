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
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler
from numba.core.registry import CPUDispatcher
from numpy.typing import NDArray

from crossdock.scheduler.limits import Limits
from crossdock.scheduler.problem import Floats, Ints, Problem
from crossdock.scheduler.result import Links
from crossdock.scheduler.tensors import tensor_bytes

Function = TypeVar("Function", bound=Callable[..., Any])
Bools = NDArray[np.bool_]
Words = NDArray[np.uint64]
Vector = TypeVar("Vector", Ints, Floats)
BIG = 1e300  # stands for an impossible time; stays finite so that comparisons stay cheap
NOWHERE = cast(
    "int", np.int64(-1)
)  # no device or task; typed, or numba compiles callees for the literal too
NONE = cast("int", np.int64(0))  # a count of nothing, typed likewise


def _sources_stamp() -> str:
    """Hash of all compiled files: numba caches a function by its own file alone."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("compiled_*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


STAMP = _sources_stamp()


def kernel(function: Function) -> Function:
    """Compile a function that allocates nothing, cached on disk until any compiled file changes.

    Without reference counting it runs ten times as fast, and compiles sooner, where its arguments
    are tuples of arrays; so all arrays are made outside.
    """
    options: Any = {"cache": True, "_nrt": False}
    dispatcher: Any = njit(**options)(function)
    # A cached caller holds its callees' code, so that its cache must fall with theirs.
    stored: Any = getattr(getattr(dispatcher, "_cache", None), "_cache_file", None)
    if hasattr(stored, "_source_stamp"):
        stored._source_stamp = STAMP  # noqa: SLF001 - numba has no public way
    return cast("Function", dispatcher)


def part(function: Function) -> Function:
    """A function that kernels alone call.

    It is optimised and turned into machine code as a part of them, and not by itself too, which
    would take as long again.
    """
    return _part(function)


def leaf(function: Function) -> Function:
    """A small part of few arguments that is always inlined into its callers."""
    return _part(function, forceinline=True)


def _part(function: Function, **options: Any) -> Function:
    options |= {"nopython": True, "boundscheck": None, "_nrt": False}
    options |= {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    made: Any = Part(function, targetoptions=options, pipeline_class=PartCompiler)
    return cast("Function", made)


class PartLibrary(JITCodeLibrary):
    """The code of a part as it was written."""

    def _optimize_final_module(self) -> None:
        pass


class PartCompiler(Compiler):
    """Numba's compiler without its last steps."""

    def compile_extra(self, function: Callable[..., Any]) -> Any:
        """Compile to LLVM's intermediate language alone."""
        state, library, whole = self.state, cast("Any", PartLibrary), cast("Any", super())
        state.flags.no_compile = True
        state.library = library(state.targetctx.codegen(), function.__qualname__)
        state.library.enable_object_caching()
        return whole.compile_extra(function)


class Part(CPUDispatcher):
    """What a call of a part stands for while a kernel is compiled."""

    def add_overload(self, compiled: Any) -> None:
        """Tell callers of the code; numba knows that of a function by its address, here is none."""
        mark, context = object(), cast("Any", self.targetctx)
        context.insert_user_function(mark, compiled.fndesc, [compiled.library])
        self.overloads[tuple(compiled.signature.args)] = compiled._replace(entry_point=mark)


class Net(NamedTuple):
    """Edges by consumer (pred) and by producer (succ), as in Csr; e entries each."""

    pred_ptr: Ints  # (n + 1,)
    pred: Ints  # (e,) producers of a task
    pred_bytes: Floats  # (e,)
    pred_tensor: Ints  # (e,)
    succ_ptr: Ints  # (n + 1,)
    succ: Ints  # (e,) consumers of a task
    succ_bytes: Floats  # (e,)
    succ_tensor: Ints  # (e,)
    mixed: Bools  # (tensors,) edges of different sizes, so that the copies differ by device


class Wires(NamedTuple):
    """Transfer times of ordered device pairs."""

    latency: Floats  # (m, m), BIG where unreachable
    inv_bw: Floats  # (m, m)


class Graph(NamedTuple):
    """A problem as flat arrays: n tasks, m devices, e edges.

    Kernels take out the parts that they use: an access costs compile time for every array that
    the tuple at hand holds.
    """

    net: Net
    wires: Wires
    cost: Floats  # (n, m), BIG where a task cannot run
    tail: Floats  # (n, m) least time after the task's finish on the device
    lane: Ints  # (m,) exclusive resource of a device
    topo: Ints  # (n,)
    held: Floats  # (n,) bytes a task keeps on its device
    room: Floats  # (m,) bytes a device has
    lanes: int
    tensors: int
    serial: bool


def zeros(*shape: int) -> Ints:
    """Zeros, int64."""
    return np.zeros(shape, np.int64)


def compile_graph(problem: Problem, links: Links, limits: Limits) -> Graph:
    """Flat arrays of ``problem`` under a link model and memory limits."""
    size, tensor = problem.edge_bytes, problem.edge_tensor
    preds, succs = problem.preds, problem.succs
    largest = tensor_bytes(problem)
    mixed = np.zeros(len(largest), np.bool_)
    mixed[tensor[size < largest[tensor]]] = links == "serial"
    net = Net(
        preds.ptr,
        preds.task,
        size[preds.edge],
        tensor[preds.edge],
        succs.ptr,
        succs.task,
        size[succs.edge],
        tensor[succs.edge],
        mixed,
    )
    wires = Wires(
        np.where(np.isfinite(problem.latency), problem.latency, BIG), problem.inv_bw.copy()
    )
    cost = np.where(np.isfinite(problem.cost), problem.cost, BIG)
    tail = np.zeros((problem.n, problem.m))
    fill_tails(net, wires, cost, problem.topo, tail)
    return Graph(
        net,
        wires,
        cost,
        tail,
        problem.resource.copy(),
        problem.topo,
        limits.held.copy(),
        limits.room.copy(),
        int(problem.resource.max()) + 1,
        len(largest),
        links == "serial",
    )


@kernel
def fill_tails(net: Net, wires: Wires, cost: Floats, topo: Ints, tail: Floats) -> None:
    """Fill ``tail`` (n, m) in reverse topological order; BIG where nothing can follow."""
    n, m = cost.shape
    for q in range(n - 1, -1, -1):
        t = topo[q]
        for d in range(m):
            worst = 0.0
            for k in range(net.succ_ptr[t], net.succ_ptr[t + 1]):
                c = net.succ[k]
                best = BIG
                for e in range(m):
                    v = cost[c, e] + tail[c, e]
                    if e != d:
                        v += wires.latency[d, e] + net.succ_bytes[k] * wires.inv_bw[d, e]
                    best = min(best, v)
                worst = max(worst, best)
            tail[t, d] = worst


@leaf
def hop(wires: Wires, nbytes: float, a: int, b: int) -> float:
    """Seconds from device ``a`` to another device ``b``."""
    return wires.latency[a, b] + nbytes * wires.inv_bw[a, b]


@leaf
def copy_into(target: Vector, source: Vector) -> None:
    """Copy a short vector; slice assignment would allocate."""
    for i in range(len(target)):
        target[i] = source[i]


@leaf
def random_u64(state: Words) -> np.uint64:
    """Next number of a xorshift64* generator (S. Vigna, ACM TOMS 42(4), 2016)."""
    x = state[0]
    x ^= x >> np.uint64(12)
    x ^= x << np.uint64(25)
    x ^= x >> np.uint64(27)
    state[0] = x
    return x * np.uint64(2685821657736338717)


@leaf
def uniform(state: Words) -> float:
    """Uniform in [0, 1)."""
    return float(random_u64(state) >> np.uint64(11)) * 1.1102230246251565e-16


@leaf
def below(state: Words, n: int) -> int:
    """Uniform integer in [0, n)."""
    return int(uniform(state) * n)


def random_state(seed: int) -> Words:
    """Generator state of a seed, uint64 (1,)."""
    mixed = (seed * 0x9E3779B97F4A7C15 + 0x1234567DEADBEEF) % 2**64
    return np.array([mixed or 1], np.uint64)
