"""Every grid candidate on every OpenCL device against the float64 reference, on the op cases.

OpenCL on a processor gets other tiles and texts than on a GPU. Those for GPUs run here too: a
device that is told to be one runs them all the same, only slowly.
"""

from __future__ import annotations

import pytest

from crossdock.kernels import table
from tests.cases import CASES, Case
from tests.kernels.grid_run import as_gpu, execute, grid_kernels, opencl_ids, opened
from tests.kernels.test_cpu import instance

FOR_GPUS = (
    "add", "average_pool2d", "clamp", "concat", "conv2d", "conv_transpose2d", "dequantize_linear",
    "expand", "gather", "gelu", "gemm", "gru", "instance_normalization", "l2_pool2d",
    "layer_normalization", "lstm", "matmul", "max_pool2d", "pad", "reduce_log_sum_exp",
    "reduce_max", "reduce_sum", "resample2d", "resize", "slice", "softmax", "transpose", "where",
)  # fmt: skip
"""Ops whose kernels differ between processors and GPUs; elementwise ops share one emitter."""

GPU_CASES = [c for c in CASES if c.op in FOR_GPUS and "float16" not in str(c)]

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


@pytest.mark.parametrize("device_id", opencl_ids())
@pytest.mark.parametrize("case", [c for c in CASES if c.op not in WITHOUT], ids=str)
def test_case(case: Case, device_id: str) -> None:
    judge(case, device_id)


@pytest.mark.parametrize("device_id", opencl_ids())
@pytest.mark.parametrize("case", GPU_CASES, ids=str)
def test_case_as_on_a_gpu(case: Case, device_id: str) -> None:
    judge(case, device_id, gpu=True)


EXCUSED = {
    "no axes": "layer normalisation over nothing is a bias",
    "no crop and resize": "a rare mode of resize",
}


def test_every_op_that_computes_has_a_grid_kernel() -> None:
    info = opened(opencl_ids()[0]).info
    reasons = []
    for case in CASES:
        call, _ = instance(case)
        if case.op not in WITHOUT and not grid_kernels(call, info):
            reasons.append(f"{case}: {table.candidates(call, info).reason()}")
    assert not [r for r in reasons if not any(excuse in r for excuse in EXCUSED)]
