"""Fallback is a contract: what it does not allow is refused before anything runs, and named."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import crossdock as xd
from crossdock.devices.base import DeviceInfo
from crossdock.runtime.errors import PlanError
from crossdock.runtime.fallback import fallbacks
from crossdock.runtime.graph import Graph
from tests.runtime.conftest import Machine

pytestmark = pytest.mark.usefixtures("no_hang")

X = np.arange(16, dtype=np.int16).reshape(4, 4)
"""OpenCL has no sum of int16, so that falls back; the rest runs there."""


def graph() -> Graph:
    b = xd.GraphBuilder()
    x = b.input("x", (4, 4), "int16")
    y = b.reduce_sum(b.abs(x, label="size"), axes=(1,), label="total")
    return b.build({"y": b.neg(y, label="minus")})


def compiled(device: DeviceInfo, fallback: Any, **more: Any) -> xd.Session:
    return xd.compile(graph(), device.id, measure=False, fallback=fallback, **more)


def test_what_falls_back_runs_where_it_is_allowed(opencl: DeviceInfo) -> None:
    for contract in (
        "allow",
        xd.Fallback(),
        xd.Fallback(ops=["total"]),
        xd.Fallback(ops=["reduce_sum"]),
        xd.Fallback(ops=["to*"]),
        xd.Fallback(max_share=0.5, max_boundary_bytes=40),
    ):
        with compiled(opencl, contract) as session:
            assert session.run({"x": X})["y"].tolist() == (-X.sum(axis=1)).tolist()
            (note,) = session.receipt.notes
            assert note.startswith("total (reduce_sum) ran on cpu:0")
            assert [s.name for s in fallbacks(session.plan, [opencl.id])] == ["total"]


@pytest.mark.parametrize(
    ("contract", "said"),
    [
        ("forbid", "1 op(s) would fall back to cpu:0"),
        (xd.Fallback(ops=["abs", "m*"]), "1 op(s) would fall back to cpu:0"),
        (xd.Fallback(max_share=0.3), "33.3% of the ops would fall back"),
        (xd.Fallback(max_boundary_bytes=39), "would copy 40 B a run, and max_boundary_bytes is 39"),
    ],
)
def test_a_violation_names_the_op_what_is_missing_and_the_fix(
    contract: Any, said: str, opencl: DeviceInfo
) -> None:
    with pytest.raises(PlanError) as caught:
        compiled(opencl, contract)
    text = str(caught.value)
    assert said in text
    assert f"total (reduce_sum on int16): {opencl.id} has no kernel [dtype]" in text
    assert "no int16 kernel" in text
    assert "fallback=crossdock.Fallback(ops=['reduce_sum'])" in text
    assert "\n" not in text


def test_a_pin_to_the_host_is_no_fallback(opencl: DeviceInfo) -> None:
    rules = xd.Constraints(pin={"minus": "cpu:0", "total": "cpu:0"})
    with compiled(opencl, "forbid", constraints=rules) as session:
        session.run({"x": X})
        assert session.receipt.notes == ()


def test_nothing_falls_back_where_the_host_is_asked(opencl: DeviceInfo) -> None:
    for devices in ("cpu:0", ["cpu:0", opencl.id], "auto"):
        with xd.compile(graph(), devices, measure=False, fallback="forbid") as session:
            assert session.run({"x": X})["y"].shape == (4,)


@pytest.mark.parametrize(
    "given", ["never", None, 3, ["relu"]]
)  # fmt: skip
def test_what_is_no_contract_is_refused(given: Any) -> None:
    with pytest.raises(PlanError, match="is no contract; give 'allow', 'forbid'"):
        xd.compile(graph(), "cpu:0", fallback=given)


@pytest.mark.parametrize(
    "given",
    [{"ops": "relu"}, {"ops": [1]}, {"max_share": 1.1}, {"max_boundary_bytes": -1}],
)
def test_a_contract_that_says_nothing_sensible_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(PlanError, match=r"Fallback\("):
        xd.Fallback(**given)


def strings_model() -> bytes:
    """Upper-cases strings: nothing but the host can."""
    from onnx import TensorProto, helper

    node = helper.make_node(
        "StringNormalizer", ["s"], ["t"], name="upper", case_change_action="UPPER"
    )
    inputs = [helper.make_tensor_value_info("s", TensorProto.STRING, [2])]
    outputs = [helper.make_tensor_value_info("t", TensorProto.STRING, None)]
    made = helper.make_graph([node], "strings", inputs, outputs)
    opset = [helper.make_opsetid("", 17)]
    return bytes(helper.make_model(made, opset_imports=opset, ir_version=9).SerializeToString())


def test_a_host_op_of_a_staged_graph_does_not_run_where_it_may_not(tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="the model is written with onnx")
    path = tmp_path / "strings.onnx"
    path.write_bytes(strings_model())
    feeds = {"s": np.array(["a", "b"], object)}
    with xd.compile(xd.load(path), "cpu:0", fallback=xd.Fallback(ops=["upper"])) as session:
        assert session.run(feeds)["t"].tolist() == ["A", "B"]
    with pytest.raises(PlanError, match=r"upper \(StringNormalizer\) would run on the host.*allow"):
        xd.compile(xd.load(path), "cpu:0", fallback="forbid")


def test_a_device_that_failed_its_probe_is_named(machine: Machine, monkeypatch: Any) -> None:
    from crossdock.runtime import knowledge

    device = machine.device(machine.sim("a"))
    monkeypatch.setitem(knowledge._PROBED, device.info.fingerprint, "failed its probe: wrong sums")
    with pytest.raises(PlanError, match=r"sim:a has no kernel \[broken\] \(failed its probe"):
        xd.compile(graph(), "sim:a", measure=False, fallback="forbid")


HIDDEN = {
    "pyopencl": "import sys; sys.modules['pyopencl'] = None\n",
    "cupy": "import sys; sys.modules['cupy'] = None\n",
    # PyOpenCL's wheels bring a driver of their own, which their loader finds by this name.
    "icd": "import os, pyopencl; os.environ['PYOPENCL_HOME'] = '/nowhere'\n",
}
SCRIPT = """
import numpy as np
import crossdock as xd
b = xd.GraphBuilder()
graph = b.build({{"y": b.neg(b.input("x", (2,)))}})
try:
    session = xd.compile(graph, {device!r}, measure=False, fallback="forbid")
