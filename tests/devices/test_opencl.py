"""What only OpenCL devices do: mapping, fission, budgets, overlap, the program cache."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from crossdock.devices import opencl, opencl_programs, registry
from crossdock.devices.base import Cap
from crossdock.devices.opencl import OpenCLDevice
from crossdock.devices.program import GridLaunch, In, Out, Scalar
from crossdock.runtime.errors import DeviceError, OutOfMemory, Unavailable
from crossdock.runtime.tensor import TensorSpec
from tests.devices.steps import axpb_grid, download, record, upload

IDS = [info.id for info in registry.probe_all(["opencl"])[0].devices]
pytestmark = pytest.mark.skipif(not IDS, reason="no OpenCL device: install crossdock[opencl]")

SPIN = """
KERNEL void spin(GLOBAL float *x, int turns)
{
    float a = x[GLOBAL_ID(0)];
    for (int i = 0; i < turns; i++) a = a * 0.999f + 0.001f;
    x[GLOBAL_ID(0)] = a;
}
"""


@pytest.fixture(params=IDS)
def device(request: pytest.FixtureRequest) -> Iterator[OpenCLDevice]:
    opened = opencl.open_device(request.param)
    yield opened
    opened.close()


def test_mapping_shows_and_changes_the_memory(device: OpenCLDevice) -> None:
    data = np.arange(12, dtype=np.float32)
    buffer = upload(device, data)
    array = device.map(buffer, TensorSpec("float32", (3, 4)))
    assert np.array_equal(array, data.reshape(3, 4))
    array[1] = -1
    done = device.unmap(array)
    data[4:8] = -1
    assert np.array_equal(download(device, buffer, data, done), data)


def test_mapping_shared_memory_is_no_copy(device: OpenCLDevice) -> None:
    if Cap.MAP not in device.info.caps:
        pytest.skip(f"{device.info.id} shares no memory with the host")
    buffer = device.allocate(1 << 16)
    spec = TensorSpec("uint8", (1 << 16,))
    addresses = set()
    for _ in range(3):
        array = device.map(buffer, spec)
        addresses.add(array.ctypes.data)
        device.unmap(array).wait()
    assert len(addresses) == 1


def test_released_memory_is_refused_at_execution(device: OpenCLDevice) -> None:
    x, y = upload(device, np.zeros(64, np.float32)), device.allocate(256)
    commands = record(device, (axpb_grid(64, 1, 1), {In(0): x, Out(0): y}))
    x.release()
    with pytest.raises(DeviceError, match="released"):
        device.queues["compute"].execute(commands)


@pytest.mark.parametrize("device_id", IDS)
def test_a_budget_holds_and_comes_back(device_id: str) -> None:
    device = opencl.open_device(device_id, limit=1000)
    first = device.allocate(600)
    with pytest.raises(OutOfMemory, match=r"500 bytes wanted for weights, 400 free of 1000"):
        device.allocate(500, "weights")
    first.view(0, 10).release()
    with pytest.raises(OutOfMemory):
        device.allocate(500)
    first.release()
    device.allocate(1000)
    gc.collect()
    device.allocate(1000).release()
    device.close()


def test_a_buffer_over_the_drivers_limit_is_out_of_memory(device: OpenCLDevice) -> None:
    if device.info.max_allocation >= device.info.memory_bytes:
        pytest.skip("one buffer may have all of the memory")
    with pytest.raises(OutOfMemory, match="one buffer may have"):
        device.allocate(device.info.max_allocation + (1 << 20))


@pytest.mark.parametrize("device_id", IDS)
def test_a_part_of_a_processor_is_another_device(device_id: str) -> None:
    whole = opencl.open_device(device_id)
    if whole.info.details["type"] != "cpu" or whole.info.compute_units < 2:
        pytest.skip(f"{device_id} is not cut")
    part = opencl.open_device(device_id, threads=1)
    assert part.info.compute_units == 1
    assert part.info.fingerprint != whole.info.fingerprint
    assert part.info.physical_id == whole.info.physical_id
    listed = next(i for i in opencl.probe().devices if i.id == device_id)
    assert listed.fingerprint == whole.info.fingerprint
    part.close()
    whole.close()


def test_an_unknown_id() -> None:
    with pytest.raises(Unavailable, match="opencl:99"):
        opencl.open_device("opencl:99")


def test_transfers_overlap_kernels(device: OpenCLDevice) -> None:
    """By the device's own time stamps, a copy runs while a kernel that was there first runs."""
    data = np.ones(1 << 24, np.uint8)
    x, target = upload(device, np.ones(256, np.float32)), upload(device, data)
    commands = None
    for turns in (1000, 10_000, 100_000, 1_000_000, 10_000_000):
        step = GridLaunch(SPIN, "spin", (Out(0), Scalar(np.int32(turns))), (256,), (16,))
        commands = record(device, (step, {Out(0): x}))
        device.queues["compute"].execute(commands).wait()
        start = time.perf_counter()
        device.queues["compute"].execute(commands).wait()
        if time.perf_counter() - start > 0.05:
            break
    assert commands is not None
    kernel = device.queues["compute"].execute(commands)
    copy = device.queues["upload"].write(target, data)
    kernel.wait()
    copy.wait()
    kernel_span, copy_span = kernel.span(), copy.span()
    assert kernel_span is not None
    assert copy_span is not None
    assert kernel_span[0] < copy_span[1]
    assert copy_span[0] < kernel_span[1]


