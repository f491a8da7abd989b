"""Devices in processes of their own: whatever ends such a process, this one goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crossdock.devices import isolated, opencl, registry, sim
from crossdock.devices.base import Bound, Cap
from crossdock.devices.isolated_device import IsolatedDevice
from crossdock.devices.isolated_process import DEATHS, DEATHS_AT
from crossdock.devices.program import ArrayCall, GridLaunch, In, Out
from crossdock.runtime.errors import (
    CompileError,
    DeviceError,
    DeviceHung,
    DeviceLost,
    OutOfMemory,
    Unavailable,
)
from crossdock.runtime.tensor import TensorSpec
from tests.devices.steps import axpb, axpb_array, download, record, upload

ID = "isolated:opencl:0"
PATIENCE = 10.0
X = np.linspace(-3, 3, 1000, dtype=np.float32)
ROOT = Path(__file__).resolve().parents[2]
ENDLESS = GridLaunch(
    "KERNEL void f(volatile GLOBAL int *y) { while (y[0] == 0) y[1] = 1; }",
    "f",
    (Out(0),),
    (1,),
    (1,),
)


@pytest.fixture(scope="module", autouse=True)
def _needs_opencl() -> None:
    if not registry.probe_all(["opencl"])[0].devices:
        pytest.skip("no OpenCL device: install crossdock[opencl]")


@pytest.fixture(autouse=True)
def _nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(DEATHS_AT, "_counts", Counter())
    yield
    registry.close_all()
    registry.rescan()


def opened(**options: Any) -> IsolatedDevice:
    device = registry.open_device(ID, **options)
    assert isinstance(device, IsolatedDevice)
    return device


def soon(true: Callable[[], object]) -> bool:
    """Whether something becomes true in a while."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if true():
            return True
        time.sleep(0.01)
    return False


