"""A card of the fake cupy with a fake cuDNN, and what runs on it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from crossdock.devices import cuda
from crossdock.devices.cuda import CudaDevice
from crossdock.kernels import table
from crossdock.kernels.spec import Kernel, OpCall
from crossdock.runtime.tensor import Array, to_numpy
from tests.cards import WITH_CUDNN as WITH
from tests.fakes import cards, cudnn_fake
from tests.fakes.cuda_machine import UsageError
from tests.kernels.cpu_run import expected
from tests.kernels.test_cuda import execute


@dataclass
class Card:
    """A fake card with cuDNN."""

    device: CudaDevice
    dnn: cudnn_fake.Cudnn


@contextmanager
def opened() -> Iterator[Card]:
    """The card; what was used wrongly fails the test."""
    with pytest.MonkeyPatch.context() as patch, cards.installed(patch) as fake:
        dnn = cudnn_fake.install(patch, fake)
        device = cuda.open_device("cuda:0")
        yield Card(device, dnn)
        device.close()


def drawn(*shape: int, seed: int = 0, dtype: str = "float32") -> Array:
    """Numbers between -1 and 1."""
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(to_numpy(dtype))


def kernels(call: OpCall, info: Any = WITH) -> dict[str, Kernel]:
    """The candidates that are cuDNN's, by name."""
    found = table.candidates(call, info).fitting
    return {k.name: k for k in found if k.name.startswith("cudnn.")}


def why(call: OpCall, name: str, info: Any = WITH) -> str:
    """Why a candidate does not fit."""
    return dict(table.candidates(call, info).rejected)[name]


def off(card: Card, name: str, call: OpCall, arrays: Sequence[Array | None]) -> float:
    """How far a candidate's result is from the reference, relative to its largest element.

    Where the reference is no number, the result must be none.
    """
    (got,) = execute(card.device, kernels(call)[name], call, list(arrays)).values()
    (want,) = expected(call, list(arrays))
    there = np.isfinite(want)
    assert np.array_equal(np.isnan(got), np.isnan(want)), "NaN in other places"
    away = np.abs(got.astype(np.float64) - want)[there]
    return float(away.max(initial=0.0) / np.abs(want[there]).max(initial=1e-30))


def caught(card: Card, message: str, run: Any) -> None:
    """The fake says what is used wrongly."""
    with pytest.raises(UsageError, match=message):
        run()
    assert len(card.dnn.machine.errors) == 1
    card.dnn.machine.errors.clear()
