"""Simulated devices: right answers, virtual times, memory limits, faults."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from crossdock.devices import sim
from crossdock.devices.base import Bound, CommandBuffer, Event, Span
from crossdock.devices.program import ArrayCall, GridLaunch, In, Out
from crossdock.devices.sim import Fault, SimDevice, SimSpec
from crossdock.runtime.errors import (
    CompileError,
    DeviceError,
    DeviceLost,
    OutOfMemory,
    Unavailable,
)
from crossdock.runtime.tensor import TensorSpec
from tests.devices.steps import axpb_array, upload

N = 1000
BYTES = 4 * N


@pytest.fixture(autouse=True)
def no_devices() -> Iterator[None]:
    yield
    for info in sim.probe().devices:
        sim.unregister(info.id.partition(":")[2])


def opened(*faults: Fault, name: str = "a", **rates: float) -> SimDevice:
    spec = sim.register(SimSpec(name, faults=faults, **rates))  # type: ignore[arg-type]
    return sim.open_device(spec.id)


def chain(device: SimDevice, steps: int, seconds: float = 0.0) -> CommandBuffer:
    x, y = device.allocate(BYTES), device.allocate(BYTES)
    executable = device.compile(axpb_array(N, 2.0, 1.0))
    return device.record(
        [Bound(executable, {In(0): x, Out(0): y}, f"s{i}", seconds) for i in range(steps)]
    )


def end(event: Event) -> float:
    span = event.span()
    assert span is not None
    return span[1]


def test_nothing_is_registered_by_default() -> None:
    found = sim.probe()
    assert found.devices == ()
    assert "register" in found.fix
    with pytest.raises(Unavailable, match="no device 'sim:fast'"):
        sim.open_device("sim:fast")


def test_a_spec_needs_rates() -> None:
    with pytest.raises(DeviceError, match="rates greater than 0"):
        sim.register(SimSpec("a", speed_flops=0.0))
    with pytest.raises(DeviceError, match="is no fault"):
        Fault("explode", 1)


def test_probe_lists_what_is_registered() -> None:
    sim.register(SimSpec("a", memory_bytes=1 << 20, resource_group="shared"))
    sim.register(SimSpec("b"))
    a, b = sim.probe().devices
    assert (a.id, a.memory_bytes, a.resource_group) == ("sim:a", 1 << 20, "shared")
    assert b.resource_group == "sim:b"


def test_answers_are_right() -> None:
    device = opened()
    x = np.arange(N, dtype=np.float32)
    source, target = upload(device, x), device.allocate(BYTES)
    executable = device.compile(axpb_array(N, 2.0, 1.0))
    done = device.queues["compute"].execute(
        device.record([Bound(executable, {In(0): source, Out(0): target})])
    )
    assert done is not None
    got = np.empty_like(x)
    device.queues["download"].read(target, got, [done])
    np.testing.assert_array_equal(got, 2 * x + 1)


def test_a_step_takes_its_predicted_seconds() -> None:
    device = opened()
    spans: list[Span] = []
    event = device.queues["compute"].execute(chain(device, 3, seconds=2.0), spans=spans)
    assert event is not None
    assert end(event) - event.span()[0] == pytest.approx(6.0)  # type: ignore[index]
    assert [s.label for s in spans] == ["s0", "s1", "s2"]
    assert [s.end - s.start for s in spans] == pytest.approx([2.0] * 3)


def test_without_a_prediction_it_takes_the_roofline() -> None:
    device = opened(bandwidth=1e6, launch_s=0.5)
    spans: list[Span] = []
    device.queues["compute"].execute(chain(device, 1), spans=spans)
    assert spans[0].end - spans[0].start == pytest.approx(0.5 + 2 * BYTES / 1e6)


def test_transfers_take_latency_and_bandwidth() -> None:
    device = opened(link_bandwidth=1e6, link_latency=0.25)
    buffer = device.allocate(BYTES)
    event = device.queues["upload"].write(buffer, np.zeros(N, np.float32))
    assert event is not None
    start, stop = event.span()  # type: ignore[misc]
    assert stop - start == pytest.approx(0.25 + BYTES / 1e6)


def test_queues_overlap_and_waits_take_the_later_clock() -> None:
    device = opened(link_bandwidth=1e9, link_latency=3.0)
    compute, upload_queue = device.queues["compute"], device.queues["upload"]
    buffer = device.allocate(BYTES)
    moved = upload_queue.write(buffer, np.zeros(N, np.float32))
    alone = compute.execute(chain(device, 1, seconds=1.0))
    assert moved is not None
    assert alone is not None
    transfer = 3.0 + BYTES / 1e9
    assert end(alone) == pytest.approx(end(moved) - transfer + 1.0)
    after = compute.execute(chain(device, 1, seconds=1.0), [moved])
    assert after is not None
    assert end(after) == pytest.approx(end(moved) + 1.0)


def test_virtual_time_passes_between_devices_through_the_host() -> None:
    first, second = opened(name="a"), opened(name="b")
    times: list[float] = []

    def host() -> None:
        event = first.queues["compute"].execute(chain(first, 1, seconds=5.0))
        assert event is not None
        event.wait()
        other = second.queues["compute"].execute(chain(second, 1, seconds=1.0))
        assert other is not None
        times.extend((end(event), end(other)))

    thread = threading.Thread(target=host)
    thread.start()
    thread.join()
    assert times[1] == pytest.approx(times[0] + 1.0)


def test_no_time_passes_on_the_wall() -> None:
    device = opened()
    start = time.perf_counter()
    device.queues["compute"].execute(chain(device, 2, seconds=3600.0))
    device.queues["compute"].finish()
    assert time.perf_counter() - start < 60
    assert device.now >= 7200


def test_memory_is_limited_and_given_back() -> None:
    device = opened(memory_bytes=10_000)
    kept = device.allocate(6_000)
    with pytest.raises(OutOfMemory, match=r"sim:a: 6000 bytes wanted for weights, 4000 free"):
        device.allocate(6_000, "weights")
    kept.release()
    device.allocate(6_000)
    assert sim.open_device("sim:a", limit=100)._budget.free == 100


def test_a_released_buffer_is_refused() -> None:
    device = opened()
    buffer = device.allocate(BYTES)
    buffer.release()
    with pytest.raises(DeviceError, match="after its release"):
        device.queues["upload"].write(buffer, np.zeros(N, np.float32))


def test_the_host_does_not_see_its_memory() -> None:
    with pytest.raises(DeviceError, match="no host memory"):
        opened().allocate(BYTES).array(TensorSpec("float32", (N,)))


def test_it_runs_array_calls_alone() -> None:
    with pytest.raises(CompileError, match="not GridLaunch"):
        opened().compile(GridLaunch("", "f", (), (1,), (1,)))


@pytest.mark.parametrize(
    ("kind", "error"), [("oom", OutOfMemory), ("launch", DeviceError), ("lost", DeviceLost)]
)
def test_a_fault_raises_at_its_step(kind: str, error: type[DeviceError]) -> None:
    device = opened(Fault(kind, 3))
    compute = device.queues["compute"]
    compute.execute(chain(device, 3))
    with pytest.raises(error, match="sim:a"):
        compute.execute(chain(device, 1))


def test_a_lost_device_stays_lost() -> None:
    device = opened(Fault("lost", 0))
    commands = chain(device, 1)
    for _ in range(2):
        with pytest.raises(DeviceLost, match="lost at step 0"):
            device.queues["compute"].execute(commands)
    with pytest.raises(DeviceLost):
        device.allocate(1)
    with pytest.raises(DeviceLost):
        device.queues["upload"].finish()


def test_a_failed_launch_is_not_for_good() -> None:
    device = opened(Fault("launch", 0))
    commands = chain(device, 1)
    with pytest.raises(DeviceError, match="failed to launch"):
        device.queues["compute"].execute(commands)
    assert device.queues["compute"].execute(commands) is not None


def test_slow_lasts() -> None:
    device = opened(Fault("slow", 1, factor=10.0))
    spans: list[Span] = []
    device.queues["compute"].execute(chain(device, 3, seconds=1.0), spans=spans)
    assert [s.end - s.start for s in spans] == pytest.approx([1.0, 10.0, 10.0])


def test_a_hang_ends_when_the_device_is_closed() -> None:
    device = opened(Fault("hang", 0))
    event = device.queues["compute"].execute(chain(device, 1))
    assert event is not None
    assert not event.done()
    assert event.span() is None
    seen: list[BaseException] = []

    def wait() -> None:
        try:
            event.wait()
        except DeviceLost as error:
            seen.append(error)

    waiter = threading.Thread(target=wait)
    waiter.start()
    device.close()
    waiter.join(10)
    assert "hung" in str(seen[0])
    assert event.done()


def test_an_array_call_may_lack_an_operand() -> None:
    device = opened()
    out = device.allocate(BYTES)
    spec = TensorSpec("float32", (N,))

    def fill(xp: object, ins: list[object], outs: list[np.ndarray]) -> None:  # type: ignore[type-arg]
        assert ins == [None]
        outs[0][:] = 7

    call = ArrayCall(fill, (None,), (Out(0),), (None,), (spec,))
    device.queues["compute"].execute(device.record([Bound(device.compile(call), {Out(0): out})]))
    got = np.empty(N, np.float32)
    device.queues["download"].read(out, got)
    assert (got == 7).all()