def state(pid: int) -> str:
    """The letter of a process' state; empty where there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii")
    except OSError:
        return ""
    return text.rpartition(") ")[2][0]


def is_running(pid: int) -> bool:
    return state(pid) not in ("", "Z")


def stop(pid: int) -> None:
    """Stop a process; it does nothing more when this returns."""
    os.kill(pid, signal.SIGSTOP)
    tasks = Path(f"/proc/{pid}/task")
    assert soon(lambda: all(state(int(t.name)) in ("T", "") for t in tasks.iterdir()))


def endless(device: IsolatedDevice) -> Any:
    """The event of a kernel that never ends."""
    y = upload(device, np.zeros(2, np.int32))
    return device.queues["compute"].execute(record(device, (ENDLESS, {Out(0): y})))


def test_it_is_the_device_inside_with_a_process_of_its_own() -> None:
    inner = registry.open_device("opencl:0").info
    info = opened().info
    assert (info.id, info.kind, info.physical_id) == (ID, inner.kind, inner.physical_id)
    assert info.resource_group == inner.resource_group
    assert info.memory_bytes == inner.memory_bytes
    assert info.fingerprint != inner.fingerprint
    assert not info.caps & {Cap.HOST_MEMORY, Cap.MAP, Cap.NATIVE}


def test_it_is_listed_only_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ID not in {info.id for info in registry.devices()}
    assert registry.is_there(ID)
    monkeypatch.setenv("CROSSDOCK_DEVICES", ID)
    assert [info.id for info in registry.devices()] == ["cpu:0", ID]
    monkeypatch.setenv("CROSSDOCK_DEVICES", "isolated")
    assert ID in {info.id for info in registry.devices()}


def test_what_cannot_be_isolated_is_refused_with_the_devices_that_can() -> None:
    with pytest.raises(
        Unavailable, match=r"no device 'isolated:cpu:0': .*not travel .*isolated:opencl:0"
    ):
        registry.open_device("isolated:cpu:0")
    assert not registry.is_there("isolated:cpu:0")


def test_the_same_bits_as_in_this_process() -> None:
    results = []
    for name in ("opencl:0", ID):
        device = registry.open_device(name)
        x, y = upload(device, X), device.allocate(X.nbytes)
        done = device.queues["compute"].execute(
            record(device, (axpb(device, X.size, 1.7, 0.3), {In(0): x, Out(0): y}))
        )
        results.append(download(device, y, X, done).tobytes())
    assert results[0] == results[1]


def test_a_killed_process_is_noticed_at_once_though_nobody_asks() -> None:
    device = opened()
    os.kill(device.process.pid, signal.SIGKILL)
    assert soon(lambda: device.gone)
    assert "SIGKILL" in device.gone
    with pytest.raises(DeviceLost, match="SIGKILL"):
        registry.open_device(ID)
    with pytest.raises(DeviceLost, match="SIGKILL"):
        device.allocate(100)
    assert registry.rescan() == [ID]
    again = opened()
    assert again.process.pid != device.process.pid
    assert np.array_equal(download(again, upload(again, X), X), X)


def test_who_waits_for_a_kernel_is_told_of_the_signal() -> None:
    device = opened()
    held = device.allocate(X.nbytes)
    event = endless(device)
    assert not event.done()
    threading.Timer(0.1, os.kill, (device.process.pid, signal.SIGKILL)).start()
    with pytest.raises(DeviceLost, match=r"signal 9 \(SIGKILL\) while it was at '0'"):
        event.wait()
    assert event.done()
    with pytest.raises(DeviceLost):
        device.queues["upload"].write(held, X)


DOING: dict[str, Callable[[IsolatedDevice, Any], object]] = {
    "allocate": lambda device, _: device.allocate(100),
    "compile": lambda device, _: device.compile(ENDLESS),
    "record": lambda device, held: device.record([Bound(held[1], {Out(0): held[0]})]),
    "pace": lambda device, _: device.pace(),
    "upload": lambda device, held: device.queues["upload"].write(held[0], np.zeros(2, "i")).wait(),
    "download": lambda device, held: device.queues["download"].read(held[0], np.zeros(2, "i")),
    "finish": lambda device, _: device.queues["compute"].finish(),
}


BRIEFLY = ("compile", "upload", "download")


@pytest.mark.parametrize(
    "doing", [BRIEFLY, pytest.param(tuple(DOING), marks=pytest.mark.slow)], ids=["short", "long"]
)
def test_a_process_may_end_at_anything(doing: tuple[str, ...]) -> None:
    """It is stopped first, so that it surely is at what it is asked for when it ends."""
    for what, call in ((what, DOING[what]) for what in doing):
        device = opened()
        held = device.allocate(64), device.compile(ENDLESS)
        stop(device.process.pid)
        threading.Timer(0.05, os.kill, (device.process.pid, signal.SIGKILL)).start()
        with pytest.raises(DeviceLost, match="SIGKILL"):
            call(device, held)
        assert soon(lambda device=device: device.gone), what
        registry.rescan()


def test_a_driver_that_does_not_answer_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    device = opened()
    monkeypatch.setenv("CROSSDOCK_WATCHDOG", "0.01")
    stop(device.process.pid)
    with pytest.raises(DeviceHung, match="has not answered 'allocate'") as caught:
        device.allocate(100)
    registry.lose(device, str(caught.value))
    assert soon(lambda: not is_running(device.process.pid))


def test_losing_a_device_that_hangs_kills_its_process() -> None:
    device = opened()
    event = endless(device)
    registry.lose(device, "it hangs")
    with pytest.raises(DeviceLost):
        event.wait()
    assert soon(lambda: not is_running(device.process.pid))


def test_ctrl_c_is_not_for_it() -> None:
    device = opened()
    os.kill(device.process.pid, signal.SIGINT)
    assert np.array_equal(download(device, upload(device, X), X), X)


def test_work_that_ended_three_processes_is_refused() -> None:
    for _ in range(DEATHS):
        registry.rescan()
        device = opened()
        event = endless(device)
        os.kill(device.process.pid, signal.SIGKILL)
        with pytest.raises(DeviceLost):
            event.wait()
        assert soon(lambda device=device: device.gone)
    registry.rescan()
    device = opened()
    with pytest.raises(CompileError, match="f is refused: 3 of the device's processes"):
        device.compile(ENDLESS)
    device.compile(axpb(device, 10, 1, 1))


def test_a_device_that_ends_processes_as_it_opens_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    registry.is_there(ID)
    spawned = isolated.Process.ask

    def ask(process: Any, limit: float, what: str, *args: object, **more: Any) -> Any:
        if what == "open":
            process.kill()
        return spawned(process, limit, what, *args, **more)

    monkeypatch.setattr(isolated.Process, "ask", ask)
    for _ in range(DEATHS):
        with pytest.raises(DeviceLost, match="SIGKILL"):
            registry.open_device(ID)
    with pytest.raises(Unavailable, match="3 processes ended while they opened it"):
        registry.open_device(ID)


def test_memory_that_was_given_back_can_be_taken_again_at_once() -> None:
    device = opened(limit=8 << 20)
    for _ in range(20):
        held = upload(device, np.zeros(6 << 20, np.uint8))
        del held
    assert device.gauge.used == 0
    assert device.gauge.peak == 6 << 20
    held = device.allocate(6 << 20)
    with pytest.raises(OutOfMemory, match=ID):
        device.allocate(6 << 20)
    held.release()


def test_a_buffer_is_free_only_after_what_was_asked_of_it() -> None:
    device = opened()
    y = device.allocate(X.nbytes)
    for i in range(50):
        x = device.allocate(X.nbytes)
        written = device.queues["upload"].write(x, X + i)
        step = axpb(device, X.size, 1, 0)
        commands = record(device, (step, {In(0): x, Out(0): y}))
        event = device.queues["compute"].execute(commands, [written])
        x.release()
        del commands
    assert np.array_equal(download(device, y, X, event), X + 49)


def test_array_calls_of_ops_travel_and_other_functions_do_not() -> None:
    import crossdock as xd

    sim.register(sim.SimSpec("inside"))
    try:
        device: Any = registry.open_device("isolated:sim:inside")
        with pytest.raises(CompileError, match="code of this process alone"):
            device.compile(axpb_array(10, 1, 1))
        spec = TensorSpec("float32", (4,))
        wrong = ArrayCall(_no_fn, (), (Out(0),), (), (spec,), lambda: ("os", "system", "true"))
        with pytest.raises(CompileError, match="os is no module of crossdock"):
            device.compile(wrong)
        b = xd.GraphBuilder()
        x = b.input("x", (3, 4))
        graph = b.build({"y": b.softmax(b.add(x, x), axis=1)})
        feeds = {"x": np.arange(12, dtype=np.float32).reshape(3, 4)}
        found = []
        for name in ("sim:inside", "isolated:sim:inside"):
            rules = xd.Constraints(pin={"*": name})
            with xd.compile(graph, [name], constraints=rules, measure=False) as session:
                found.append(session.run(feeds)["y"].tobytes())
                assert {op.device for op in session.receipt.ops} == {name}
        assert found[0] == found[1]
    finally:
        registry.close_all()
        sim.unregister("inside")


def _no_fn(_xp: Any, _ins: list[Any], _outs: list[Any]) -> None:
    raise AssertionError


def usage() -> tuple[int, int, int, set[str]]:
    """Descriptors, threads, children, and names of shared memory, of this process."""
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text(encoding="ascii")
    shared = (
        {entry.name for entry in Path("/dev/shm").iterdir()} if Path("/dev/shm").is_dir() else set()
    )
    named = {name for name in shared if "crossdock" in name}
    return len(os.listdir("/proc/self/fd")), threading.active_count(), len(children.split()), named


@pytest.mark.parametrize(
    "times", [4, pytest.param(100, marks=pytest.mark.slow)], ids=["short", "long"]
)
def test_nothing_is_left_of_processes_that_ended(times: int) -> None:
    def once(turn: int) -> None:
        device = opened()
        download(device, upload(device, X), X)
        if turn % 2:
            registry.close_all()
            return
        os.kill(device.process.pid, signal.SIGKILL)
        assert soon(lambda: device.gone)
        registry.rescan()

    import gc

    once(0)
    once(1)
    gc.collect()
    before = usage()
    for turn in range(times):
        once(turn)
    gc.collect()
    assert soon(lambda: usage() == before), (before, usage())


ORPHAN = """
import os, sys, time
sys.path.insert(0, {root!r})
from tests.devices.test_isolated import endless
from crossdock.devices import isolated
device = isolated.open_device("isolated:opencl:0")
endless(device)
if {fork} and os.fork() == 0:
    time.sleep(60)
    os._exit(0)
