"""Machine profiles on disk: one file a machine fingerprint, private, and never trusted blindly."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from crossdock.devices.machine import Machine, Status
from crossdock.runtime import kept, settings
from crossdock.runtime.errors import LoadError


def load(fingerprint: str, versions: Mapping[str, str], *, quick: bool) -> Machine | None:
    """The kept profile of this machine; None where there is none, or a damaged or stale one.

    Where a quick one is asked for, a full one serves as well, but not the other way round.
    """
    path = _path(fingerprint)
    machine = None if path is None else _read(path)
    if machine is None or machine.fingerprint != fingerprint or machine.versions != versions:
        return None
    return machine if quick or not machine.quick else None


def store(machine: Machine) -> None:
    """Keep a profile, unless it is quick and a full one is there, or one of its devices failed.

    A folder that cannot be written only costs the next probe.
    """
    path = _path(machine.fingerprint)
    if path is None or any(d.status is Status.FAIL for d in machine.devices):
        return
    if machine.quick and load(machine.fingerprint, machine.versions, quick=False) is not None:
        return
    text = json.dumps(machine.to_json(), allow_nan=False)
    kept.replace(path, lambda write: write(kept.sealed(text.encode())))


def _path(fingerprint: str) -> Path | None:
    folder = settings.cache_dir()
    return None if folder is None else folder / f"machine-{fingerprint}.json"


def _read(path: Path) -> Machine | None:
    if not path.is_file():
        return None
    try:
        return Machine.from_json(kept.read_sealed(path, "machine profile"))
    except LoadError as error:
        kept.discard(path, str(error))
        return None
