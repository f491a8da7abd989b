"""What every device's queues do: steps, order, events, spans, and errors of compilation."""

from __future__ import annotations

import itertools
import threading
import time

import numpy as np
import pytest

from crossdock.devices.base import Bound, Cap, Device, Span
from crossdock.devices.program import ArrayCall, GridLaunch, In, NativeCall, Out, Scalar
from crossdock.runtime.errors import CompileError
from crossdock.runtime.tensor import TensorSpec
from tests.devices import steps
from tests.devices.steps import axpb, axpb_array, axpb_grid, download, events, record, upload

N = 1000
X = np.linspace(-3, 3, N, dtype=np.float32)


def test_identity(device: Device) -> None:
    info = device.info
    assert info.id.removeprefix("isolated:").startswith(info.kind + ":")
    assert info.fingerprint
    assert info.physical_id
    assert info.resource_group
    assert info.compute_units >= 1
    assert info.memory_bytes > 0
    assert info.alignment & (info.alignment - 1) == 0
    assert {"compute", "upload", "download"} <= device.queues.keys()
    assert info.caps & {Cap.GRID, Cap.ARRAY, Cap.NATIVE}


def test_one_step(device: Device) -> None:
    x, y = upload(device, X), device.allocate(X.nbytes)
    commands = record(device, (axpb(device, N, 2, 1), {In(0): x, Out(0): y}))
    done = device.queues["compute"].execute(commands)
    # The product and the sum may be rounded once or twice.
    assert np.allclose(download(device, y, X, done), 2 * X + 1, rtol=0, atol=1e-6)


@pytest.mark.needs(Cap.GRID)
def test_a_grid_kernel(device: Device) -> None:
    x, y = upload(device, X), device.allocate(X.nbytes)
    done = device.queues["compute"].execute(
        record(device, (axpb_grid(N, 3, 0.5), {In(0): x, Out(0): y}))
    )
    assert np.allclose(download(device, y, X, done), 3 * X + 0.5, rtol=0, atol=1e-6)


@pytest.mark.needs(Cap.ARRAY)
def test_an_array_call(device: Device) -> None:
    x, y = upload(device, X), device.allocate(X.nbytes)
    done = device.queues["compute"].execute(
        record(device, (axpb_array(N, 3, 0.5), {In(0): x, Out(0): y}))
    )
    assert np.allclose(download(device, y, X, done), 3 * X + 0.5, rtol=0, atol=1e-6)


@pytest.mark.needs(Cap.ARRAY)
def test_an_array_call_sees_shapes_and_absent_operands(device: Device) -> None:
    seen = []

    def run(xp, ins, outs):
        seen.append((ins[0].shape, ins[1]))
        xp.matmul(ins[0], ins[2], out=outs[0])

    a, b = X[:6].reshape(2, 3), X[6:18].reshape(3, 4)
    specs = (TensorSpec.of(a), None, TensorSpec.of(b))
    call = ArrayCall(run, (In(0), None, In(2)), (Out(0),), specs, (TensorSpec("float32", (2, 4)),))
    out = np.empty((2, 4), np.float32)
    buffers = {In(0): upload(device, a), In(2): upload(device, b), Out(0): device.allocate(32)}
    done = device.queues["compute"].execute(record(device, (call, buffers)))
    assert np.allclose(download(device, buffers[Out(0)], out, done), a @ b, rtol=0, atol=1e-5)
    assert seen == [((2, 3), None)]


def test_steps_run_in_order(device: Device) -> None:
    a, b = upload(device, X), device.allocate(X.nbytes)
    step = axpb(device, N, 1, 1)
    there, back = {In(0): a, Out(0): b}, {In(0): b, Out(0): a}
    commands = record(device, *((step, (there, back)[i % 2]) for i in range(50)))
    assert len(commands) == 50
    queue = device.queues["compute"]
    first = queue.execute(commands)
    second = queue.execute(commands, events(first))
    assert np.allclose(download(device, a, X, second), X + 100, rtol=0, atol=1e-3)


def test_an_empty_command_buffer_still_waits(device: Device) -> None:
    target = device.allocate(X.nbytes)
    written = device.queues["upload"].write(target, X)
    done = device.queues["compute"].execute(device.record([]), events(written))
    assert np.array_equal(download(device, target, X, done), X)


