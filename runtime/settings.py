"""Settings read from the environment, in one place.

============================  ================================================
``CROSSDOCK_CACHE_DIR``       where profiles and measured costs are kept
                              (default: ``$XDG_CACHE_HOME/crossdock`` or
                              ``~/.cache/crossdock``); ``off`` keeps nothing
``CROSSDOCK_DEVICES``         device ids to look for, comma separated (default:
                              all)
``CROSSDOCK_MAX_ITERATIONS``  iterations that the loops of a model may take in
                              one run (default: 50,000)
============================  ================================================
"""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path | None:
    """Return the private cache directory (mode 0700), or None where there is none to be had."""
    given = os.environ.get("CROSSDOCK_CACHE_DIR", "")
    if given == "off":
        return None
    if given:
        path = Path(given)
    else:
        base = os.environ.get("XDG_CACHE_HOME", "")
        path = (Path(base) if base else Path.home() / ".cache") / "crossdock"
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return None
    return path if os.access(path, os.W_OK) else None


def wanted_devices() -> frozenset[str] | None:
    """Return the device ids or kinds the user limits crossdock to; None for all."""
    given = os.environ.get("CROSSDOCK_DEVICES", "")
    names = frozenset(part.strip() for part in given.split(",") if part.strip())
    return names or None


MAX_ITERATIONS = 50_000


def max_iterations() -> int:
    """Return how many iterations the loops of a run may take; what is unreadable is not set.

    A model can ask for 2^62 of them, and so never end.
    """
    given = os.environ.get("CROSSDOCK_MAX_ITERATIONS", "").replace("_", "").replace(",", "")
    return max(1, int(given)) if given.isdecimal() and len(given) < 19 else MAX_ITERATIONS
