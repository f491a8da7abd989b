"""The kernel set's identity: what a plan's kernels, and the times measured of them, hang on."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from importlib.resources import files

from crossdock.kernels import table

PACKAGES = ("crossdock.kernels", "crossdock.devices")
"""Where kernels and what compiles them are written."""


@lru_cache(maxsize=1)
def _sources() -> str:
    """SHA-256 over the packages' sources, by name."""
    h = hashlib.sha256()
    for package in PACKAGES:
        for file in sorted(files(package).iterdir(), key=lambda f: f.name):
            if file.name.endswith(".py"):
                h.update(f"{package}.{file.name}\0".encode())
                h.update(file.read_bytes())
    return h.hexdigest()


def kernel_set() -> str:
    """12 hexadecimal digits over the kernels' sources and the names of third parties' kernels."""
    text = "\0".join([_sources(), *table.foreign_names()])
    return hashlib.sha256(text.encode()).hexdigest()[:12]
