"""ONNX loops on the host: their bodies run as graphs of their own, on the devices.

Semantics of ONNX operators.md: Loop, Scan (opset 8 has a batch axis and lengths), SequenceMap.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from crossdock.runtime.loaders.onnx_host import HostCall, HostValue, host_op
from crossdock.runtime.loaders.onnx_host_tools import integer
from crossdock.runtime.loaders.onnx_model import OnnxGraph
from crossdock.runtime.tensor import Array, to_numpy

_PASSED_ON = 64
"""Identities that a condition is followed through."""


def bounded(call: HostCall) -> None:
    """Raise where a run's loops have done as many iterations as they may, or it is to end."""
    call.check()
    call.budget.iterate(str(call.node))


def keeps_going(body: OnnxGraph) -> bool:
    """True where a loop's body never ends the loop: its condition is passed on, or constant."""
    makers = {node.outputs[0]: node for node in body.nodes if node.outputs}
    name = body.outputs[0].name
    for _ in range(_PASSED_ON):
        if len(body.inputs) > 1 and name == body.inputs[1].name:
            return True
        held, node = body.constants.get(name), makers.get(name)
        if node is not None and node.op == "Constant":
            held = node.attrs.get("value")
        if isinstance(held, np.ndarray):
            return held.size == 1 and bool(held.reshape(-1)[0])
        if node is None or node.op != "Identity" or not node.inputs:
            return False
        name = node.inputs[0]
    return False


def _flag(call: HostCall, value: HostValue) -> bool:
    if not isinstance(value, np.ndarray) or value.size != 1:
        raise call.malformed("its condition is no tensor of one element")
    return bool(value.reshape(-1)[0])


@host_op("Loop")
def loop(call: HostCall) -> tuple[HostValue, ...]:
    """Iterations until the count or the condition ends them; scan outputs are stacked."""
    body = call.node.graph("body")
    state: list[HostValue] = [call.x(i) for i in range(2, len(call))]
    count, condition = call.opt(0), call.opt(1)
    limit = None if count is None else integer(call, 0, "its trip count")
    going = condition is None or _flag(call, condition)
    scanned = len(body.outputs) - 1 - len(state)
    if scanned < 0 or len(body.inputs) != len(state) + 2:
        raise call.malformed(
            f"its body has {len(body.inputs)} inputs and {len(body.outputs)} outputs for "
            f"{len(state)} values that are carried"
        )
    if going and keeps_going(body):
        call.budget.trips(limit, str(call.node))
    rows = _Rows(call, scanned)
    done = 0
    while going and (limit is None or done < limit):
        bounded(call)
        results = call.body(body, [np.array(done, np.int64), np.array(going), *state])
        going = _flag(call, results[0])
        state = results[1 : 1 + len(state)]
        rows.keep(results[1 + len(state) :])
        done += 1
    stacked = [_stack(call, body, 1 + len(state) + i, row, 0) for i, row in enumerate(rows.held)]
    return (*state, *stacked)


class _Rows:
    """The slices of scan outputs so far; together they may take what one tensor may."""

    def __init__(self, call: HostCall, count: int) -> None:
        self.call = call
        self.held: list[list[Array]] = [[] for _ in range(count)]
        self._nbytes = 0

    def keep(self, values: Sequence[HostValue]) -> None:
        """Take the slices of an iteration."""
        for row, value in zip(self.held, values, strict=True):
            if not isinstance(value, np.ndarray):
                raise self.call.malformed("a scan output is no tensor")
            if row and row[0].shape != value.shape:
                raise self.call.malformed(
                    f"a scan output has shape {list(value.shape)} after {list(row[0].shape)}"
                )
            row.append(value)
            self._nbytes += value.nbytes
            self.call.budget.size(self._nbytes, str(self.call.node), self.call.nbytes)


def _stack(call: HostCall, body: OnnxGraph, index: int, row: Sequence[Array], axis: int) -> Array:
    """The slices of a scan output along a new axis; none of them take the declared shape."""
    if row:
        rank = row[0].ndim + 1
        if not -rank <= axis < rank:
            raise call.malformed(f"a scan output's axis {axis} is out of range for rank {rank}")
        return np.stack(row, axis)
    declared = body.outputs[index]
    sizes = [d if isinstance(d, int) else 0 for d in declared.shape or ()]
    if not -len(sizes) - 1 <= axis <= len(sizes):
        raise call.malformed(f"a scan output's axis {axis} is out of range for rank {len(sizes)}")
    sizes.insert(axis if axis >= 0 else len(sizes) + 1 + axis, 0)
    return np.zeros(sizes, to_numpy(declared.dtype or "float32"))


