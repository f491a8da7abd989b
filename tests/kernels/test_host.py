"""Every grid kernel's arithmetic on the host, index for index, under the sanitizers.

What runs is the text behind the header that a card gets. Every array is a block of the heap of its
exact size: a read or write outside of one, a misaligned vector, an overflow of signed integers and
whatever else C++ leaves undefined ends the kernel, as do a barrier that not all work items come to,
an argument of another type and a result that hangs on the order of the work items.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from crossdock.devices.base import DeviceInfo
from crossdock.devices.program import GridLaunch, In, Lowered, Out, Scalar
from crossdock.kernels.spec import OpCall
from crossdock.runtime.tensor import TensorSpec
from tests.cards import CARD
from tests.cases import CASES, Case
from tests.devices import teams
from tests.kernels import host_build, host_run
from tests.kernels.host_run import Found, Job
from tests.kernels.host_trials import EVERY, VALUES, complaints, quick, runnable, trials

pytestmark = pytest.mark.skipif(not host_build.compiler(), reason=host_build.ABSENT)

PROCESSOR = replace(
    CARD, id="opencl:0", kind="opencl", compute_units=4, details={"type": "cpu", "vector": "16"}
)
"""Its texts are other ones, which no card gets."""

EXCLUDED = {
    "grid.attention", "grid.attention.low", "grid.layer_normalization.vectors",
    "grid.max_pool2d.planes", "grid.softmax.vectors", "grid.softmax.vectors_low",
}  # fmt: skip
"""Kernels for processors alone that choose between vectors a lane at a time: only OpenCL C can."""

INFOS = [
    pytest.param(CARD, id="card"),
    pytest.param(PROCESSOR, id="processor", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("info", INFOS)
def test_every_kernel(info: DeviceInfo, tmp_path: Path) -> None:
    chosen = quick(info)
    every = {trial.kernel for trial in trials(EVERY, info)}
    assert every - {trial.kernel for trial in chosen} == (EXCLUDED if info is PROCESSOR else set())
    found = host_run.run([t.job for t in chosen], tmp_path, processor=info is PROCESSOR)
    assert complaints(chosen, found) == []


@pytest.mark.slow
@pytest.mark.parametrize("info", [CARD, PROCESSOR], ids=["card", "processor"])
@pytest.mark.parametrize("cases", [CASES, VALUES], ids=["cases", "values"])
def test_every_case(cases: Sequence[Case], info: DeviceInfo, tmp_path: Path) -> None:
    chosen = runnable(cases, info)
    found = host_run.run([t.job for t in chosen], tmp_path, processor=info is PROCESSOR)
    assert complaints(chosen, found) == []


# --- that it finds what it is there for -----------------------------------------------------------

ITEMS = 64
LINE = "LOCAL float line[64]; const i32 i = LOCAL_ID(0);"


def planted(body: str, params: str = "CONSTANT float *x, GLOBAL float *y, i32 n") -> Job:
    """A kernel over 64 floats, in one group of 64 work items."""
    text = f"KERNEL BLOCK_SIZE(64, 1, 1) void f({params}) {{\n{body}\n}}"
    args = (In(0), Out(0), Scalar(np.int32(ITEMS)))
    step = GridLaunch(text, "f", args, (ITEMS,), (ITEMS,))
    spec = TensorSpec("float32", (ITEMS,))
    call = OpCall("identity", {}, (spec,), (spec,), {}, "planted")
    return Job("planted", Lowered((step,)), call, [np.arange(ITEMS, dtype=np.float32)])


TEAMS = [(dtype, teams.ITEMS, teams.EVEN) for dtype in ("float32", "int64", "uint32")]
TEAMS += [(dtype, items, (items,)) for dtype, items in teams.RAGGED]


def in_teams(dtype: str, items: int, sizes: tuple[int, ...]) -> Job:
    """Reductions by teams of these sizes in groups of so many items."""
    x = teams.values(dtype, items)
    specs = (TensorSpec.of(x),), (TensorSpec.of(teams.expected(x, sizes)),)
    step = teams.step(dtype, items, sizes)
    return Job("teams", Lowered((step,)), OpCall("identity", {}, *specs, {}, "teams"), [x])


RIGHT = f"{LINE} line[i] = x[i]; BARRIER(); y[i] = line[n - 1 - i];"
BUGS = {
    "read past the end": ("y[GLOBAL_ID(0)] = x[GLOBAL_ID(0) + 1];", "heap-buffer-overflow"),
    "read before the start": ("y[GLOBAL_ID(0)] = x[GLOBAL_ID(0) - 1];", "heap-buffer-overflow"),
    "write past the end": ("y[GLOBAL_ID(0) + (x[0] == 0)] = 1;", "heap-buffer-overflow"),
    "local memory past the end": (f"{LINE} line[i + n] = 1; y[i] = line[i];", "out of bounds"),
    "private memory past the end": (
        "float own[4]; for (i32 k = 0; k <= 4; ++k) own[k] = x[k]; y[GLOBAL_ID(0)] = own[0];",
        "out of bounds",
    ),
    "vector at an odd address": (
        "VSTORE4(y, VLOAD4(x + 1)); y[GLOBAL_ID(0)] = 0;",
        "misaligned address",
    ),
    "overflow of a sum": ("y[GLOBAL_ID(0)] = 0x7fffffff + n;", "signed integer overflow"),
    "shift by too much": ("y[GLOBAL_ID(0)] = 1 << n;", "shift exponent 64 is too large"),
    "division by zero": ("y[GLOBAL_ID(0)] = n / LOCAL_ID(0);", "division by zero"),
    "barrier for half of the group": (
        f"{LINE} line[i] = x[i]; if (i < 32) BARRIER(); y[i] = line[i];",
        "different barriers",
    ),
    "two barriers": (
        "if (LOCAL_ID(0) < 32)\nBARRIER();\nelse\nBARRIER();\ny[LOCAL_ID(0)] = x[0];",
        "different barriers",
    ),
    "shuffle for half of the lanes": (
        "const i32 i = LOCAL_ID(0); y[i] = i % 2 ? SUBGROUP_XOR(x[i], 1) : 0;",
        "different barriers",
    ),
    "team without two of its items": (
        "TEAM_ROOM(float, room, 64, 1); float v = 0; const i32 i = LOCAL_ID(0);"
        "if (i < n - 2) TEAM_REDUCE(float, v, 64, room, X_MAX); y[i] = v;",
        "different barriers",
    ),
    "lane that is not there": (
        "y[LOCAL_ID(0)] = SUBGROUP_XOR(x[LOCAL_ID(0)], n) > 0;",
        "past the sub-group",
    ),
    "one room for two reductions": (
        "TEAM_ROOM(float, room, 64, 1); float v = x[LOCAL_ID(0)], w = v;"
        "TEAM_REDUCE(float, v, 64, room, X_MAX); TEAM_REDUCE(float, w, 64, room, X_MIN);"
        "y[LOCAL_ID(0)] = v - w;",
        "race",
    ),
    "operand written to": ("((float *)x)[GLOBAL_ID(0)] = 1; y[GLOBAL_ID(0)] = 0;", "written to"),
    "race": ("if (GLOBAL_ID(0) % 2) y[0] = x[GLOBAL_ID(0)]; else y[GLOBAL_ID(0)] = 0;", "race"),
    "no barrier": (f"{LINE} line[i] = x[i]; y[i] = line[n - 1 - i];", "race"),
}


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Found]:
    """What comes of each planted bug, of right kernels and of one with other parameters."""
    jobs = {name: planted(body) for name, (body, _) in BUGS.items()}
    jobs["right"] = planted(RIGHT)
    params = "CONSTANT float *x, GLOBAL float *y"
    jobs["fewer"] = planted("y[GLOBAL_ID(0)] = x[0];", params)
    jobs["other"] = planted("y[GLOBAL_ID(0)] = x[0] + n;", f"{params}, i64 n")
    jobs |= {str(trial): in_teams(*trial) for trial in TEAMS}
    found = host_run.run(list(jobs.values()), tmp_path_factory.mktemp("planted"))
    return dict(zip(jobs, found, strict=True))


@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_found(verdicts: dict[str, Found], name: str) -> None:
    found = verdicts[name]
    assert isinstance(found, str), f"{name} goes unnoticed"
    assert BUGS[name][1] in found


def test_a_right_kernel_passes(verdicts: dict[str, Found]) -> None:
    found = verdicts["right"]
    assert not isinstance(found, str), found
    np.testing.assert_array_equal(found[0], np.arange(ITEMS, dtype=np.float32)[::-1])


@pytest.mark.parametrize(("dtype", "items", "sizes"), TEAMS)
def test_teams_meet(
    verdicts: dict[str, Found], dtype: str, items: int, sizes: tuple[int, ...]
) -> None:
    found = verdicts[str((dtype, items, sizes))]
    assert not isinstance(found, str), found
    np.testing.assert_array_equal(found[0], teams.expected(teams.values(dtype, items), sizes))


def test_arguments_are_those_of_the_kernel(verdicts: dict[str, Found]) -> None:
    assert "another number of arguments" in str(verdicts["fewer"])
    assert "an argument of another type" in str(verdicts["other"])
