"""onnxruntime in a process of its own, which may hang, crash or run out of memory.

The process is asked with frames: a size of eight bytes and an npz of the model and what it is fed;
it answers with an npz of its outputs, empty where it refuses the model.
"""

from __future__ import annotations

import io
import resource
import select
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

import numpy as np

from tests.fuzz.watch import EYES, ROOT

SECONDS = 5.0
MODEL = "model.bytes"
Fed = dict[str, Any]


class Peer:
    """Answers of onnxruntime, None where it has none; restarted when it dies."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self.answered = 0
        self.differences: dict[str, tuple[str, bytes]] = {}
        try:
            import onnxruntime  # noqa: F401

            self._there = True
        except ImportError:
            self._there = False

    def note(self, ops: str, said: str, data: bytes) -> None:
        """Keep the first model of some operators where the reference takes our side."""
        self.differences.setdefault(ops, (said, data))

    def run(self, model: bytes, feeds: Fed) -> Fed | None:
        """What it makes of a model."""
        if not self._there or any(a.dtype.name not in _NUMPY for a in feeds.values()):
            return None
        EYES.open, before = False, EYES.open  # a process is started here, on purpose
        try:
            return self._asked(model, feeds)
        finally:
            EYES.open = before

    def _asked(self, model: bytes, feeds: Fed) -> Fed | None:
        process = self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        question = {MODEL: np.frombuffer(model, np.uint8)}
        question |= {f"feed{i}": a for i, a in enumerate(feeds.values())}
        question["names"] = np.array([*feeds, ""])
        try:
            write(process.stdin, question)
            if not select.select([process.stdout], [], [], SECONDS)[0]:
                raise EOFError
            answer = read(process.stdout)
        except (EOFError, BrokenPipeError, ValueError):
            process.kill()
            process.wait()
            self._process = None
            return None
        if not answer:
            return None
        self.answered += 1
        names = [str(n) for n in answer.pop("names")][:-1]
        return {name: answer[f"out{i}"] for i, name in enumerate(names) if f"out{i}" in answer}

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            command = [sys.executable, "-m", "tests.fuzz.peer"]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL, cwd=ROOT,
            )  # fmt: skip
        return self._process


_NUMPY = frozenset(
    {"bool", "float16", "float32", "float64"}
    | {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
)


def write(pipe: IO[bytes], arrays: Fed) -> None:
    """Write a frame."""
    buffer = io.BytesIO()
    if arrays:
        np.savez(buffer, **arrays)
    pipe.write(len(buffer.getvalue()).to_bytes(8, "little") + buffer.getvalue())
    pipe.flush()


def read(pipe: IO[bytes]) -> Fed:
    """Read a frame; raises EOFError at the end."""
    head = pipe.read(8)
    if len(head) < 8:
        raise EOFError
    data = pipe.read(int.from_bytes(head, "little"))
    return dict(np.load(io.BytesIO(data), allow_pickle=False)) if data else {}


def _answer(asked: Fed) -> Fed:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    names = [str(n) for n in asked["names"]][:-1]
    feeds = {name: asked[f"feed{i}"] for i, name in enumerate(names)}
    session = ort.InferenceSession(
        asked[MODEL].tobytes(), options, providers=["CPUExecutionProvider"]
    )
    made = session.run(None, feeds)
    answer: Fed = {"names": np.array([*(o.name for o in session.get_outputs()), ""])}
    for index, value in enumerate(made):
        if isinstance(value, np.ndarray) and value.dtype.name in _NUMPY:
            answer[f"out{index}"] = value
    return answer


def main() -> None:
    """Answer until the pipe is closed."""
    asked, answers = sys.stdin.buffer, sys.stdout.buffer
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + (3 << 30)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    while True:
        question = read(asked)
        try:
            answer = _answer(question)
        except Exception:  # noqa: BLE001 - whatever it says of a model that it refuses
            answer = {}
        write(answers, answer)


if __name__ == "__main__":
    try:
        main()
    except (EOFError, BrokenPipeError):  # the other end is done
        sys.exit(0)
