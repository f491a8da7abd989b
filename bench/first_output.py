"""A model in a process of its own, from its start to its first output; prints JSON.

    python first_output.py RUNTIME MODEL.onnx THREADS [FEEDS.npz] [arena]

RUNTIME is crossdock, onnxruntime or openvino. ``process`` starts one: ``seconds`` are those from
before the process is made to its first output (``imported``, ``loaded`` and ``compiled`` on the
way), ``peak`` is the most resident memory that it had by then, in bytes. For crossdock, ``arena``
is the arenas' size over the largest sum of live values, where that is asked for: it takes the
graph, and so time after the first output. Without feeds, inputs are random float32.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np


def process(
    runtime: str,
    model: Path,
    threads: int,
    more: Mapping[str, str] | None = None,
    feeds: Path | None = None,
    *,
    arena: bool = False,
) -> dict[str, Any]:
    """Run a model once in a new process; what it printed, its start taken as zero.

    Modules' bytecode is kept, as it is for an installed package.
    """
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, __file__, runtime, str(model), str(threads)]
    began = time.time()
    done = subprocess.run(
        [*command, *([] if feeds is None else [str(feeds)]), *(["arena"] if arena else [])],
        capture_output=True,
        text=True,
        check=True,
        env={**environment, **(more or {})},
    )
    row: dict[str, Any] = json.loads(done.stdout)
    at = ("imported", "loaded", "compiled", "seconds")
    return {**row, **{k: row[k] - began for k in at if k in row}}


Feeds = Mapping[str, Any] | None


def peak() -> int:
    """The most resident memory that this program had, in bytes.

    (The system's ``ru_maxrss`` also has what the process was before it ran this program.)
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


def drawn(shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Random inputs."""
    rng = np.random.default_rng(0)
    return {name: rng.random(shape, dtype=np.float32) for name, shape in shapes.items()}


def crossdock(model: str, threads: int, feeds: Feeds) -> dict[str, float]:
    """Times of the stages of crossdock, and its arenas."""
    import crossdock as xd

    row = {"imported": time.time()}
    graph = xd.load(model)
    row["loaded"] = time.time()
    given = feeds or drawn({n: s.dims for n, s in graph.inputs.items()})
    shapes = {n: np.shape(a) for n, a in given.items()} if graph.symbols else None
    with xd.compile(graph, "cpu:0", threads=threads, shapes=shapes) as session:
        row["compiled"] = time.time()
        session.run(given)
        row["seconds"] = time.time()
        row["peak"] = peak()
        if sys.argv[-1] != "arena":
            return row
        with contextlib.suppress(xd.Error):  # it runs in stages, each with an arena
            program = session.ready().program
            row["arena"] = sum(d.arena_bytes for d in program.plan.devices) / live_bytes(program)
    return row


def live_bytes(program: Any) -> int:
    """The largest sum of values alive at a step of a program on one device."""
    graph, roots = program.graph, program.roots
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    launches = program.plan.launches()
    for i, step in enumerate(launches):
        for value in (*step.inputs, *step.outputs):
            root = None if value is None else roots[value]
            if root is not None and root not in graph.constants:
                first.setdefault(root, i)
                last[root] = i
    first.update(dict.fromkeys((roots[n] for n in graph.inputs), 0))
    last.update(dict.fromkeys((roots[n] for n in graph.outputs.values()), len(launches) - 1))
    return max(
        sum(graph.specs[r].nbytes for r in last if first.get(r, 0) <= i <= last[r])
        for i in range(len(launches))
    )


def onnxruntime(model: str, threads: int, feeds: Feeds) -> dict[str, float]:
    """The same of onnxruntime."""
    import onnxruntime as ort

    row = {"imported": time.time()}
    ort.set_default_logger_severity(3)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    row["compiled"] = time.time()
    session.run(None, feeds or drawn({i.name: i.shape for i in session.get_inputs()}))
    row["seconds"] = time.time()
    row["peak"] = peak()
    return row


def openvino(model: str, threads: int, feeds: Feeds) -> dict[str, float]:
    """The same of openvino."""
    import openvino as ov

    row = {"imported": time.time()}
    config = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = ov.Core().compile_model(model, "CPU", config)
    row["compiled"] = time.time()
    compiled(feeds or drawn({i.any_name: tuple(i.shape) for i in compiled.inputs}))
    row["seconds"] = time.time()
    row["peak"] = peak()
    return row


RUNTIMES = {"crossdock": crossdock, "onnxruntime": onnxruntime, "openvino": openvino}

if __name__ == "__main__":
    files = [name for name in sys.argv[4:] if name != "arena"]
    given = dict(np.load(files[0])) if files else None
    print(json.dumps(RUNTIMES[sys.argv[1]](sys.argv[2], int(sys.argv[3]), given)))
