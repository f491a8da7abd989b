"""Timelines: waited for before they are submitted, failed once and for good, nobody hangs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from crossdock.devices.base import Device, Event, Worker
from crossdock.devices.program import In, Out
from crossdock.devices.sim import SimDevice, SimSpec
from crossdock.devices.timeline import Point, Timeline
from crossdock.runtime.errors import DeviceHung, DeviceLost, Error, Timeout
from tests.devices.steps import axpb, events, record

PATIENCE = 10.0  # seconds; only a hang takes that long


class Later(Event):
    """An event that a test sets off."""

    def __init__(self) -> None:
        self.set = threading.Event()
        self.error: Exception | None = None

    def wait(self) -> None:
        assert self.set.wait(PATIENCE)
        if self.error is not None:
            raise self.error

    def done(self) -> bool:
        return self.set.is_set()


def waiting(point: Point, count: int = 1) -> Callable[[], list[object]]:
    """Wait for a point in threads; the function joins them and gives what each one met."""
    met: list[object] = []

    def wait() -> None:
        try:
            point.wait()
            met.append("reached")
        except Error as error:
            met.append(error)

    threads = [threading.Thread(target=wait, daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()

    def join() -> list[object]:
        for thread in threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()
        return met

    return join


def test_a_point_can_be_waited_for_before_it_is_submitted() -> None:
    point = Timeline().record()
    join = waiting(point, 3)
    time.sleep(0.02)
    point.signal()
    assert join() == ["reached"] * 3


def test_a_later_point_implies_the_earlier_ones() -> None:
    timeline = Timeline()
    first, second = timeline.record(), timeline.record()
    second.signal()
    first.wait(PATIENCE)
    assert first.event() is None


def test_a_point_is_reached_when_its_event_is_done() -> None:
    point, event = Timeline().record(), Later()
    point.signal(event)
    assert point.event() is event
    with pytest.raises(Timeout):
        point.wait(0.01)
    event.set.set()
    point.wait(PATIENCE)


def test_every_waiter_gets_the_first_cause() -> None:
    timeline = Timeline()
    points = [timeline.record() for _ in range(3)]
    joins = [waiting(point, 2) for point in points]
    first = DeviceLost("the first failure")
    timeline.fail(first)
    timeline.fail(DeviceLost("the second failure"))
    for join in joins:
        for met in join():
            assert isinstance(met, DeviceLost)
            assert met.__cause__ is first
    assert timeline.error is first


def test_a_failure_is_permanent_for_what_was_not_reached() -> None:
    timeline = Timeline()
    reached, lost = timeline.record(), timeline.record()
    reached.signal()
    timeline.fail(ValueError("no tree of ours"))
    reached.wait(PATIENCE)
    lost.signal()
    with pytest.raises(Error, match="ValueError: no tree of ours") as caught:
        lost.wait(PATIENCE)
    assert isinstance(caught.value.__cause__, ValueError)
    with pytest.raises(Error):
        timeline.record().wait(PATIENCE)


def test_an_event_that_fails_tells_its_waiters() -> None:
    point, event = Timeline().record(), Later()
    point.signal(event)
    join = waiting(point, 2)
    event.error = DeviceLost("gone")
    event.set.set()
    assert [str(met) for met in join()] == ["gone", "gone"]


def test_a_deadline_for_what_is_never_submitted() -> None:
    start = time.monotonic()
    with pytest.raises(Timeout, match="submitted"):
        Timeline().record().wait(0.02)
    assert time.monotonic() - start < PATIENCE


def test_a_worker_runs_jobs_in_order_and_stops() -> None:
    worker, seen = Worker("test"), []
    for i in range(100):
        worker.post(lambda i=i: seen.append(i))
    worker.stop()
    worker.thread.join(PATIENCE)
    assert seen == list(range(100))
    assert not worker.thread.is_alive()


def test_a_worker_that_retires_keeps_no_thread_and_runs_what_is_posted() -> None:
    worker, seen, gate = Worker("test"), [], threading.Event()
    worker.post(gate.wait)
    worker.retire()
    worker.post(lambda: seen.append(1))
    gate.set()
    worker.thread.join(PATIENCE)
    assert seen == [1]
    for i in range(100):
        worker.post(lambda i=i: seen.append(i))
    while worker.thread.is_alive():
        worker.thread.join(PATIENCE)
    assert seen == [1, *range(100)]


@pytest.mark.parametrize("lost", [False, True])
def test_who_waits_for_a_queue_is_told_of_a_hang_and_of_a_loss(lost: bool) -> None:
    device, gate = SimDevice(SimSpec("held")), threading.Event()
    if lost:
        threading.Timer(0.05, setattr, (device, "gone", "it fell off the bus")).start()
    kind, said = (DeviceLost, "fell off the bus") if lost else (DeviceHung, "does nothing for")
    start = time.monotonic()
    with pytest.raises(kind, match=said):
        device.call("compute", lambda queue: gate.wait(PATIENCE), 0.3 if not lost else 60.0)
    assert time.monotonic() - start < PATIENCE
    gate.set()
    device.gone = ""
    assert device.call("compute", lambda queue: 7, PATIENCE) == 7
    device.close()


def test_one_worker_a_queue(device: Device) -> None:
    for role in ("upload", "download"):
        same = device.queues[role] is device.queues["compute"]
        assert (device.worker(role) is device.worker("compute")) is same
    assert device.worker("upload") is device.worker("upload")


def test_workers_order_queues_by_points(device: Device) -> None:
    """Jobs are posted in the wrong order: each waits for the point before it, and no one hangs."""
    x = np.arange(500, dtype=np.float32)
    a, b = device.allocate(x.nbytes), device.allocate(x.nbytes)
    out = np.empty_like(x)
    commands = record(device, (axpb(device, 500, 2, 1), {In(0): a, Out(0): b}))
    up, mid, down = Timeline().record(), Timeline().record(), Timeline().record()
    queues, wait = device.queues, lambda point: events(point.event(PATIENCE))

    def download() -> None:
        down.signal(queues["download"].read(b, out, wait(mid)))

    def compute() -> None:
        mid.signal(queues["compute"].execute(commands, wait(up)))

    def upload() -> None:
        up.signal(queues["upload"].write(a, x))

    jobs = {"download": download, "compute": compute, "upload": upload}
    one_queue = len({id(queue) for queue in queues.values()}) == 1
    for role in reversed(jobs) if one_queue else jobs:
        device.worker(role).post(jobs[role])
    down.wait(PATIENCE)
    assert np.allclose(out, 2 * x + 1)


def test_a_failed_upload_reaches_who_waits_for_the_download(device: Device) -> None:
    cause = DeviceLost("the upload failed")
    up, down = Timeline(), Timeline()
    point, last = up.record(), down.record()
    out = np.empty(4, np.float32)
    buffer = device.allocate(16)

    def download() -> None:
        try:
            waits = events(point.event(PATIENCE))
            last.signal(device.queues["download"].read(buffer, out, waits))
        except Error as error:
            down.fail(error)

    device.worker("download").post(download)
    join = waiting(last, 3)
    up.fail(cause)
    for met in join():
        assert isinstance(met, DeviceLost)
        assert str(met) == "the upload failed"
        assert met.__cause__ is not None
        assert met.__cause__.__cause__ is cause
