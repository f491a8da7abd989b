"""From the start of a process to the first output, with empty and with filled caches."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.gpu_check.nets import NETS, TINY, Net
from bench.gpu_check.place import HOST, Place
from bench.gpu_check.report import Report

ROOT = Path(__file__).resolve().parents[3]
ENOUGH = 25.0
"""Seconds that a network may take: none is begun with less."""
STAGES = ("imported", "built", "compiled", "ran")


def run(place: Place, report: Report) -> None:
    """Crossdock cold and warm, and torch's eager run beside it."""
    names = ["two convolutions"] if place.rehearsal else ["resnet50", "minilm"]
    for name in names:
        if place.left < ENOUGH:
            report.not_run(name, "out of time")
            continue
        with tempfile.TemporaryDirectory() as folder:
            for caches in ("empty", "filled"):
                row = first(place, name, Path(folder))
                said = ", ".join(f"{stage} {row[stage]:.2f}" for stage in STAGES)
                report.figure(f"{name}, {caches} caches", row["ran"], "s", note=said)
            if importlib.util.find_spec("torch") and not place.rehearsal:
                seconds = first(place, name, Path(folder), "torch")["ran"]
                report.figure(f"{name}, torch eager", seconds, "s")


def first(place: Place, name: str, folder: Path, what: str = "ours") -> dict[str, float]:
    """Seconds since the start of a process of each stage of its first run."""
    caches = {"CROSSDOCK_CACHE_DIR": folder / "own", "CUPY_CACHE_DIR": folder / "cupy"}
    environment = {**os.environ, **{key: str(value) for key, value in caches.items()}}
    device = HOST if place.rehearsal else place.device  # other processes have no fake card
    command = [sys.executable, "-m", "bench.gpu_check.sections.cold", what, name, device]
    begun = time.time()
    done = subprocess.run(
        command, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, text=True,
        timeout=place.left,
    )  # fmt: skip
    row: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return {stage: seconds - begun for stage, seconds in row.items()}


def ours(name: str, device: str) -> dict[str, float]:
    """Wall-clock times of the stages of crossdock's first run."""
    import crossdock as xd
    from bench.gpu_check.nets_ours import graph

    row = {"imported": time.time()}
    net = _net(name)
    made = graph(net, 1)
    row["built"] = time.time()
    with xd.compile(made, device) as session:
        row["compiled"] = time.time()
        session.run(net.feeds(1))
        row["ran"] = time.time()
    return row


def torch(name: str, device: str) -> dict[str, float]:
    """The same of torch."""
    from bench.gpu_check.nets_torch import Peers

    row = {"imported": time.time()}
    net = _net(name)
    peers = Peers(net, 1, "float32", device.partition(":")[0], net.feeds(1))
    row["built"] = row["compiled"] = time.time()
    peers.eager()()
    row["ran"] = time.time()
    return row


def _net(name: str) -> Net:
    return next(net for net in (*NETS, *TINY) if net.name == name)


if __name__ == "__main__":
    print(json.dumps({"ours": ours, "torch": torch}[sys.argv[1]](*sys.argv[2:])))
