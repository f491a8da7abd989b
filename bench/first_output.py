"""A model in a process of its own, from its start to its first output; prints JSON.

    python first_output.py RUNTIME MODEL.onnx THREADS

RUNTIME is crossdock or onnxruntime. ``process`` starts one: ``seconds`` are those from before the
process is made to its first output (``imported``, ``loaded`` and ``compiled`` on the way), ``peak``
is the most resident memory that it had, in bytes. For crossdock, ``arena`` is the arenas' size over
the largest sum of live values.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PAGE = 1024  # Linux counts the resident size in kilobytes


def process(
    runtime: str, model: Path, threads: int, more: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Run a model once in a new process; what it printed, its start taken as zero.

    Modules' bytecode is kept, as it is for an installed package.
    """
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    began = time.time()
    done = subprocess.run(
        [sys.executable, __file__, runtime, str(model), str(threads)],
        capture_output=True,
        text=True,
        check=True,
        env={**environment, **(more or {})},
    )
    row: dict[str, Any] = json.loads(done.stdout)
    at = ("imported", "loaded", "compiled", "seconds")
    return {**row, **{k: row[k] - began for k in at if k in row}}


def ours(model: str, threads: int) -> dict[str, float]:
    """Times of the stages of crossdock, and its arenas."""
    import numpy as np

    import crossdock as xd

    row = {"imported": time.time()}
    graph = xd.load(model)
    row["loaded"] = time.time()
    rng = np.random.default_rng(0)
    feeds = {n: rng.random(s.dims, dtype=np.float32) for n, s in graph.inputs.items()}
    with xd.compile(graph, "cpu:0", threads=threads) as session:
        row["compiled"] = time.time()
        session.run(feeds)
        row["seconds"] = time.time()
        program = session.ready().program
        row["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * PAGE
        row["arena"] = sum(d.arena_bytes for d in program.plan.devices) / live_bytes(program)
    return row


def live_bytes(program: Any) -> int:
    """The largest sum of values alive at a step of a program on one device."""
    graph, roots, first, last = program.graph, program.roots, {}, {}
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


def onnxruntime(model: str, threads: int) -> dict[str, float]:
    """The same of onnxruntime."""
    import numpy as np
    import onnxruntime as ort

    row = {"imported": time.time()}
    ort.set_default_logger_severity(3)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    row["compiled"] = time.time()
    rng = np.random.default_rng(0)
    feeds = {i.name: rng.random(i.shape, dtype=np.float32) for i in session.get_inputs()}
    session.run(None, feeds)
    row["seconds"] = time.time()
    row["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * PAGE
    return row


if __name__ == "__main__":
    runner = {"crossdock": ours, "onnxruntime": onnxruntime}[sys.argv[1]]
    print(json.dumps(runner(sys.argv[2], int(sys.argv[3]))))
