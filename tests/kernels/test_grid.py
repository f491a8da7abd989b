"""Every grid candidate on every OpenCL device against the float64 reference, on the op cases.

OpenCL on a processor gets other tiles and texts than on a GPU. Those for GPUs run here too: a
device that is told to be one runs them all the same, only slowly.
"""

from __future__ import annotations

import uuid
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest

from crossdock.devices.dialect import OPENCL_HEADER, assemble
from crossdock.devices.opencl_programs import OPTIONS
from crossdock.devices.program import GridLaunch
from crossdock.kernels import table
from crossdock.runtime import emulation
from tests.cases import CASES, Case
from tests.kernels.grid_run import as_gpu, call_of, execute, grid_kernels, opencl_ids, opened
from tests.kernels.test_cpu import instance

FOR_GPUS = (
    "add", "conv2d", "conv_transpose2d", "gemm", "layer_normalization", "lstm", "matmul",
    "max_pool2d", "reduce_sum", "resample2d", "softmax", "transpose",
)  # fmt: skip
"""Ops whose kernels differ between processors and GPUs, one or two of each family."""

FOR_GPUS_TOO = (
    "average_pool2d", "clamp", "concat", "dequantize_linear", "expand", "gather", "gelu", "gru",
    "instance_normalization", "l2_pool2d", "pad", "reduce_log_sum_exp", "reduce_max", "resize",
    "slice", "where",
)  # fmt: skip
"""The others: each kernel takes a quarter of a second to build."""

WITHOUT = {
    "identity": "an alias: it runs nowhere",
    "reshape": "an alias: it runs nowhere",
    "if_": "runs where Python runs",
}


def judge(case: Case, device_id: str, *, gpu: bool = False) -> None:
    call, arrays = instance(case)
    device = opened(device_id)
    info = as_gpu(device.info) if gpu else device.info
    for kernel in grid_kernels(call, info):
        outputs = execute(kernel.lower(call, info), call, arrays, device)
        try:
            case.check({f"y{i}": array for i, array in enumerate(outputs)})
        except AssertionError as error:
            raise AssertionError(f"{kernel.name}: {error}") from error


MANY_OF = ("conv2d", "gemm", "matmul", "max_pool2d", "softmax")
"""Ops of which every other case runs at once. Of other ops the first does, and the rest are slow:
nearly each builds a kernel of its own, which takes PoCL a third of a second."""

EVERY_OTHER = {id(c) for op in MANY_OF for c in [c for c in CASES if c.op == op][::2]}


def first(case: Case) -> bool:
    return case is next(c for c in CASES if c.op == case.op)


def quick(case: Case) -> bool:
    return id(case) in EVERY_OTHER or first(case)


def marked(cases: Iterable[Case], is_quick: Callable[[Case], bool]) -> list[Any]:
    return [
        pytest.param(c, id=str(c), marks=() if is_quick(c) else pytest.mark.slow) for c in cases
    ]


RUN = [c for c in CASES if c.op not in WITHOUT]
SINGLE = [c for c in CASES if "float16" not in str(c) and c.op in (*FOR_GPUS, *FOR_GPUS_TOO)]


@pytest.mark.parametrize("device_id", opencl_ids())
@pytest.mark.parametrize("case", marked(RUN, quick))
def test_case(case: Case, device_id: str) -> None:
    judge(case, device_id)


@pytest.mark.parametrize("device_id", opencl_ids())
@pytest.mark.parametrize("case", marked(SINGLE, lambda c: c.op in FOR_GPUS and first(c)))
def test_case_as_on_a_gpu(case: Case, device_id: str) -> None:
    judge(case, device_id, gpu=True)


@pytest.mark.parametrize("dtype", ["float32", "int32"])
@pytest.mark.parametrize("op", ["arg_max", "max", "sign", "scatter_nd"])
def test_texts_give_compilers_nothing_to_warn_of(op: str, dtype: str) -> None:
    """PoCL's compiler counts its warnings on stderr, whoever reads them."""
    device: Any = opened(opencl_ids()[0])
    a = np.ones((2, 3), dtype)
    operands = {
        "arg_max": ([a], {"axis": 0}),
        "max": ([a, a], {}),
        "sign": ([a], {}),
        "scatter_nd": ([a, np.zeros((1, 1), np.int32), a[:1]], {"reduction": "max"}),
    }
    call = call_of(op, *operands[op])
    kernels = grid_kernels(call, device.info)
    assert kernels
    for kernel in kernels:
        for step in kernel.lower(call, device.info).steps:
            assert isinstance(step, GridLaunch)
            assert "warning" not in log_of(device, step.source, step.defines)


def test_vectors_wider_than_the_devices_give_compilers_nothing_to_warn_of() -> None:
    text = """
    KERNEL BLOCK_SIZE(1, 1, 1) void f(GLOBAL float *RESTRICT x)
    {
        VSTORE16(x, VLOAD16(x) + SPLAT16(1.0f));
    }
    """
    assert "warning" not in log_of(opened(opencl_ids()[0]), text, ())


def log_of(device: Any, source: str, defines: tuple[tuple[str, str], ...]) -> str:
    """What the compiler says of a text."""
    import pyopencl as cl

    # A text of its own, which no cache has: PoCL warns where it compiles.
    text = assemble(OPENCL_HEADER, defines, f"{source}\n// {uuid.uuid4()}\n")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", cl.CompilerWarning)
        program = cl.Program(device.context, text).build(list(OPTIONS))
    (handle,) = device.context.devices
    return str(program.get_build_info(handle, cl.program_build_info.LOG))


def test_every_op_that_computes_runs_on_grids() -> None:
    info = opened(opencl_ids()[0]).info
    reasons = []
    for case in CASES:
        if table.op(case.op).host or table.op(case.op).alias:
            continue
        found = emulation.candidates(instance(case)[0], info)
        if not found.fitting:
            reasons.append(f"{case}: {found.reason()}")
    assert not reasons
