"""A card whose cuBLAS cannot be loaded: no kernel that asks for it is a candidate."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from crossdock.kernels import array_kernels, table
from crossdock.kernels.array_kernels import OF_BLAS, array_function
from crossdock.kernels.fused_conv import INTERNAL
from crossdock.kernels.refusal import Cause, cause_of
from crossdock.runtime import costing
from crossdock.runtime.cases import CASES
from crossdock.runtime.tensor import to_numpy
from tests.cards import CARD

WITHOUT = replace(CARD, details={**CARD.details, "no cublas": "libcublas.so.12: cannot open"})
ASKED = frozenset({"matmul", "linalg", "dot", "einsum", "tensordot", "inner", "vdot"})
FIRST = {case.op: case for case in reversed(CASES)}


class Recording:
    """numpy that remembers whether it was asked for a product."""

    def __init__(self) -> None:
        self.asked = False

    def __getattr__(self, name: str) -> Any:
        self.asked |= name in ASKED
        return getattr(np, name)


def calls(op: str) -> list[Any]:
    return [c for c in costing.op_calls(FIRST[op].build()[0]).values() if c.op == op]


def test_the_ops_whose_array_code_makes_products_are_known() -> None:
    asking = set()
    for op in FIRST:
        for call in calls(op):
            space = Recording()
            ins = [None if s is None else np.ones(s.dims, to_numpy(s.dtype)) for s in call.inputs]
            outs = [np.empty(s.dims, to_numpy(s.dtype)) for s in call.outputs]
            with np.errstate(all="ignore"):
                array_function(table.op(op), call)(space, ins, outs)
            if space.asked:
                asking.add(op)
    assert asking == OF_BLAS - INTERNAL
    assert {"fused_attention", "fused_conv2d", "fused_matmul"} == OF_BLAS & INTERNAL


@pytest.mark.parametrize("op", sorted(OF_BLAS - INTERNAL))
def test_no_candidate_asks_for_it(op: str) -> None:
    for call in calls(op):
        found = table.candidates(call, WITHOUT)
        names = {kernel.name for kernel in found.fitting}
        assert array_kernels.NAME not in names
        assert not [name for name in names if name.startswith("cublas")]


def test_products_of_floats_still_have_a_kernel() -> None:
    for op in ("matmul", "gemm", "conv2d"):
        (call,) = calls(op)
        assert table.candidates(call, WITHOUT).fitting
    (call,) = calls("matmul")
    assert any(k.name.startswith("cublas") for k in table.candidates(call, CARD).fitting)


@pytest.mark.parametrize(
    ("op", "name"), [("matmul", "cublaslt.matmul"), ("conv2d", array_kernels.NAME)]
)
def test_the_refusal_says_which_library(op: str, name: str) -> None:
    (call,) = calls(op)
    rejected = dict(table.candidates(call, WITHOUT).rejected)
    assert "libcublas.so.12" in rejected[name]
    assert cause_of(rejected[name]) is Cause.LIBRARY
