"""The op table and the kernel candidates.

Op entries register with ``define`` when their family's module is imported; kernels with
``kernel``. ``load`` imports them once; those of grids come with the first device that has one.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from crossdock.devices.base import DeviceInfo
from crossdock.devices.program import Lowered
from crossdock.kernels.refusal import joined
from crossdock.kernels.spec import Kernel, OpCall, OpSpec, When
from crossdock.runtime.errors import UnsupportedOp

_OPS: dict[str, OpSpec] = {}
_KERNELS: dict[str, list[Kernel]] = {}
_LOCK = threading.RLock()
_STATE = {"loaded": False, "grids": False}

FAMILIES = (
    "ops_elementwise",
    "ops_compare",
    "ops_activation",
    "ops_shape",
    "ops_extend",
    "ops_gather",
    "ops_scatter",
    "ops_reduce",
    "ops_along",
    "ops_bits",
    "ops_matmul",
    "ops_attention",
    "ops_conv",
    "ops_integer",
    "ops_quantized",
    "ops_pool",
    "ops_normalization",
    "ops_quantize",
    "ops_recurrent",
    "ops_extension",
    "ops_numeric",
    "fused",
    "fused_conv",
    "fused_matmul",
    "fused_attention",
    "by_image",
    "array_kernels",
    "cpu_kernels",
)
"""Modules of this package that register entries, in order."""
GRID = "grid_kernels"
"""The module that registers what only devices with grids run; it is not loaded for the host."""
HOME = "crossdock.kernels."


def load() -> None:
    """Import every family once; cheap afterwards."""
    if _STATE["loaded"]:
        return
    with _LOCK:
        if not _STATE["loaded"]:
            for name in FAMILIES:
                importlib.import_module(HOME + name)
            _STATE["loaded"] = True


def define(spec: OpSpec) -> OpSpec:
    """Register an op entry; a second one of the same name is a bug."""
    assert spec.name not in _OPS, spec.name
    _OPS[spec.name] = spec
    return spec


def op(name: str) -> OpSpec:
    """Return an op's entry; raises UnsupportedOp naming it."""
    load()
    found = _OPS.get(name)
    if found is None:
        raise UnsupportedOp(f"no operator {name!r}; `crossdock ops` lists the operators there are")
    return found


def ops() -> dict[str, OpSpec]:
    """All op entries by name."""
    load()
    return dict(_OPS)


def kernel(
    name: str,
    op: str,
    kinds: Iterable[str],
    *,
    when: When,
    rank: int = 50,
    native: bool = True,
    exact: bool = True,
    steady: bool = True,
    rounds: str = "",
    declines: bool = False,
    dtypes: Iterable[str] = (),
) -> Callable[[Callable[[OpCall, DeviceInfo], Lowered]], Callable[[OpCall, DeviceInfo], Lowered]]:
    """Decorator: register the function as the ``lower`` of a kernel candidate for ``op``.

    ``op`` "*" makes a candidate for every op.
    """

    def register(
        lower: Callable[[OpCall, DeviceInfo], Lowered],
    ) -> Callable[[OpCall, DeviceInfo], Lowered]:
        _KERNELS.setdefault(op, []).append(
            Kernel(
                name,
                op,
                frozenset(kinds),
                when,
                lower,
                rank,
                native,
                exact,
                steady,
                rounds,
                declines,
                frozenset(dtypes),
            )
        )
        return lower

    return register


def _load_for(kind: str) -> None:
    """Import what registers kernels for a kind of device."""
    load()
    if kind != "cpu" and not _STATE["grids"]:
        with _LOCK:
            importlib.import_module(HOME + GRID)
            _STATE["grids"] = True


def kernels(op: str) -> tuple[Kernel, ...]:
    """The kernels of an op itself that are registered so far."""
    return tuple(_KERNELS.get(op, ()))


def foreign_names() -> list[str]:
    """Every kernel registered from outside of this package as "op name", sorted."""
    load()
    found = (k for kernels in _KERNELS.values() for k in kernels)
    return sorted(f"{k.op} {k.name}" for k in found if not _written(k.lower).startswith(HOME))


def _written(lower: Callable[..., object]) -> str:
    """The module that a function is written in: a partial one says that of ``functools``."""
    while isinstance(lower, partial):
        lower = lower.func
    return lower.__module__


@dataclass(frozen=True)
class Candidates:
    """Kernels that fit an op instance on a device, best rank first, and why others do not."""

    fitting: tuple[Kernel, ...]
    rejected: tuple[tuple[str, str], ...]

    def reason(self) -> str:
        """Why nothing fits, in one line."""
        return joined(self.rejected)


def other_than(name: str, call: OpCall, device: DeviceInfo) -> str | None:
    """A kernel of the op itself that fits, beside the one named; None where there is none."""
    found = (k for k in _KERNELS.get(call.op, ()) if k.name != name and device.kind in k.kinds)
    return next((k.name for k in found if k.when(call, device) is None), None)


def candidates(call: OpCall, device: DeviceInfo) -> Candidates:
    """Find the kernels for an op instance on a device."""
    _load_for(device.kind)
    fitting: list[Kernel] = []
    rejected: list[tuple[str, str]] = []
    there = {s.dtype for s in (*call.inputs, *call.outputs) if s is not None}
    for entry in (*_KERNELS.get(call.op, ()), *_KERNELS.get("*", ())):
        if device.kind not in entry.kinds or (entry.dtypes and entry.dtypes.isdisjoint(there)):
            continue
        why = entry.when(call, device)
        if why is None:
            fitting.append(entry)
        else:
            rejected.append((entry.name, why))
    fitting.sort(key=lambda k: k.rank)
    return Candidates(tuple(fitting), tuple(rejected))
