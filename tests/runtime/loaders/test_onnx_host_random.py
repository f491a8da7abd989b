"""Draws, dropout in training, and pictures."""

from __future__ import annotations

import io
import sys
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto as T
from onnx import helper
from PIL import Image

from crossdock.kernels.reference import evaluate
from crossdock.runtime.errors import LoadError, MalformedModel, UnsafeModel
from crossdock.runtime.loaders import load, onnx_host_image
from tests.runtime.loaders.onnx_hosts import run_host


def test_draws_follow_their_distributions() -> None:
    (x,) = run_host("RandomNormal", shape=[50, 400], mean=3.0, scale=2.0, seed=1.0)
    assert (x.dtype, x.shape) == (np.float32, (50, 400))
    assert (x.mean(), x.std()) == (pytest.approx(3, abs=0.1), pytest.approx(2, abs=0.1))
    (u,) = run_host("RandomUniform", shape=[20000], low=-1.0, high=3.0, dtype=T.DOUBLE, seed=1.0)
    assert u.dtype == np.float64
    assert -1 <= u.min() < -0.9
    assert 2.9 < u.max() < 3
    p = np.full(20000, 0.25, np.float32)
    (b,) = run_host("Bernoulli", p, dtype=T.BOOL, seed=1.0)
    assert (b.dtype, b.mean()) == (np.bool_, pytest.approx(0.25, abs=0.02))
    logs = np.log(np.array([[1, 3], [0.5, 0.5]], np.float32))
    (m,) = run_host("Multinomial", logs, sample_size=20000, dtype=T.INT64, seed=1.0)
    assert m.dtype == np.int64
    assert m.mean(1).tolist() == pytest.approx([0.75, 0.5], abs=0.02)


def test_draws_like_an_input() -> None:
    x = np.zeros((2, 3), ml_dtypes.bfloat16)
    assert run_host("RandomUniformLike", x)[0].dtype == ml_dtypes.bfloat16
    made = run_host("RandomNormalLike", np.zeros((2, 3), np.int64), dtype=T.FLOAT16)[0]
    assert (made.dtype, made.shape) == (np.float16, (2, 3))
    with pytest.raises(MalformedModel, match="int64 cannot be drawn"):
        run_host("RandomNormalLike", np.zeros((2, 3), np.int64))


def test_a_seed_decides() -> None:
    def draw(**attrs: Any) -> list[float]:
        found: list[float] = run_host("RandomUniform", shape=[4], **attrs)[0].tolist()
        return found

    assert draw(seed=0.5) == draw(seed=0.5) != draw(seed=0.25)
    assert draw() != draw()
    assert draw(seed=-1.0) != draw(seed=1.0)


def test_misuse_of_draws() -> None:
    with pytest.raises(UnsafeModel, match="bytes"):
        run_host("RandomNormal", shape=[1 << 40])
    with pytest.raises(MalformedModel, match="no shape"):
        run_host("RandomNormal", shape=[-1])
    with pytest.raises(MalformedModel, match="deviation"):
        run_host("RandomNormal", shape=[1], scale=-1.0)
    with pytest.raises(MalformedModel, match="no class"):
        run_host("Multinomial", np.full((1, 2), -np.inf, np.float32))
    with pytest.raises(MalformedModel, match="outcomes of"):
        run_host("Multinomial", np.zeros((1, 2), np.float32), dtype=T.FLOAT)


def test_a_model_draws_anew_in_every_run() -> None:
    node = helper.make_node("RandomNormal", [], ["y"], shape=[8])
    output = helper.make_tensor_value_info("y", T.FLOAT, [8])
    graph = load(
        helper.make_model(
            helper.make_graph([node], "g", [], [output]),
            opset_imports=[helper.make_opsetid("", 22)],
        )
    )
    assert evaluate(graph, {})["y"].tolist() != evaluate(graph, {})["y"].tolist()


def test_dropout_in_training() -> None:
    x = np.ones((100, 100), np.float16)
    y, mask = run_host("Dropout", x, np.float32(0.25), np.array(True), outputs=2, seed=3)
    assert y.dtype == np.float16
    assert mask.mean() == pytest.approx(0.75, abs=0.02)
    assert set(y[mask].tolist()) == {np.float16(1 / 0.75)}
    assert not y[~mask].any()
    same = run_host("Dropout", x, np.float32(0.25), np.array(False), outputs=2)
    assert (same[0] == x).all()
    assert same[1].all()
    with pytest.raises(MalformedModel, match="ratio of 1"):
        run_host("Dropout", x, np.float32(1), np.array(True))


PIXELS = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3) * 4


def encoded(form: str, image: Any = None, **options: Any) -> Any:
    buffer = io.BytesIO()
    (Image.fromarray(PIXELS) if image is None else image).save(buffer, form, **options)
    return np.frombuffer(buffer.getvalue(), np.uint8)


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "PPM"])
def test_pictures_without_loss(form: str) -> None:
    assert (run_host("ImageDecoder", encoded(form))[0] == PIXELS).all()
    (bgr,) = run_host("ImageDecoder", encoded(form), pixel_format="BGR")
    assert (bgr == PIXELS[..., ::-1]).all()
    (grey,) = run_host("ImageDecoder", encoded(form), pixel_format="Grayscale")
    assert grey.shape == (4, 5, 1)


def test_palettes_and_transparency_become_plain_colours() -> None:
    image = Image.fromarray(PIXELS).convert("RGBA")
    assert (run_host("ImageDecoder", encoded("PNG", image))[0] == PIXELS).all()
    grey = Image.fromarray(PIXELS[..., 0])
    assert run_host("ImageDecoder", encoded("PNG", grey))[0].shape == (4, 5, 3)


@pytest.mark.parametrize("data", [b"", b"no picture", bytes(encoded("PNG")[:36])])
def test_what_cannot_be_read_is_an_empty_picture(data: bytes) -> None:
    (got,) = run_host("ImageDecoder", np.frombuffer(data, np.uint8))
    assert got.shape == (0, 0, 3)


def test_misuse_of_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MalformedModel, match="pixel_format"):
        run_host("ImageDecoder", encoded("PNG"), pixel_format="CMYK")
    with pytest.raises(MalformedModel, match="encoded stream"):
        run_host("ImageDecoder", np.zeros(4, np.int8))
    monkeypatch.setattr(onnx_host_image, "MAX_PIXELS", 19)
    with pytest.raises(UnsafeModel, match="5 by 4"):
        run_host("ImageDecoder", encoded("PNG"))
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(LoadError, match="pip install pillow"):
        run_host("ImageDecoder", encoded("PNG"))
