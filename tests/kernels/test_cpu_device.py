"""The CPU device: command buffers, threads, memory, machine code and its cache on disk."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crossdock.devices import cpu, cpu_cache
from crossdock.devices.base import Bound, Buffer, Cap, Span
from crossdock.devices.cpu_blas import blas
from crossdock.devices.cpu_llvm import compile_ir
from crossdock.devices.program import ArrayCall, GridLaunch, In, NativeCall, Out, Scalar
from crossdock.kernels.cpu_ir import Code, compiled
from crossdock.runtime.binding import resident
from crossdock.runtime.errors import (
    CacheWarning,
    CompileError,
    DeviceError,
    OutOfMemory,
    Unavailable,
)
from crossdock.runtime.tensor import Array, TensorSpec

N = 100_000
SPEC = TensorSpec("float32", (N,))


@pytest.fixture(params=[1, 2, 3])
def device(request: pytest.FixtureRequest) -> Iterator[cpu.CpuDevice]:
    opened = cpu.open_device("cpu:0", threads=request.param)
    yield opened
    opened.close()


def native(factor: float, extent: int = N, grain: int = 1000) -> NativeCall:
    """out = factor * in + 1, element by element; wrong if an element is done twice or early."""

    def write(code: Code) -> None:
        source, target, number = code.pointer(0), code.pointer(1), code.number(2)
        short = code.let(f"fptrunc double {number} to float")
        with code.loop("%begin", "%end") as loop:
            x = code.load("float", code.at(source, "float", loop.index))
            y = code.let(f"fadd float {code.let(f'fmul float {x}, {short}')}, 1.0")
            code.store("float", y, code.at(target, "float", loop.index))

    return NativeCall(
        "scale", compiled("test scale", write), (In(0), Out(0), Scalar(np.float64(factor))),
        extent, grain,
    )  # fmt: skip


def array(factor: float) -> ArrayCall:
    def fn(xp: Any, ins: list[Any], outs: list[Any]) -> None:
        outs[0][...] = ins[0] * np.float32(factor) + np.float32(1)

    return ArrayCall(fn, (In(0),), (Out(0),), (SPEC,), (SPEC,))


def chain(
    device: cpu.CpuDevice, steps: int, make: Callable[[int], Any]
) -> tuple[list[Bound], Buffer]:
    """Steps that read what the step before wrote, between two buffers; and the last one's."""
    buffers = [resident(device, np.arange(N, dtype=np.float32), "x"), device.allocate(4 * N)]
    bound = []
    for i in range(steps):
        slots = {In(0): buffers[i % 2], Out(0): buffers[1 - i % 2]}
        bound.append(Bound(device.compile(make(i)), slots, f"s{i}"))
    return bound, buffers[steps % 2]


def wanted(steps: int) -> Array:
    x = np.arange(N, dtype=np.float32)
    for _ in range(steps):
        x = x * np.float32(0.5) + np.float32(1)
    return x


def read(device: cpu.CpuDevice, buffer: Buffer) -> Array:
    out = np.empty(N, np.float32)
    device.queues["download"].read(buffer, out)
    return out


@pytest.mark.parametrize("mixed", [False, True])
def test_steps_run_in_order_on_any_number_of_threads(device: cpu.CpuDevice, mixed: bool) -> None:
    def make(i: int) -> Any:
        return array(0.5) if mixed and i % 3 == 1 else native(0.5)

    bound, last = chain(device, 20, make)
    commands = device.record(bound)
    assert len(commands) == 20
    start = bound[0].buffers[In(0)]
    for _ in range(10):
        device.queues["upload"].write(start, np.arange(N, dtype=np.float32))
        device.queues["compute"].execute(commands)
        np.testing.assert_array_equal(read(device, last), wanted(20))


def test_small_and_large_steps_alternate(device: cpu.CpuDevice) -> None:
    """A step of one item between shared ones is done once, by the leading thread."""
    bound, last = chain(device, 30, lambda i: native(0.5, grain=N if i % 2 else 500))
    commands = device.record(bound)
    device.queues["compute"].execute(commands)
    np.testing.assert_array_equal(read(device, last), wanted(30))


