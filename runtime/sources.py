"""What is kept on disk hangs on: the package's own files, and those of packages it is made with."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

_HERE = Path(__file__).parent.parent


@functools.cache
def stamp() -> str:
    """Of this installation: its sources by name, size and time, Python and numpy."""
    h = hashlib.sha256(f"{sys.version} {np.__version__} {package('onnx')}".encode())
    for line in sorted(_files(_HERE)):
        h.update(line.encode())
    return h.hexdigest()


@functools.cache
def package(name: str) -> str:
    """Size and time of an installed package's main file, without importing it; empty if absent."""
    found = importlib.util.find_spec(name)
    if found is None or not found.origin:
        return ""
    try:
        status = os.stat(found.origin)
    except OSError:
        return ""
    return f"{status.st_size} {status.st_mtime_ns}"


def _files(folder: Path) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                yield from _files(Path(entry.path)) if entry.name.isidentifier() else ()
            elif entry.name.endswith(".py"):
                status = entry.stat()
                yield f"{entry.path} {status.st_size} {status.st_mtime_ns}\n"
