"""Running grid kernels of one op on a device, next to the op's meaning in float64."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from crossdock.devices import registry
from crossdock.devices.base import Device, DeviceInfo
from crossdock.devices.program import Lowered
from crossdock.kernels import table
from crossdock.kernels.spec import Kernel, OpCall
from crossdock.runtime.binding import CompiledOp, bind_op
from crossdock.runtime.errors import Unavailable
from crossdock.runtime.tensor import FLOATS, Array, TensorSpec, to_numpy

TOLERANCE = {"float64": 1e-12, "float32": 2e-5, "float16": 4e-3, "bfloat16": 2e-2}
"""Relative to the largest result: a few rounding steps of the type, sums of a few hundred terms."""


def opencl_ids() -> list[str]:
    """Ids of the OpenCL devices here; one that is absent is skipped with the reason."""
    return [info.id for info in registry.probe_all(["opencl"])[0].devices] or ["opencl:0"]


def opened(device_id: str) -> Device:
    """The device, or a skip that says why there is none."""
    try:
        return registry.open_device(device_id)
    except Unavailable as error:
        pytest.skip(str(error))


def as_gpu(info: DeviceInfo) -> DeviceInfo:
    """The device as if it were a GPU: kernels are then lowered as they are for one."""
    return replace(info, details={**info.details, "type": "gpu"}, compute_units=64)


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


def grid_kernels(call: OpCall, info: DeviceInfo) -> list[Kernel]:
    """The grid candidates that fit."""
    return [k for k in table.candidates(call, info).fitting if k.name.startswith("grid.")]


def execute(
    lowered: Lowered, call: OpCall, arrays: Sequence[Array | None], device: Device
) -> list[Array]:
    """Run a lowered op on a device; results start as garbage, so that gaps show."""
    op = CompiledOp(
        lowered,
        tuple(device.compile(step) for step in lowered.steps),
        {i: device.upload(pack.make(), "packed") for i, pack in enumerate(lowered.packs)},
    )
    inputs = [None if a is None else device.upload(a, "input") for a in arrays]
    garbage = [np.full(max(1, s.nbytes), 0xA5, np.uint8) for s in call.outputs]
    outputs = [device.upload(g, "output") for g in garbage]
    scratch = [device.allocate(n, "scratch") for n in lowered.scratch]
    queue = device.queues["compute"]
    event = queue.execute(device.record(bind_op(op, inputs, outputs, scratch, "test", 0.0)))
    if event is not None:
        event.wait()
    results = []
    for buffer, spec in zip(outputs, call.outputs, strict=True):
        array = np.empty(spec.dims, to_numpy(spec.dtype))
        done = device.queues["download"].read(buffer, array)
        if done is not None:
            done.wait()
        results.append(array)
    return results


def expected(call: OpCall, arrays: Sequence[Array | None]) -> list[Array]:
    """The op's meaning, computed in float64 where it is computed in floating point."""
    with np.errstate(all="ignore"):
        wide = [
            a.astype(np.float64) if a is not None and TensorSpec.of(a).dtype in FLOATS else a
            for a in arrays
        ]
        found = table.op(call.op).run(np, *wide, **call.attrs)
    results = found if isinstance(found, tuple | list) else (found,)
    return [np.asarray(r) for r in results]


def check(
    call: OpCall,
    arrays: Sequence[Array | None],
    device: Device,
    *,
    info: DeviceInfo | None = None,
    tolerance: float | None = None,
) -> None:
    """Run every grid candidate that fits and compare; at least one must.

    ``info`` is what the kernels are told about the device.
    """
    told = info or device.info
    chosen = grid_kernels(call, told)
    assert chosen, table.candidates(call, told).reason()
    want = expected(call, arrays)
    for kernel in chosen:
        got = execute(kernel.lower(call, told), call, arrays, device)
        for g, w, spec in zip(got, want, call.outputs, strict=True):
            compare(g, w, spec.dtype, f"{kernel.name} {call.key()}", tolerance)


def compare(got: Array, want: Array, dtype: str, what: str, tolerance: float | None = None) -> None:
    """Equal integers; floats within the tolerance of the type, NaN and infinities in place."""
    assert got.shape == want.shape, what
    if dtype not in FLOATS:
        np.testing.assert_array_equal(got, want.astype(got.dtype), err_msg=what)
        return
    with np.errstate(over="ignore"):
        want = want.astype(to_numpy(dtype)).astype(np.float64)
    limit = tolerance or TOLERANCE[dtype]
    finite = np.isfinite(want)
    scale = float(np.abs(want[finite]).max(initial=0.0))
    got = got.astype(np.float64)
    np.testing.assert_allclose(
        got[finite], want[finite], rtol=limit, atol=limit * max(scale, 1e-6), err_msg=what
    )
    np.testing.assert_array_equal(got[~finite], want[~finite], err_msg=what)