def test_spans_are_one_a_step(device: cpu.CpuDevice) -> None:
    bound, last = chain(device, 3, lambda i: array(0.5) if i == 1 else native(0.5))
    spans: list[Span] = []
    device.queues["compute"].execute(device.record(bound), spans=spans)
    assert [s.label for s in spans] == ["s0", "s1", "s2"]
    assert all(s.start <= s.end for s in spans)
    assert spans[0].end <= spans[1].start
    np.testing.assert_array_equal(read(device, last), wanted(3))


def test_several_callers_at_once(device: cpu.CpuDevice) -> None:
    failures: list[BaseException] = []

    def work() -> None:
        try:
            bound, last = chain(device, 20, lambda _: native(0.5))
            commands = device.record(bound)
            for _ in range(5):
                data = np.arange(N, dtype=np.float32)
                device.queues["upload"].write(bound[0].buffers[In(0)], data)
                device.queues["compute"].execute(commands)
                np.testing.assert_array_equal(read(device, last), wanted(20))
        except (AssertionError, DeviceError) as error:
            failures.append(error)

    callers = [threading.Thread(target=work) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not failures


def test_blas_is_held_to_one_thread_and_given_back() -> None:
    library = blas()
    if library is None:
        pytest.skip("numpy's BLAS is not OpenBLAS")
    before = library.get_threads()
    try:
        library.set_threads(2)
        library.enter()
        assert library.get_threads() == 1
        library.enter()
        library.leave()
        assert library.get_threads() == 1
        library.leave()
        assert library.get_threads() == 2
    finally:
        library.set_threads(before)


def test_floating_point_warnings_are_off(device: cpu.CpuDevice) -> None:
    def fn(xp: Any, ins: list[Any], outs: list[Any]) -> None:
        np.divide(ins[0], np.float32(0), out=outs[0])

    call = ArrayCall(fn, (In(0),), (Out(0),), (SPEC,), (SPEC,))
    bound, last = chain(device, 1, lambda _: call)
    device.queues["compute"].execute(device.record(bound))
    assert np.isinf(read(device, last)[1:]).all()


def test_scalars_keep_their_bits() -> None:
    host = cpu.open_device("cpu:0", threads=1)
    out = host.allocate(64)
    values = [np.int64(-1), np.uint64(2**64 - 1), np.int32(-7), np.bool_(True), np.float32(0.5)]

    def write(code: Code) -> None:
        target = code.pointer(0)
        for i in range(len(values)):
            code.store("i64", code.word(i + 1), code.at(target, "i64", i))

    args = (Out(0), *(Scalar(v) for v in values))
    call = NativeCall("words", compiled("test words", write), args, 1)
    host.queues["compute"].execute(host.record([Bound(host.compile(call), {Out(0): out})]))
    got = out.array(TensorSpec("int64", (8,)))
    assert got[:4].tolist() == [-1, -1, -7, 1]
    assert got[4:5].view(np.float64)[0] == 0.5


# --- memory ---------------------------------------------------------------------------------------


def test_memory_is_aligned_and_windows_share_it() -> None:
    host = cpu.open_device("cpu:0", threads=1)
    buffer = host.allocate(1000)
    window = buffer.view(64, 128)
    assert buffer.address() % 64 == 0
    assert window.address() == buffer.address() + 64
    window.array(TensorSpec("uint8", (128,)))[:] = 7
    assert (buffer.bytes()[64:192] == 7).all()
    with pytest.raises(DeviceError, match="no view"):
        buffer.view(8, 8)
    with pytest.raises(DeviceError, match="no view"):
        buffer.view(960, 64)


def test_a_view_outlives_its_buffer() -> None:
    host = cpu.open_device("cpu:0", threads=1, limit=10_000)
    window = host.allocate(8_000).view(0, 64)
    with pytest.raises(OutOfMemory):
        host.allocate(8_000)
    window.release()
    host.allocate(8_000)
    with pytest.raises(DeviceError, match="after its release"):
        window.bytes()


def test_the_budget_is_named() -> None:
    host = cpu.open_device("cpu:0", threads=1, limit=1000)
    with pytest.raises(OutOfMemory, match=r"cpu:0: 2000 bytes wanted for weights, 1000 free"):
        host.allocate(2000, "weights")


# --- opening and compiling ------------------------------------------------------------------------


def test_the_processor_is_always_there() -> None:
    (info,) = cpu.probe().devices
    assert (info.id, info.resource_group) == ("cpu:0", "host-cpu")
    assert {Cap.NATIVE, Cap.ARRAY, Cap.HOST_MEMORY} <= info.caps
    assert info.compute_units >= 1
    assert info.memory_bytes > 1 << 20


def test_threads_change_the_fingerprint() -> None:
    one, two = (cpu.open_device("cpu:0", threads=n).info.fingerprint for n in (1, 2))
    assert one != two


@pytest.mark.parametrize(("device_id", "threads"), [("cpu:1", None), ("cpu:0", 0)])
def test_it_cannot_be_opened_as_something_else(device_id: str, threads: int | None) -> None:
    with pytest.raises(Unavailable, match=device_id):
        cpu.open_device(device_id, threads=threads)


def test_grid_kernels_are_refused() -> None:
    with pytest.raises(CompileError, match="not GridLaunch"):
        cpu.open_device("cpu:0", threads=1).compile(GridLaunch("", "f", (), (1,), (1,)))


def test_broken_code_carries_the_log() -> None:
    with pytest.raises(CompileError, match="LLVM refuses the code of broken") as caught:
        compile_ir("define void @broken() { ret i32 }", ["broken"])
    assert caught.value.log
    assert "broken" in caught.value.source


# --- machine code on disk -------------------------------------------------------------------------


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("CROSSDOCK_CACHE_DIR", str(folder))
    return folder / "native"


def test_code_is_kept(kept: Path) -> None:
    name = cpu_cache.key("a", "b")
    assert cpu_cache.load(name) is None
    cpu_cache.save(name, b"code")
    assert cpu_cache.load(name) == b"code"
    assert kept.stat().st_mode & 0o077 == 0
    assert [p.name for p in kept.iterdir()] == [name]


def test_keys_do_not_run_together() -> None:
    assert cpu_cache.key("ab", "c") != cpu_cache.key("a", "bc")


def test_damaged_code_is_ignored(kept: Path) -> None:
    cpu_cache.save("k", b"code")
    for content in (b"", b"short", (kept / "k").read_bytes()[:-1] + b"x"):
        (kept / "k").write_bytes(content)
        assert cpu_cache.load("k") is None


def test_code_that_others_may_write_is_ignored(kept: Path) -> None:
    cpu_cache.save("k", b"code")
    os.chmod(kept / "k", 0o666)
    assert cpu_cache.load("k") is None
    os.chmod(kept / "k", 0o600)
    assert cpu_cache.load("k") == b"code"
    os.chmod(kept, 0o777)
    with pytest.warns(CacheWarning, match=r"native is not this user's alone .*chmod 700"):
        assert cpu_cache.load("k") is None
    assert cpu_cache.load("k") is None  # said once
    os.chmod(kept, 0o700)
    os.chmod(kept.parent, 0o777)
    assert cpu_cache.load("k") is None


def test_a_link_is_not_followed(kept: Path, tmp_path: Path) -> None:
    cpu_cache.save("k", b"code")
    (kept / "k").rename(tmp_path / "elsewhere")
    (kept / "k").symlink_to(tmp_path / "elsewhere")
    assert cpu_cache.load("k") is None


def test_nothing_is_kept_where_it_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROSSDOCK_CACHE_DIR", "off")
    cpu_cache.save("k", b"code")
    assert cpu_cache.load("k") is None


def test_a_second_process_loads_what_the_first_compiled(kept: Path) -> None:
    script = (
        "import ctypes\n"
        "from crossdock.devices import cpu_llvm\n"
        "code = 'define i64 @kept() { ret i64 42 }'\n"
        "(address,) = cpu_llvm.compile_ir(code, ['kept'])\n"
        "print(ctypes.CFUNCTYPE(ctypes.c_int64)(address)())\n"
    )
    stamps = set()
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == "42"
        (file,) = kept.iterdir()
        stamps.add(file.stat().st_mtime_ns)
    assert len(stamps) == 1
