"""The processor's kernels are for 64-bit ARM, too: LLVM compiles them for it on any machine.

That they compute the right thing there is shown by the same texts here, by vectors of four lanes
(``CROSSDOCK_CPU_LEVEL=x86-64-v2``); what is ARM's own is that they compile, call nothing but the
C library's functions, and keep their sums in registers.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.conftest import ROOT

LIBRARY = {"acosf", "asinf", "atanf", "cosf", "fmodf", "powf", "sinf", "tanf", "memcpy", "memset"}
PRODUCTS = ("cpu.conv", "cpu.matmul", "cpu.gemm")
RELOADS = 16
"""Vectors read back from the stack that a product may have; its tiles have hundreds of sums."""


def compiled(*args: str) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.kernels.arm", *args],
        capture_output=True, text=True, timeout=300, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    return rows


@pytest.mark.parametrize("args", [(), pytest.param(("--all",), marks=pytest.mark.slow)])
def test_kernels_compile_for_arm(args: tuple[str, ...]) -> None:
    rows = compiled(*args)
    assert len({row["kernel"] for row in rows}) > 30
    foreign = {name for row in rows for name in row["calls"]} - LIBRARY
    assert not foreign, f"functions that no C library has: {foreign}"
    products = [row for row in rows if row["kernel"].startswith(PRODUCTS)]
    assert any(row["multiply_adds"] > 64 for row in products), "tiles are unrolled"
    assert [row for row in products if row["reloads"] > RELOADS] == []