def test_enqueueing_does_not_wait_for_the_device(device: OpenCLDevice) -> None:
    x = upload(device, np.ones(256, np.float32))
    step = GridLaunch(SPIN, "spin", (Out(0), Scalar(np.int32(100_000))), (256,), (16,))
    commands = record(device, *[(step, {Out(0): x})] * 4)
    device.queues["compute"].execute(commands).wait()
    start = time.perf_counter()
    event = device.queues["compute"].execute(commands)
    enqueued = time.perf_counter() - start
    event.wait()
    assert enqueued < (time.perf_counter() - start) / 2


def test_kernel_objects_are_used_again(
    device: OpenCLDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, make = [], device.cl.Kernel
    monkeypatch.setattr(
        device.cl, "Kernel", lambda program, name: made.append(name) or make(program, name)
    )
    x, y = upload(device, np.zeros(8, np.float32)), device.allocate(32)
    for _ in range(5):
        commands = record(device, *[(axpb_grid(8, 1, 1), {In(0): x, Out(0): y})] * 3)
        del commands
        gc.collect()
    assert made.count("axpb") == 3  # pyopencl looks for others of its own


def test_programs_are_cached_where_the_driver_keeps_none(
    device: OpenCLDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o700)
    monkeypatch.setenv("CROSSDOCK_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(opencl_programs, "_DRIVER_CACHES", ())
    data = np.arange(8, dtype=np.float32)
    for damage in (None, None, b"", b"no binary"):
        for file in tmp_path.glob("opencl/*.bin"):
            file.write_bytes(file.read_bytes() if damage is None else damage)
        opened = opencl.open_device(device.info.id)
        x, y = upload(opened, data), opened.allocate(32)
        commands = record(opened, (axpb_grid(8, 2, 1), {In(0): x, Out(0): y}))
        done = opened.queues["compute"].execute(commands)
        assert np.array_equal(download(opened, y, data, done), 2 * data + 1)
        assert len(list(tmp_path.glob("opencl/*.bin"))) == 1
        opened.close()


def test_pyopencl_missing_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    from crossdock.devices import opencl_platforms

    opencl_platforms.load.cache_clear()
    monkeypatch.setitem(sys.modules, "pyopencl", None)
    probe = opencl.probe()
    monkeypatch.undo()
    opencl_platforms.load.cache_clear()
    assert probe.devices == ()
    assert "pyopencl" in probe.reason
    assert "crossdock[opencl]" in probe.fix


def test_a_home_that_cannot_be_written_still_has_devices(tmp_path: Path) -> None:
    if os.name != "posix":
        pytest.skip("PoCL's cache is looked at on POSIX systems")
    code = "from crossdock.devices import opencl; print(len(opencl.probe().devices))"
    env = {k: v for k, v in os.environ.items() if k not in ("POCL_CACHE_DIR", "XDG_CACHE_HOME")}
    env |= {"HOME": "/proc/nowhere", "CROSSDOCK_CACHE_DIR": str(tmp_path)}
    ran = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    )
    assert int(ran.stdout) == len(IDS)


def test_intels_runtime_is_found_in_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from crossdock.devices import opencl_platforms

    monkeypatch.setattr(sys, "prefix", str(tmp_path / "venv"))
    monkeypatch.setenv("CROSSDOCK_CACHE_DIR", str(tmp_path / "cache"))
    for name in ("OCL_ICD_VENDORS", "OPENCL_VENDOR_PATH"):
        monkeypatch.delenv(name, raising=False)
    opencl_platforms._show_intels_runtime()
    assert "OCL_ICD_VENDORS" not in os.environ
    library = tmp_path / "venv" / "lib" / "libintelocl.so"
    library.parent.mkdir(parents=True)
    library.touch()
    opencl_platforms._show_intels_runtime()
    vendors = Path(os.environ["OCL_ICD_VENDORS"])
    monkeypatch.delenv("OCL_ICD_VENDORS")
    assert (vendors / "intel.icd").read_text() == str(library)
    written = (vendors / "intel.icd").stat().st_ino
    opencl_platforms._show_intels_runtime()
    monkeypatch.delenv("OCL_ICD_VENDORS")
    assert (vendors / "intel.icd").stat().st_ino == written  # others may be reading it
    (vendors / "intel.icd").write_bytes(b"damaged \xff")
    opencl_platforms._show_intels_runtime()
    monkeypatch.delenv("OCL_ICD_VENDORS")
    assert [p.read_text() for p in vendors.iterdir() if p.name.startswith("intel")] == [
        str(library)
    ]


@pytest.mark.parametrize("name", ["POCL_AFFINITY", "DPCPP_CPU_PLACES", "DPCPP_CPU_CU_AFFINITY"])
def test_drivers_give_threads_cores_where_they_may_use_all(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    from crossdock.devices import opencl_cores

    for each in opencl_cores._PINNING:
        monkeypatch.setenv(each, "given")  # put back afterwards
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    monkeypatch.delenv(name)
    opencl_cores.give_threads_cores()
    assert name not in os.environ
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    monkeypatch.setenv(name, "given")
    opencl_cores.give_threads_cores()
    assert os.environ[name] == "given"
    monkeypatch.delenv(name)
    opencl_cores.give_threads_cores()
    assert os.environ[name] == opencl_cores._PINNING[name]


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no affinity on this system")
def test_a_thread_that_opens_a_device_keeps_its_cores() -> None:
    from crossdock.devices import opencl_cores, opencl_platforms

    before = os.sched_getaffinity(0)
    cl = opencl_platforms.load()
    for found in opencl_platforms.found_devices():
        opencl_cores.context(cl, found.handle)
        assert os.sched_getaffinity(0) == before


def test_a_caller_is_brought_to_the_cores_that_the_driver_leaves_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from crossdock.devices import opencl_cores

    on, asked = {0, 1, 2}, []
    monkeypatch.setattr(opencl_cores, "_here", lambda: 2)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: on, raising=False)
    monkeypatch.setattr(os, "sched_setaffinity", lambda _, to: asked.append(to), raising=False)
    opencl_cores.settle(frozenset({2}))
    opencl_cores.settle(frozenset({3}))  # not one of its own
    assert asked == []
    opencl_cores.settle(frozenset({0}))
    assert asked == [{0}, on]


def test_a_pause_works_at_the_next_part_that_is_not_done() -> None:
    from crossdock.devices.opencl_memory import ClEvent

    waited: list[str] = []

    def part(name: str, status: int, error: Exception | None = None) -> SimpleNamespace:
        def wait() -> None:
            waited.append(name)
            if error is not None:
                raise error

        return SimpleNamespace(command_execution_status=status, wait=wait)

    device: Any = SimpleNamespace(cl=SimpleNamespace(Error=ValueError))
    parts = (part("done", 0), part("first", 2), part("fails", 2, ValueError()), part("last", 3))
    event = ClEvent(device, parts[-1], parts=parts)
    event.pause(0.0)
    assert waited == ["first"]
    event.pause(0.0)
    event.pause(0.0)
    event.pause(0.0)
    assert waited == ["first", "fails", "last"]


def test_nothing_warns_and_no_cache_is_pickled(tmp_path: Path) -> None:
    """Building in a fresh process: silent under -W error, and pyopencl keeps nothing on disk."""
    code = """
import numpy as np
from crossdock.devices import opencl
from crossdock.devices.program import In, Out
from tests.devices.steps import axpb_grid, record, upload
device = opencl.open_device("opencl:0")
x = upload(device, np.ones(8, np.float32))
commands = record(device, (axpb_grid(8, 2, 1), {In(0): x, Out(0): x}))
device.queues["compute"].execute(commands).wait()
device.close()
"""
    root = Path(__file__).resolve().parents[2]
    env = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(root)}
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == ""
    assert {path.name for path in tmp_path.iterdir()} <= {"crossdock"}
