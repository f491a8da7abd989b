"""Running candidates of one op on the host, next to the op's meaning in float64."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from crossdock.devices import cpu
from crossdock.devices.program import NativeCall
from crossdock.kernels import table
from crossdock.kernels.spec import Kernel, OpCall
from crossdock.runtime.binding import CompiledOp, bind_op
from crossdock.runtime.tensor import FLOATS, Array, TensorSpec, to_numpy

GARBAGE = 0xA5
"""What results and scratch hold before: an element that is not written shows."""


@functools.cache
def device(threads: int = 1) -> cpu.CpuDevice:
    """The host with so many threads, kept open."""
    return cpu.open_device("cpu:0", threads=threads)


def call_of(
    op: str,
    arrays: Sequence[Array | None],
    attrs: Mapping[str, Any] | None = None,
    constants: Sequence[int] = (),
) -> OpCall:
    """An op instance over these operands, ``constants`` among them known at compile time."""
    spec = table.op(op)
    specs = tuple(None if a is None else TensorSpec.of(a) for a in arrays)
    given = {**spec.attrs, **(attrs or {})}
    full = spec.canon(specs, given) if spec.canon is not None else given
    known = {i: a for i, a in enumerate(arrays) if i in constants and a is not None}
    return OpCall(op, full, specs, spec.infer(specs, full), known, op)


def candidates(call: OpCall, threads: int = 1) -> tuple[Kernel, ...]:
    """The candidates that fit on the host."""
    return table.candidates(call, device(threads).info).fitting


def candidate(call: OpCall, name: str) -> Kernel:
    """The fitting candidate of this name."""
    found = table.candidates(call, device().info)
    named = [k for k in found.fitting if k.name == name]
    assert named, found.reason()
    return named[0]


def execute(
    kernel: Kernel, call: OpCall, arrays: Sequence[Array | None], threads: int = 1
) -> list[Array]:
    """Run one candidate; the operands must come out unchanged.

    With several threads every native step is cut as finely as it may be, however small it is.
    """
    host = device(threads)
    op = compiled(host, kernel, call, cut=threads > 1)
    inputs = [None if a is None else host.upload(a, "input") for a in arrays]
    outputs = [_garbage(host, spec.nbytes) for spec in call.outputs]
    scratch = [_garbage(host, nbytes) for nbytes in op.lowered.scratch]
    bound = bind_op(op, inputs, outputs, scratch, call.op, 0.0)
    host.queues["compute"].execute(host.record(bound))
    for buffer, array in zip(inputs, arrays, strict=True):
        if buffer is not None and array is not None:
            kept = _read(host, buffer, TensorSpec.of(array))
            assert kept.tobytes() == np.ascontiguousarray(array).tobytes(), "an operand changed"
    return [_read(host, b, s) for b, s in zip(outputs, call.outputs, strict=True)]


def compiled(host: cpu.CpuDevice, kernel: Kernel, call: OpCall, *, cut: bool) -> CompiledOp:
    """The op on the host; ``cut`` shares every native step, however small it is."""
    lowered = kernel.lower(call, host.info)
    if cut:
        steps = tuple(
            replace(step, grain=1) if isinstance(step, NativeCall) else step
            for step in lowered.steps
        )
        lowered = replace(lowered, steps=steps)
    return CompiledOp(
        lowered,
        tuple(host.compile(step) for step in lowered.steps),
        {i: host.upload(pack.make(), "packed") for i, pack in enumerate(lowered.packs)},
    )


def _garbage(host: cpu.CpuDevice, nbytes: int) -> Any:
    return host.upload(np.full(max(1, nbytes), GARBAGE, np.uint8), "result")


def _read(host: cpu.CpuDevice, buffer: Any, spec: TensorSpec) -> Array:
    array = np.empty(spec.dims, to_numpy(spec.dtype))
    host.queues["download"].read(buffer, array)
    return array


def expected(call: OpCall, arrays: Sequence[Array | None]) -> list[Array]:
    """The op's meaning, with floats computed in float64."""
    wide = [
        a.astype(np.float64) if a is not None and TensorSpec.of(a).dtype in FLOATS else a
        for a in arrays
    ]
    with np.errstate(all="ignore"):
        found = table.op(call.op).run(np, *wide, **call.attrs)
    results = found if isinstance(found, tuple | list) else (found,)
    return [np.asarray(r) for r in results]


def check(
    op: str,
    arrays: Sequence[Array | None],
    attrs: Mapping[str, Any] | None = None,
    constants: Sequence[int] = (),
    *,
    name: str,
    tolerance: float = 0.0,
    threads: int = 1,
) -> None:
    """Run the candidate ``name`` and compare; ``tolerance`` is relative to the largest result."""
    call = call_of(op, arrays, attrs, constants)
    got = execute(candidate(call, name), call, arrays, threads)
    for g, w in zip(got, expected(call, arrays), strict=True):
        assert g.shape == w.shape
        if g.dtype.kind in "iub":
            np.testing.assert_array_equal(g, w.astype(g.dtype))
            continue
        finite = np.isfinite(w)
        scale = float(np.abs(w[finite]).max(initial=0.0))
        np.testing.assert_allclose(
            g.astype(np.float64), w, rtol=0, atol=tolerance * scale, equal_nan=True
        )
