"""The fuzzer itself: what it changes, what it takes for a fault, and a short run of it."""

from __future__ import annotations

import json
import random
import socket
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from crossdock.runtime.errors import LimitError, LoadError
from tests.fuzz import mutate, mutate_onnx, shrink
from tests.fuzz.targets import SMALL, TARGETS, Onnx
from tests.fuzz.watch import ROOT, Wrong, look
from tests.runtime.hostile.kit import seed_model
from tests.runtime.hostile.tensor_files import GOOD, npy, npz

SEED = seed_model().SerializeToString()


def test_models_are_changed_and_most_stay_models() -> None:
    made = [mutate_onnx.model(SEED, random.Random(i), [SEED]) for i in range(200)]
    assert len(set(made)) > 100
    assert sum(mutate_onnx.parsed(data) is not None for data in made) > 150
    assert made[:9] == [mutate_onnx.model(SEED, random.Random(i), [SEED]) for i in range(9)]


@pytest.mark.parametrize("data", [GOOD, npy([1.0, 2.0]), npz({"a.npy": npy([1.0])})])
def test_tensor_files_are_changed_within_their_structure(data: bytes) -> None:
    made = [mutate.tensors(data, random.Random(i)) for i in range(100)]
    assert len(set(made)) > 50
    assert sum(one[:2] == data[:2] or data is GOOD for one in made) > 60


def test_json_is_changed_and_most_of_it_stays_json() -> None:
    data, sound = json.dumps({"a": [1, 2.5, {"b": "c"}], "d": None}).encode(), 0
    for i in range(100):
        try:
            json.loads(mutate.json_text(data, random.Random(i)))
            sound += 1
        except (ValueError, RecursionError):
            pass
    assert sound > 70


def refuses(_: bytes) -> None:
    raise LoadError("it is broken; mend it")


def fails(_: bytes) -> None:
    {}["x"]


def memory(_: bytes) -> None:
    raise LimitError("there is not enough") from MemoryError()


def empty(_: bytes) -> None:
    raise LoadError


def warns(_: bytes) -> None:
    warnings.warn("odd", stacklevel=1)


def prints(_: bytes) -> None:
    print("odd")  # noqa: T201


def writes(_: bytes) -> None:
    Path("/dev/null").write_bytes(b"")


def connects(_: bytes) -> None:
    socket.socket().close()


def starts(_: bytes) -> None:
    subprocess.run(["true"], check=False)


def reads(_: bytes) -> None:
    Path("/etc/hostname").read_bytes()


def wrong(_: bytes) -> None:
    raise Wrong("add: 2 for 3")


@pytest.mark.parametrize(
    ("run", "kind"),
    [
        (fails, "KeyError"), (memory, "memory"), (empty, "message"), (warns, "UserWarning"),
        (prints, "printed"), (writes, "touched"), (connects, "touched"), (starts, "touched"),
        (reads, "touched"), (wrong, "wrong"),
    ],
)  # fmt: skip
def test_what_must_not_come_out_is_a_finding(run: Callable[[bytes], None], kind: str) -> None:
    found = look("t", run, b"", may_read=())
    assert found is not None
    assert found.kind == kind


def test_a_refusal_is_no_finding() -> None:
    assert look("t", refuses, b"", may_read=()) is None


def test_what_is_found_is_made_small() -> None:
    def holds(data: bytes) -> bool:
        return b"MatMul" in data

    small = shrink.shrunk(SEED, holds)
    assert holds(small)
    assert len(small) < 12


def test_models_at_random_are_refused_or_loaded(tmp_path: Path) -> None:
    target = Onnx(tmp_path)
    rng, data = random.Random(7), SEED
    for index in range(150):
        data = mutate_onnx.model(data if index % 5 else SEED, rng, [SEED])
        assert look("model", target.run, data) is None
    assert SMALL.nodes < 1_000


def test_the_shares_make_a_whole() -> None:
    assert sum(kind.share for kind in TARGETS.values()) == pytest.approx(1.0)


def test_a_short_run(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.fuzz", "--plain", "--execs", "600", "--only", "tensors",
               "--work", str(tmp_path), "--json", str(tmp_path / "fuzz.json")]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = json.loads((tmp_path / "fuzz.json").read_text())["targets"]
    assert row["execs"] >= 100
    assert not row["findings"]
