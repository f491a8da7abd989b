"""A small model as a file, a machine that is not here, and a way to call the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from crossdock.devices.base import Cap, DeviceInfo
from crossdock.devices.machine import (
    Check,
    DeviceProfile,
    LinkProfile,
    Machine,
    Measured,
    Rates,
    SizedRate,
    Status,
)
from crossdock.runtime.cli.main import main

HOSTILE = "out</script><b>\x1b[31m/../up"
"""An output name that tries to leave every place it is put into."""


@dataclass(frozen=True)
class Result:
    """What a command left behind."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


RUNNER = ("COLUMNS", "PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT")
"""What a parallel test run sets for its workers, and a user's shell does not."""


@pytest.fixture
def call(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Result]:
    """Run a command in this process."""
    for name in RUNNER:
        monkeypatch.delenv(name, raising=False)

    def run(*args: object) -> Result:
        capsys.readouterr()
        status = main([str(a) for a in args])
        captured = capsys.readouterr()
        return Result(status, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two branches over a matrix product; the batch ``N`` is open, an output's name is hostile."""
    weights = np.linspace(-1, 1, 8 * 16, dtype=np.float32).reshape(8, 16)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["h"], name="product"),
            helper.make_node("Relu", ["h"], ["left"], name="left"),
            helper.make_node("Softmax", ["h"], ["right"], name="right", axis=1),
            helper.make_node("Add", ["left", "right"], ["y"], name="sum"),
            helper.make_node("ReduceMean", ["y"], [HOSTILE], name="mean", keepdims=0),
        ],
        "two <i>branches</i>",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 8])],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 16]),
            helper.make_tensor_value_info(HOSTILE, TensorProto.FLOAT, []),
        ],
        [numpy_helper.from_array(weights, "w")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    path = tmp_path_factory.mktemp("model") / "branches.onnx"
    onnx.save(made, path)
    return path


def _device(name: str, kind: str, group: str, caps: frozenset[Cap], gflops: float) -> DeviceProfile:
    info = DeviceInfo(
        id=name,
        kind=kind,
        name=f"imaginary {kind}",
        vendor="nobody",
        driver="1",
        physical_id=f"physical {name}",
        resource_group=group,
        compute_units=8,
        memory_bytes=8 << 30,
        caps=caps,
        fingerprint=f"imaginary-{name}",
        max_allocation=8 << 30,
        local_memory=48 << 10,
        max_work_group=1024,
    )
    some = Measured(1e-6, 0.0, 3)
    rates = Rates(
        flops={
            "gemm:float32": Measured(gflops * 1e9, 0.0, 3),
            "elementwise:float32": Measured(gflops * 1e8, 0.0, 3),
        },
        bandwidth=(SizedRate(1 << 20, Measured(gflops * 1e8, 0.0, 3)),),
        launch_s={"grid": some},
        launch_alone_s=some,
        allocation_s=some,
    )
    return DeviceProfile(name, kind, Status.PASS, "", "", info, (Check("add", True),), rates)


def _link(src: str, dst: str) -> LinkProfile:
    points = (SizedRate(1 << 12, Measured(1e9, 0.0, 3)), SizedRate(1 << 20, Measured(8e9, 0.0, 3)))
    return LinkProfile(src, dst, (src, dst), Measured(2e-6, 0.0, 3), points, None, False)


@pytest.fixture(scope="session")
def machine() -> Machine:
    """A processor and a card twenty times as fast, neither of them here."""
    cpu = frozenset({Cap.ARRAY, Cap.NATIVE, Cap.HOST_MEMORY, Cap.FLOAT64, Cap.FLOAT16})
    card = frozenset(
        {Cap.ARRAY, Cap.GRID, Cap.EVENTS, Cap.FLOAT64, Cap.FLOAT16, Cap.COPY_QUEUES, Cap.REPLAY}
    )
    return Machine(
        fingerprint="imaginary",
        cpu="imaginary cpu",
        cores=8,
        versions={},
        created="2026-01-01T00:00:00+00:00",
        quick=True,
        seconds=1.0,
        devices=(
            _device("cpu:0", "cpu", "host-cpu", cpu, 50.0),
            _device("cuda:0", "cuda", "card", card, 1000.0),
            DeviceProfile("opencl", "opencl", Status.ABSENT, "no platform", "install one"),
        ),
        links=(_link("cpu:0", "cuda:0"), _link("cuda:0", "cpu:0")),
    )


@pytest.fixture(scope="session")
def machine_file(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The machine as ``probe --json`` writes one."""
    path = tmp_path_factory.mktemp("machine") / "machine.json"
    path.write_text(json.dumps(machine.to_json()))
    return path
