"""Fourier transforms, frames of a signal and mel filters, against onnxruntime and numpy."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from onnx import helper

from crossdock.runtime.errors import MalformedModel
from crossdock.runtime.loaders import load
from tests.runtime.loaders.conftest import build_model, run_ours

RNG = np.random.default_rng(0)


def rand(*shape: int, dtype: Any = np.float32) -> Any:
    return RNG.uniform(-1, 1, shape).astype(dtype)


@pytest.mark.parametrize(("parts", "inverse"), list(itertools.product((1, 2), (0, 1))))
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_dft(check: Any, parts: int, inverse: int, axis: int) -> None:
    x = rand(3, 6, 5, parts)
    check("DFT", x, opset=17, axis=axis, inverse=inverse, atol=1e-4)
    check("DFT", x, None, np.int64(axis), opset=20, fixed=[2], inverse=inverse, atol=1e-4)


@pytest.mark.parametrize("length", [4, 5, 8, 9])
def test_dft_of_another_length(check: Any, length: int) -> None:
    for one_sided, parts in ((0, 2), (1, 1)):
        args = (rand(2, 7, parts), np.int64(length))
        check("DFT", *args, opset=17, fixed=[1], onesided=one_sided, atol=1e-4, oracle="onnx")


@pytest.mark.parametrize("size", [6, 7])
def test_the_inverse_of_a_half_is_real(size: int) -> None:
    signal = rand(2, size, dtype=np.float64)
    half = np.fft.rfft(signal)
    x = np.stack((half.real, half.imag), axis=-1)
    node = helper.make_node("DFT", ["x", "n", "a"], ["y"], inverse=1, onesided=1)
    constants = {"n": np.int64(size), "a": np.int64(1)}
    found = run_ours(load(build_model([node], {"x": x}, ["y"], 20, constants)), {"x": x})["y"]
    assert found.shape == (2, size, 1)
    np.testing.assert_allclose(found[..., 0], signal, atol=1e-12)


@pytest.mark.parametrize("one_sided", [0, 1])
def test_stft(check: Any, one_sided: int) -> None:
    window = np.hanning(8).astype(np.float32)
    args = (rand(2, 30, 1), np.int64(4), window, np.int64(8))
    check("STFT", *args, opset=17, fixed=[1, 2, 3], onesided=one_sided, atol=1e-4)
    args = (rand(2, 30, 1), np.int64(5), None, np.int64(6))
    check("STFT", *args, opset=17, fixed=[1, 3], onesided=one_sided, atol=1e-4, oracle="onnx")


@pytest.mark.parametrize("bins", [4, 8, 20])
def test_mel_weights(check: Any, bins: int) -> None:
    numbers = (np.int64(bins), np.int64(64), np.int64(8192), np.float32(0), np.float32(4096))
    check("MelWeightMatrix", *numbers, opset=17, fixed=[0, 1, 2, 3, 4], atol=1e-5)


@pytest.mark.parametrize("op", ["HannWindow", "HammingWindow", "BlackmanWindow"])
def test_windows(check: Any, op: str) -> None:
    for periodic in (0, 1):
        check(op, np.int64(10), opset=17, fixed=[0], periodic=periodic, atol=1e-5)


def test_malformed() -> None:
    node = helper.make_node("STFT", ["x", "s"], ["y"])
    model = build_model([node], {"x": rand(1, 8, 1)}, ["y"], 17, {"s": np.int64(2)})
    with pytest.raises(MalformedModel, match="neither a window nor its length"):
        load(model)
