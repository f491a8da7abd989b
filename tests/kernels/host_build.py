"""Kernel texts built as C++ for the host, under AddressSanitizer and UndefinedBehaviorSanitizer.

The texts stand behind ``CUDA_HEADER``, the header that a card gets; ``host/card.h`` gives what CUDA
C++ has beyond C++, and ``host/run.h`` runs the kernels.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from crossdock.devices.dialect import CUDA_HALF, CUDA_HEADER
from tests.kernels.texts import Text, apart

HERE = Path(__file__).parent / "host"
FLAGS = (
    "-std=c++17", "-O0", "-g1", "-w", "-ffp-contract=off", "-fno-strict-aliasing",
    "-fsanitize=address,undefined", "-fno-sanitize-recover=all",
)  # fmt: skip
SECTIONS = "-fsanitize-sections=x_shared"
"""GCC leaves variables with a section of their own without red zones unless it is named."""

WAITS = ("BARRIER", "TEAM_REDUCE", "SUBGROUP_XOR")
"""What stops a work item until others have come there."""

TRIAL = "#include <sanitizer/common_interface_defs.h>\n#include <ucontext.h>\nint main() {}\n"


@functools.cache
def compiler() -> tuple[str, ...]:
    """A C++ compiler that has the sanitizers, with its flags; empty where there is none."""
    for name in (os.environ.get("CXX", ""), "g++", "clang++"):
        path = shutil.which(name) if name else None
        for flags in ((*FLAGS, SECTIONS), FLAGS):
            if path is not None and _works(path, flags):
                return (path, *flags)
    return ()


def _works(path: str, flags: tuple[str, ...]) -> bool:
    command = [path, *flags, "-x", "c++", "-", "-o", os.devnull, "-ldl"]
    return (
        subprocess.run(command, check=False, input=TRIAL, text=True, capture_output=True).returncode
        == 0
    )


ABSENT = (
    "no C++ compiler with -fsanitize=address,undefined: install g++ or clang++, or name it: CXX="
)


def program(batch: Sequence[Text], *, processor: bool = False) -> str:
    """The C++ program that runs the kernels of a batch, numbered in order.

    ``processor``: they are texts for processors, which OpenCL alone runs.
    """
    header = CUDA_HEADER.replace(CUDA_HALF, "")
    more = [f'#include "{HERE / "processor.h"}"'] if processor else []
    names = [f"n{i}::{entry}_{i}" for i, (_, _, entry) in enumerate(batch)]
    waits = ["true" if any(w in source for w in WAITS) else "false" for source, _, _ in batch]
    rows = [f"X_KERNEL({name}, {wait})" for name, wait in zip(names, waits, strict=True)]
    return "\n".join(
        (
            f'#include "{HERE / "card.h"}"',
            header,
            *more,
            *(apart(i, text) for i, text in enumerate(batch)),
            f'#include "{HERE / "run.h"}"',
            f"const x_kernel x_kernels[] = {{{', '.join(rows)}}};",
        )
    )


class BuildError(Exception):
    """The compiler refused a program; the message is its first errors."""


def build(batch: Sequence[Text], target: Path, *, processor: bool = False) -> Path:
    """Build the program of a batch."""
    source = target.with_suffix(".cpp")
    source.write_text(program(batch, processor=processor))
    command = [*compiler(), str(source), "-o", str(target), "-ldl"]
    done = subprocess.run(command, check=False, text=True, capture_output=True)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if "error" in line]
        raise BuildError("; ".join(errors[:4]) or done.stderr[-500:])
    return target
