"""Known-answer tests: a device passes when what it computed is what it should be, to the bit.

The operands are small whole numbers, so that every result is exact in every element type and in
every order of summation.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import numpy as np

from crossdock.devices import probe_kernels as kernels
from crossdock.devices.base import Event
from crossdock.devices.machine import Check
from crossdock.devices.probe_kernels import StepKind
from crossdock.devices.probe_trials import Bench
from crossdock.devices.program import In, Out, Step
from crossdock.runtime.tensor import Array, to_numpy

_ODD = 1003  # no multiple of any group size
_SEED = 20_260_301


def check(bench: Bench) -> Iterator[Check]:
    """Run every test that the device's capabilities call for; raises Fault when it fails to run."""
    info = bench.device.info
    yield _round_trip(bench)
    for kind in kernels.kinds_of(info):
        yield _copy(bench, kind)
        for dtype in kernels.dtypes_of(info, kind):
            yield _axpy(bench, kind, dtype)
        if kind != "native":
            yield _product(bench, kind)
        if kind == "grid":
            yield _sums(bench)


def _random() -> np.random.Generator:
    return np.random.default_rng(_SEED)


def _round_trip(bench: Bench) -> Check:
    """Bytes of an odd count up and down again, the download waiting for the upload's event."""
    data = _random().integers(0, 256, 100_003, np.uint8)
    back = np.zeros_like(data)
    buffer = bench.buffer("x", data.nbytes)
    queues = bench.device.queues
    event = bench.call("upload", lambda: queues["upload"].write(buffer, data))

    def read() -> None:
        waits: list[Event] = [] if event is None else [event]
        done = queues["download"].read(buffer, back, waits)
        if done is not None:
            done.wait()

    bench.call("download", read)
    return _same_bytes("transfer", data, back)


def _copy(bench: Bench, kind: StepKind) -> Check:
    nbytes = 12 * kernels.COPY_UNIT
    data = _random().integers(0, 256, nbytes, np.uint8)
    x, y = bench.fill("x", data), bench.fill("y", np.zeros_like(data))
    steps = kernels.copy(kind, bench.device.info, nbytes)
    bench.run(bench.record((step, {In(0): x, Out(0): y}) for step in steps))
    back = np.zeros_like(data)
    bench.read(y, back)
    return _same_bytes(f"copy {kind}", data, back)


def _same_bytes(name: str, want: Array, got: Array) -> Check:
    sums = zlib.crc32(want.tobytes()), zlib.crc32(got.tobytes())
    detail = "" if sums[0] == sums[1] else f"checksum {sums[1]:08x} instead of {sums[0]:08x}"
    return Check(name, not detail, detail)


def _axpy(bench: Bench, kind: StepKind, dtype: str) -> Check:
    x, y = _random().integers(-20, 20, (2, _ODD)).astype(to_numpy(dtype))
    return _computed(
        bench,
        f"axpy {dtype} {kind}",
        kernels.axpy(kind, dtype, _ODD),
        (x, y),
        (3 * x.astype(np.int64) + y.astype(np.int64)).astype(x.dtype),
    )


def _product(bench: Bench, kind: StepKind) -> Check:
    n = 2 * kernels.TILE
    a, b = _random().integers(-8, 8, (2, n, n)).astype(np.float32)
    return _computed(
        bench,
        f"product float32 {kind}",
        kernels.product(kind, "float32", n),
        (a, b),
        (a.astype(np.int64) @ b.astype(np.int64)).astype(np.float32),
    )


def _sums(bench: Bench) -> Check:
    x = _random().integers(-1000, 1000, (16, 64), np.int32)
    want = x.sum(axis=1, dtype=np.int32)
    return _computed(bench, "sums int32 grid", kernels.sums(16), (x,), want)


def _computed(
    bench: Bench, name: str, step: Step, operands: tuple[Array, ...], want: Array
) -> Check:
    """Run one step on the operands and compare every element of its result."""
    buffers = {In(i): bench.fill(f"in {i}", array) for i, array in enumerate(operands)}
    out = bench.fill("out", np.full(want.nbytes, 0xA5, np.uint8))
    bench.run(bench.record([(step, {**buffers, Out(0): out})]))
    got = np.empty_like(want)
    bench.read(out, got)
    wrong = np.flatnonzero(got.reshape(-1) != want.reshape(-1))
    if not wrong.size:
        return Check(name, True)
    at = int(wrong[0])
    return Check(
        name,
        False,
        f"{wrong.size} of {want.size} elements are wrong, the first at {at}: "
        f"{got.reshape(-1)[at]} instead of {want.reshape(-1)[at]}",
    )
