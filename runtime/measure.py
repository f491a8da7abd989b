"""Measuring kernels and links on real devices, for the cost model.

The samples go into the cost model; what was measured before, on this device in this state, is not
measured again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial

import numpy as np

from crossdock.devices.base import Buffer, Cap, Device, Event, Queue
from crossdock.devices.links import link_ends, pinned_ends
from crossdock.devices.program import Lowered, Step
from crossdock.kernels import table
from crossdock.kernels.precision import PLAIN, Permission
from crossdock.kernels.spec import Kernel, OpCall
from crossdock.runtime import builds, costing, emulation
from crossdock.runtime.errors import FeedError
from crossdock.runtime.tensor import Array
from crossdock.runtime.trial import Trial, prepare_trial
from crossdock.scheduler import CostModel, LinkModel, Source

LIMITS = (2.5, 1.6, 1.25, 1.25)
"""In each round, how many times the best of its op a kernel may take and still get a sample.

What disturbs may hit the only sample that there is, and hardly two.
"""
SURE = 2
"""Samples of a kernel that has no rival left: what it takes within a graph is seen there."""
AHEAD = 1.0
"""Seconds of a budget in which many kernels can be timed, so that all are compiled beforehand."""
SHARE = 0.6
"""Of a budget, what compiling beforehand may take."""
GROUP = 32  # kernels timed in turn
GROUP_BYTES = 512 << 20  # of device memory that they may take together
LINK_SIZES = (4 << 10, 64 << 10, 1 << 20, 8 << 20)
Progress = Callable[[str, int, int], None]
Candidate = tuple[Device, Kernel, OpCall]


def measure_ops(
    calls: Mapping[str, OpCall],
    devices: Sequence[Device],
    model: CostModel,
    *,
    budget_s: float,
    progress: Progress | None = None,
    fits: bool = False,
    permission: Permission = PLAIN,
) -> int:
    """Measure every candidate kernel of every op instance not measured yet, within a budget.

    Kernels that ``permission`` refuses are not measured.
    With ``fits``, a kernel whose cost can be fitted from other shapes need not be measured.
    Returns the number of kernels measured. Kernels that fail to compile or run are left without
    samples; planning then sees them as unknown and running reports the failure.
    """
    todo = _missing(calls.values(), devices, model, permission, fits=fits)
    return run_trials(todo, model, budget_s=budget_s, progress=progress)


def run_trials(
    todo: Sequence[Candidate],
    model: CostModel,
    *,
    budget_s: float,
    progress: Progress | None = None,
) -> int:
    """Time kernels in the order given until the budget is spent; returns how many were timed.

    Kernels are timed in rounds, group by group: what else runs on the machine disturbs stretches of
    time, and so spoils a sample of several kernels rather than all of one.
    """
    now = time.monotonic()
    deadline = now + budget_s
    ahead: dict[int, Lowered] = {}
    if budget_s >= AHEAD:
        ahead = _compile_ahead(todo, now + SHARE * budget_s, progress)
    group: list[Trial] = []
    best: dict[tuple[str, int], float] = {}
    done = 0

    def finish() -> None:
        nonlocal done
        _rounds(group, best, deadline)
        done += _keep(group, model)
        group.clear()

    for i, (device, kernel, call) in enumerate(todo):
        if time.monotonic() > deadline:
            break
        if progress is not None:
            progress(f"measuring {call.op} on {device.info.id}", i, len(todo))
        try:
            group.append(_trial(device, kernel, call, ahead.get(i)))
        except Exception:  # noqa: BLE001 - kernels of third parties and drivers raise anything
            continue
        if len(group) >= GROUP or sum(trial.nbytes for trial in group) > GROUP_BYTES:
            finish()
    finish()
    return done


def _compile_ahead(
    todo: Sequence[Candidate], until: float, progress: Progress | None
) -> dict[int, Lowered]:
    """Compile many kernels at once, until a time, where the device's compiler gains by it.

    Returns what they were lowered to, by their place in ``todo``.
    """
    made: dict[int, Lowered] = {}

    def steps(opened: Device) -> Iterator[Step]:
        for i, (device, kernel, call) in enumerate(todo):
            if device is opened:
                with suppress(Exception):  # it will be met again when it is compiled
                    made[i] = kernel.lowered(call, device.info)
                    yield from made[i].steps

    devices = {d.info.id: d for d, _, _ in todo if Cap.NATIVE in d.info.caps}
    for name, opened in devices.items():
        said = None if progress is None else partial(progress, f"compiling kernels on {name}")
        opened.compile_ahead(steps(opened), until, said)
    return made


def _trial(device: Device, kernel: Kernel, call: OpCall, lowered: Lowered | None) -> Trial:
    """Ready with whole numbers zero, or one where zero chooses what cannot run (a branch)."""
    try:
        return prepare_trial(device, kernel, call, lowered=lowered)
    except FeedError:
        return prepare_trial(device, kernel, call, whole=1)


def _rounds(group: Sequence[Trial], best: dict[tuple[str, int], float], deadline: float) -> None:
    """Take samples round by round, of fewer kernels each: those that may be the best of their op.

    ``best`` holds the shortest time of a run so far by device and op. Kernels of one op are timed
    one after the other and count as timed at one pace: it is between them that is chosen.
    """
    rivals: dict[tuple[str, int], list[Trial]] = {}
    for trial in group:
        mark = (trial.device.info.id, id(trial.call))
        rivals.setdefault(mark, []).append(trial)
        best[mark] = min(best.get(mark, math.inf), trial.seconds)
    for number, far in enumerate(LIMITS):
        if number and time.monotonic() > deadline:
            break
        for mark, trials in rivals.items():
            near = [t for t in trials if t.shortest() <= far * best[mark]]
            if not number or len(near) > (number >= SURE):
                _sample(near if number else trials, near)
                best[mark] = min(t.shortest() for t in (near or trials))


def _sample(taken: Sequence[Trial], near: Sequence[Trial]) -> None:
    """A sample of each kernel of one op: those not ``near`` keep what their first runs took."""
    device = taken[0].device
    before = device.pace()
    seconds = [t.sample() if t in near else t.seconds for t in taken]
    pace = math.sqrt(before * device.pace())
    for trial, found in zip(taken, seconds, strict=True):
        trial.keep(found, pace)


def _keep(group: Sequence[Trial], model: CostModel) -> int:
    """Hand the samples to the model, and the memory back."""
    for trial in group:
        trial.close()
        mark = (trial.device.info.fingerprint, trial.kernel.name, trial.call.key())
        model.note_elasticity(*mark[:2], trial.work, trial.paces, trial.samples)
        power = model.elasticity(*mark[:2], trial.work)
        samples = [s / pace**power for s, pace in zip(trial.samples, trial.paces, strict=True)]
        model.record_many(*mark, samples, trial.work)
        if trial.build is not None:
            builds.record(model, mark, trial.build)
    return len(group)


def _missing(
    calls: Iterable[OpCall],
    devices: Sequence[Device],
    model: CostModel,
    permission: Permission,
    *,
    fits: bool,
) -> list[Candidate]:
    seen: set[tuple[str, str, str]] = set()
    todo: list[Candidate] = []
    for call in calls:
        if table.op(call.op).alias:
            continue
        key = call.key()
        for device in devices:
            info = device.info
            for kernel in permission.permitted(emulation.candidates(call, info).fitting):
                mark = (info.fingerprint, kernel.name, key)
                if mark in seen or model.samples(*mark):
                    continue
                seen.add(mark)
                if fits and model.estimate(*mark, costing.cost_work(call)).source is Source.FITTED:
                    continue
                todo.append((device, kernel, call))
    return todo


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


def measure_pinned(host: Device, device: Device, model: CostModel) -> None:
    """Measure uploads from pinned memory, unless known, where a device has such."""
    ends = pinned_ends(host.info, device.info)
    if model.link(*ends) is not None:
        return
    taken: list[tuple[float, float]] = []
    for size in LINK_SIZES:
        array = np.zeros(size, np.uint8)
        pinned = device.pinned(array)
        if pinned is array:
            return
        buffer = device.allocate(size, "measuring")
        taken += [(size, _copy(device, "upload", buffer, pinned)) for _ in range(6)]
        buffer.release()
    model.set_link(*ends, LinkModel.fit(taken))


def measure_peer(src: Device, dst: Device, model: CostModel) -> None:
    """Measure the copies that a device makes from another's memory, unless known."""
    ends = link_ends(src.info, dst.info)
    if model.link(*ends) is not None:
        return
    taken: list[tuple[float, float]] = []
    for size in LINK_SIZES:
        source, target = (device.allocate(size, "measuring") for device in (src, dst))
        submit = partial(_peer_copy, target, source)
        taken += [(size, dst.call("upload", submit)) for _ in range(6)]
        source.release()
        target.release()
    model.set_link(*ends, LinkModel.fit(taken))


def _peer_copy(target: Buffer, source: Buffer, queue: Queue) -> float:
    return _elapsed(queue, lambda: queue.copy(target, source))


def _copy(device: Device, role: str, buffer: Buffer, array: Array) -> float:
    def submit(queue: Queue) -> Event | None:
        return queue.write(buffer, array) if role == "upload" else queue.read(buffer, array)

    return device.call(role, lambda queue: _elapsed(queue, lambda: submit(queue)))


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
