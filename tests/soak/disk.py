"""A disk that is full, or a cache that cannot be written: right answers, one warning (S10)."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.soak.figures import Figure

WORK = """
import resource, signal, sys
import numpy as np
if sys.argv[1] != "none":
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limit = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
import crossdock as xd

for device in xd.devices():
    b = xd.GraphBuilder()
    x = b.input("x", (64, 64))
    graph = b.build({"y": b.softmax(b.matmul(x, b.tanh(x)), axis=1)})
    with xd.compile(graph, device.id, measure=0.5) as session:
        feeds = {"x": np.ones((64, 64), np.float32)}
        y = session.run(feeds)["y"]  # of sums near 49, whose last bit is 4e-6
        assert np.allclose(y, 1 / 64, rtol=1e-4), (device.id, abs(y * 64 - 1).max())
        session.profile(feeds)
print("right")
"""
LIMITS = ("0", "100", "1000", "3000", "none")
"""Bytes that a file may have: each write site comes to its end at one of them."""


def _places(folder: Path) -> dict[str, Path]:
    file = folder / "file"
    file.write_text("a file where the cache should be")
    return {
        "a folder": folder / "good",
        "below a file": file / "cache",
        "a file": file,
        "below /proc": Path("/proc/self/cache"),
        "a full device": Path("/dev/full"),
    }


def disk() -> list[Figure]:
    """Every limit with a good folder, and every place that is none without a limit."""
    with tempfile.TemporaryDirectory() as name:
        places = _places(Path(name))
        cases = [("a folder", limit) for limit in LIMITS]
        cases += [(place, "none") for place in places if place != "a folder"]
        found = [_run(places[place], limit, f"{place}, {limit} bytes") for place, limit in cases]
    return [f for figures in found for f in figures]


def _run(cache: Path, limit: str, what: str) -> list[Figure]:
    done = subprocess.run(
        [sys.executable, "-c", WORK, limit],
        env={**os.environ, "CROSSDOCK_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    wrong = done.returncode != 0 or done.stdout != "right\n"
    said = [line for line in done.stderr.splitlines() if "Warning" in line]
    if wrong:
        print(done.stderr[-2000:], file=sys.stderr)  # noqa: T201 - what went wrong
    bad = what != "a folder, none bytes"
    return [
        Figure("S10", f"wrong ({what})", int(wrong), 0),
        Figure("S10", f"warnings missing or too many ({what})", abs(len(said) - bad), 0),
    ]
