"""Kernels for other processors than this one, from the same generator: narrower vectors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from crossdock.devices import cpu
from crossdock.devices.cpu_llvm import host_features
from crossdock.runtime import settings
from crossdock.runtime.errors import PlanError

OPS = ("conv2d", "matmul", "softmax", "max_pool2d", "layer_normalization")
FACTS = """
import json
from crossdock.devices import cpu
from crossdock.devices.cpu_llvm import host_features, toolchain
from crossdock.kernels.cpu_conv_pack import tile_shape
from crossdock.kernels.cpu_rows import register_lanes
print(json.dumps([register_lanes(), tile_shape().rows, sorted(host_features()), toolchain(),
                  cpu.probe().devices[0].fingerprint]))
"""


def child(level: str, cache: Path, *args: str) -> str:
    environment = {**os.environ, "CROSSDOCK_CPU_LEVEL": level, "CROSSDOCK_CACHE_DIR": str(cache)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *args], capture_output=True, text=True, timeout=300,
        env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.skipif("avx2" not in host_features(), reason="this processor has no AVX2")
@pytest.mark.parametrize(
    ("level", "lanes", "rows", "absent"),
    [
        ("x86-64-v3", 8, 4, ("avx512", "amx")),
        pytest.param("x86-64-v2", 4, 4, ("avx", "fma", "f16c"), marks=pytest.mark.slow),
    ],
)
def test_kernels_of_a_lower_level_are_right(
    tmp_path: Path, level: str, lanes: int, rows: int, absent: tuple[str, ...]
) -> None:
    facts: list[Any] = json.loads(child(level, tmp_path, "-c", FACTS))
    assert facts[:2] == [lanes, rows]
    assert not [name for name in facts[2] if name.startswith(absent)]
    assert level in facts[3], "machine code is kept by what it was compiled for"
    assert facts[4] == f"{cpu.probe().devices[0].fingerprint}|{level}", "and times by what ran"
    ops = [word for op in OPS for word in ("--op", op)]
    said = child(
        level, tmp_path, "-m", "crossdock", "verify", "--quick", "--device", "cpu:0", *ops,
        "--json", "-",
    )  # fmt: skip
    data = json.loads(said)
    assert {f["op"] for f in data["findings"]} == set(OPS)
    assert [f for f in data["findings"] if not f["passed"]] == []


def test_what_is_no_level_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROSSDOCK_CPU_LEVEL", "avx3")
    with pytest.raises(PlanError, match="CROSSDOCK_CPU_LEVEL is 'avx3'; give one of x86-64-v2"):
        settings.cpu_level()
    monkeypatch.setenv("CROSSDOCK_CPU_LEVEL", "")
    assert settings.cpu_level() == ""
