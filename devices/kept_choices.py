"""The algorithms that were timed and chosen, kept for every process: a small file each."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from crossdock.runtime import kept

FOLDER = kept.Folder("algorithms", 16 << 10)
MOST_BYTES = 4 << 20
"""Of all choices kept together; those used least lately go first."""


def load(name: str) -> dict[str, Any] | None:
    """What was kept under a name, or None."""
    found = FOLDER.load(name)
    if found is None:
        return None
    path = FOLDER.path()
    if path is not None:
        with suppress(OSError):  # which is used least lately is only a guess then
            os.utime(path / name)
    with suppress(ValueError):
        told = json.loads(found)
        if isinstance(told, dict):
            return told
    return None


def save(name: str, chosen: Mapping[str, Any]) -> None:
    """Keep a choice; where it cannot be, other processes choose anew."""
    text = json.dumps(chosen).encode()
    if FOLDER.make_room(len(text) + kept.DIGEST, MOST_BYTES):
        FOLDER.save(name, text)
