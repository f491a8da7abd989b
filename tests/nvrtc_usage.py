"""What ptxas says of each kernel text: registers, spilled bytes, shared memory; kept in a file.

``python -m tests.nvrtc_usage`` writes the file anew; a test holds what is built now against it.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path

from crossdock.devices.dialect import CUDA_HEADER, assemble
from tests import nvrtc
from tests.cards import CARD, WITH_CUDNN
from tests.cases import CASES
from tests.kernels.fused_cases import FUSED
from tests.kernels.texts import Text, apart, texts_of

FILE = Path(__file__).parent / "kernels" / "nvrtc_usage.json"
REWRITE = "python -m tests.nvrtc_usage"
ARCHS = ("sm_70", "sm_80", "sm_90", "sm_100")
BATCH = 32

GROWTH = 0.05
"""Registers may grow by so much of what they were, and by one."""

Usage = tuple[int, int, int]
"""Registers a thread; bytes that spill stores and loads move; bytes of shared memory a block."""

_KERNEL = re.compile(
    r"Function properties for \w+?_(\d+)\n"
    r".*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads\n"
    r".*?Used (\d+) registers(.*)"
)


@functools.cache
def named() -> dict[str, Text]:
    """Every distinct kernel text for a card by a name that outlives changes of the text."""
    found: dict[str, Text] = {}
    seen: Counter[str] = Counter()
    for text, origin in texts_of((*CASES, *FUSED), CARD, WITH_CUDNN).items():
        seen[origin] += 1
        found[f"{origin}, text {seen[origin]}" if seen[origin] > 1 else origin] = text
    return found


def batches(names: Collection[str]) -> Iterator[dict[str, Text]]:
    """Texts of these names, in groups that are compiled together."""
    every = [(name, text) for name, text in named().items() if name in names]
    return (dict(every[at : at + BATCH]) for at in range(0, len(every), BATCH))


def usage(batch: Mapping[str, Text], arch: str) -> dict[str, Usage]:
    """The usage of each text of a batch, compiled as one file."""
    file = CUDA_HEADER + "".join(map(apart, range(len(batch)), batch.values()))
    try:
        log = nvrtc.compile_log(file, arch, ("--ptxas-options=-v",))
    except nvrtc.BuildError as error:
        raise nvrtc.BuildError(culprits(batch, arch) or f"only together: {error}"[:500]) from error
    found: dict[int, Usage] = {}
    for number, _, stores, loads, registers, rest in _KERNEL.findall(log):
        shared = re.search(r"(\d+) bytes smem", rest)
        moved = int(stores) + int(loads)
        found[int(number)] = (int(registers), moved, int(shared[1]) if shared else 0)
    return {name: found[number] for number, name in enumerate(batch)}


def culprits(batch: Mapping[str, Text], arch: str) -> str:
    """The texts of a batch that do not compile alone, each with its log's first error."""
    found = []
    for name, (source, defines, _) in batch.items():
        try:
            nvrtc.compile_text(assemble(CUDA_HEADER, defines, source), arch)
        except nvrtc.BuildError as error:
            log = str(error).splitlines()
            why = next((line for line in log if "error" in line and "NVRTC" not in line), log[0])
            found.append(f"{name}: {why}")
    return "\n".join(found)


def measured(arch: str, names: Collection[str]) -> dict[str, Usage]:
    """The usage of texts on an architecture; raises BuildError naming those that are wrong."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        parts = list(pool.map(usage, batches(names), repeat(arch)))
    return {name: found for part in parts for name, found in part.items()}


def worse(kept: Mapping[str, list[int]], now: Mapping[str, Usage]) -> list[str]:
    """What grew beyond what is allowed, and names that only one of the two knows."""
    found = [f"{name}: not in the file; {REWRITE}" for name in now.keys() - kept.keys()]
    found += [f"{name}: only in the file; {REWRITE}" for name in kept.keys() - now.keys()]
    for name in now.keys() & kept.keys():
        (registers, spilled, shared), before = now[name], kept[name]
        if spilled > before[1]:
            found.append(f"{name}: spills {spilled} bytes, before {before[1]}")
        if registers > before[0] * (1 + GROWTH) + 1:
            found.append(f"{name}: {registers} registers, before {before[0]}")
        if shared > before[2]:
            found.append(f"{name}: {shared} bytes of shared memory, before {before[2]}")
    return sorted(found)


@functools.cache
def kept() -> tuple[str, dict[str, dict[str, list[int]]]]:
    """What the file holds: the compiler's version, and the usage by architecture and name."""
    rows = json.loads(FILE.read_text())
    compiler, archs = rows.pop("compiler"), rows.pop("architectures")
    return compiler, {
        arch: {name: row[i] for name, row in rows.items()} for i, arch in enumerate(archs)
    }


def write() -> None:
    """Write the file anew: a line a text, its usage on each architecture."""
    found = {arch: measured(arch, named().keys()) for arch in ARCHS}
    rows = [
        f"  {json.dumps(name)}: {json.dumps([found[arch][name] for arch in ARCHS])}"
        for name in sorted(named())
    ]
    head = f'  "compiler": {json.dumps(nvrtc.version())},\n  "architectures": {json.dumps(ARCHS)}'
    FILE.write_text("{\n" + ",\n".join((head, *rows)) + "\n}\n")


if __name__ == "__main__":
    write()
