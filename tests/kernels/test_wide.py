"""On processors, half types run by the kernels for float32 where those read nothing else."""

from __future__ import annotations

import numpy as np
import pytest

import crossdock as xd
from crossdock.devices.base import DeviceInfo
from crossdock.devices.program import In, NativeCall
from crossdock.kernels import array_kernels, table
from crossdock.kernels.fused import FusedBody, FusedStep
from crossdock.kernels.spec import Kernel, OpCall
from crossdock.kernels.wide import widened
from crossdock.runtime.tensor import Array, TensorSpec, to_numpy
from tests.kernels.test_cpu import instance
from tests.kernels.test_cuda import FIRST
from tests.kernels.test_half_types import HALVES, retyped

CPU = next(d for d in xd.devices() if d.id == "cpu:0")


def compiled(call: OpCall, device: DeviceInfo = CPU) -> list[str]:
    """Kernels that lose no bits and are no array code."""
    found = table.candidates(call, device).fitting
    return [k.name for k in found if k.exact and k.name != array_kernels.NAME]


def called(op: str, *operands: Array | TensorSpec, **attrs: object) -> OpCall:
    """An op over constants, and operands of which only the spec is known."""
    specs = tuple(x if isinstance(x, TensorSpec) else TensorSpec.of(x) for x in operands)
    known = {i: x for i, x in enumerate(operands) if isinstance(x, np.ndarray)}
    return OpCall(op, attrs, specs, table.op(op).infer(specs, attrs), known)


def by_name(call: OpCall, name: str) -> Kernel:
    return next(k for k in table.candidates(call, CPU).fitting if k.name == name)


@pytest.mark.parametrize("dtype", HALVES)
def test_what_is_compiled_on_float32_is_so_on_half_types(dtype: str) -> None:
    lacking, through = [], 0
    for op, case in FIRST.items():
        call, _ = instance(case)
        half = retyped(call, dtype)
        if half.inputs == call.inputs or any(s.size == 0 for s in call.inputs if s):
            continue
        found = compiled(half)
        through += any(name.startswith("cpu.wide") for name in found)
        if compiled(call) and not found:
            lacking.append(op)
    assert lacking == []
    assert through > 10


def test_constants_are_widened_once() -> None:
    weights = np.linspace(-1, 1, 64 * 48).astype(np.float16).reshape(64, 48)
    call = called("matmul", TensorSpec("float16", (8, 64)), weights)
    lowered = by_name(call, "cpu.wide").lowered(call, CPU)
    assert 1 in lowered.unused
    assert {pack.spec.dtype for pack in lowered.packs} == {"float32"}
    assert not any(In(1) in step.args for step in lowered.steps if isinstance(step, NativeCall))


def test_none_is_widened_before_it_is_read() -> None:
    weights = np.ones((64, 48), np.float16)
    wide = widened(called("matmul", TensorSpec("float16", (8, 64)), weights))
    assert isinstance(wide, OpCall)
    assert 1 in wide.constants
    assert 0 not in wide.constants
    assert wide.constants[1] is not wide.constants[1]  # made when asked, and not held
    assert wide.constants[1].dtype == np.float32


def test_an_op_on_bytes_is_left_alone() -> None:
    call = called("bit_cast", TensorSpec("float16", (4,)), data_type="uint16")
    rejected = dict(table.candidates(call, CPU).rejected)
    assert rejected["cpu.wide"] == "bit_cast is a view of its operand's bytes"


def test_sums_that_hang_on_threads_are_known_to() -> None:
    both = called("matmul", *[TensorSpec("bfloat16", (64, 64))] * 2)
    assert not by_name(both, "cpu.wide.unsteady").steady
    assert "cpu.wide" not in compiled(both)
    weights = np.ones((64, 64), to_numpy("bfloat16"))
    assert by_name(called("matmul", both.inputs[0], weights), "cpu.wide").steady


def test_fused_steps_and_their_attributes_are_of_float32() -> None:
    body = FusedBody((FusedStep("cast", {"data_type": "float16"}, (0,), "float16", ("float16",)),))
    assert body.retyped({"float16": "float32"}) == FusedBody(
        (FusedStep("cast", {"data_type": "float32"}, (0,), "float32", ("float32",)),)
    )


def test_ops_without_half_types_are_not_told_of_it() -> None:
    call = called("matmul", *[TensorSpec("float32", (64, 64))] * 2)
    found = table.candidates(call, CPU)
    named = {k.name for k in found.fitting} | {name for name, _ in found.rejected}
    assert not any("wide" in name for name in named)
