"""What the runtime's tests draw: steps with waits, and graphs whose answers are exact.

Graphs compute with small whole numbers, which every type holds exactly: an answer that differs by
anything is a missing wait, a copy too few or an arena used twice, never rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from hypothesis import strategies as st

import crossdock as xd
from crossdock.runtime.graph import Graph
from crossdock.runtime.operand import Operand
from crossdock.runtime.plan import Step
from crossdock.runtime.tensor import to_numpy
from tests.runtime import handmade

Array = np.ndarray[Any, np.dtype[Any]]
SHAPE = (3, 4)
QUEUES = ("cpu:0/compute", "a:0/compute", "a:0/upload", "a:0/download", "b:0/compute")


def step(
    index: int,
    queue: str,
    waits: tuple[int, ...] = (),
    *,
    inputs: tuple[str | None, ...] = (),
    outputs: tuple[str, ...] = (),
    src: str = "",
    dst: str = "",
    seconds: float = 1.0,
) -> Step:
    """A step with what order and segments look at; ``src`` makes it a copy."""
    made = handmade.step(index, queue, seconds, waits)
    if src:
        made = replace(made, kind="copy", name=inputs[0] or "", src=src, dst=dst)
    return replace(made, inputs=inputs, outputs=outputs)


@st.composite
def waiting_steps(draw: st.DrawFn) -> list[Step]:
    """Up to 24 steps on up to five queues, each waiting for up to four earlier ones."""
    made = []
    for index in range(draw(st.integers(0, 24))):
        earlier = st.sets(st.integers(0, index - 1), max_size=4) if index else st.just(set())
        made.append(step(index, draw(st.sampled_from(QUEUES)), tuple(sorted(draw(earlier)))))
    return made


@dataclass
class Drawn:
    """A graph under construction: operands by type, and how many nodes were labelled."""

    b: xd.GraphBuilder = field(default_factory=xd.GraphBuilder)
    values: list[Operand] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)

    def label(self) -> str:
        """A new node's name."""
        self.labels.append(f"n{len(self.labels)}")
        return self.labels[-1]


def _clamped(d: Drawn, x: Operand, *, low: float = -4.0) -> Operand:
    """Keep numbers small enough to be exact in float16, and signed where ``low`` is negative."""
    return d.b.clamp(x, min_value=low, max_value=4.0, label=d.label())


def _binary(name: str) -> Callable[[Drawn, Operand, Operand], Sequence[Operand]]:
    return lambda d, x, y: [_clamped(d, getattr(d.b, name)(x, y, label=d.label()))]


def _matmul(d: Drawn, x: Operand, y: Operand) -> Sequence[Operand]:
    """(3, 4) times (4, 3) times (3, 4); sums of whole numbers below 2^11."""
    square = _clamped(d, d.b.matmul(x, d.b.transpose(y, label=d.label()), label=d.label()))
    return [_clamped(d, d.b.matmul(square, y, label=d.label()))]


def _split(d: Drawn, x: Operand, y: Operand) -> Sequence[Operand]:
    """Two results, one of which may go unused; joined again the other way round."""
    first, second = d.b.split(x, 2, axis=1, label=d.label())
    joined = d.b.concat([second, first], 1, label=d.label())
    d.b.split(y, [1, 3], axis=1, label=d.label())
    return [joined]


def _alias(d: Drawn, x: Operand, y: Operand) -> Sequence[Operand]:
    """The same bytes under another shape, an op on them, and back."""
    del y
    flat = d.b.reshape(x, [12], label=d.label())
    doubled = _clamped(d, d.b.add(flat, flat, label=d.label()))
    return [d.b.reshape(doubled, [3, 4], label=d.label()), d.b.reshape(flat, [3, 4])]


def _through(dtype: str) -> Callable[[Drawn, Operand, Operand], Sequence[Operand]]:
    """A detour through another type, with a copy made in it."""

    def apply(d: Drawn, x: Operand, y: Operand) -> Sequence[Operand]:
        low = 0.0 if dtype in ("uint8", "uint32") else -4.0
        there = d.b.cast(_clamped(d, x, low=low), dtype, label=d.label())
        turned = d.b.transpose(there, label=d.label())
        back = d.b.cast(d.b.transpose(turned, label=d.label()), "float32", label=d.label())
        return [d.b.add(back, y, label=d.label())]

    return apply


def _compare(d: Drawn, x: Operand, y: Operand) -> Sequence[Operand]:
    """A truth value (uint8) that chooses."""
    return [d.b.where(d.b.greater(x, y, label=d.label()), x, y, label=d.label())]


def _reduce(d: Drawn, x: Operand, y: Operand) -> Sequence[Operand]:
    """A small tensor that is broadcast again."""
    total = _clamped(d, d.b.reduce_sum(x, axes=[1], keep_dimensions=True, label=d.label()))
    return [_clamped(d, d.b.add(total, y, label=d.label()))]


OPS: dict[str, Callable[[Drawn, Operand, Operand], Sequence[Operand]]] = {
    "add": _binary("add"),
    "sub": _binary("sub"),
    "mul": _binary("mul"),
    "max": _binary("max"),
    "matmul": _matmul,
    "split": _split,
    "alias": _alias,
    "compare": _compare,
    "reduce": _reduce,
    "uint8": _through("uint8"),
    "int64": _through("int64"),
    "float16": _through("float16"),
}


@st.composite
def exact_graphs(draw: st.DrawFn, most: int = 10) -> Graph:
    """Graphs of whole numbers, with aliases, unused results and inputs, and odd outputs.

    Outputs may be inputs, constants, reshaped inputs and one value several times.
    """
    d = Drawn()
    d.values = [d.b.input("a", SHAPE), d.b.input("b", SHAPE), d.b.input("unused", (5,))][:2]
    d.values.append(d.b.constant(np.arange(12, dtype=np.float32).reshape(SHAPE) % 5 - 2))
    for _ in range(draw(st.integers(0, most))):
        x, y = (d.values[draw(st.integers(0, len(d.values) - 1))] for _ in range(2))
        made = OPS[draw(st.sampled_from(sorted(OPS)))](d, x, y)
        d.values += [_whole(d, v) for v in made]
    ends = draw(st.lists(st.integers(0, len(d.values) - 1), min_size=1, max_size=4))
    outputs = {f"y{i}": d.values[at] for i, at in enumerate(ends)}
    if draw(st.booleans()):
        outputs["flat"] = d.b.reshape(d.values[ends[0]], [4, 3])
    leaves = {d.values[i].name for i in range(3)}
    graph = d.b.build({n: _alone(d, v) if v.name in leaves else v for n, v in outputs.items()})
    if draw(st.booleans()):  # loaders may name inputs and constants as outputs; the builder not
        ends_of = {n: v.name if v.name in leaves else graph.outputs[n] for n, v in outputs.items()}
        graph = replace(graph, outputs=ends_of)
    return graph.check()


def _alone(d: Drawn, x: Operand) -> Operand:
    return d.b.identity(x, label=d.label())


def _whole(d: Drawn, x: Operand) -> Operand:
    return x if x.shape == SHAPE else d.b.reshape(x, list(SHAPE))


def whole_feeds(graph: Graph, seed: int) -> dict[str, Array]:
    """Small whole numbers for every input, others for every seed."""
    rng = np.random.default_rng(seed)
    return {
        name: rng.integers(-3, 4, spec.dims).astype(to_numpy(spec.dtype))
        for name, spec in graph.inputs.items()
    }