@host_op("Scan", since=9)
def scan(call: HostCall) -> tuple[HostValue, ...]:
    """One iteration a slice of the scanned inputs, each along its axis, forwards or backwards."""
    body, count = call.node.graph("body"), call.node.get_int("num_scan_inputs")
    carried = len(call) - count
    if not 1 <= count <= len(call) or len(body.outputs) < carried:
        raise call.malformed(f"{count} scanned inputs of {len(call)}")
    state: list[HostValue] = [call.x(i) for i in range(carried)]
    scanned = [call.array(carried + i) for i in range(count)]
    axes = _list(call, "scan_input_axes", count)
    backwards = _list(call, "scan_input_directions", count)
    views = [_along(call, *row) for row in zip(scanned, axes, backwards, strict=True)]
    state, rows = _scanned(call, body, state, views)
    outs = len(rows)
    out_axes = _list(call, "scan_output_axes", outs)
    out_backwards = _list(call, "scan_output_directions", outs)
    stacked = [
        _stack(call, body, carried + i, row[::-1] if out_backwards[i] else row, out_axes[i])
        for i, row in enumerate(rows)
    ]
    return (*state, *stacked)


def _scanned(
    call: HostCall, body: OnnxGraph, state: list[HostValue], views: Sequence[Array]
) -> tuple[list[HostValue], list[list[Array]]]:
    """Run a scan's body over views whose first axis is scanned; carried values and rows."""
    lengths = {len(view) for view in views}
    if len(lengths) != 1:
        raise call.malformed(f"scanned inputs of different lengths: {sorted(lengths)}")
    length = lengths.pop()
    call.budget.trips(length, str(call.node))
    rows = _Rows(call, len(body.outputs) - len(state))
    for step in range(length):
        bounded(call)
        results = call.body(body, [*state, *(np.asarray(v[step]) for v in views)])
        state = results[: len(state)]
        rows.keep(results[len(state) :])
    return state, rows.held


def _along(call: HostCall, array: Array, axis: int, backwards: int) -> Array:
    """A view with the scanned axis first, in the scan's direction."""
    if not -array.ndim <= axis < array.ndim:
        raise call.malformed(f"axis {axis} is out of range for rank {array.ndim}")
    view = np.moveaxis(array, axis, 0)
    return view[::-1] if backwards else view


def _list(call: HostCall, name: str, count: int) -> tuple[int, ...]:
    """An attribute with an integer for each of ``count`` values; zeros where it is absent."""
    given = call.node.get_ints(name)
    if given is None:
        return (0,) * count
    if len(given) != count:
        raise call.malformed(f"attribute {name!r} has {len(given)} entries for {count} values")
    return given


@host_op("Scan", since=8)
def scan_batched(call: HostCall) -> tuple[HostValue, ...]:
    """Opset 8: every value has a batch axis first, and each sequence a length of its own.

    Where a sequence is shorter than the longest, its scan outputs are filled with zeros.
    """
    body, count = call.node.graph("body"), call.node.get_int("num_scan_inputs")
    carried = len(call) - 1 - count
    if count < 1 or carried < 0 or len(body.outputs) < carried:
        raise call.malformed(f"{count} scanned inputs of {len(call) - 1}")
    state = [call.array(1 + i) for i in range(carried)]
    scanned = [call.array(1 + carried + i) for i in range(count)]
    if any(v.ndim < 2 or v.shape[:2] != scanned[0].shape[:2] for v in scanned):
        raise call.malformed("scanned inputs have no batch and sequence axes of the same lengths")
    batch, longest = scanned[0].shape[:2]
    given = call.opt(0)
    lengths = [longest] * batch if given is None else [int(v) for v in call.array(0).reshape(-1)]
    if len(lengths) != batch or any(not 0 <= v <= longest for v in lengths):
        raise call.malformed(f"sequence lengths do not fit a batch of {batch} by {longest}")
    backwards = _list(call, "directions", count)
    finals = _Rows(call, carried)
    outputs: list[list[Array]] = [[] for _ in range(len(body.outputs) - carried)]
    for at in range(batch):
        views = [v[at, : lengths[at]] for v in scanned]
        views = [v[::-1] if back else v for v, back in zip(views, backwards, strict=True)]
        ends, rows = _scanned(call, body, [s[at] for s in state], views)
        finals.keep(ends)
        stacked = [_stack(call, body, carried + i, row, 0) for i, row in enumerate(rows)]
        for held, part in zip(outputs, stacked, strict=True):
            full = np.zeros((longest, *part.shape[1:]), part.dtype)
            full[: len(part)] = part
            held.append(full)
    return tuple(np.stack(rows) for rows in (*finals.held, *outputs))


@host_op("SequenceMap", since=17)
def sequence_map(call: HostCall) -> tuple[HostValue, ...]:
    """The body on each element; a further input that is a sequence gives its element, too."""
    body = call.node.graph("body")
    given: list[HostValue] = [call.x(i) for i in range(len(call))]
    length = len(call.sequence(0))
    if any(isinstance(v, list) and len(v) != length for v in given):
        raise call.malformed("its sequences differ in length")
    made: list[list[HostValue]] = [[] for _ in body.outputs]
    for at in range(length):
        bounded(call)
        results = call.body(body, [v[at] if isinstance(v, list) else v for v in given])
        for held, value in zip(made, results, strict=True):
            held.append(value)
    return tuple(made)
