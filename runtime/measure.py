"""Measuring kernels and links on real devices, for the cost model.

A kernel is run on data of the right shapes, several copies in one command buffer so that it is
timed as it will run, in a queue among others. The samples go into the cost model; what was
measured before, on this device in this state, is not measured again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from crossdock.devices.base import Buffer, Cap, CommandBuffer, Device, Event, Queue
from crossdock.kernels import table
from crossdock.kernels.spec import Kernel, OpCall
from crossdock.runtime import costing, emulation
from crossdock.runtime.binding import bind_op, compile_op, resident
from crossdock.runtime.errors import FeedError
from crossdock.runtime.tensor import FLOATS, Array, TensorSpec, to_numpy
from crossdock.scheduler import CostModel, LinkModel, Source

MIN_SAMPLES = 5
ENOUGH_SECONDS = 4e-3
BATCH_SECONDS = 2e-4
LINK_SIZES = (4 << 10, 64 << 10, 1 << 20, 8 << 20)
Progress = Callable[[str, int, int], None]


def measure_ops(
    calls: Mapping[str, OpCall],
    devices: Sequence[Device],
    model: CostModel,
    *,
    budget_s: float,
    progress: Progress | None = None,
    fits: bool = False,
) -> int:
    """Measure every candidate kernel of every op instance not measured yet, within a budget.

    With ``fits``, a kernel whose cost can be fitted from other shapes need not be measured.
    Returns the number of kernels measured. Kernels that fail to compile or run are left without
    samples; planning then sees them as unknown and running reports the failure.
    """
    todo = _missing(calls.values(), devices, model, fits=fits)
    deadline = time.monotonic() + budget_s
    done = 0
    for i, (device, kernel, call) in enumerate(todo):
        if time.monotonic() > deadline:
            break
        if progress is not None:
            progress(f"measuring {call.op} on {device.info.id}", i, len(todo))
        try:
            samples = _measured(device, kernel, call)
        except Exception:  # noqa: BLE001 - kernels of third parties and drivers raise anything
            continue
        model.record_many(
            device.info.fingerprint, kernel.name, call.key(), samples, costing.cost_work(call)
        )
        done += 1
    return done


def _missing(
    calls: Iterable[OpCall], devices: Sequence[Device], model: CostModel, *, fits: bool
) -> list[tuple[Device, Kernel, OpCall]]:
    seen: set[tuple[str, str, str]] = set()
    todo: list[tuple[int, Device, Kernel, OpCall]] = []
    for call in calls:
        if table.op(call.op).alias:
            continue
        key = call.key()
        for device in devices:
            info = device.info
            for rank, kernel in enumerate(emulation.candidates(call, info).fitting):
                mark = (info.fingerprint, kernel.name, key)
                if mark in seen or model.samples(*mark):
                    continue
                seen.add(mark)
                if fits and model.estimate(*mark, costing.cost_work(call)).source is Source.FITTED:
                    continue
                todo.append((rank, device, kernel, call))
    todo.sort(key=lambda row: row[0])  # every op's best candidate first
    return [row[1:] for row in todo]


def _measured(device: Device, kernel: Kernel, call: OpCall) -> list[float]:
    """Measure with whole numbers zero, or one where zero chooses what cannot run (a branch)."""
    try:
        return measure_kernel(device, kernel, call)
    except FeedError:
        return measure_kernel(device, kernel, call, whole=1)


def measure_kernel(device: Device, kernel: Kernel, call: OpCall, *, whole: int = 0) -> list[float]:
    """Seconds of single runs of a kernel, several samples; raises Error if it cannot run.

    Operands that are no constants hold floats in (0.1, 1), or the integer ``whole``.
    """
    op = compile_op(device, kernel, call)
    inputs = [
        None if spec is None or i in op.lowered.unused else _feed(device, spec, call, i, whole)
        for i, spec in enumerate(call.inputs)
    ]
    outputs = [device.allocate(max(1, s.nbytes), "measuring") for s in call.outputs]
    scratch = [device.allocate(max(1, n), "measuring") for n in op.lowered.scratch]
    bound = bind_op(op, inputs, outputs, scratch, kernel.name, 0.0)
    try:
        once = device.record(bound)
        _timed(device, once)
        first = min(_timed(device, once), _timed(device, once))
        copies = int(min(64, max(1, BATCH_SECONDS / max(first, 1e-7))))
        batch = once if copies == 1 else device.record(bound * copies)
        samples: list[float] = []
        while len(samples) < MIN_SAMPLES or (
            sum(samples) * copies < ENOUGH_SECONDS and len(samples) < 20
        ):
            samples.append(_timed(device, batch) / copies)
            if sum(samples) * copies > 0.25 and len(samples) >= 3:
                break
        return samples
    finally:
        for buffer in (*inputs, *outputs, *scratch, *op.packed):
            if buffer is not None:
                buffer.release()


def _timed(device: Device, commands: CommandBuffer) -> float:
    return device.call("compute", lambda queue: _elapsed(queue, lambda: queue.execute(commands)))


def _elapsed(queue: Queue, submit: Callable[[], Event | None]) -> float:
    """Seconds until submitted work is done: wall time, or virtual where the device's time is."""
    start = time.perf_counter()
    event = submit()
    queue.flush()
    if event is not None:
        event.wait()
    span = None
    if Cap.VIRTUAL_TIME in queue.device.info.caps and event is not None:
        span = event.span()
    begin, end = (start, time.perf_counter()) if span is None else span
    return max(end - begin, 1e-9)


def _feed(device: Device, spec: TensorSpec, call: OpCall, index: int, whole: int) -> Buffer:
    known = call.constants.get(index)
    return resident(device, _sample(spec, whole) if known is None else known, "measuring")


def _sample(spec: TensorSpec, whole: int) -> Array:
    if spec.dtype not in FLOATS:
        return np.full(spec.dims, whole, to_numpy(spec.dtype))
    values = np.linspace(0.1, 1.0, max(1, min(spec.size, 8191)), dtype=np.float32)
    return np.resize(values, spec.dims).astype(to_numpy(spec.dtype))


def measure_link(host: Device, device: Device, model: CostModel) -> None:
    """Measure both directions between host memory and a device, unless known."""
    here, there = host.info.fingerprint, device.info.fingerprint
    if model.link(here, there) is not None and model.link(there, here) is not None:
        return
    up: list[tuple[float, float]] = []
    down: list[tuple[float, float]] = []
    for size in LINK_SIZES:
        array = np.zeros(size, np.uint8)
        buffer = device.allocate(size, "measuring")
        for _ in range(6):
            up.append((size, _copy(device, "upload", buffer, array)))
            down.append((size, _copy(device, "download", buffer, array)))
        buffer.release()
    model.set_link(here, there, LinkModel.fit(up))
    model.set_link(there, here, LinkModel.fit(down))


def _copy(device: Device, role: str, buffer: Buffer, array: Array) -> float:
    def submit(queue: Queue) -> Event | None:
        return queue.write(buffer, array) if role == "upload" else queue.read(buffer, array)

    return device.call(role, lambda queue: _elapsed(queue, lambda: submit(queue)))
