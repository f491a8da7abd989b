"""What plans and measured times hang on: all kernels of ours, and which ones others have added."""

from __future__ import annotations

import importlib
from functools import partial

import pytest

from crossdock.devices.base import DeviceInfo
from crossdock.devices.program import Lowered
from crossdock.kernels import table
from crossdock.kernels.kernel_set import kernel_set
from crossdock.kernels.spec import OpCall

LATER = ("grid_kernels", "cublas_matmul", "cublaslt_matmul", "cublaslt_conv", "cudnn_conv")
"""Modules that are not loaded before a device needs them."""


def test_kernels_that_are_loaded_later_are_ours() -> None:
    before = kernel_set()
    for name in LATER:
        importlib.import_module(f"crossdock.kernels.{name}")
    assert kernel_set() == before
    ours = ("* cpu.wide", "* grid.wide", "matmul cublas.matmul", "conv2d cudnn.conv2d")
    registered = {f"{k.op} {k.name}" for kernels in table._KERNELS.values() for k in kernels}
    assert registered.issuperset(ours)
    assert not set(ours) & set(table.foreign_names())


def _lower(number: int, call: OpCall, device: DeviceInfo) -> Lowered:
    raise NotImplementedError(number, call, device)


@pytest.mark.parametrize("whole", [True, False], ids=["function", "partial"])
def test_a_third_partys_kernel_makes_another_set(
    monkeypatch: pytest.MonkeyPatch, *, whole: bool
) -> None:
    before, known = kernel_set(), list(table.kernels("relu"))
    monkeypatch.setitem(table._KERNELS, "relu", known)

    def lower(call: OpCall, device: DeviceInfo) -> Lowered:
        return _lower(0, call, device)

    register = table.kernel("theirs.relu", "relu", ("cpu",), when=lambda *_: "never")
    register(lower if whole else partial(_lower, 1))
    assert "relu theirs.relu" in table.foreign_names()
    assert kernel_set() != before