print(device.process.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("fork", [False, True], ids=["alone", "forked"])
def test_it_ends_with_the_process_that_started_it(fork: bool) -> None:
    """Though its kernel never ends, and though a child of that process lives on."""
    code = ORPHAN.format(root=str(ROOT), fork=fork)
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        assert is_running(worker)
        parent.kill()
        assert soon(lambda: not is_running(worker))
        os.killpg(parent.pid, signal.SIGKILL)


HOLDING = """
import os, sys
sys.path.insert(0, {root!r})
from crossdock.devices import isolated
device = isolated.open_device("isolated:opencl:0")
(_, _, (held,), _) = device.process.let_go.peek()
os.fstat(held)
if os.fork() == 0:
    try:
        os.fstat(held)
    except OSError:
        os._exit(0)
    os._exit(1)
sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
"""


def test_a_forked_child_does_not_keep_a_process_alive() -> None:
    code = HOLDING.format(root=str(ROOT))
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


DEAF = """
import sys
from crossdock.devices.isolated_worker import _end_with
_end_with(int(sys.argv[1]))
print("deaf", flush=True)
pow(7, 1 << 28)  # minutes in which no other Python runs
"""


def test_a_driver_that_lets_no_python_run_ends_with_the_process_that_started_it() -> None:
    pipe, held = os.pipe()
    command = [sys.executable, "-c", DEAF, str(pipe)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, pass_fds=[pipe]) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "deaf\n"
            time.sleep(0.1)
            assert child.poll() is None
            os.close(held)
            assert child.wait(PATIENCE) == -signal.SIGIO
        finally:
            os.close(pipe)
            child.kill()


def test_a_device_that_is_not_closed_ends_with_its_object() -> None:
    device = opencl.probe().devices and isolated.open_device(ID)
    assert device
    pid = device.process.pid
    registry.close_all()
    del device
    import gc

    gc.collect()
    assert soon(lambda: not is_running(pid))


def test_errors_keep_their_type_and_their_fields() -> None:
    device = opened()
    with pytest.raises(DeviceError, match="cannot copy") as caught:
        device.queues["upload"].write(device.allocate(4), X)
    assert type(caught.value) is DeviceError
    with pytest.raises(CompileError) as refused:
        device.compile(GridLaunch("KERNEL void f() { int x = ; }", "f", (), (1,), (1,)))
    assert refused.value.device == ID
    assert "error" in refused.value.log
