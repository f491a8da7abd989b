"""Looking for the first op that makes a NaN or an infinity out of finite operands.

A run that is looked at does one step at a time, and each result is read as soon as it is made:
later, its place in the arena may hold another value.
"""

from __future__ import annotations

import numpy as np

from crossdock.runtime.binding import read
from crossdock.runtime.errors import NotFinite
from crossdock.runtime.plan import HOST, Step
from crossdock.runtime.program import Instance, Program, buffer_of
from crossdock.runtime.tensor import FLOATS, Array, TensorSpec


class Watcher:
    """Notes the launches of one run that made what is not finite out of what is."""

    def __init__(self, program: Program, instance: Instance) -> None:
        self._program, self._instance = program, instance
        self._order = {node.name: i for i, node in enumerate(program.graph.nodes)}
        self._bad = {n for n, array in program.graph.constants.items() if _said(array)}
        self._found: dict[int, tuple[Step, str]] = {}

    def fed(self) -> None:
        """Look at the inputs, which lie on the host now."""
        for name in self._program.graph.inputs:
            if name not in self._program.ends.takes and self._look(name, HOST):
                self._bad.add(name)

    def look(self, step: Step) -> None:
        """Look at the results of a step that has just ended."""
        if step.kind == "copy":
            if step.arrives and self._look(step.name, step.dst):
                self._bad.add(step.name)
            return
        roots = self._program.roots
        clean = not any(roots[value] in self._bad for value in step.inputs if value is not None)
        for value in step.outputs:
            said = self._look(value, step.device)
            if not said:
                continue
            self._bad.add(roots[value])
            if clean:
                self._found.setdefault(self._order[step.name], (step, f"{value!r:.80}: {said}"))

    def check(self) -> None:
        """Raise NotFinite naming the first op in graph order that was noted, if any was."""
        if not self._found:
            return
        step, said = self._found[min(self._found)]
        raise NotFinite(
            f"op {step.name!r:.80} ({step.op}) on {step.device} with kernel {step.kernel} made of "
            f"finite operands {said}; look at its operands' range, or compute in a wider type",
            op=step.name,
            device=step.device,
            kernel=step.kernel,
        )

    def _look(self, value: str, device: str) -> str:
        spec = self._program.graph.specs[value]
        if spec.dtype not in FLOATS or not spec.size:
            return ""
        at = buffer_of(self._program, self._instance, value, device)
        return _said(read(self._program.devices[device], at, spec))


def _said(array: Array) -> str:
    """What of an array is not finite, in words; empty where all is."""
    if TensorSpec.of(array).dtype not in FLOATS:
        return ""
    wide = array.astype(np.float64, copy=False)
    finite = np.isfinite(wide)
    if finite.all():
        return ""
    nans = int(np.isnan(wide).sum())
    first = [int(i) for i in np.argwhere(~finite)[0]]
    return f"{nans} NaN and {int((~finite).sum()) - nans} infinite of {wide.size}, first at {first}"
