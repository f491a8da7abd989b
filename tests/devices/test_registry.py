"""The registry: what is found, what is said of what is not, third parties, laziness."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from crossdock.devices import registry
from crossdock.runtime.errors import Unavailable

PLUGIN = """
from dataclasses import replace
from crossdock.devices import registry
from crossdock.devices.base import Probe

KIND = "toy"


def probe():
    info = registry.probe_all(["cpu"])[0].devices[0]
    return Probe(KIND, (replace(info, id="toy:0", kind=KIND, name="a toy"),))


def open_device(device_id, *, threads=None):
    device = registry._kind("cpu").open_device("cpu:0", threads=threads)
    device.info = replace(device.info, id=device_id, kind=KIND)
    return device
"""


@pytest.fixture(autouse=True)
def nothing_stays_open() -> Iterator[None]:
    yield
    registry.close_all()


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package with device kinds ``toy`` and ``broken``."""
    (tmp_path / "toy_device.py").write_text(PLUGIN)
    (tmp_path / "broken_device.py").write_text("raise RuntimeError('it was never\\nfinished')")
    info = tmp_path / "toy_device-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-device\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        f"[{registry.GROUP}]\ntoy = toy_device\nbroken = broken_device\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_the_processor_comes_first() -> None:
    assert registry.devices()[0].id == "cpu:0"
    assert registry.kind_names()[:4] == ["cpu", "cuda", "opencl", "sim"]


def test_ids_name_their_kind_and_are_unique() -> None:
    found = registry.devices()
    assert len({info.id for info in found}) == len(found)
    assert all(info.id.partition(":")[0] == info.kind for info in found)


def test_a_kind_without_devices_says_why_and_what_to_do() -> None:
    for probe in registry.probe_all(["cpu", "cuda", "opencl"]):
        assert probe.devices or (probe.reason and probe.fix)


def test_an_unknown_device_is_refused_with_the_devices_there_are() -> None:
    with pytest.raises(Unavailable, match=r"no device 'cpu:7'.*cpu:0"):
        registry.open_device("cpu:7")
    with pytest.raises(Unavailable, match=r"no device kind 'abacus'.*opencl"):
        registry.open_device("abacus:0")


def test_asking_for_an_absent_kind_gives_the_sentence_of_its_probe(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    probe = registry.probe_all(["cuda"])[0]
    with pytest.raises(Unavailable) as caught:
        registry.open_device("cuda:0")
    assert probe.reason in str(caught.value)
    assert probe.fix in str(caught.value)


def test_a_device_is_opened_once_for_the_same_options() -> None:
    one = registry.open_device("cpu:0", threads=1)
    assert registry.open_device("cpu:0", threads=1) is one
    assert registry.open_device("cpu:0") is not one
    registry.close_all()
    assert registry.open_device("cpu:0", threads=1) is not one


def test_the_environment_limits_what_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROSSDOCK_DEVICES", "cuda:9")
    by_kind = {probe.kind: probe for probe in registry.probe_all()}
    assert "CROSSDOCK_DEVICES" in by_kind["opencl"].reason
    assert [info.id for info in registry.devices()] == ["cpu:0"]


def test_the_environment_takes_ids_and_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    everything = [info.id for info in registry.devices() if info.kind == "opencl"]
    if not everything:
        pytest.skip("no OpenCL device: install crossdock[opencl]")
    monkeypatch.setenv("CROSSDOCK_DEVICES", "opencl")
    assert [info.id for info in registry.devices()] == ["cpu:0", *everything]
    monkeypatch.setenv("CROSSDOCK_DEVICES", "opencl:0, cuda")
    assert [info.id for info in registry.devices()] == ["cpu:0", "opencl:0"]


@pytest.mark.usefixtures("plugin")
def test_a_third_party_kind_comes_in_by_entry_point() -> None:
    assert registry.kind_names()[-2:] == ["broken", "toy"]
    assert "toy:0" in {info.id for info in registry.devices()}
    opened = registry.open_device("toy:0", threads=1)
    assert opened.info.kind == "toy"
    assert opened.allocate(16).nbytes == 16
    assert registry.open_device("toy:0", threads=1) is opened


@pytest.mark.usefixtures("plugin")
def test_a_kind_that_cannot_be_imported_is_only_a_reason() -> None:
    probe = registry.probe_all(["broken"])[0]
    assert probe.devices == ()
    assert "RuntimeError: it was never finished" in probe.reason
    with pytest.raises(Unavailable, match="never finished"):
        registry.open_device("broken:0")


def test_a_built_in_kind_cannot_be_replaced(plugin: Path) -> None:
    points = plugin / "toy_device-1.0.dist-info" / "entry_points.txt"
    points.write_text(f"[{registry.GROUP}]\ncpu = broken_device\n")
    assert registry.kind_names().count("cpu") == 1
    assert registry.probe_all(["cpu"])[0].devices


def test_drivers_are_not_imported_before_they_are_asked_for() -> None:
    code = (
        "import sys; from crossdock.devices import registry; registry.kind_names();"
        "print([m for m in ('cupy', 'pyopencl', 'numba', 'llvmlite') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
