"""Peers that may be installed, each as a function that runs a model once."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


def installed(name: str) -> bool:
    """True where a package can be imported."""
    return importlib.util.find_spec(name) is not None


def onnxruntime(
    model: Path | bytes, feeds: Mapping[str, Array], threads: int, *, optimise: bool = True
) -> Callable[[], list[Array]]:
    """Onnxruntime on the processor, sequential, with so many threads."""
    run = onnxruntime_any(model, threads, optimise=optimise)
    return lambda: run(feeds)


def onnxruntime_any(
    model: Path | bytes, threads: int, *, optimise: bool = True
) -> Callable[[Mapping[str, Array]], list[Array]]:
    """The same for any feeds."""
    import onnxruntime as ort

    ort.set_default_logger_severity(3)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        model if isinstance(model, bytes) else str(model),
        options,
        providers=["CPUExecutionProvider"],
    )
    return lambda feeds: list(session.run(None, dict(feeds)))


def openvino(
    model: Path | bytes, feeds: Mapping[str, Array], threads: int
) -> Callable[[], list[Array]]:
    """OpenVINO on the processor in float32, latency mode, with so many threads."""
    import openvino as ov

    core = ov.Core()
    compiled = core.compile_model(
        core.read_model(model if isinstance(model, bytes) else str(model)),
        "CPU",
        {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": "f32",
        },
    )
    request = compiled.create_infer_request()

    def run() -> list[Array]:
        result = request.infer(dict(feeds))
        return [np.asarray(result[port]) for port in compiled.outputs]

    return run


def all_peers(
    model: Path | bytes, feeds: Mapping[str, Array], threads: int
) -> dict[str, Callable[[], list[Array]]]:
    """The peers that are installed and accept the model, by name."""
    made: dict[str, Callable[[], list[Array]]] = {}
    for name, make in (("onnxruntime", onnxruntime), ("openvino", openvino)):
        if not installed(name):
            continue
        try:
            run = make(model, feeds, threads)
            run()
        except (RuntimeError, ValueError):  # a model the peer cannot run is no comparison
            continue
        made[name] = run
    return made
