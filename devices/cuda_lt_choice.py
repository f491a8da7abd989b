"""Algorithms of cuBLASLt that were timed and chosen, kept for every process.

What cuBLASLt gives for a product is a list of algorithms by its own estimate; which of them is the
fastest is measured once for a product on a card, when its kernel is. The algorithm is 64 bytes that
only the same version of the library can read (cublasLt.h, cublasLtMatmulAlgo_t), and so version and
card are part of what it is found by.
"""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from ctypes import c_float, c_int, c_size_t, c_uint64
from dataclasses import asdict, dataclass

from crossdock.devices.base import Timing
from crossdock.runtime import kept

FOLDER = kept.Folder("algorithms", 16 << 10)
MOST_BYTES = 4 << 20
"""Of all choices kept together; those used least lately go first."""
MOST = 8
"""Algorithms that are timed for a product, at most."""
REASONS = 3
"""Algorithms that failed and are told of with their reasons, at most."""
LENGTH = 200
"""Characters of a reason, at most."""


class Algorithm(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t; the first member is the algorithm."""

    _fields_ = (
        ("algorithm", c_uint64 * 8),
        ("workspace", c_size_t),
        ("state", c_int),
        ("waves", c_float),
        ("reserved", c_int * 4),
    )


@dataclass(frozen=True)
class Chosen:
    """An algorithm: its bytes as text, the workspace it takes, and how it was chosen."""

    words: tuple[int, ...]
    workspace: int
    said: str

    def algorithm(self) -> Algorithm:
        """As the library takes it."""
        return Algorithm((c_uint64 * 8)(*self.words), self.workspace)


def load(name: str) -> Chosen | None:
    """What was chosen under a name, or None."""
    found = FOLDER.load(name)
    if found is None:
        return None
    path = FOLDER.path()
    if path is not None:
        with suppress(OSError):  # which is used least lately is only a guess then
            os.utime(path / name)
    with suppress(ValueError, TypeError):
        told = json.loads(found)
        made = Chosen(tuple(map(int, told["words"])), int(told["workspace"]), str(told["said"]))
        if len(made.words) == len(Algorithm().algorithm):
            return made
    return None


def save(name: str, chosen: Chosen) -> None:
    """Keep a choice; where it cannot be, other processes choose anew."""
    text = json.dumps(asdict(chosen)).encode()
    if FOLDER.make_room(len(text) + kept.DIGEST, MOST_BYTES):
        FOLDER.save(name, text)


def summary(names: Sequence[str], index: int, timings: Sequence[Timing]) -> str:
    """How an algorithm was chosen among those called ``names``, and why others were dropped."""
    seconds = [t for t in timings if isinstance(t, float)]
    failed = [f"{n}: {t[:LENGTH]}" for n, t in zip(names, timings, strict=True)
              if isinstance(t, str)]  # fmt: skip
    first, taken = timings[0], timings[index]
    if len(timings) == 1:
        said = "the only one there is"
    elif index == 0:
        said = f"its own first choice, which no other of {len(seconds)} timed beats"
    elif isinstance(first, float) and isinstance(taken, float):
        said = f"the fastest of {len(seconds)} timed, {first / taken:.2f} x its own first choice"
    else:
        said = f"the fastest of {len(seconds)} timed"
    untimed = len(timings) - len(seconds) - len(failed)
    said += f", {untimed} not timed" if untimed and len(timings) > 1 else ""
    if failed:
        said += f"; {len(failed)} dropped ({'; '.join(failed[:REASONS])})"
    return f"{names[index]}, {said}"
