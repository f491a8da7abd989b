"""What to time on one device: arithmetic, memory, launches, allocation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from crossdock.devices import probe_kernels as kernels
from crossdock.devices.base import Buffer, Cap, CommandBuffer
from crossdock.devices.machine import Rates, SizedRate
from crossdock.devices.probe_kernels import StepKind
from crossdock.devices.probe_trials import Bench, Samples, Trial, timed
from crossdock.devices.program import In, Out, Step
from crossdock.runtime.tensor import to_numpy

KIB, MIB = 1 << 10, 1 << 20
_MOST = 4096  # rows of the largest matrix
_SHARE = 16  # a probe's buffer takes at most this part of a device's memory


@dataclass(frozen=True)
class Effort:
    """How much to measure.

    Attributes:
        rounds: samples of each quantity at most.
        least: samples of each quantity, however long they take.
        seconds: no further round is begun after so long.
        span_s: seconds that one sample of arithmetic should take.
        sizes: bytes of the copies within a device.
        transfers: bytes of the transfers between devices.
        dtypes: element types of arithmetic.
        batch: launches that share a command buffer.
    """

    rounds: int
    least: int
    seconds: float
    span_s: float
    sizes: tuple[int, ...]
    transfers: tuple[int, ...]
    dtypes: tuple[str, ...]
    batch: int = 200


QUICK = Effort(
    rounds=5,
    least=2,
    seconds=0.8,
    span_s=1.5e-3,
    sizes=(64 * KIB, 2 * MIB, 32 * MIB),
    transfers=(4 * KIB, 256 * KIB, 8 * MIB),
    dtypes=("float32",),
)
FULL = Effort(
    rounds=25,
    least=7,
    seconds=15.0,
    span_s=5e-3,
    sizes=tuple((64 * KIB) << (2 * i) for i in range(6)),
    transfers=tuple((4 * KIB) << (2 * i) for i in range(8)),
    dtypes=("float32", "float64", "float16", "int32"),
)


def room(bench: Bench, effort: Effort) -> int:
    """Bytes of the buffers that copies and transfers use on a device."""
    info = bench.device.info
    limits = [n for n in (info.max_allocation, info.memory_bytes // _SHARE) if n]
    most = max(min(limits, default=MIB), effort.sizes[0])
    return min(max(effort.sizes + effort.transfers), most)


def trials(bench: Bench, effort: Effort) -> Iterator[Trial]:
    """Prepare and warm up every trial of a device; raises Fault."""
    kinds = kernels.kinds_of(bench.device.info)
    for kind in kinds:
        yield _trial(bench, ("launch", kind), _launch(bench, kind, effort.batch))
    yield _trial(bench, ("launch alone",), _launch_alone(bench, kinds[0]))
    yield _trial(bench, ("allocation",), _allocation(bench))
    for nbytes in effort.sizes:
        if nbytes <= room(bench, effort):
            yield _trial(bench, ("bandwidth", nbytes), copying(bench, effort, nbytes))
    for dtype in effort.dtypes:
        yield from _arithmetic(bench, kinds, dtype, effort.span_s)


def _trial(bench: Bench, key: tuple[object, ...], sample: Callable[[], float]) -> Trial:
    return Trial((bench.id, *key), (bench.id,), sample)


def _arithmetic(bench: Bench, kinds: list[StepKind], dtype: str, span_s: float) -> Iterator[Trial]:
    info = bench.device.info
    if dtype in kernels.dtypes_of(info, kinds[0]):
        yield _trial(bench, ("elementwise", dtype), _elementwise(bench, kinds[0], dtype, span_s))
    real = dtype in ("float32", "float64") and dtype in kernels.dtypes_of(info, kinds[0])
    if real:
        yield _trial(bench, ("fma", dtype), multiply_adds(bench, dtype, span_s))
    # Only cards multiply float16 matrices faster than the interpreter would.
    half = dtype == "float16" and Cap.FLOAT16 in info.caps and Cap.HOST_MEMORY not in info.caps
    if "array" in kinds and (real or half):
        yield _trial(bench, ("gemm", dtype), _gemm(bench, "array", dtype, span_s))
    elif "grid" in kinds and dtype == "float32":
        yield _trial(bench, ("gemm", dtype), _gemm(bench, "grid", dtype, span_s))


def rates(bench: Bench, samples: Samples) -> Rates:
    """A device's rates from the samples of its trials."""
    mine = {key[1:]: found for key, found in samples.items() if key[0] == bench.id}
    classes = ("fma", "gemm", "elementwise")
    return Rates(
        flops={f"{k[0]}:{k[1]}": found for k, found in mine.items() if k[0] in classes},
        bandwidth=tuple(
            SizedRate(k[1], found)
            for k, found in mine.items()
            if k[0] == "bandwidth" and isinstance(k[1], int)
        ),
        launch_s={str(k[1]): found for k, found in mine.items() if k[0] == "launch"},
        launch_alone_s=mine[("launch alone",)],
        allocation_s=mine[("allocation",)],
    )


