"""Calibrating a device: timing its kernels at many shapes, so that others can be predicted."""

from __future__ import annotations

import time
from dataclasses import dataclass

from crossdock.devices import registry
from crossdock.devices.base import Cap, Device
from crossdock.kernels.precision import PLAIN
from crossdock.runtime import costing, emulation, measure
from crossdock.runtime.calibration import calibration_calls
from crossdock.runtime.config import PREPARING, Progress
from crossdock.runtime.errors import PlanError

CALIBRATION_SECONDS = 60.0
DRAWING = 0.25
"""Of the seconds that it may take, those for finding shapes to time."""
CALLS = 2400
"""Op instances drawn; a fast device gets through most of them in a minute."""


@dataclass(frozen=True)
class Calibrated:
    """What a calibration did."""

    device: str
    kernels: int
    seconds: float


def calibrate(
    device: str,
    *,
    threads: int | None = None,
    budget_s: float = CALIBRATION_SECONDS,
    progress: Progress | None = None,
) -> Calibrated:
    """Time a device's kernels at shapes like those of real networks, and keep what is learnt.

    Args:
        device: id.
        threads: processor threads a CPU-backed device may use (None: all).
        budget_s: seconds that it may take.
        progress: called with (what, done, total).

    Raises:
        PlanError: a simulated device, which has nothing to learn.
        DeviceError: the device cannot be opened.
    """
    began = time.monotonic()
    opened = registry.open_device(device, threads=threads)
    if Cap.VIRTUAL_TIME in opened.info.caps:
        raise PlanError(f"{device} is simulated: its times are set, not measured")
    with PREPARING:
        costs = costing.store()
        todo = _candidates(opened, began + DRAWING * budget_s)
        left = began + budget_s - time.monotonic()
        done = measure.run_trials(todo, costs.model, budget_s=left, progress=progress)
        costs.model.mark_calibrated(opened.info.fingerprint)
        costs.save()
    return Calibrated(device, done, time.monotonic() - began)


def is_calibrated(device: str, threads: int | None = None) -> bool:
    """Whether a device, with so many threads, has been calibrated, or has nothing to learn."""
    info = registry.open_device(device, threads=threads).info
    if Cap.VIRTUAL_TIME in info.caps:
        return True
    return costing.store().model.is_calibrated(info.fingerprint)


def _candidates(device: Device, until: float) -> list[measure.Candidate]:
    """Kernels in the order of the draw, the best ranked of each op; it covers the others' ops.

    No more shapes are drawn ``until`` then: any beginning of them will do.
    """
    todo: list[measure.Candidate] = []
    for call in calibration_calls(CALLS):
        fitting = PLAIN.permitted(emulation.candidates(call, device.info).fitting)
        todo += [(device, kernel, call) for kernel in fitting[:2]]
        if time.monotonic() > until:
            break
    return todo
