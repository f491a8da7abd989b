"""No division of integers traps, whatever the numbers: shown where nobody catches the signal.

OpenCL drivers of processors catch it for their own kernels, and with those for all of a process in
which they are loaded. So this runs in children: of the processor without any driver, and of PoCL
with its handler turned off (Intel's cannot be).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kernels.grid_run import opencl_ids

ROOT = Path(__file__).resolve().parents[2]
CHILD = """
import sys
from crossdock.devices import registry
from crossdock.runtime.cases.special import SPECIAL
from crossdock.runtime.cli.verify_check import check

device, *names = sys.argv[1:]
cases = [c for c in SPECIAL if c.op in ("div", "mod") and c.id in names]
assert len(cases) == 2 * len(names)
found, _ = check(cases, [registry.open_device(device)], lambda *_: None)
assert len(found) >= len(cases)
print([f"{f.case} {f.kernel} {f.message}" for f in found if not f.passed])
"""
FEW = ("values-int32", "values-uint8")
ALL = (*FEW, "values-int8", "values-uint32", "values-int64", "values-uint64")


@pytest.mark.parametrize("device", ["cpu:0", *opencl_ids()])
def test_no_division_traps(device: str) -> None:
    names = ALL if device == "cpu:0" else FEW
    env = {**os.environ, "CROSSDOCK_DEVICES": device, "POCL_SIGFPE_HANDLER": "0"}
    command = [sys.executable, "-c", CHILD, device, *names]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n"
