"""Lowered ops run on the host by the programs of ``host_build``.

A file of jobs is a count of jobs, then for each: whether work items run in reverse order; a count
of buffers, each a size, a role (0 given, 1 result, 2 scratch) and its bytes where it is given; a
count of steps, each the kernel's number, three numbers of blocks and of work items, and a count of
arguments, each a type's letter and eight bytes. Whole numbers are uint32. The file of results holds
the results' bytes.
"""

from __future__ import annotations

import os
import struct
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

import numpy as np

from crossdock.devices.program import (
    Argument,
    GridLaunch,
    In,
    Lowered,
    Out,
    Packed,
    Scalar,
    Scratch,
)
from crossdock.kernels.spec import OpCall
from crossdock.runtime.tensor import Array, to_numpy
from tests.kernels import host_build
from tests.kernels.texts import Text, text_of

GIVEN, RESULT, SCRATCH = range(3)
LETTERS = {
    "int8": "b", "uint8": "B", "int16": "h", "uint16": "H", "int32": "i", "uint32": "I",
    "int64": "l", "uint64": "L", "float32": "f", "float64": "d",
}  # fmt: skip
SETTINGS = {
    "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
    "UBSAN_OPTIONS": "print_stacktrace=0",
}
SECONDS = 300
TEXTS = 24
"""Texts of one program: few enough to use every core, enough for the headers to be cheap."""


@dataclass(frozen=True)
class Job:
    """A lowered op, all of whose steps are launches, with its operands."""

    name: str
    lowered: Lowered
    call: OpCall
    arrays: Sequence[Array | None]

    def launches(self) -> list[GridLaunch]:
        """The steps."""
        return [step for step in self.lowered.steps if isinstance(step, GridLaunch)]


Found = list[Array] | str
"""A job's results, or in a line what was found wrong."""


def run(jobs: Sequence[Job], folder: Path, *, processor: bool = False) -> list[Found]:
    """Build and run jobs, in both orders of the work items; the same has to come out."""
    parts = list(_parts(jobs))
    folders = [folder / f"part{i}" for i in range(len(parts))]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(_run_part, parts, folders, repeat(processor)))
    return [result for part in found for result in part]


def _parts(jobs: Sequence[Job]) -> Iterator[list[Job]]:
    part: list[Job] = []
    texts: set[Text] = set()
    for job in jobs:
        part.append(job)
        texts.update(map(text_of, job.launches()))
        if len(texts) >= TEXTS:
            yield part
            part, texts = [], set()
    if part:
        yield part


def _run_part(jobs: Sequence[Job], folder: Path, processor: bool) -> list[Found]:
    folder.mkdir()
    texts = list(dict.fromkeys(text_of(step) for job in jobs for step in job.launches()))
    try:
        program = host_build.build(texts, folder / "program", processor=processor)
    except host_build.BuildError as error:
        return [f"does not build: {error}"] * len(jobs)
    numbers = {text: i for i, text in enumerate(texts)}
    ahead, back = (_run_all(program, jobs, numbers, reverse=way) for way in (False, True))
    program.unlink()
    return [_agreed(*pair) for pair in zip(ahead, back, strict=True)]


def _agreed(ahead: Found, back: Found) -> Found:
    for found in (ahead, back):
        if isinstance(found, str):
            return found
    same = all(a.tobytes() == b.tobytes() for a, b in zip(ahead, back, strict=True))
    return ahead if same else "the result hangs on the order of the work items: a race"


def _run_all(
    program: Path, jobs: Sequence[Job], numbers: Mapping[Text, int], *, reverse: bool
) -> list[Found]:
    """Run jobs in one process, and those behind one that fails in another."""
    found: list[Found] = []
    while len(found) < len(jobs):
        left = jobs[len(found) :]
        got, said = _process(program, [_encoded(job, numbers, reverse) for job in left])
        for job in left:
            size = sum(max(1, spec.nbytes) for spec in job.call.outputs)
            if len(got) < size:
                break
            found.append(_decoded(job, got[:size]))
            got = got[size:]
        if len(found) < len(jobs):
            found.append(said or "the program ended without a word")
    return found


def _process(program: Path, jobs: Sequence[bytes]) -> tuple[bytes, str]:
    into, out = program.with_suffix(".jobs"), program.with_suffix(".out")
    into.write_bytes(_number(len(jobs)) + b"".join(jobs))
    done = subprocess.run(
        [str(program), str(into), str(out)],
        check=False,
        env={**os.environ, **SETTINGS},
        capture_output=True,
        timeout=SECONDS,
    )
    said = done.stderr.decode(errors="replace").splitlines()
    marks = ("HOST:", "runtime error:", "ERROR: AddressSanitizer")
    first = [line for line in said if any(mark in line for mark in marks)]
    where = [line.strip() for line in said if line.strip().startswith("#")][:2]
    return out.read_bytes(), " ".join((first or said)[:1] + where)


# --- the files ------------------------------------------------------------------------------------


def _number(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}I", *values)


def _encoded(job: Job, numbers: Mapping[Text, int], reverse: bool) -> bytes:
    given: dict[object, Array] = {
        In(i): array
        for i, array in enumerate(job.arrays)
        if array is not None and i not in job.lowered.unused
    }
    given |= {Packed(i): pack.make() for i, pack in enumerate(job.lowered.packs)}
    content = {slot: np.ascontiguousarray(a).tobytes() or b"\0" for slot, a in given.items()}
    buffers = [_number(len(data), GIVEN) + data for data in content.values()]
    buffers += [_number(max(1, spec.nbytes), RESULT) for spec in job.call.outputs]
    buffers += [_number(max(1, size), SCRATCH) for size in job.lowered.scratch]
    slots = [*content, *map(Out, range(len(job.call.outputs)))]
    slots += map(Scratch, range(len(job.lowered.scratch)))
    places = {slot: i for i, slot in enumerate(slots)}
    steps = [_step(step, numbers[text_of(step)], places) for step in job.launches()]
    return b"".join((_number(reverse, len(buffers)), *buffers, _number(len(steps)), *steps))


def _step(step: GridLaunch, number: int, places: Mapping[object, int]) -> bytes:
    pad = (1,) * (3 - len(step.grid))
    blocks = [g // b for g, b in zip(step.grid, step.block, strict=True)]
    head = _number(number, *blocks, *pad, *step.block, *pad, len(step.args))
    return head + b"".join(_argument(arg, places) for arg in step.args)


def _argument(arg: Argument, places: Mapping[object, int]) -> bytes:
    if isinstance(arg, Scalar):
        value = arg.value
        return _number(ord(LETTERS[value.dtype.name])) + value.tobytes().ljust(8, b"\0")
    return _number(ord("p")) + struct.pack("<Q", places[arg])


def _decoded(job: Job, data: bytes) -> list[Array]:
    arrays = []
    for spec in job.call.outputs:
        part, data = data[: spec.nbytes], data[max(1, spec.nbytes) :]
        arrays.append(np.frombuffer(part, to_numpy(spec.dtype)).reshape(spec.dims))
    return arrays
