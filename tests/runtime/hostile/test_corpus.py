"""The corpus of hostile files: each ends with a typed error of one line, or with the right answer.

CI takes every twelfth case of a kind with one seed; the slow form takes all of them with two.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.runtime.hostile.kit import corpus

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="the cap on memory is set from Linux's /proc"
)


def children(*args: str) -> None:
    """Run cases in a process of its own, which has no threads and can fork."""
    env = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.runtime.hostile.children", *args]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_corpus_covers_every_kind() -> None:
    cases = corpus(0)
    kinds = Counter(case.kind for case in cases)
    assert len(cases) >= 300
    assert min(kinds.values()) >= 2
    assert {"external", "loop", "op-bomb", "protobuf", "npz", "safetensors", "plan"} <= kinds.keys()
    assert [c.id for c in corpus(7)] != [
        c.id for c in cases
    ]  # where a file is cut hangs on the seed


def test_a_sample_of_each_kind() -> None:
    children("--every", "12")


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_all_of_it(seed: int) -> None:
    children("--all", "--seed", str(seed))
