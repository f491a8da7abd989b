"""Algorithms of cuBLASLt that were timed and chosen, kept for every process.

What cuBLASLt gives for a product is a list of algorithms by its own estimate; which of them is the
fastest is measured once for a product on a card, when its kernel is. The algorithm is 64 bytes that
only the same version of the library can read (cublasLt.h, cublasLtMatmulAlgo_t), and so version and
card are part of what it is found by.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from contextlib import suppress
from ctypes import c_float, c_int, c_size_t, c_uint64
from dataclasses import asdict, dataclass

from crossdock.devices import choice, kept_choices
from crossdock.devices.choice import Timing

MOST = 8
"""Algorithms that are timed for a product, at most."""
FIRST = "its own first choice"
"""What the first algorithm is: that which cuBLASLt takes for the fastest."""


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
    told = kept_choices.load(name)
    if told is not None:
        with suppress(KeyError, ValueError, TypeError):
            words = tuple(map(int, told["words"]))
            made = Chosen(words, int(told["workspace"]), str(told["said"]))
            if len(made.words) == len(Algorithm().algorithm):
                return made
    return None


def save(name: str, chosen: Chosen) -> None:
    """Keep a choice; where it cannot be, other processes choose anew."""
    kept_choices.save(name, asdict(chosen))


def summary(names: Sequence[str], index: int, timings: Sequence[Timing]) -> str:
    """How an algorithm was chosen among those called ``names``, and why others were dropped."""
    return choice.summary(names, index, timings, FIRST)
