"""Loops that never end, that grow, and loops in loops."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from onnx import TensorProto as T
from onnx import helper, numpy_helper

from tests.runtime.hostile.kit import EITHER, RIGHT, Case, info, model, node, register, saved

STATE = [info("i", T.INT64, ()), info("going", T.BOOL, ())]
ON = info("on", T.BOOL, ())


def body(
    nodes: Sequence[Any], outputs: Sequence[Any], inputs: Sequence[Any] = (), **held: Any
) -> Any:
    """A loop's body whose carried value is v."""
    constants = [numpy_helper.from_array(np.asarray(a), n) for n, a in held.items()]
    carried = [info("v", T.FLOAT, None)] if not inputs else list(inputs)
    return helper.make_graph(list(nodes), "body", [*STATE, *carried], [ON, *outputs], constants)


def looped(
    inner: Any, trips: int | None, start: Any = (1.0, 2.0), outputs: str = "y", **held: Any
) -> Any:
    """A model of one loop over v."""
    constants = {"v0": np.array(start, np.float32), **held}
    if trips is not None:
        constants["n"] = np.array(trips, np.int64)
    loop = node("Loop", f"{'-' if trips is None else 'n'} - v0", outputs, body=inner, name="loop")
    return model([loop], [], outputs.split(), **constants)


PASS = node("Identity", "going", "on")
W = info("w", T.FLOAT, None)
SAME = body([PASS, node("Neg", "v", "w")], [W])


@register
def endless(_rng: random.Random) -> Iterator[Case]:
    """Trip counts and conditions that never end a loop."""
    kind = "loop"
    for power in (20, 31, 62):
        yield Case(kind, f"trips-2^{power}", saved(looped(SAME, 2**power)))
    yield Case(kind, "no-end", saved(looped(SAME, None)))
    true = body([node("Neg", "v", "w")], [W], on=np.array(True))
    yield Case(kind, "always-true", saved(looped(true, None)))
    constant = node("Constant", "", "on", value=numpy_helper.from_array(np.array(True)))
    constant.input[:] = []
    made = body([constant, node("Neg", "v", "w")], [W])
    yield Case(kind, "made-true", saved(looped(made, None)))
    yield Case(kind, "true-by-value", saved(looped(
        body([node("Less", "i", "on", domain=""), node("Neg", "v", "w")], [W]), None
    )))  # fmt: skip
    watched = body([node("Less", "i most", "on"), node("Neg", "v", "w")], [W], most=np.array(2**62))
    yield Case(kind, "ends-at-2^62", saved(looped(watched, None)), slow=True)
    yield Case(kind, "trips-negative", saved(looped(SAME, -(2**62))), RIGHT)
    yield Case(kind, "trips-100", saved(looped(SAME, 100)), RIGHT)
    two = looped(SAME, 1)
    two.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.array([1, 2]), "n"))
    yield Case(kind, "trips-of-two", saved(two))
    words = looped(SAME, 1)
    words.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.array(["9"], dtype=object), "n"))
    yield Case(kind, "trips-of-strings", saved(words))


@register
def growing(_rng: random.Random) -> Iterator[Case]:
    """Carried values, scan outputs and sequences that grow."""
    kind = "loop"
    double = body([PASS, node("Concat", "v v", "w", axis=0)], [W])
    yield Case(kind, "doubles", saved(looped(double, 2**40)))
    yield Case(kind, "doubles-60", saved(looped(double, 60)))
    grow = body([PASS, node("Concat", "v one", "w", axis=0)], [W], one=np.ones(1, np.float32))
    yield Case(kind, "grows", saved(looped(grow, 2**62)))
    yield Case(kind, "grows-40", saved(looped(grow, 40)), RIGHT)
    wide = body(
        [PASS, node("Identity", "v", "w"), node("Expand", "v many", "row")],
        [W, info("row", T.FLOAT, None)], many=np.array([10_000_000, 2]),
    )  # fmt: skip
    yield Case(kind, "scan-output", saved(looped(wide, 10_000, outputs="y rows")))
    sequence = helper.make_tensor_sequence_value_info("s", T.FLOAT, None)
    longer = helper.make_tensor_sequence_value_info("t", T.FLOAT, None)
    for name, trips, expect in (("50", 50, RIGHT), ("2^62", 2**62, "error")):
        inner = helper.make_graph(
            [PASS, node("SequenceInsert", "s big", "t")], "body", [*STATE, sequence], [ON, longer],
            [],
        )  # fmt: skip
        nodes = [
            node("Expand", "one size", "big"),
            node("SequenceEmpty", "", "s0"),
            node("Loop", "n - s0", "y", body=inner),
            node("SequenceLength", "y", "count"),
        ]
        nodes[1].input[:] = []
        proto = model(nodes, [], ["count"], one=np.float32(1), size=np.array([1000]),
                      n=np.array(trips))  # fmt: skip
        yield Case(kind, f"sequence-{name}", saved(proto), expect)


@register
def nested(_rng: random.Random) -> Iterator[Case]:
    """Loops in loops: 10^4 iterations are few, the product of five such loops is not."""
    for levels, trips, expect in ((2, 10, RIGHT), (5, 10_000, "error"), (20, 10, "error")):
        inner = body([PASS, node("Neg", "v", "w")], [W])
        for level in range(1, levels):
            loop = node("Loop", "n - v", "w", body=inner)
            inner = body([PASS, loop], [W])
            _renamed(inner.node[1].attribute[0].g, str(level))
        proto = looped(inner, trips)
        yield Case("loop", f"nested-{trips}^{levels}", saved(proto), expect)
    long = np.zeros((100_000, 2), np.float32)
    inner = helper.make_graph([node("Neg", "v", "w")], "body", [info("v")], [info("w")])
    scan = node("Scan", "rows", "y", body=inner, num_scan_inputs=1)
    yield Case("loop", "scan-100000", saved(model([scan], [], ["y"], rows=long)))
    yield Case("loop", "scan-axis", saved(model([node(
        "Scan", "rows", "y", body=inner, num_scan_inputs=1, scan_input_axes=[99]
    )], [], ["y"], rows=long[:3])))  # fmt: skip
    yield Case("loop", "scan-count", saved(model([node(
        "Scan", "rows", "y", body=inner, num_scan_inputs=2**40
    )], [], ["y"], rows=long[:3])), EITHER)  # fmt: skip


def _renamed(graph: Any, suffix: str) -> None:
    """Give a body's names a suffix, its free ones apart: shadowing is against the rules."""
    own = {v.name for v in graph.input} | {o for n in graph.node for o in n.output}
    own |= {t.name for t in graph.initializer}
    for value in (*graph.input, *graph.output):
        value.name += suffix
    for part in graph.node:
        part.input[:] = [n + suffix if n in own else n for n in part.input]
        part.output[:] = [n + suffix for n in part.output]
    for held in graph.initializer:
        held.name += suffix
