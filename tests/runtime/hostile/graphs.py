"""Graphs that break a rule, functions that explode, and names that are odd but legal."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto as T
from onnx import helper

from tests.runtime.hostile.kit import EITHER, RIGHT, Case, info, later, model, node, register, saved

X, Y = info("x"), info("y")

HOSTILE_NAMES = (
    "a b", "a;b", 'quote"s', "it's", "\\", "\n", "a\nb", "\t", "\0", "\u202eevil", "*/", "/*",
    "// x", "#define X", "__import__('os').system('id')", "{0}", "%s", "%n%n", "${HOME}", "$(id)",
    "`id`", "<script>", "é", "名前", "🦀", "\u00ad", "a" * 5000, "../../etc/passwd", "con", "None",
    "true", "int", "float", "for", "kernel", "t17", "v0", "0", "-1", "1e9", "a.b", "a/b", "a::b",
    "void f(){}", 'asm("int3")', "declare void @exit(i32)", "; ret void", "!dbg", "@x", "%0",
)  # fmt: skip
"""Legal names that mean something to some language or file system."""


def _simple(*nodes: Any, inputs: Any = (X,), outputs: Any = (Y,), **options: Any) -> Any:
    return saved(model(nodes, inputs, outputs, **options))


@register
def rules(_rng: random.Random) -> Iterator[Case]:
    """Values without a maker, with two, in a circle; nodes without what they need."""
    relu = node("Relu", "x", "y")
    branch = helper.make_graph([node("Relu", "x", "b")], "b", [], [info("b")])
    shadow = helper.make_graph([node("Relu", "x", "x")], "b", [], [info("x")])
    cond = info("c", T.BOOL, ())
    rows = {
        "cycle-2": _simple(node("Add", "x b", "a"), node("Relu", "a", "b"), node("Neg", "b", "y")),
        "cycle-1": _simple(node("Add", "x y", "y")),
        "undefined": _simple(node("Add", "x nobody", "y")),
        "output-undefined": _simple(relu, outputs=[Y, info("z")]),
        "output-twice": _simple(relu, outputs=[Y, Y]),
        "no-output": _simple(relu, outputs=[]),
        "made-twice": _simple(relu, node("Neg", "x", "y")),
        "makes-an-input": _simple(relu, node("Neg", "y", "x")),
        "input-twice": _simple(relu, inputs=[X, X]),
        "input-nameless": _simple(relu, inputs=[X, info("")]),
        "missing-operand": _simple(node("Add", "x", "y")),
        "too-many-operands": _simple(node("Relu", "x x x", "y")),
        "unknown-op": _simple(node("Frobnicate", "x", "y")),
        "unknown-domain": _simple(node("Relu", "x", "y", domain="nobody")),
        "no-op-type": _simple(node("", "x", "y")),
        "no-else": _simple(node("If", "c", "y", then_branch=branch), inputs=[X, cond]),
        "no-branches": _simple(node("If", "c", "y"), inputs=[X, cond]),
        "shadowing": _simple(
            node("If", "c", "y", then_branch=shadow, else_branch=branch), inputs=[X, cond]
        ),
        "branch-is-an-int": _simple(
            node("If", "c", "y", then_branch=1, else_branch=2), inputs=[X, cond]
        ),
        "attribute-type": _simple(node("Concat", "x x", "y", axis="zero")),
        "opset-0": _simple(relu, opset=0),
        "opset-10^6": _simple(relu, opset=10**6),
        "opset-negative": _simple(relu, opset=-5),
        "float-of-strings": _simple(node("Add", "x s", "y"), s=np.array(["a", "b"], dtype=object)),
        "loop-without-body": _simple(node("Loop", "- - x", "y")),
        "axis-out-of-range": _simple(node("Softmax", "x", "y", axis=99)),
        "axis-2^62": _simple(node("Softmax", "x", "y", axis=2**62)),
        "perm-doubled": _simple(
            node("Transpose", "x", "y", perm=[0, 0]), inputs=[info("x", shape=(2, 2))]
        ),
    }
    for name, build in rows.items():
        yield Case("graph-rule", name, build)
    names = {"attribute-twice": "axis", "attribute-nameless": ""}
    for name, second in names.items():
        concat = node("Concat", "x x", "y", axis=0)
        concat.attribute.append(helper.make_attribute("axis", 0))
        concat.attribute[1].name = second
        yield Case("graph-rule", name, _simple(concat))
    dead = [node("Relu", "x", "unused"), node("Relu", "x", "y")]
    yield Case("graph-rule", "dead-node", _simple(*dead), RIGHT)
    late = [node("Relu", "h", "y"), node("Neg", "x", "h")]
    yield Case("graph-rule", "out-of-order", _simple(*late), RIGHT)


def _function(name: str, calls: list[str], **attrs: Any) -> Any:
    """A function that passes its input through other functions, one after the other."""
    nodes = [
        node(call, f"v{i}", f"v{i + 1}", domain="" if call == "Relu" else "mine", **attrs)
        for i, call in enumerate(calls)
    ]
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("mine", 1)]
    return helper.make_function("mine", name, ["v0"], [f"v{len(calls)}"], nodes, imports)


def _calling(name: str, functions: list[Any]) -> Any:
    return _simple(node(name, "x", "y", domain="mine"), functions=functions)


@register
def functions(_rng: random.Random) -> Iterator[Case]:
    """Recursion, chains, and functions that double at every level."""
    kind = "functions"
    yield Case(kind, "calls-itself", _calling("f", [_function("f", ["f"])]))
    pair = [_function("f", ["g"]), _function("g", ["f"])]
    yield Case(kind, "call-each-other", _calling("f", pair))
    for wide, levels in ((2, 40), (10, 10), (10, 31), (100, 9), (2, 20)):
        laughs = [_function("f0", ["Relu"])]
        laughs += [_function(f"f{k}", [f"f{k - 1}"] * wide) for k in range(1, levels)]
        yield Case(kind, f"laughs-{wide}^{levels}", _calling(f"f{levels - 1}", laughs))
    for depth in (20, 100, 10_000):
        chain = [_function("f0", ["Relu"])]
        chain += [_function(f"f{k}", [f"f{k - 1}"]) for k in range(1, depth)]
        expect = RIGHT if depth < 30 else "error"
        yield Case(kind, f"chain-{depth}", _calling(f"f{depth - 1}", chain), expect)
    twice = [_function("f", ["Relu"]), _function("f", ["Relu", "Relu"])]
    yield Case(kind, "defined-twice", _calling("f", twice))
    yield Case(kind, "too-many-inputs", _simple(
        node("f", "x x x", "y", domain="mine"), functions=[_function("f", ["Relu"])]
    ))  # fmt: skip


@register
def names(_rng: random.Random) -> Iterator[Case]:
    """Legal names that some language would take for its own; the model must run all the same."""
    for index, name in enumerate(HOSTILE_NAMES):
        y = info("y")
        proto = model([], [info("in")], [y])
        made = helper.make_node("Relu", ["in"], [f"{name}~"], name=name)
        chain = [
            made,
            helper.make_node("Add", [f"{name}~", name], ["y"], name=f"{name} "),
        ]
        proto.graph.node.extend(chain)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(2, np.float32), name))
        proto.graph.doc_string = name
        yield Case(
            "names", f"{index:02}", saved(proto), RIGHT,
            check=lambda out: bool((out["y"] == 1).all()),
        )  # fmt: skip
    same = model(
        [
            helper.make_node("Relu", ["x"], ["a b"], name="a b"),
            helper.make_node("Neg", ["a b"], ["a_b"], name="a_b"),
            helper.make_node("Sub", ["a_b", "one"], ["y"], name="a.b"),
        ],
        [X], [Y], one=np.float32(1),
    )  # fmt: skip
    yield Case("names", "equal-once-cleaned", saved(same), RIGHT,
               check=lambda out: bool((out["y"] == -1).all()))  # fmt: skip
    symbol = model([node("Relu", "x", "y")], [info("x", shape=("n; rm -rf /", "a\nb"))], ["y"])
    yield Case("names", "dim-param", saved(symbol), RIGHT)
    yield Case("names", "op-type", _simple(node("Relu; id", "x", "y")))
    einsum = node("Einsum", "x x", "y", equation="i,i->__import__('os')")
    yield Case("names", "equation", _simple(einsum))
    mode = node("Pad", "x p", "y", mode="constant*/ int3 /*")
    yield Case("names", "mode", _simple(mode, p=np.array([0, 1])))


@register
def large(rng: random.Random) -> Iterator[Case]:
    """Legal models of many nodes."""
    for count, slow, seconds in ((2_000, False, 10), (20_000, True, 10), (100_000, True, 60)):
        yield Case("large", f"chain-{count}", later(partial(_chain, count)), RIGHT, slow=slow,
                   seconds=seconds)  # fmt: skip
    count = 2_000
    wide = [node("Neg", "x", f"a{i}") for i in range(count)]
    joined = node("Sum", " ".join(f"a{i}" for i in range(count)), "y")
    yield Case("large", "wide", _simple(*wide, joined), RIGHT)
    order = list(range(count))
    rng.shuffle(order)
    mixed = [node("Neg", f"v{i}", f"v{i + 1}") for i in order]
    yield Case("large", "shuffled", saved(model(mixed, [info("v0")], [info(f"v{count}")])), RIGHT)
    same = [node("Neg", f"v{i}", f"v{i + 1}", name="n") for i in range(count)]
    yield Case("large", "one-name", saved(model(same, [info("v0")], [info(f"v{count}")])), RIGHT)
    held = {f"w{i}": np.ones(2, np.float32) for i in range(count)}
    sums = [node("Add", f"v{i} w{i}", f"v{i + 1}") for i in range(count)]
    yield Case("large", "constants", saved(
        model(sums, [info("v0")], [info(f"v{count}")], **held)
    ), RIGHT, check=lambda out: bool((out[f"v{count}"] == count).all()))  # fmt: skip
    yield Case("large", "chain-300000", later(partial(_chain, 300_000)), EITHER, slow=True)


def _chain(count: int) -> Any:
    ops = [node("Neg", f"v{i}", f"v{i + 1}", name=f"n{i}") for i in range(count)]
    return model(ops, [info("v0")], [info(f"v{count}")])
