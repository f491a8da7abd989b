"""Driver, runtime, compiler and card that do not go together: one line each, with the fix."""

from __future__ import annotations

import ctypes
import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from crossdock.devices import cuda, cuda_versions, registry
from crossdock.devices.base import Bound
from crossdock.devices.program import ArrayCall, GridLaunch, Out
from crossdock.runtime.errors import CompileError, DeviceError, Unavailable
from tests.fakes import cupy_fake

POCL = bool(registry.probe_all(["opencl"])[0].devices)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> cupy_fake.FakeCupy:
    return cupy_fake.install(monkeypatch)


def raising(error: Exception) -> Any:
    def fail(*_: object) -> Any:
        raise error

    return fail


class Driver:
    """libcuda with an answer to cuInit and a number of cards."""

    def __init__(self, status: int, cards: int = 0) -> None:
        self.cuInit = lambda _: status
        self.cards = cards

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802 - the driver's name
        count._obj.value = self.cards
        return 0


def reason(monkeypatch: pytest.MonkeyPatch, driver: Any) -> str:
    """What probe says with a driver, cupy being installed and not imported."""
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(ctypes, "CDLL", driver)
    found = cuda.probe()
    assert found.devices == ()
    return f"{found.reason}; {found.fix}"


def test_cupy_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    found = cuda.probe()
    assert "cupy" in found.reason
    assert "crossdock[cuda]" in found.fix


def test_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    said = reason(monkeypatch, raising(OSError("libcuda.so.1: cannot open")))
    assert said.startswith("there is no NVIDIA driver; install NVIDIA's driver")


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (100, "the NVIDIA driver shows no card (error 100); check that `nvidia-smi` lists"),
        (803, "differ in version (error 803); restart the machine"),
        (804, "forward-compatible driver (error 804); remove cuda-compat"),
        (999, "the NVIDIA driver shows no card (error 999)"),
    ],
)
def test_a_driver_that_does_not_start(
    monkeypatch: pytest.MonkeyPatch, status: int, said: str
) -> None:
    assert said in reason(monkeypatch, lambda _: Driver(status))


def test_a_driver_without_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "shows no card; check" in reason(monkeypatch, lambda _: Driver(0))


