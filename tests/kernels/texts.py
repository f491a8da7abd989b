"""Kernel texts that op cases lower to, and how many of them go into one file of C++."""

from __future__ import annotations

import itertools
import math
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from unittest import mock

from crossdock.devices.base import DeviceInfo
from crossdock.devices.program import GridLaunch
from crossdock.kernels import grid_tile, table
from tests.cases import Case
from tests.kernels.test_cpu import instance

Text = tuple[str, tuple[tuple[str, str], ...], str]
"""A text with its defines and its entry."""


def text_of(step: GridLaunch) -> Text:
    """The text that a launch runs."""
    return (step.source, step.defines, step.entry)


def texts_of(cases: Iterable[Case], *infos: DeviceInfo) -> dict[Text, str]:
    """Every distinct text of these cases on devices, and the first kernel and case it is of.

    With every variant of a launch, which a case of another size could have.
    """
    calls = {str(case): instance(case)[0] for case in cases}
    found: dict[Text, str] = {}
    with all_tiles():
        for info, (name, call) in itertools.product(infos, calls.items()):
            for kernel in table.candidates(call, info).fitting:
                for step in kernel.lower(call, info).steps:
                    if isinstance(step, GridLaunch):
                        origin = f"{kernel.name} of {name}"
                        found.setdefault(text_of(step), origin)
                        for other in step.others:
                            found.setdefault(text_of(other), f"{origin}, {other.variant}")
    return found


@contextmanager
def all_tiles() -> Iterator[None]:
    """Products have every tile that fits the device for a variant, whatever their size."""
    every = {"WORTH_TIMING": 0, "NEAR": math.inf, "MOST": sys.maxsize}
    with mock.patch.multiple(grid_tile, **every):
        yield


_KERNEL = re.compile(r"\bKERNEL\b.*?\bvoid\s+(\w+)\s*\(", re.S)


def apart(number: int, text: Text) -> str:
    """A text that can stand with others in one file: names and macros of its own.

    Its entry is ``entry_number`` in a namespace ``n`` and the number, and so are its other kernels.
    """
    source, defines, entry = text
    kernels = dict.fromkeys((entry, *_KERNEL.findall(source)))
    macros = [name for name, _ in defines] + re.findall(r"^\s*#\s*define\s+(\w+)", source, re.M)
    lines = [f"#define {name} {value}" for name, value in defines]
    lines += [f"#define {name} {name}_{number}" for name in kernels]
    lines += [f"namespace n{number} {{", source, "}"]
    lines += [f"#undef {name.partition('(')[0]}" for name in dict.fromkeys((*macros, *kernels))]
    return "\n".join(lines) + "\n"
