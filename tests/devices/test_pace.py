"""The pace of the processor, and the time of native steps."""

from __future__ import annotations

import itertools
import time

import pytest

from crossdock.devices import pace, registry
from crossdock.devices.base import Span
from crossdock.devices.cpu_crew import HelperPool
from crossdock.kernels.spec import OpCall
from crossdock.kernels.table import candidates
from crossdock.runtime.binding import bind_op, compile_op
from crossdock.runtime.tensor import TensorSpec


def test_a_pace_is_a_time_over_a_reference() -> None:
    # Any processor of this century computes 1,500 x 512 vector operations in 40 us to 20 ms.
    assert 0.05 < pace.Pace().take() < 500.0


def test_a_device_with_threads_takes_its_pace_on_all_of_them() -> None:
    pool = HelperPool(2, "test")
    try:
        assert 0.02 < min(pace.Pace(pool).take() for _ in range(20)) < 500.0
    finally:
        pool.close()


def test_devices_off_the_processor_have_no_pace() -> None:
    probe = registry.probe_all(["opencl"])[0]
    for info in (*registry.probe_all(["cpu"])[0].devices, *probe.devices):
        found = registry.open_device(info.id).pace()
        assert (found == 1.0) == (info.resource_group != "host-cpu")


@pytest.mark.parametrize("threads", [1, 2])
def test_native_steps_are_timed_one_after_the_other(threads: int) -> None:
    device = registry.open_device("cpu:0", threads=threads)
    spec = TensorSpec("float32", (256, 256))
    call = OpCall("relu", {}, (spec,), (spec,))
    op = compile_op(device, candidates(call, device.info).fitting[0], call)
    buffers = [device.allocate(spec.nbytes) for _ in range(2)]
    bound = [
        item
        for k in range(5)
        for item in bind_op(op, buffers[:1], buffers[1:], [], f"step {k}", 0.0)
    ]
    spans: list[Span] = []
    queue = device.queues["compute"]
    before = time.perf_counter()
    queue.execute(device.record(bound), (), spans)
    after = time.perf_counter()
    assert [s.label for s in spans] == [f"step {k}" for k in range(5)]
    ends = [spans[0].start, *(s.end for s in spans)]
    assert before <= ends[0]
    assert ends[-1] <= after
    assert ends == sorted(ends)
    assert all(a.end == b.start for a, b in itertools.pairwise(spans))