def test_a_driver_that_is_too_old(
    fake: cupy_fake.FakeCupy, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = fake.cuda.runtime
    monkeypatch.setattr(runtime, "getDeviceCount", raising(cupy_fake.CUDARuntimeError(35)))
    monkeypatch.setattr(runtime, "runtimeGetVersion", lambda: 13000)
    monkeypatch.setattr(runtime, "driverGetVersion", lambda: 12080)
    found = cuda.probe()
    assert found.reason == (
        "the NVIDIA driver is too old: it takes CUDA 12.8, cupy is built for CUDA 13.0"
    )
    assert found.fix == (
        "update NVIDIA's driver to 580 or newer, or install the cupy for CUDA 12 (cupy-cuda12x)"
    )
    with pytest.raises(Unavailable, match=r"12\.8.*13\.0.*580"):
        cuda.open_device("cuda:0")


def test_no_driver_seen_by_the_runtime_alone(
    fake: cupy_fake.FakeCupy, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = fake.cuda.runtime
    monkeypatch.setattr(runtime, "getDeviceCount", raising(cupy_fake.CUDARuntimeError(35)))
    monkeypatch.setattr(runtime, "driverGetVersion", lambda: 0)
    assert cuda.probe().reason == "there is no NVIDIA driver"


def test_a_runtime_that_fails_otherwise(
    fake: cupy_fake.FakeCupy, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = fake.cuda.runtime
    monkeypatch.setattr(runtime, "getDeviceCount", raising(cupy_fake.CUDARuntimeError(46)))
    assert cuda.probe().reason == "CUDA does not answer (error 46)"


def test_no_nvrtc(fake: cupy_fake.FakeCupy, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = RuntimeError('Failure finding "libnvrtc.so.12": No such file\n')
    monkeypatch.setattr(fake.cuda.nvrtc, "getVersion", raising(missing))
    found = cuda.probe()
    assert found.devices == ()
    assert found.reason == (
        "NVRTC, CUDA's compiler of kernels, cannot be loaded "
        '(Failure finding "libnvrtc.so.12": No such file)'
    )
    assert found.fix == "pip install 'cupy-cuda12x[ctk]'"


def test_a_card_that_nvrtc_has_no_code_for(
    fake: cupy_fake.FakeCupy, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = fake.cuda.runtime.getDeviceProperties
    monkeypatch.setattr(
        fake.cuda.runtime,
        "getDeviceProperties",
        lambda index: {**facts(index), **({} if index else {"major": 6, "minor": 1})},
    )
    assert len(cuda.probe().devices) == 2
    monkeypatch.setattr(fake.cuda.nvrtc, "getSupportedArchs", lambda: (75, 80, 90))
    monkeypatch.setattr(fake.cuda.nvrtc, "getVersion", lambda: (13, 0))
    found = cuda.probe()
    assert [info.id for info in found.devices] == ["cuda:1"]
    assert found.reason == (
        "Fake GPU is of architecture sm_61, and NVRTC of CUDA 13.0 compiles for sm_75 and newer"
    )
    assert "cupy-cuda12x" in found.fix


def test_a_card_newer_than_nvrtc_is_the_drivers_matter(
    fake: cupy_fake.FakeCupy, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = fake.cuda.runtime.getDeviceProperties
    monkeypatch.setattr(
        fake.cuda.runtime, "getDeviceProperties", lambda index: {**facts(index), "major": 12}
    )
    assert len(cuda.probe().devices) == 2


@pytest.mark.skipif(not POCL, reason="the fake cupy runs kernels on PoCL")
def test_kernels_that_an_older_driver_does_not_load(
    fake: cupy_fake.FakeCupy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake.cuda.nvrtc, "getVersion", lambda: (13, 0))
    device = cuda.open_device("cuda:0")
    step = GridLaunch(
        "KERNEL void a(GLOBAL float *y) { y[0] = 1; }", "other", (Out(0),), (1,), (1,)
    )
    with pytest.raises(
        CompileError, match=r"NVRTC is of CUDA 13\.0 and the driver takes CUDA 12\.4"
    ):
        device.compile(step)
    device.close()


def test_a_card_without_cublas_is_known_before_anything_runs(
    fake: cupy_fake.FakeCupy, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_it = cuda.probe().devices[0]
    assert "no cublas" not in with_it.details
    missing = property(raising(ImportError("libcublas.so.12: cannot open shared object file")))
    monkeypatch.setattr(type(fake.cuda), "cublas", missing, raising=False)
    info = cuda.probe().devices[0]
    assert info.details["no cublas"].startswith("libcublas.so.12: cannot open")
    assert info.fingerprint != with_it.fingerprint


@pytest.mark.parametrize("kind", ["ImportError", "DynamicLibNotFoundError"])
def test_a_library_that_a_call_needs_is_missing(fake: cupy_fake.FakeCupy, kind: str) -> None:
    error = {"ImportError": ImportError}.get(kind) or type(kind, (RuntimeError,), {})
    device = cuda.open_device("cuda:0")

    def product(xp: Any, ins: list[Any], outs: list[Any]) -> None:
        raise error("libcublas.so.12: cannot open shared object file\n")

    commands = device.record([Bound(device.compile(ArrayCall(product, (), (), (), ())), {})])
    said = r"cuda:0: a library of CUDA cannot be loaded \(libcublas.*pip install 'cupy-cuda12x"
    with pytest.raises(DeviceError, match=said):
        device.queues["compute"].execute(commands)
    device.close()


@pytest.mark.parametrize("kind", [RuntimeError, ImportError])
def test_another_error_of_a_call_stays_what_it_is(
    fake: cupy_fake.FakeCupy, kind: type[Exception]
) -> None:
    device = cuda.open_device("cuda:0")

    def wrong(xp: Any, ins: list[Any], outs: list[Any]) -> None:
        raise kind("something else")

    commands = device.record([Bound(device.compile(ArrayCall(wrong, (), (), (), ())), {})])
    with pytest.raises(kind, match="something else"):
        device.queues["compute"].execute(commands)
    device.close()


def test_what_probe_says_of_a_card(fake: cupy_fake.FakeCupy) -> None:
    info = cuda.probe().devices[0]
    assert info.driver == "CUDA 12.4, driver for CUDA 12.4"
    assert info.details["compute_capability"] == "8.0"
    assert info.details["nvrtc"] == "12.4"


@pytest.mark.parametrize(("number", "said"), [(12040, "12.4"), (13000, "13.0"), (11080, "11.8")])
def test_versions_are_read(number: int, said: str) -> None:
    assert cuda_versions.text(number) == said


def test_the_guide_has_what_probe_says() -> None:
    guide = (Path(__file__).resolve().parents[2] / "CUDA.md").read_text(encoding="utf-8")
    for status, (said, _) in cuda_versions.START.items():
        if status in (100, 802):
            assert f"`{said} (error {status})`" in guide
        elif status > 802:
            assert f"error {status})`" in guide
    for said in (
        "cupy is not installed", "there is no NVIDIA driver", "the NVIDIA driver is too old",
        "NVRTC, CUDA's compiler of kernels, cannot be loaded",
        "and NVRTC of CUDA 13.0 compiles for", "a library of CUDA cannot be loaded",
        "NVRTC is of CUDA 13.0 and the driver takes CUDA 12.4",
    ):  # fmt: skip
        assert said in guide
    for branch in ("525", "580"):
        assert branch in cuda_versions.MINIMUM_DRIVER.values()
        assert f"| {branch} and newer |" in guide
