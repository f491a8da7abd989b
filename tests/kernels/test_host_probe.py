"""The probe's kernels for a card on the host under the sanitizers, index for index."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from crossdock.devices import probe_kernels as kernels
from crossdock.devices.program import GridLaunch, Lowered, Scalar, Step
from crossdock.kernels.spec import OpCall
from crossdock.runtime.tensor import Array, TensorSpec, to_numpy
from tests.cards import CARD
from tests.kernels import host_build, host_run
from tests.kernels.host_run import Job

pytestmark = pytest.mark.skipif(not host_build.compiler(), reason=host_build.ABSENT)

SMALL = replace(CARD, compute_units=1)
ODD, SIDE, GROUPS, ITEMS = 1003, kernels.TILE, 3, 128


def job(name: str, steps: list[Step], arrays: list[Array], want: Array) -> tuple[Job, Array]:
    """Steps over operands, and the one result that they have to give."""
    ins = tuple(map(TensorSpec.of, arrays))
    call = OpCall("identity", {}, ins, (TensorSpec.of(want),), {}, name)
    return Job(name, Lowered(tuple(steps)), call, arrays), want


def jobs() -> Iterator[tuple[Job, Array]]:
    rng = np.random.default_rng(0)
    words = rng.integers(0, 256, 2 * kernels.COPY_UNIT, np.uint8)
    yield job("copy", kernels.copy("grid", SMALL, words.size, 3), [words], words)
    for dtype in kernels.dtypes_of(SMALL, "grid"):
        x, y = rng.integers(-20, 20, (2, ODD)).astype(to_numpy(dtype))
        yield job(f"axpy {dtype}", [kernels.axpy("grid", dtype, ODD)], [x, y], 3 * x + y)
    a, b = rng.integers(-8, 8, (2, SIDE, SIDE)).astype(np.float32)
    yield job("product", [kernels.product("grid", "float32", SIDE)], [a, b], a @ b)
    whole = rng.integers(-1000, 1000, (GROUPS, 64), np.int32)
    yield job("sums", [kernels.sums(GROUPS)], [whole], whole.sum(axis=1, dtype=np.int32))
    yield job("tiny", [kernels.tiny("grid")], [], np.ones(1, np.float32))
    for dtype in ("float32", "float64"):
        for way in kernels.chains_of(SMALL, dtype):
            real = np.dtype(dtype).type
            step, _ = way.step(SMALL, 1)
            assert isinstance(step, GridLaunch)
            # s = 1/2 s + 1/2 is 1 to the last bit after so many rounds.
            half = Scalar(real(0.5)), Scalar(real(0.5)), Scalar(np.int32(80))
            short = replace(step, args=(step.args[0], *half), grid=(ITEMS,))
            want = np.full(ITEMS, kernels.CHAINS * way.width, real)
            yield job(f"fma {dtype} {way.width}", [short], [], want)


def test_the_probes_kernels(tmp_path: Path) -> None:
    made = list(jobs())
    found = host_run.run([one for one, _ in made], tmp_path)
    for (one, want), got in zip(made, found, strict=True):
        assert not isinstance(got, str), f"{one.name}: {got}"
        np.testing.assert_array_equal(got[0], want, err_msg=one.name)
