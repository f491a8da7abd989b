"""float16 and bfloat16 run on cards wherever float32 does, by kernels of the same kinds."""

from __future__ import annotations

from dataclasses import replace

import pytest

from crossdock.devices.base import DeviceInfo
from crossdock.kernels import table
from crossdock.kernels.spec import OpCall
from crossdock.runtime.support import Level, listed_ops, support
from crossdock.runtime.tensor import TensorSpec, to_numpy
from tests.cards import CARD
from tests.cases import CASES
from tests.kernels.test_cpu import instance
from tests.kernels.test_cuda import FIRST

HALVES = ("float16", "bfloat16")
THROUGH_FLOAT32 = {("det", "bfloat16"), ("dft", "bfloat16")}
"""On float32 they are cupy's, which has no bfloat16."""
OTHER = {"cublaslt.attention": "cublaslt.attention.halves"}
"""Kernels of float32, and those that do the same on half types."""


@pytest.mark.parametrize("dtype", HALVES)
def test_what_is_native_on_float32_is_so_on_half_types(dtype: str) -> None:
    for op in listed_ops():
        wide = support(op, "float32", CARD).level
        if op == "bit_cast" or wide is Level.UNSUPPORTED:  # whose results are as wide, or integers
            continue
        found = support(op, dtype, CARD)
        emulated = (op, dtype) in THROUGH_FLOAT32
        assert found.level is (Level.EMULATED if emulated else wide), (op, found)


def retyped(call: OpCall, dtype: str) -> OpCall:
    """An op of float32 with another type in its place."""

    def spec(found: TensorSpec | None) -> TensorSpec | None:
        return found.with_dtype(dtype) if found and found.dtype == "float32" else found

    known = {
        i: a.astype(to_numpy(dtype)) if a.dtype == "float32" else a
        for i, a in call.constants.items()
    }
    outputs = tuple(made for s in call.outputs if (made := spec(s)) is not None)
    return replace(call, inputs=tuple(map(spec, call.inputs)), outputs=outputs, constants=known)


def names(call: OpCall, info: DeviceInfo) -> set[str]:
    """Kernels of an op that keep its operands as they are."""
    return {k.name for k in table.candidates(call, info).fitting if not k.rounds}


@pytest.mark.parametrize("dtype", HALVES)
def test_kernels_of_float32_are_there_for_half_types(dtype: str) -> None:
    lacking: dict[str, set[str]] = {}
    for case in (*FIRST.values(), *(c for c in CASES if c.op in ("conv2d", "matmul", "gemm"))):
        call, _ = instance(case)
        if not any(s is not None and s.dtype == "float32" for s in call.inputs):
            continue
        wide = {OTHER.get(n, n) for n in names(call, CARD)} - {"array"}
        missing = wide - names(retyped(call, dtype), CARD)
        if missing:
            lacking.setdefault(case.op, set()).update(missing)
    assert lacking == {}
