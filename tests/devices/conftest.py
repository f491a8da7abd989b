"""Devices to run a test on: every kind that is here, and the CUDA kind on the fake cupy."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from crossdock.devices import registry
from crossdock.devices.base import Cap, Device
from tests.fakes import cupy_fake

FAKE = "cuda-fake"
ISOLATED = "isolated:"
ONE_CORE = "/1"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs(*caps): run on devices with these capabilities only")


def names() -> list[str]:
    """Test ids of devices; one of a kind that is absent stays, and is skipped with the reason."""
    opencl = [info.id for info in registry.probe_all(["opencl"])[0].devices] or ["opencl:0"]
    isolated = [ISOLATED + opencl[0]]
    return [
        "cpu:0",
        "sim",
        *opencl,
        *(name + ONE_CORE for name in opencl),
        *isolated,
        FAKE,
        "cuda:0",
    ]


def _open(name: str, monkeypatch: pytest.MonkeyPatch) -> Device:
    kind = name.partition(":")[0]
    module = f"crossdock.devices.{'cuda' if name == FAKE else kind}"
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"there is no device kind {kind} yet")
    driver = importlib.import_module(module)
    if name == FAKE:
        if not registry.probe_all(["opencl"])[0].devices:
            pytest.skip("the fake cupy runs kernels on PoCL, which is absent")
        cupy_fake.install(monkeypatch)
        name = "cuda:0"
    if name == "sim":
        name = _simulated(driver)
    wanted, threads = name.removesuffix(ONE_CORE), 1 if name.endswith(ONE_CORE) else None
    if name in _ALIVE and _ALIVE[name].process.alive:
        return _ALIVE[name]
    found = driver.probe()
    if wanted not in {info.id for info in found.devices}:
        pytest.skip(f"no {wanted}: {found.reason}")
    opened: Device = driver.open_device(wanted, threads=threads)
    if kind == "sim":
        driver.unregister("conformance")
    if name.startswith(ISOLATED):
        _ALIVE[name] = opened
    return opened


_ALIVE: dict[str, Any] = {}
"""Devices that take a second to open, and are open from one test to the next."""


def pytest_unconfigure() -> None:
    for opened in _ALIVE.values():
        opened.close()


def _simulated(driver: Any) -> str:
    """Register the simulated device that stands for all of them."""
    return str(driver.register(driver.SimSpec("conformance", memory_bytes=64 << 20)).id)


@pytest.fixture(params=names())
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    """An open device of each kind in turn; ``needs`` skips those without a capability."""
    opened = _open(request.param, monkeypatch)
    marker = request.node.get_closest_marker("needs")
    missing = [Cap(cap) for cap in (marker.args if marker else ()) if cap not in opened.info.caps]
    if missing:
        if request.param not in _ALIVE:
            opened.close()
        pytest.skip(f"{request.param} has no {', '.join(missing)}")
    yield opened
    if request.param not in _ALIVE:
        opened.close()
    if request.param == FAKE:
        assert vars(sys.modules["cupy"])["machine"].errors == []
