"""The op table on the CUDA kind, over the fake cupy.

Every candidate that is no grid kernel runs, and one grid kernel an op: their texts are the ones
that OpenCL devices run, and NVRTC compiles them all.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from crossdock.devices import registry
from crossdock.devices.cuda import CudaDevice
from crossdock.kernels import table
from crossdock.kernels.spec import Kernel, OpCall
from crossdock.runtime import emulation
from crossdock.runtime.binding import bind_op, compile_op, resident
from crossdock.runtime.tensor import Array, to_numpy
from tests.cases import CASES, Case
from tests.fakes import cards
from tests.kernels.test_cpu import instance

POCL = bool(registry.probe_all(["opencl"])[0].devices)
pytestmark = pytest.mark.skipif(not POCL, reason="the fake cupy runs kernels on PoCL")
FIRST = {case.op: case for case in reversed(CASES)}


@pytest.fixture(scope="module")
def device() -> Iterator[CudaDevice]:
    with pytest.MonkeyPatch.context() as patch, cards.opened(patch) as made:
        yield made


def execute(
    device: CudaDevice, kernel: Kernel, call: OpCall, arrays: list[Array | None]
) -> dict[str, Array]:
    op = compile_op(device, kernel, call)
    inputs = [None if a is None else resident(device, a, "input") for a in arrays]
    outputs = [device.allocate(spec.nbytes) for spec in call.outputs]
    scratch = [device.allocate(nbytes) for nbytes in op.lowered.scratch]
    commands = device.record(bind_op(op, inputs, outputs, scratch, call.op, 0.0))
    done = device.queues["compute"].execute(commands)
    results = {}
    for i, (buffer, spec) in enumerate(zip(outputs, call.outputs, strict=True)):
        results[f"y{i}"] = np.empty(spec.dims, to_numpy(spec.dtype))
        device.queues["download"].read(buffer, results[f"y{i}"], [done]).wait()
    device.queues["compute"].finish()
    return results


@pytest.mark.parametrize("case", CASES, ids=str)
def test_case(device: CudaDevice, case: Case) -> None:
    call, arrays = instance(case)
    found = emulation.candidates(call, device.info)
    assert found.fitting or table.op(call.op).host, f"nothing runs {case}: {found.reason()}"
    grids = [kernel for kernel in found.fitting if kernel.name.startswith("grid.")]
    others = [kernel for kernel in found.fitting if kernel not in grids]
    for kernel in others + (grids[:1] if FIRST[case.op] is case else []):
        try:
            made = execute(device, kernel, call, arrays)
            case.check(made, exact=kernel.exact, rounds=kernel.rounds)
        except AssertionError as error:
            raise AssertionError(f"{kernel.name}: {error}") from error
