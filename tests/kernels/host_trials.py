"""Which kernels run on the host, on which cases, and how their results are judged."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from crossdock.devices.base import DeviceInfo
from crossdock.devices.program import GridLaunch
from crossdock.kernels import table
from crossdock.runtime.cases.special import SPECIAL, is_of_values
from crossdock.runtime.cli.verify_check import judge
from tests.cases import CASES, Case
from tests.kernels.fused_cases import FUSED
from tests.kernels.host_run import Found, Job
from tests.kernels.test_cpu import instance

FIRST = list({case.op: case for case in reversed(CASES)}.values())[::-1]
VALUES = [case for case in SPECIAL if is_of_values(case)]
EVERY = (*CASES, *VALUES, *FUSED)


@dataclass(frozen=True)
class Trial:
    """A kernel on a case."""

    case: Case
    kernel: str
    exact: bool
    job: Job


def trials(cases: Iterable[Case], info: DeviceInfo) -> list[Trial]:
    """Every kernel of launches alone that fits a case, on each."""
    made = []
    for case in cases:
        call, arrays = instance(case)
        for kernel in table.candidates(call, info).fitting:
            lowered = kernel.lower(call, info)
            if lowered.steps and all(isinstance(step, GridLaunch) for step in lowered.steps):
                job = Job(f"{case} {kernel.name}", lowered, call, arrays)
                made.append(Trial(case, kernel.name, kernel.exact, job))
    return made


def excluded(trial: Trial) -> bool:
    """True for texts for processors that a C++ compiler cannot take: they choose between vectors a
    lane at a time or put vectors together from others, which OpenCL C alone can.
    """
    return any(map(_is_opencl_alone, trial.job.launches()))


def _is_opencl_alone(step: GridLaunch) -> bool:
    defines = dict(step.defines)
    picks = "VEC" in step.source and any(" ? " in value for value in defines.values())
    halves = ".even" in step.source and defines.get("STEP_W") == "2"
    return picks or halves or "AS_VINT" in step.source


def runnable(cases: Iterable[Case], info: DeviceInfo) -> list[Trial]:
    """The trials that a C++ compiler can build."""
    return [trial for trial in trials(cases, info) if not excluded(trial)]


def quick(info: DeviceInfo) -> list[Trial]:
    """The first case of every op, what passes make, and a case of each kernel that none of them
    runs.
    """
    chosen = runnable((*FIRST, *FUSED), info)
    seen = {trial.kernel for trial in chosen}
    for trial in runnable(EVERY, info):
        if trial.kernel not in seen:
            seen.add(trial.kernel)
            chosen.append(trial)
    return chosen


def complaint(trial: Trial, found: Found) -> str:
    """What is wrong with a trial's results, or nothing."""
    if isinstance(found, str):
        return f"{trial.job.name}: {found}"
    case = trial.case
    dtypes = [spec.dtype for spec in trial.job.call.outputs]
    over, off, _ = judge(case, found, list(case.reference().values()), dtypes, exact=trial.exact)
    return f"{trial.job.name}: off by {off:.3g}, {over:.3g} times the allowed" if over > 1 else ""


def complaints(chosen: Sequence[Trial], found: Sequence[Found]) -> list[str]:
    """Everything that is wrong."""
    return [said for pair in zip(chosen, found, strict=True) if (said := complaint(*pair))]