def test_waits_order_queues(device: Device) -> None:
    """Two buffers are reused over and over; only the waits keep upload, kernel, download apart."""
    x, y = device.allocate(X.nbytes), device.allocate(X.nbytes)
    commands = record(device, (axpb(device, N, 2, 0), {In(0): x, Out(0): y}))
    results = [np.empty_like(X) for _ in range(20)]
    computed = read = None
    for i, out in enumerate(results):
        written = device.queues["upload"].write(x, X + i, events(computed))
        computed = device.queues["compute"].execute(commands, events(written, read))
        read = device.queues["download"].read(y, out, events(computed))
    for event in events(read):
        event.wait()
    for i, out in enumerate(results):
        assert np.allclose(out, 2 * (X + i), rtol=1e-6), i


def test_events_end(device: Device) -> None:
    x, y = upload(device, X), device.allocate(X.nbytes)
    commands = record(device, (axpb(device, N, 2, 0), {In(0): x, Out(0): y}))
    for event in events(device.queues["compute"].execute(commands)):
        event.wait()
        event.wait()
        assert event.done()
    found = events(device.queues["compute"].execute(commands))
    device.queues["compute"].finish()
    deadline = time.monotonic() + 5
    while not all(event.done() for event in found):
        assert time.monotonic() < deadline


def test_spans_are_on_the_host_clock(device: Device) -> None:
    x, y = upload(device, X), device.allocate(X.nbytes)
    step = axpb(device, N, 2, 0)
    commands = record(device, *[(step, {In(0): x, Out(0): y})] * 3)
    device.queues["compute"].execute(commands)
    device.queues["compute"].finish()
    spans: list[Span] = []
    before = time.perf_counter()
    device.queues["compute"].execute(commands, (), spans)
    device.queues["compute"].finish()
    after = time.perf_counter()
    assert [span.label for span in spans] == ["0", "1", "2"]
    if Cap.VIRTUAL_TIME not in device.info.caps:
        slack = 2e-3  # two clocks are set against each other within about a millisecond
        for one, two in itertools.pairwise(spans):
            assert one.start <= one.end <= two.end
        assert spans[0].start >= before - slack
        assert spans[-1].end <= after + slack


def test_recording_from_several_threads(device: Device) -> None:
    x = upload(device, X)
    step = axpb(device, N, 2, 0)
    recorded: list = []

    def work() -> None:
        for _ in range(5):
            y = device.allocate(X.nbytes)
            recorded.append((y, record(device, (step, {In(0): x, Out(0): y}))))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(recorded) == 20
    for y, commands in recorded:
        done = device.queues["compute"].execute(commands)
        assert np.array_equal(download(device, y, X, done), 2 * X)


def test_a_step_that_the_device_does_not_run_is_refused(device: Device) -> None:
    if Cap.GRID not in device.info.caps:
        with pytest.raises(CompileError, match=device.info.id):
            device.compile(axpb_grid(N, 1, 1))
    if Cap.ARRAY not in device.info.caps:
        with pytest.raises(CompileError, match=device.info.id):
            device.compile(axpb_array(N, 1, 1))
    if Cap.NATIVE not in device.info.caps:
        with pytest.raises(CompileError, match=device.info.id):
            device.compile(NativeCall("f", lambda: 0, (), 1))


BAD = {
    "broken text": (GridLaunch("KERNEL void f() { int x = ; }", "f", (), (1,), (1,)), "does not"),
    "no such kernel": (GridLaunch("KERNEL void f() {}", "g", (), (1,), (1,)), "kernel g"),
    "a grid that the block does not divide": (
        GridLaunch("KERNEL void f() {}", "f", (), (3,), (2,)),
        "multiple",
    ),
    "a block that is too large": (
        GridLaunch("KERNEL void f() {}", "f", (), (1 << 20,), (1 << 20,)),
        "limit",
    ),
}


@pytest.mark.needs(Cap.GRID)
@pytest.mark.parametrize("case", BAD)
def test_a_kernel_that_cannot_be_launched_is_refused(device: Device, case: str) -> None:
    step, why = BAD[case]
    for _ in range(2):
        with pytest.raises(CompileError, match=why) as caught:
            device.compile(step)
        assert device.info.id in str(caught.value)
        assert "\n" not in str(caught.value)
        assert caught.value.source
        assert caught.value.log or case != "broken text"


