"""Kernels of processors with narrower vectors than this one's, compiled for them and run here."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

LANES = (
    "from crossdock.devices.cpu_llvm import host_features\n"
    "from crossdock.kernels.cpu_rows import register_lanes\n"
    "print(register_lanes(), sum(f.startswith({without!r}) for f in host_features()))"
)


def python(without: str, *args: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "CROSSDOCK_CPU_WITHOUT": without}
    return subprocess.run(
        [sys.executable, *args], env=env, capture_output=True, text=True, check=False
    )


@pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64"), reason="names of x86 instruction sets"
)
@pytest.mark.parametrize(("without", "lanes"), [("avx512", 8), ("avx", 4)])
def test_kernels_are_right_without_wider_vectors(without: str, lanes: int) -> None:
    told = python(without, "-c", LANES.format(without=without))
    width, left = told.stdout.split()
    assert (int(width) <= lanes, left) == (True, "0"), told.stderr
    ops = [part for op in ("conv2d", "matmul", "softmax") for part in ("--op", op)]
    done = python(without, "-m", "crossdock", "verify", "--device", "cpu:0", "--quick", *ops)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 of " in done.stdout
