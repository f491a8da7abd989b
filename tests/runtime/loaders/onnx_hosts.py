"""Host functions called with plain values, as the driver would call them."""

from __future__ import annotations

from typing import Any

import numpy as np

from crossdock.runtime.loaders.onnx_host import HostCall, find_host, no_body, run_entry
from crossdock.runtime.loaders.onnx_model import OnnxNode


def run_host(
    op: str, *inputs: Any, opset: int = 25, outputs: int = 1, domain: str = "", **attrs: Any
) -> list[Any]:
    """The outputs of the host function of one node; lists in ``attrs`` are what a parser makes."""
    names = tuple("" if value is None else f"x{i}" for i, value in enumerate(inputs))
    held = {key: tuple(v) if isinstance(v, list) else v for key, v in attrs.items()}
    results = tuple(f"y{i}" for i in range(outputs))
    node = OnnxNode(op, domain, names, results, held, label="the node")
    entry = find_host(node, opset)
    assert entry is not None, f"no host function for {op}"
    return run_entry(entry, HostCall(node, opset, inputs, no_body))


def words(*values: str) -> Any:
    """A vector of strings."""
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array
