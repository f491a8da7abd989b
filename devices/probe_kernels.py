"""The small kernels that a probe proves and times a device with, as steps for each step kind.

A step kind is ``grid`` (dialect text), ``native`` (LLVM IR) or ``array`` (array-namespace code).
An operation has the same slots and the same answer in every kind that has it:

===========  =======================================  =====================================
operation    slots                                    meaning
===========  =======================================  =====================================
``copy``     In(0), Out(0): bytes                     a copy; a multiple of ``COPY_UNIT``
``axpy``     In(0) x, In(1) y, Out(0) z: [n]          z = 3 * x + y
``product``  In(0) a, In(1) b, Out(0) c: [n, n]       c = a @ b; n a multiple of ``TILE``
``sums``     In(0) x: [64 g], Out(0) s: [g]           sums of 64, int32; grid only
``fma``      Out(0): ``FMA_BYTES``, all ones          chains of multiply-adds in registers
``tiny``     Out(0): one float32                      next to nothing
===========  =======================================  =====================================
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from crossdock.devices import probe_native
from crossdock.devices.base import Cap, DeviceInfo
from crossdock.devices.probe_source import CHAINS, SOURCE, WIDTHS
from crossdock.devices.program import Argument, ArrayCall, GridLaunch, In, Out, Scalar, Step
from crossdock.runtime.tensor import TensorSpec

StepKind = Literal["grid", "native", "array"]
KINDS: dict[StepKind, Cap] = {"grid": Cap.GRID, "native": Cap.NATIVE, "array": Cap.ARRAY}
"""Step kinds with the capability each needs, the closest to the hardware first."""

TILE = 64
COPY_UNIT = 8192
FMA_BYTES = 1 << 22
_GROUP = 64
_ARRAY_CHAIN = 4096


def kinds_of(info: DeviceInfo) -> list[StepKind]:
    """The step kinds a device runs, the closest to the hardware first."""
    return [kind for kind, cap in KINDS.items() if cap in info.caps]


def dtypes_of(info: DeviceInfo, kind: StepKind) -> list[str]:
    """Element types in which ``axpy`` runs on a device in this step kind."""
    found = ["int32", "float32"]
    if Cap.FLOAT64 in info.caps:
        found.append("float64")
    if Cap.FLOAT16 in info.caps and kind != "native":
        found.append("float16")
    return found


def copy(kind: StepKind, info: DeviceInfo, nbytes: int, times: int = 1) -> list[Step]:
    """Steps that copy In(0) to Out(0) ``times`` times."""
    if kind == "grid":
        pieces, rounds = nbytes // COPY_UNIT, Scalar(np.int32(times))
        if info.details.get("type") == "cpu":
            args: tuple[Argument, ...] = (In(0), Out(0), Scalar(np.int32(pieces)), rounds)
            return [GridLaunch(SOURCE, "sweep", args, (info.compute_units,), (1,))]
        args = (In(0), Out(0), rounds)
        return [GridLaunch(SOURCE, "copy", args, (pieces * _GROUP,), (_GROUP,))]
    if kind == "native":
        return [probe_native.copy((In(0), Out(0)), nbytes)] * times
    spec = TensorSpec("uint8", (nbytes,))
    return [ArrayCall(_array_copy, (In(0),), (Out(0),), (spec,), (spec,))] * times


def axpy(kind: StepKind, dtype: str, n: int) -> Step:
    """The step z = 3 * x + y over ``n`` elements."""
    if kind == "grid":
        args = (In(0), In(1), Out(0), Scalar(np.int32(n)))
        grid = (-(-n // _GROUP) * _GROUP,)
        return GridLaunch(SOURCE, f"axpy_{dtype}", args, grid, (_GROUP,))
    if kind == "native":
        return probe_native.axpy((In(0), In(1), Out(0)), dtype, n)
    spec = TensorSpec(dtype, (n,))
    return ArrayCall(_array_axpy, (In(0), In(1)), (Out(0),), (spec, spec), (spec,))


def product(kind: StepKind, dtype: str, n: int) -> Step:
    """The step c = a @ b of two [n, n] matrices; in the grid kind float32 only."""
    if kind == "grid":
        args = (In(0), In(1), Out(0), Scalar(np.int32(n)))
        return GridLaunch(SOURCE, "product", args, (n // 8, n // 8), (8, 8))
    spec = TensorSpec(dtype, (n, n))
    return ArrayCall(_array_product, (In(0), In(1)), (Out(0),), (spec, spec), (spec,))


def sums(groups: int) -> Step:
    """The grid step that sums each 64 int32 through local memory."""
    return GridLaunch(SOURCE, "sums", (In(0), Out(0)), (groups * _GROUP,), (_GROUP,))


def tiny(kind: StepKind) -> Step:
    """The step that does next to nothing."""
    if kind == "grid":
        return GridLaunch(SOURCE, "tiny", (Out(0),), (1,), (1,))
    if kind == "native":
        return probe_native.tiny((Out(0),))
    return ArrayCall(_array_tiny, (), (Out(0),), (), (TensorSpec("float32", (1,)),))


@dataclass(frozen=True)
class Chains:
    """A way to run multiply-adds in registers: in which step kind, with vectors how wide."""

    kind: StepKind
    dtype: str
    width: int

    def step(self, info: DeviceInfo, rounds: int) -> tuple[Step, float]:
        """The step and how many operations it does."""
        if self.kind == "array":
            return _array_chains(self.dtype, rounds), 2.0 * _ARRAY_CHAIN * rounds
        lanes = CHAINS * self.width
        if self.kind == "native":
            items = 8 * info.compute_units
            args = (Out(0), Scalar(np.int64(rounds)))
            step: Step = probe_native.fma(args, self.dtype, self.width, items)
            return step, 2.0 * lanes * rounds * items
        # What an item does before and after its chains is to be nothing beside them.
        each = 256 if info.details.get("type") == "cpu" else 2048
        items = min(each * info.compute_units, FMA_BYTES // 8) // _GROUP * _GROUP
        real = np.dtype(self.dtype).type
        arguments = (Out(0), Scalar(real(0.999)), Scalar(real(0.001)), Scalar(np.int32(rounds)))
        entry = f"fma_{self.dtype}x{self.width}"
        return GridLaunch(
            SOURCE, entry, arguments, (items,), (_GROUP,)
        ), 2.0 * lanes * rounds * items


def chains_of(info: DeviceInfo, dtype: str) -> list[Chains]:
    """Ways to try for the highest rate of multiply-adds; the fastest counts."""
    kind = kinds_of(info)[0]
    if kind == "grid":
        widths: tuple[int, ...] = WIDTHS[dtype]
    elif kind == "native":
        widths = (8, 16) if dtype == "float32" else (4, 8)
    else:
        widths = (1,)
    return [Chains(kind, dtype, width) for width in widths]


def _array_chains(dtype: str, rounds: int) -> Step:
    def run(xp: Any, ins: list[Any], outs: list[Any]) -> None:  # noqa: ARG001 - the ABI's
        out = outs[0]
        scale, shift = out.dtype.type(0.5), out.dtype.type(0.25)
        for _ in range(rounds):
            xp.multiply(out, scale, out=out)
            xp.add(out, shift, out=out)

    return ArrayCall(run, (), (Out(0),), (), (TensorSpec(dtype, (_ARRAY_CHAIN,)),))


def _array_copy(xp: Any, ins: list[Any], outs: list[Any]) -> None:
    xp.copyto(outs[0], ins[0])


def _array_axpy(xp: Any, ins: list[Any], outs: list[Any]) -> None:
    xp.multiply(ins[0], ins[0].dtype.type(3), out=outs[0])
    xp.add(outs[0], ins[1], out=outs[0])


def _array_product(xp: Any, ins: list[Any], outs: list[Any]) -> None:
    xp.matmul(ins[0], ins[1], out=outs[0])


def _array_tiny(xp: Any, ins: list[Any], outs: list[Any]) -> None:  # noqa: ARG001 - the ABI's
    outs[0].fill(1.0)
