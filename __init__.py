"""crossdock: measure the devices, place every op where it finishes first, say why, and run it.

Everything here is imported when first used: ``import crossdock`` itself needs numpy alone.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from crossdock.runtime.errors import Error

if TYPE_CHECKING:
    from crossdock import scheduler
    from crossdock.devices.base import DeviceInfo
    from crossdock.devices.machine import Machine
    from crossdock.devices.probe import probe
    from crossdock.devices.registry import devices, rescan
    from crossdock.runtime.builder import GraphBuilder, Operand
    from crossdock.runtime.calibrate import calibrate
    from crossdock.runtime.compiling import compile  # noqa: A004
    from crossdock.runtime.device_array import DeviceArray
    from crossdock.runtime.fallback import Fallback
    from crossdock.runtime.graph import Graph
    from crossdock.runtime.limits import Limits
    from crossdock.runtime.loaders import load
    from crossdock.runtime.loaders.tensors import load_tensors
    from crossdock.runtime.onnx_backend import onnx_backend
    from crossdock.runtime.plan import Constraints, Plan
    from crossdock.runtime.receipt import Receipt
    from crossdock.runtime.session import Estimate, Session
    from crossdock.runtime.support import Context

__version__ = "0.1.0.dev0"

_WHERE = {
    "Constraints": "crossdock.runtime.plan",
    "Context": "crossdock.runtime.support",
    "DeviceArray": "crossdock.runtime.device_array",
    "DeviceInfo": "crossdock.devices.base",
    "Estimate": "crossdock.runtime.session",
    "Fallback": "crossdock.runtime.fallback",
    "Graph": "crossdock.runtime.graph",
    "GraphBuilder": "crossdock.runtime.builder",
    "Limits": "crossdock.runtime.limits",
    "Machine": "crossdock.devices.machine",
    "Operand": "crossdock.runtime.builder",
    "Plan": "crossdock.runtime.plan",
    "Receipt": "crossdock.runtime.receipt",
    "Session": "crossdock.runtime.session",
    "calibrate": "crossdock.runtime.calibrate",
    "compile": "crossdock.runtime.compiling",
    "load": "crossdock.runtime.loaders",
    "load_tensors": "crossdock.runtime.loaders.tensors",
    "onnx_backend": "crossdock.runtime.onnx_backend",
    "probe": "crossdock.devices.probe",
    "rescan": "crossdock.devices.registry",
}

__all__ = [
    "Constraints",
    "Context",
    "DeviceArray",
    "DeviceInfo",
    "Error",
    "Estimate",
    "Fallback",
    "Graph",
    "GraphBuilder",
    "Limits",
    "Machine",
    "Operand",
    "Plan",
    "Receipt",
    "Session",
    "calibrate",
    "compile",
    "devices",
    "load",
    "load_tensors",
    "onnx_backend",
    "probe",
    "rescan",
    "scheduler",
]


def __getattr__(name: str) -> Any:
    """Import a public name at its first use."""
    if name in ("devices", "scheduler"):
        return importlib.import_module(f"crossdock.{name}")
    where = _WHERE.get(name)
    if where is None:
        raise AttributeError(f"module 'crossdock' has no attribute {name!r}")
    value = getattr(importlib.import_module(where), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