@pytest.mark.needs(Cap.GRID)
def test_defines_make_other_kernels(device: Device) -> None:
    text = "KERNEL void f(GLOBAL int *y) { y[GLOBAL_ID(0)] = VALUE; }"
    found = []
    for value in ("3", "4"):
        y = device.allocate(16)
        step = GridLaunch(text, "f", (Out(0),), (4,), (4,), (("VALUE", value),))
        done = device.queues["compute"].execute(record(device, (step, {Out(0): y})))
        found.append(download(device, y, np.empty(4, np.int32), done).tolist())
    assert found == [[3] * 4, [4] * 4]


@pytest.mark.needs(Cap.GRID)
def test_an_empty_grid_runs_nothing(device: Device) -> None:
    text = "KERNEL void f(GLOBAL int *y) { y[0] = 7; }"
    y = upload(device, np.zeros(1, np.int32))
    step = GridLaunch(text, "f", (Out(0),), (0,), (1,))
    commands = record(device, (step, {Out(0): y}), (step, {Out(0): y}))
    spans: list[Span] = []
    device.queues["compute"].execute(commands, (), spans)
    done = device.queues["compute"].execute(commands)
    assert download(device, y, np.empty(1, np.int32), done)[0] == 0


GRID3 = """
KERNEL void f(GLOBAL int *y, u8 a, i64 b, double c)
{
    LOCAL int shared[8];
    int l = LOCAL_ID(0) + 2 * (LOCAL_ID(1) + 2 * LOCAL_ID(2));
    shared[7 - l] = l;
    BARRIER();
    int at = GLOBAL_ID(0) + GLOBAL_SIZE(0) * (GLOBAL_ID(1) + GLOBAL_SIZE(1) * GLOBAL_ID(2));
    int group = GROUP_ID(0) + NUM_GROUPS(0) * (GROUP_ID(1) + NUM_GROUPS(1) * GROUP_ID(2));
    y[at] = 1000 * group + shared[l] + (int)a + (int)b + (int)c;
}
"""


@pytest.mark.needs(Cap.GRID, Cap.FLOAT64)
def test_three_dimensions_local_memory_and_scalars(device: Device) -> None:
    y = device.allocate(4 * 64)
    scalars = (Scalar(np.uint8(10)), Scalar(np.int64(20)), Scalar(np.float64(30)))
    step = GridLaunch(GRID3, "f", (Out(0), *scalars), (4, 4, 4), (2, 2, 2))
    done = device.queues["compute"].execute(record(device, (step, {Out(0): y})))
    back = download(device, y, np.empty((4, 4, 4), np.int32), done)
    z, q, x = np.indices((4, 4, 4))
    local = x % 2 + 2 * (q % 2 + 2 * (z % 2))
    group = x // 2 + 2 * (q // 2 + 2 * (z // 2))
    assert np.array_equal(back, 1000 * group + 7 - local + 60)


def test_a_closed_device_can_be_closed_again(device: Device) -> None:
    x, y = upload(device, X), device.allocate(X.nbytes)
    commands = record(device, (axpb(device, N, 2, 1), {In(0): x, Out(0): y}))
    device.queues["compute"].execute(commands)
    del commands, x, y
    device.close()


def test_buffers_live_as_long_as_what_was_recorded(device: Device) -> None:
    y = device.allocate(X.nbytes)
    commands = record(device, (axpb(device, N, 2, 0), {In(0): upload(device, X), Out(0): y}))
    others = [upload(device, np.full(N, 9, np.float32)) for _ in range(3)]
    done = device.queues["compute"].execute(commands)
    assert np.array_equal(download(device, y, X, done), 2 * X)
    assert len(others) == 3


def test_a_bound_step_takes_a_label(device: Device) -> None:
    x, y = upload(device, X), device.allocate(X.nbytes)
    step = device.compile(steps.axpb(device, N, 2, 0))
    commands = device.record([Bound(step, {In(0): x, Out(0): y}, label="named")])
    spans: list[Span] = []
    device.queues["compute"].execute(commands, (), spans)
    assert [span.label for span in spans] == ["named"]
