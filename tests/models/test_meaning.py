"""What the trained models say, judged as a person would: text, types, speech, pitch, boxes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.models import real, scripts, signals

inputs = real.inputs
pytestmark = pytest.mark.usefixtures("models_dir")

SLOW = pytest.mark.slow
WHERE = ["cpu:0", pytest.param("opencl:0", marks=SLOW), pytest.param("cpu:0+opencl:0", marks=SLOW)]
everywhere = pytest.mark.parametrize("where", WHERE)


def run(name: str, given: real.Feeds, where: str) -> real.Feeds:
    graph = real.bound(inputs.model_path(name), given)
    with real.compiled(graph, where) as session:
        return dict(session.run(given))


@everywhere
def test_the_line_is_read(where: str) -> None:
    (scores,) = run("rapidocr-rec", {"x": inputs.line_image()}, where).values()
    assert inputs.ocr_text(scores, inputs.ocr_characters()).split() == inputs.LINE_TEXT.split()


@everywhere
def test_text_is_found_where_it_is_on_a_page(where: str) -> None:
    given = real.feeds("rapidocr-det")
    (map_,) = run("rapidocr-det", given, where).values()
    rows, columns = np.nonzero(map_[0, 0] > 0.3)
    # The page holds its one line in rows 56 to 104, from column 20 on; the model shrinks boxes.
    assert 50 <= rows.min() < 85
    assert 75 < rows.max() <= 110
    assert 10 <= columns.min() < 60
    assert columns.max() - columns.min() > 200


@everywhere
def test_types_of_this_repositorys_files(where: str) -> None:
    names = {
        "examples/demo.py": "python", "pyproject.toml": "toml", "Makefile": "makefile",
        "README.md": "markdown", "examples/line.png": "png",
    }  # fmt: skip
    given = {"bytes": inputs.magika_bytes([scripts.ROOT / name for name in names])}
    (scores,) = run("magika", given, where).values()
    assert [label for label, _ in inputs.magika_labels(scores)] == list(names.values())


SPANS = [(0.8, 1.76), (2.96, 3.92)]


def segments(chances: list[float]) -> Any:
    """float64[segments, 2]: seconds from above 0.5 to below 0.35, the package's thresholds."""
    speaking, said = False, []
    for chance in chances:
        speaking = chance >= (0.35 if speaking else 0.5)
        said.append(speaking)
    edges = np.flatnonzero(np.diff(np.array([False, *said, False], np.int8)))
    return edges.reshape(-1, 2) * (signals.WINDOW / signals.RATE)


@pytest.mark.parametrize("name", ["silero-vad", "silero-vad-16k", "silero-vad-ifless"])
@everywhere
def test_speech_is_where_the_voice_sounds(where: str, name: str) -> None:
    """No recording is at hand: a synthetic voice, whose pauses the model has to find."""
    rows = signals.windows(signals.utterances(SPANS, 5.0))
    state: Any = np.zeros((2, 1, 128), np.float32)
    rate = np.array(signals.RATE, np.int64)
    given = {"input": rows[:1], "state": state, "sr": rate}
    graph = real.bound(inputs.model_path(name), given)
    chances = []
    with real.compiled(graph, where) as session:
        for row in rows:
            fed = {**given, "input": row[None], "state": state}
            chance, state = session.run({n: fed[n] for n in graph.inputs}).values()
            chances.append(float(chance[0, 0]))
    found = segments(chances)
    assert found.shape == (2, 2), found
    assert found == pytest.approx(np.array(SPANS), abs=0.35)


@everywhere
@pytest.mark.parametrize("hertz", [440.0, 261.6])
def test_the_pitch_of_a_tone(where: str, hertz: float) -> None:
    key = next(iter(inputs.feeds("basic-pitch")))
    tone = inputs.tone(2.0, 22050, hertz)[None, :43844, None]
    found = run("basic-pitch", {key: tone}, where)
    notes = found["StatefulPartitionedCall:1"][0]
    # 88 keys of a piano from A0; the notes' activation in the middle of the sound.
    key_number = int(notes[40:130].mean(0).argmax())
    assert key_number == round(12 * np.log2(hertz / 27.5))


@everywhere
def test_a_flat_picture_has_no_face(where: str) -> None:
    """No photograph is at hand: what is no face must not be taken for one."""
    flat = np.zeros((1, 60, 60, 3), np.float32)
    found = run("mtcnn-pnet", {"input_1": flat}, where)
    assert (found["softmax"][..., 1] < 0.6).all()
