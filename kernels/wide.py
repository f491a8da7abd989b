"""Half-precision ops by the kernels for float32, on processors.

Operands in float16 and bfloat16 are widened, constants once a session; the float32 kernel runs
on them; and its results are rounded once. A processor computes in float32 anyway, and its best
kernels read nothing else. What is elementwise, or moves data alone, has kernels for half types.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from crossdock.devices.base import DeviceInfo
from crossdock.devices.program import (
    In,
    Lowered,
    Out,
    Pack,
    Packed,
    Scratch,
    Slot,
    Step,
    renamed,
)
from crossdock.kernels import table
from crossdock.kernels.fused import FusedBody, FusedStep, body_of
from crossdock.kernels.ops_math import HALVES
from crossdock.kernels.refusal import Cause, Refusal, joined
from crossdock.kernels.spec import Kernel, OpCall
from crossdock.runtime.errors import Error
from crossdock.runtime.tensor import Array, TensorSpec

WIDE = "float32"
_WIDER = dict.fromkeys(HALVES, WIDE)

Obstacle = Callable[[OpCall, DeviceInfo], str | None]
Cast = Callable[[FusedBody, TensorSpec, Slot, TensorSpec, DeviceInfo], Step]
"""``cast(body, source, slot, target, device)``: one step from ``slot`` into ``Out(0)``."""


@dataclass(frozen=True)
class _Widened(Mapping[int, Array]):
    """Constants, each widened whenever it is read: most questions are about their presence."""

    constants: Mapping[int, Array]

    def __getitem__(self, index: int) -> Array:
        array = self.constants[index]
        return array.astype(WIDE) if array.dtype.name in HALVES else array

    def __contains__(self, index: object) -> bool:
        return index in self.constants

    def __iter__(self) -> Iterator[int]:
        return iter(self.constants)

    def __len__(self) -> int:
        return len(self.constants)


def _wider(spec: TensorSpec) -> TensorSpec:
    return spec.with_dtype(WIDE) if spec.dtype in HALVES else spec


def widened(call: OpCall) -> OpCall | str:
    """The op on float32, or why that is another op."""
    inputs = tuple(None if s is None else _wider(s) for s in call.inputs)
    outputs = tuple(map(_wider, call.outputs))
    attrs = {name: _of_wide(value) for name, value in call.attrs.items()}
    made = replace(
        call, attrs=attrs, inputs=inputs, outputs=outputs, constants=_Widened(call.constants)
    )
    try:
        inferred = table.op(call.op).infer(inputs, attrs)
    except Error as error:
        return f"{call.op} is another op on {WIDE}: {error}"
    return made if tuple(inferred) == outputs else f"{call.op} is another op on {WIDE}"


def _of_wide(value: Any) -> Any:
    """An attribute, which may name types, as those of fused steps do."""
    if isinstance(value, FusedBody):
        return value.retyped(_WIDER)
    return _WIDER.get(value, value) if isinstance(value, str) else value


def _apart(call: OpCall) -> str | None:
    """Why an op is none that float32 serves, whatever the device."""
    if body_of(call) is not None:
        return "elementwise kernels read half types"
    if table.op(call.op).alias:
        return f"{call.op} is a view of its operand's bytes"
    if any(s.size == 0 for s in (*call.inputs, *call.outputs) if s is not None):
        return Refusal("an operand is empty", Cause.SIZE)
    return None


@dataclass(frozen=True)
class Widening:
    """A kind of device that runs ops on half types so: what keeps it from that, and its casts."""

    obstacle: Obstacle
    cast: Cast

    def register(self, name: str, kind: str, rank: int) -> None:
        """Register the kernel, and that of which the bits hang on how many threads there are."""
        for steady in (True, False):
            table.kernel(
                name if steady else f"{name}.unsteady",
                "*",
                (kind,),
                when=partial(self._fits, steady),
                rank=rank,
                steady=steady,
                dtypes=HALVES,
            )(partial(self._lower, steady))

    def _fits(self, steady: bool, call: OpCall, device: DeviceInfo) -> str | None:
        found = self._chosen(steady, call, device)
        return found if isinstance(found, str) else None

    def _chosen(
        self, steady: bool, call: OpCall, device: DeviceInfo
    ) -> tuple[OpCall, Kernel] | str:
        """The op on float32, and its kernel; or why there is none."""
        if (why := _apart(call)) is not None:
            return why
        wide = widened(call)
        if isinstance(wide, str):
            return wide
        if (why := self.obstacle(call, device)) is not None:
            return why
        own = [k for k in table.kernels(call.op) if device.kind in k.kinds]
        fitting, rejected = [], []
        for kernel in own:
            why = kernel.when(wide, device) if kernel.exact else "loses bits"
            if why is None:
                fitting.append(kernel)
            else:
                rejected.append((kernel.name, why))
        if not fitting:
            return joined(rejected)
        best = min(fitting, key=lambda k: k.rank)
        if best.when(call, device) is None:
            return f"{best.name} reads half types"
        return (wide, best) if best.steady == steady else f"on {WIDE} its kernel is {best.name}"

    def _lower(self, steady: bool, call: OpCall, device: DeviceInfo) -> Lowered:
        found = self._chosen(steady, call, device)
        assert not isinstance(found, str), found
        wide, kernel = found
        made = kernel.lower(wide, device)
        scratch, packs = list(made.scratch), list(made.packs)
        names: dict[Slot, Slot] = {}
        before: list[Step] = []
        after: list[Step] = []
        packed = set(made.unused)
        for i, (spec, wider) in enumerate(zip(call.inputs, wide.inputs, strict=True)):
            if spec is None or wider is None or spec == wider or i in packed:
                continue
            if i in wide.constants:
                names[In(i)] = Packed(len(packs))
                packs.append(Pack(partial(wide.constants.__getitem__, i), wider))
                packed.add(i)
                continue
            names[In(i)] = Scratch(len(scratch))
            scratch.append(wider.nbytes)
            before.append(self._cast(spec, In(i), wider, names[In(i)], device))
        for i, (spec, wider) in enumerate(zip(call.outputs, wide.outputs, strict=True)):
            if spec != wider:
                names[Out(i)] = Scratch(len(scratch))
                scratch.append(wider.nbytes)
                after.append(self._cast(wider, names[Out(i)], spec, Out(i), device))
        steps = (*before, *(renamed(step, names) for step in made.steps), *after)
        return Lowered(steps, tuple(scratch), tuple(packs), frozenset(packed))

    def _cast(
        self, source: TensorSpec, read: Slot, target: TensorSpec, written: Slot, device: DeviceInfo
    ) -> Step:
        attrs = {"data_type": target.dtype}
        body = FusedBody((FusedStep("cast", attrs, (0,), target.dtype, (source.dtype,)),))
        return renamed(self.cast(body, source, read, target, device), {Out(0): written})
