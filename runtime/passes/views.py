"""Values that are views of others: what strides they have there.

A *view* is a value that reshapes, transpositions, slices, splits, picks of one index and factors
make of another one, its root, whose bytes are dense.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from crossdock.kernels.fused import FUSIBLE
from crossdock.runtime.graph import Graph, Node


@dataclass(frozen=True)
class View:
    """``root``'s elements from ``offset`` on, with strides along ``dims``, times ``factor``."""

    root: str
    dims: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0
    factor: float = 1.0


def number(graph: Graph, value: str) -> float | None:
    """The finite number that a constant of one element is; it broadcasts to any shape."""
    array = graph.constants.get(value)
    if array is None or array.size != 1 or array.dtype.kind == "b":
        return None
    found = float(array.reshape(-1)[0])
    return found if math.isfinite(found) else None


def factor_of(graph: Graph, node: Node) -> tuple[str, float] | None:
    """What a node multiplies by a number, and the number; None where it does something else."""
    if node.op == "linear" and node.attrs["beta"] == 0.0:
        return node.operands[0], float(node.attrs["alpha"])
    if node.op not in ("mul", "div") or graph.specs[node.outputs[0]].dtype not in FUSIBLE:
        return None
    a, b = node.operands
    by = number(graph, b)
    if node.op == "mul" and by is None:
        a, by = b, number(graph, a)
    if by is None or graph.specs[a] != graph.specs[node.outputs[0]]:
        return None
    if node.op == "div":
        return None if by == 0.0 else (a, 1.0 / by)
    return a, by


def views(graph: Graph, producers: Mapping[str, Node], value: str) -> Iterator[View]:
    """What a value is a view of, from the farthest root to the value itself."""
    chain: list[tuple[Node, str]] = []  # a node, and which of its results is meant
    root = value
    while (node := producers.get(root)) is not None and (source := _source(graph, node)):
        chain.append((node, root))
        root = source
    starts = [made for _, made in chain] + [root]
    for length in range(len(chain), -1, -1):
        dims = graph.specs[starts[length]].dims
        found: View | None = View(starts[length], dims, dense(dims))
        for node, made in reversed(chain[:length]):
            found = None if found is None else _through(graph, node, made, found)
        if found is not None:
            yield found


def dense(dims: Sequence[int]) -> tuple[int, ...]:
    """The strides of a dense tensor."""
    strides, step = [], 1
    for dim in reversed(dims):
        strides.append(step)
        step *= dim
    return tuple(reversed(strides))


def _source(graph: Graph, node: Node) -> str | None:
    """What a node's results are views of, where they may be."""
    if node.op in ("reshape", "transpose", "slice", "split", "identity"):
        return node.inputs[0]
    if node.op == "gather" and _index(graph, node) is not None:
        return node.inputs[0]
    scaled = factor_of(graph, node)
    return None if scaled is None else scaled[0]


def _index(graph: Graph, node: Node) -> int | None:
    """The one constant index that a gather picks."""
    index = node.inputs[1]
    array = None if index is None else graph.constants.get(index)
    return None if array is None or array.ndim else int(array)


def _through(graph: Graph, node: Node, value: str, view: View) -> View | None:
    """The view of a node's result ``value``, given that of what it reads; None: it is none."""
    dims = graph.specs[value].dims
    if node.op == "reshape":
        strides = reshaped(view.dims, view.strides, dims)
        return None if strides is None else replace(view, dims=dims, strides=strides)
    if node.op == "transpose":
        order = node.attrs["permutation"]
        return replace(view, dims=dims, strides=tuple(view.strides[a] for a in order))
    if node.op == "slice":
        starts, steps = node.attrs["starts"], node.attrs["strides"]
        far = sum(s * at for s, at in zip(starts, view.strides, strict=True))
        strides = tuple(s * step for s, step in zip(view.strides, steps, strict=True))
        return replace(view, dims=dims, strides=strides, offset=view.offset + far)
    if node.op == "split":
        axis = node.attrs["axis"]
        before = node.outputs[: node.outputs.index(value)]
        far = sum(graph.specs[v].dims[axis] for v in before) * view.strides[axis]
        return replace(view, dims=dims, offset=view.offset + far)
    if node.op == "gather":
        return _picked(graph, node, view)
    scaled = factor_of(graph, node)
    return view if scaled is None else replace(view, factor=view.factor * scaled[1])


def _picked(graph: Graph, node: Node, view: View) -> View | None:
    axis, index = node.attrs["axis"], _index(graph, node)
    assert index is not None
    index += view.dims[axis] if index < 0 else 0
    if not 0 <= index < view.dims[axis]:
        return None
    return replace(
        view,
        dims=view.dims[:axis] + view.dims[axis + 1 :],
        strides=view.strides[:axis] + view.strides[axis + 1 :],
        offset=view.offset + index * view.strides[axis],
    )


def reshaped(
    dims: Sequence[int], strides: Sequence[int], wanted: Sequence[int]
) -> tuple[int, ...] | None:
    """The strides of a strided tensor under other dimensions; None where it would need a copy."""
    runs: list[tuple[int, int]] = []  # (elements, stride of the last), as long as they are even
    for dim, stride in zip(dims, strides, strict=True):
        if dim == 1:
            continue
        if runs and runs[-1][1] == stride * dim:
            runs[-1] = (runs[-1][0] * dim, stride)
        else:
            runs.append((dim, stride))
    made: list[int] = []
    left, stride = 1, 0
    for dim in reversed(wanted):
        if dim == 1:
            made.append(0)
            continue
        if left == 1:
            if not runs:
                return None
            left, stride = runs.pop()
        if left % dim:
            return None
        made.append(stride)
        left, stride = left // dim, stride * dim
    return tuple(reversed(made)) if left == 1 and not runs else None