def _launch(bench: Bench, kind: StepKind, batch: int) -> Callable[[], float]:
    """Seconds for one launch more, from a batch of one and a batch of many."""
    slots = {Out(0): bench.buffer("tiny", 64)}
    one = bench.record([(kernels.tiny(kind), slots)])
    many = bench.record([(kernels.tiny(kind), slots)] * (batch + 1))
    bench.run(many)

    def sample() -> float:
        return max(bench.run(many, 3) - bench.run(one, 3), 1e-10) / batch

    return sample


def _launch_alone(bench: Bench, kind: StepKind) -> Callable[[], float]:
    one = bench.record([(kernels.tiny(kind), {Out(0): bench.buffer("tiny", 64)})])
    bench.run(one)
    return lambda: bench.run(one, 15)


def _allocation(bench: Bench) -> Callable[[], float]:
    """Seconds to allocate and release 1 MiB."""

    def cycle() -> None:
        for _ in range(8):
            bench.device.allocate(MIB, "probe").release()

    return lambda: bench.call("compute", lambda: timed(cycle)) / 8


def copying(bench: Bench, effort: Effort, nbytes: int) -> Callable[[], float]:
    """Bytes read and written a second; small copies are repeated within a launch."""
    info = bench.device.info
    times = max(1, 8 * MIB // nbytes)
    slots: dict[Any, Buffer] = {
        In(0): bench.buffer("x", room(bench, effort)),
        Out(0): bench.buffer("y", room(bench, effort)),
    }
    steps = kernels.copy(kernels.kinds_of(info)[0], info, nbytes, times)
    commands = bench.record((step, slots) for step in steps)
    bench.run(commands)
    return lambda: 2.0 * nbytes * times / bench.run(commands)


def _elementwise(bench: Bench, kind: StepKind, dtype: str, span_s: float) -> Callable[[], float]:
    """Operations a second of 3 * x + y over arrays of 1 MiB."""
    n = MIB // to_numpy(dtype).itemsize
    ones = np.ones(n, to_numpy(dtype))
    slots: dict[Any, Buffer] = {
        In(0): bench.fill(f"{dtype} a", ones),
        In(1): bench.fill(f"{dtype} b", ones),
        Out(0): bench.buffer(f"{dtype} c", MIB),
    }
    step = kernels.axpy(kind, dtype, n)
    times, commands = _long_enough(bench, step, slots, span_s)
    return lambda: 2.0 * n * times / bench.run(commands)


def _long_enough(
    bench: Bench, step: Step, slots: Mapping[Any, Buffer], span_s: float
) -> tuple[int, CommandBuffer]:
    """A command buffer of as many repetitions as take about ``span_s``."""
    once = bench.record([(step, slots)])
    bench.run(once)
    times = int(min(max(span_s / bench.run(once), 1), 64))
    return times, bench.record([(step, slots)] * times)


def multiply_adds(bench: Bench, dtype: str, span_s: float) -> Callable[[], float]:
    """Operations a second of multiply-adds in registers, the fastest way there is."""
    ones = np.ones(kernels.FMA_BYTES // to_numpy(dtype).itemsize, to_numpy(dtype))
    best: tuple[float, float, CommandBuffer] | None = None
    for way in kernels.chains_of(bench.device.info, dtype):
        slots = {Out(0): bench.fill(f"chains {dtype} {way.width}", ones)}
        rounds = 64
        for _ in range(3):  # short runs are mostly launch; approach the length step by step
            step, ops = way.step(bench.device.info, rounds)
            commands = bench.record([(step, slots)])
            seconds = min(bench.run(commands) for _ in range(3))
            if seconds > span_s / 2 or rounds >= 1 << 20:
                break
            rounds = int(min(max(rounds * span_s / seconds, 2 * rounds), 1 << 20))
        if best is None or ops / seconds > best[0]:
            best = ops / seconds, ops, commands
    assert best is not None
    _, work, chosen = best
    return lambda: work / bench.run(chosen)


def _gemm(bench: Bench, kind: StepKind, dtype: str, span_s: float) -> Callable[[], float]:
    """Operations a second of a matrix product, large enough to take about ``span_s``."""
    most, size = bench.device.info.memory_bytes // _SHARE, to_numpy(dtype).itemsize
    n = 5 * kernels.TILE  # no power of two: rows would fall into the same cache sets
    while True:
        ones = np.ones((n, n), to_numpy(dtype))
        slots: dict[Any, Buffer] = {
            In(0): bench.fill(f"{dtype} a", ones),
            In(1): bench.fill(f"{dtype} b", ones),
            Out(0): bench.buffer(f"{dtype} c", ones.nbytes),
        }
        commands = bench.record([(kernels.product(kind, dtype, n), slots)])
        seconds = min(bench.run(commands) for _ in range(3))
        if seconds * 4 > span_s or 2 * n > _MOST or 4 * n * n * size > most:
            break
        n *= 2
    return lambda: 2.0 * n**3 / bench.run(commands)
