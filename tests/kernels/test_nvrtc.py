"""NVRTC compiles every kernel text that the op table lowers to for a card; none is needed."""

from __future__ import annotations

import functools
import os
import re
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat

import pytest

from crossdock.devices.dialect import CUDA_HEADER, assemble
from crossdock.devices.program import GridLaunch
from crossdock.kernels import table
from tests import nvrtc
from tests.cards import CARD
from tests.cases import CASES
from tests.kernels.test_cpu import instance

pytestmark = pytest.mark.skipif(nvrtc.library() is None, reason=nvrtc.ABSENT)

BATCH = 32

Text = tuple[str, tuple[tuple[str, str], ...], str]


@functools.cache
def texts() -> dict[Text, str]:
    """Every distinct kernel text with its defines and entry, and the case it comes from."""
    found: dict[Text, str] = {}
    for case in CASES:
        call, _ = instance(case)
        for kernel in table.candidates(call, CARD).fitting:
            for step in kernel.lower(call, CARD).steps:
                if isinstance(step, GridLaunch):
                    text = (step.source, step.defines, step.entry)
                    found.setdefault(text, f"{kernel.name} of {case}")
    return found


def apart(number: int, text: Text) -> str:
    """A text that can stand with others in one file: names and macros of its own."""
    source, defines, entry = text
    macros = [name for name, _ in defines] + re.findall(r"^\s*#\s*define\s+(\w+)", source, re.M)
    lines = [f"#define {name} {value}" for name, value in defines]
    lines += [f"#define {entry} {entry}_{number}", f"namespace n{number} {{", source, "}"]
    lines += [f"#undef {name}" for name in (*dict.fromkeys(macros), entry)]
    return "\n".join(lines) + "\n"


def culprits(batch: tuple[Text, ...], arch: str) -> list[str]:
    """The texts of a batch that do not compile alone, each with its log's first error."""
    found = []
    for text in batch:
        source, defines, _ = text
        try:
            nvrtc.compile_text(assemble(CUDA_HEADER, defines, source), arch)
        except nvrtc.BuildError as error:
            log = str(error).splitlines()
            why = next((line for line in log if "error" in line and "NVRTC" not in line), log[0])
            found.append(f"{texts()[text]}: {why}")
    return found


def test_there_are_texts() -> None:
    assert len(texts()) > 100


def complaints(batch: tuple[Text, ...], arch: str) -> list[str]:
    """What is wrong with a batch, compiled as one file."""
    file = "".join(apart(number, text) for number, text in enumerate(batch))
    try:
        assert nvrtc.compile_text(CUDA_HEADER + file, arch)
    except nvrtc.BuildError as error:
        return culprits(batch, arch) or [f"only together: {str(error)[:500]}"]
    return []


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_every_text_compiles(arch: str) -> None:
    found = list(texts())
    batches = [tuple(found[at : at + BATCH]) for at in range(0, len(found), BATCH)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        bad = list(pool.map(complaints, batches, repeat(arch)))
    assert not any(bad), "\n".join(line for lines in bad for line in lines)