except xd.Error as error:
    print(type(error).__name__, "at compile:", error)
else:
    session.run({{"x": np.ones(2, np.float32)}})
    print("ran")
with xd.compile(graph, "auto", measure=False) as session:
    session.run({{"x": np.ones(2, np.float32)}})
    print(*{{op.device for op in session.receipt.ops}})
"""


@pytest.mark.parametrize(
    ("hidden", "device", "said"),
    [
        ("pyopencl", "opencl:0", "pyopencl cannot be imported"),
        ("icd", "opencl:0", "no OpenCL driver answers"),
        ("cupy", "cuda:0", "cupy"),
    ],
)
def test_a_hidden_library_or_driver_is_an_error_of_compile_never_of_run(
    hidden: str, device: str, said: str, tmp_path: Path
) -> None:
    if hidden == "icd":
        pytest.importorskip("pyopencl", reason="pyopencl loads the drivers that are hidden")
    env = {**os.environ, "OCL_ICD_VENDORS": str(tmp_path), "CROSSDOCK_CACHE_DIR": "off"}
    script = HIDDEN[hidden] + SCRIPT.format(device=device)
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    first, second = done.stdout.splitlines()
    assert first.startswith(f"Unavailable at compile: no device '{device}'")
    assert said in first
    assert "devices here: cpu:0" in first
    assert second == "cpu:0"


def test_a_missing_onnx_package_is_an_error_of_load(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"\x08\x08")
    script = (
        "import sys; sys.modules['onnx'] = None\nimport crossdock as xd\n"
        f"try:\n    xd.load({str(path)!r})\nexcept xd.Error as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True
    )
    assert "onnx" in done.stdout
    assert "pip install" in done.stdout
