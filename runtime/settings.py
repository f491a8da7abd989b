"""Settings read from the environment, in one place.

============================  ================================================
``CROSSDOCK_CACHE_DIR``       where profiles and measured costs are kept
                              (default: ``$XDG_CACHE_HOME/crossdock`` or
                              ``~/.cache/crossdock``); ``off`` keeps nothing
``CROSSDOCK_CPU_LEVEL``       ``x86-64-v2`` (SSE4.2), ``x86-64-v3`` (AVX2) or
                              ``x86-64-v4`` (AVX-512): generate the processor's
                              kernels for no more than that (default: all that
                              the processor has)
``CROSSDOCK_CACHE_BYTES``     bytes that planned models may take there, the newest
                              used ones (default: 4 GiB); 0 keeps none
``CROSSDOCK_DEVICES``         device ids or kinds to look for, comma separated
                              (default: all). ``isolated:ID`` is a device in a
                              process of its own, which may crash or hang without
                              harm; such a device is listed only where it, or
                              ``isolated``, is named here
``CROSSDOCK_FAST_ERROR``      error over the largest result that a fast algorithm
                              may have on a layer's weights (default: 1e-4);
                              0 allows exact algorithms alone
``CROSSDOCK_MAX_ITERATIONS``  iterations that the loops of a model may take in
                              one run (default: 50,000)
``CROSSDOCK_WATCHDOG``        seconds that a device may take for any step (default:
                              5; longer where that is predicted) before it counts
                              as hung; ``off`` waits for ever
============================  ================================================
"""

from __future__ import annotations

import math
import os
from pathlib import Path

from crossdock.runtime.errors import PlanError


def keeps_nothing() -> bool:
    """Return whether the user wants nothing kept on disk."""
    return os.environ.get("CROSSDOCK_CACHE_DIR", "") == "off"


def cache_dir() -> Path | None:
    """Return the private cache directory (mode 0700), or None where there is none to be had."""
    if keeps_nothing():
        return None
    given = os.environ.get("CROSSDOCK_CACHE_DIR", "")
    path = Path(given) if given else usual_cache_dir()
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return None
    return path if os.access(path, os.W_OK) else None


def usual_cache_dir() -> Path:
    """Return where the cache directory is unless the user names another one."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base else Path.home() / ".cache") / "crossdock"


CACHE_BYTES = 4 << 30


def cache_bytes() -> int:
    """Return how many bytes kept programs may take on disk; raises PlanError for no number."""
    return _whole("CROSSDOCK_CACHE_BYTES", CACHE_BYTES)


def _whole(name: str, default: int) -> int:
    """A whole number of at least 0, with or without separators."""
    given = os.environ.get(name, "")
    digits = given.replace("_", "").replace(",", "")
    if not digits:
        return default
    if not digits.isdecimal() or len(digits) > 18:
        raise PlanError(f"{name} is {given!r:.80}; give a whole number, such as {default}")
    return int(digits)


def wanted_devices() -> frozenset[str] | None:
    """Return the device ids or kinds the user limits crossdock to; None for all."""
    given = os.environ.get("CROSSDOCK_DEVICES", "")
    names = frozenset(part.strip() for part in given.split(",") if part.strip())
    return names or None


CPU_LEVELS = ("x86-64-v2", "x86-64-v3", "x86-64-v4")
"""The x86-64 psABI's microarchitecture levels."""


def cpu_level() -> str:
    """Return the level of instruction sets that generated kernels keep to; empty for no bound.

    Raises:
        PlanError: the setting is no level.
    """
    given = os.environ.get("CROSSDOCK_CPU_LEVEL", "")
    if given and given not in CPU_LEVELS:
        raise PlanError(
            f"CROSSDOCK_CPU_LEVEL is {given!r}; give one of {', '.join(CPU_LEVELS)}, or nothing "
            "for all that the processor has"
        )
    return given


MAX_ITERATIONS = 50_000


def max_iterations() -> int:
    """Return how many iterations the loops of a run may take.

    A model can ask for 2^62 of them, and so never end.

    Raises:
        PlanError: the setting is no number.
    """
    return max(1, _whole("CROSSDOCK_MAX_ITERATIONS", MAX_ITERATIONS))


WATCHDOG = 5.0


def watchdog() -> float:
    """Return how many seconds a device may take for any step; infinite where it is off.

    Raises:
        PlanError: the setting is neither "off" nor a number greater than 0.
    """
    given = os.environ.get("CROSSDOCK_WATCHDOG", "")
    try:
        seconds = math.inf if given == "off" else float(given or WATCHDOG)
    except ValueError:
        seconds = math.nan
    if not seconds > 0.0:
        raise PlanError(
            f"CROSSDOCK_WATCHDOG is {given!r}; give seconds greater than 0, such as 5, or 'off'"
        )
    return seconds


FAST_ERROR = 1e-4


def fast_error() -> float:
    """Return what error a fast algorithm may have, relative to a layer's largest result.

    Raises:
        PlanError: the setting is not a number of at least 0.
    """
    given = os.environ.get("CROSSDOCK_FAST_ERROR", "")
    try:
        allowed = float(given) if given else FAST_ERROR
    except ValueError:
        allowed = math.nan
    if not allowed >= 0.0:
        raise PlanError(
            f"CROSSDOCK_FAST_ERROR is {given!r}; give a number of at least 0, such as 1e-4"
        )
    return allowed
