"""What a model may hold beside plain graphs: sparse tensors, functions, types, notes, versions."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto as T
from onnx import helper, numpy_helper

from tests.runtime.hostile.external import tensor
from tests.runtime.hostile.kit import (
    EITHER,
    ERROR,
    RIGHT,
    Case,
    chunk,
    info,
    later,
    model,
    node,
    register,
    saved,
    varint,
)

X, Y = info("x"), info("y")
RELU = node("Relu", "x", "y")


def _sparse(values: Any, indices: Any, dims: Any) -> Any:
    made = onnx.SparseTensorProto(dims=dims)
    made.values.CopyFrom(numpy_helper.from_array(np.asarray(values), "w"))
    made.indices.CopyFrom(numpy_helper.from_array(np.asarray(indices)))
    return made


ONE = np.ones(1, np.float32)
TWO = np.array([1, 2], np.float32)

SPARSE: dict[str, tuple[Any, str]] = {
    "flat": (_sparse(TWO, np.array([0, 3]), [2, 2]), RIGHT),
    "pairs": (_sparse(TWO, np.array([[0, 0], [1, 1]]), [2, 2]), RIGHT),
    "empty": (_sparse(ONE[:0], np.zeros(0, np.int64), [2, 2]), RIGHT),
    "negative": (_sparse(ONE, np.array([-1]), [2, 2]), ERROR),
    "negative-pair": (_sparse(ONE, np.array([[0, -1]]), [2, 2]), ERROR),
    "beyond-pair": (_sparse(ONE, np.array([[0, 2]]), [2, 2]), ERROR),
    "2^62": (_sparse(ONE, np.array([2**62]), [2, 2]), ERROR),
    "more-indices": (_sparse(ONE, np.array([0, 1]), [2, 2]), ERROR),
    "fewer-indices": (_sparse(TWO, np.array([0]), [2, 2]), ERROR),
    "triples": (_sparse(ONE, np.array([[0, 0, 0]]), [2, 2]), ERROR),
    "cube": (_sparse(ONE, np.zeros((1, 1, 1), np.int64), [2, 2]), ERROR),
    "twice": (_sparse(TWO, np.array([1, 1]), [2, 2]), ERROR),
    "unsorted": (_sparse(TWO, np.array([3, 0]), [2, 2]), ERROR),
    "float-indices": (_sparse(ONE, np.zeros(1, np.float32), [2, 2]), ERROR),
    "int32-indices": (_sparse(ONE, np.zeros(1, np.int32), [2, 2]), ERROR),
    "values-2d": (_sparse(np.ones((1, 1), np.float32), np.array([0]), [2, 2]), ERROR),
    "dims-negative": (_sparse(ONE, np.array([0]), [-2, 2]), ERROR),
    "dims-2^62": (_sparse(ONE, np.array([0]), [2**62, 4]), ERROR),
    "dims-2^40": (_sparse(ONE, np.array([0]), [2**40]), ERROR),
    "no-dims": (_sparse(ONE, np.array([0]), []), ERROR),
    "strings": (_sparse(np.array(["a"], object), np.array([0]), [2]), ERROR),
}


@register
def sparse(_rng: random.Random) -> Iterator[Case]:
    """Sparse tensors as initialisers, in attributes, and in attributes of branches."""
    for name, (held, expect) in SPARSE.items():
        proto = model([node("Identity", "w", "y")], [], ["y"])
        proto.graph.sparse_initializer.append(held)
        yield Case("sparse", f"initialiser-{name}", saved(proto), expect)
    for name in ("flat", "beyond-pair", "dims-2^40", "fewer-indices"):
        held, expect = SPARSE[name]
        made = onnx.NodeProto(op_type="Constant", output=["w"])
        made.attribute.append(helper.make_attribute("sparse_value", held))
        proto = model([made, node("Identity", "w", "y")], [], ["y"])
        yield Case("sparse", f"constant-{name}", saved(proto), expect)
        branch = helper.make_graph([made], "b", [], [info("w", T.FLOAT, None)])
        ifs = node("If", "c", "y", then_branch=branch, else_branch=branch)
        yield Case("sparse", f"branch-{name}", saved(model([ifs], [], ["y"], c=np.array(True))),
                   expect)  # fmt: skip


def _called(function: Any, *more: Any, call: Any = None, **options: Any) -> Any:
    nodes = [call or node("f", "x", "y", domain="mine")]
    return saved(model(nodes, [X], [Y], functions=[function, *more], **options))


def _function(nodes: Any, *, name: str = "f", domain: str = "mine", inputs: Any = ("a",),
              outputs: Any = ("b",), opset: int = 17, **more: Any) -> Any:  # fmt: skip
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("mine", 1)]
    return helper.make_function(domain, name, list(inputs), list(outputs), nodes, imports, **more)


@register
def functions(_rng: random.Random) -> Iterator[Case]:
    """Functions that clash with operators or each other, and tensors inside of them."""
    relu = node("Relu", "a", "b")
    outside = tensor({"location": "/etc/hostname"}, dims=(2,))
    held = node("Constant", "", "w")
    held.input[:] = []
    held.attribute.append(helper.make_attribute("value", outside))
    branch = helper.make_graph([held], "g", [], [info("w", T.FLOAT, None)])
    nested = node("If", "a", "b", then_branch=branch, else_branch=branch)
    short = helper.make_attribute("t", T(name="t", data_type=1, dims=[9], raw_data=b"\0"))
    clash = _function([node("Neg", "a", "b")], name="Relu", domain="")
    overloads = [_function([node("Neg", "a", "b")]), _function([relu])]
    overloads[1].overload = "other"
    foreign = _function([node("Relu", "a", "b", domain="nobody")])
    rows: dict[str, tuple[Any, str]] = {
        "external-constant": (_called(_function([held, node("Add", "a w", "b")])), ERROR),
        "external-in-branch": (_called(_function([nested])), ERROR),
        "named-as-an-operator": (_called(clash, call=RELU), EITHER),
        "overloads": (_called(*overloads), RIGHT),
        "inner-domain-unknown": (_called(foreign), ERROR),
        "inputs-twice": (_called(_function([relu], inputs=("a", "a"))), ERROR),
        "outputs-twice": (_called(_function([relu], outputs=("b", "b"))), ERROR),
        "output-not-made": (_called(_function([relu], outputs=("c",))), ERROR),
        "output-is-input": (_called(_function([], outputs=("a",))), RIGHT),
        "reads-the-caller": (_called(_function([node("Add", "a x", "b")])), ERROR),
        "cycle": (_called(_function([node("Add", "a b", "c"), node("Neg", "c", "b")])), ERROR),
        "no-output": (_called(_function([relu], outputs=())), ERROR),
        "nameless": (_called(_function([relu], name="")), ERROR),
        "opset-negative": (_called(_function([relu], opset=-1)), ERROR),
        "opset-2^62": (_called(_function([relu], opset=2**62)), ERROR),
        "other-opset": (_called(_function([relu], opset=6)), RIGHT),
        "default-is-broken": (_called(_function([relu], attribute_protos=[short])), ERROR),
        "attribute-and-default": (
            _called(_function([relu], attributes=["k"],
                              attribute_protos=[helper.make_attribute("k", 1)])),
            EITHER,
        ),
        "unused-and-broken": (_called(_function([relu]), foreign), EITHER),
        "no-domain-import": (_called(_function([relu], domain="far"),
                                     call=node("f", "x", "y", domain="far")), EITHER),
        "shadows-value": (_called(_function([node("Neg", "a", "a")])), ERROR),
    }  # fmt: skip
    for name, (build, expect) in rows.items():
        yield Case("functions", name, build, expect)
    by_reference = onnx.NodeProto(op_type="Softmax", input=["x"], output=["y"])
    by_reference.attribute.add(name="axis", ref_attr_name="axis", type=onnx.AttributeProto.INT)
    yield Case("functions", "reference-outside", saved(model([by_reference], [X], [Y])), EITHER)


def _typed(kind: Any) -> Any:
    value = onnx.ValueInfoProto(name="x")
    value.type.CopyFrom(kind)
    return value


def _wrapped(kind: Any, *, depth: int, optional: bool) -> Any:
    for _ in range(depth):
        made = onnx.TypeProto()
        (made.optional_type if optional else made.sequence_type).elem_type.CopyFrom(kind)
        kind = made
    return kind


@register
def types(_rng: random.Random) -> Iterator[Case]:
    """Declared types that nothing has, and that hold each other."""
    plain = X.type
    mapped = onnx.TypeProto()
    mapped.map_type.key_type = T.FLOAT
    mapped.map_type.value_type.CopyFrom(plain)
    opaque = onnx.TypeProto()
    opaque.opaque_type.name = "thing"
    sparse_type = onnx.TypeProto()
    sparse_type.sparse_tensor_type.elem_type = T.FLOAT
    kinds = {
        "none": onnx.TypeProto(),
        "map": mapped,
        "opaque": opaque,
        "sparse": sparse_type,
        "optional-10": _wrapped(plain, depth=10, optional=True),
        "optional-30": _wrapped(plain, depth=30, optional=True),
        "sequence-of-maps": _wrapped(mapped, depth=1, optional=False),
        "optional-of-nothing": _wrapped(onnx.TypeProto(), depth=1, optional=True),
        "element-0": helper.make_tensor_type_proto(0, (2,)),
        "element-999": helper.make_tensor_type_proto(1, (2,)),
    }
    kinds["element-999"].tensor_type.elem_type = 999
    for name, kind in kinds.items():
        yield Case("types", f"input-{name}", saved(model([RELU], [_typed(kind)], ["y"])))
        value = _typed(kind)
        value.name = "y"
        yield Case("types", f"output-{name}", saved(model([RELU], [X], [value])), EITHER)
        value.name = "h"
        proto = model([node("Neg", "x", "h"), node("Neg", "h", "y")], [X], [Y])
        proto.graph.value_info.append(value)
        yield Case("types", f"inside-{name}", saved(proto), EITHER)
    wrong = model([RELU], [X], [info("y", T.INT64, (7, 7))])
    yield Case("types", "output-declared-wrong", saved(wrong), EITHER)
    flood = model([RELU], [X], [Y])
    flood.graph.value_info.extend(info(f"v{i}") for i in range(20_000))
    yield Case("types", "value-info-flood", saved(flood), RIGHT)


@register
def notes(_rng: random.Random) -> Iterator[Case]:
    """What says something about a model and changes nothing: annotations, metadata, training."""
    proto = model([RELU], [X], [Y])
    note = onnx.TensorAnnotation(tensor_name="x")
    note.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="nobody")
    proto.graph.quantization_annotation.append(note)
    yield Case("notes", "quantisation", saved(proto), RIGHT)
    annotated = model([RELU], [X], [Y])
    annotated.graph.quantization_annotation.extend(note for _ in range(100_000))
    yield Case("notes", "quantisation-flood", saved(annotated), EITHER)
    twice = model([RELU], [X], [Y])
    for value in ("1", "2", ""):
        twice.metadata_props.add(key="k", value=value)
    twice.metadata_props.add()
    yield Case("notes", "metadata-twice", saved(twice), RIGHT)
    many = chunk(14, chunk(1, b"k") + chunk(2, b"v")) * 300_000
    yield Case("notes", "metadata-flood", saved(proto.SerializeToString() + many), RIGHT)
    more = chunk(14, b"") * 3_000_000
    yield Case("notes", "metadata-bomb", saved(proto.SerializeToString() + more), ERROR)
    long = model([RELU], [X], [Y])
    long.doc_string = long.graph.doc_string = "d" * 8_000_000
    long.producer_name = "\u202e\n\0" * 9
    yield Case("notes", "doc-string", saved(long), RIGHT)
    trained = model([RELU], [X], [Y])
    step = trained.training_info.add()
    step.algorithm.CopyFrom(trained.graph)
    step.update_binding.add(key="nobody", value="nothing")
    yield Case("notes", "training", saved(trained), RIGHT)
    broken = model([RELU], [X], [Y])
    broken.training_info.add().initialization.node.append(node("Nobody", "q", "q"))
    yield Case("notes", "training-broken", saved(broken), EITHER)
    deep = b""
    for _ in range(60):
        deep = chunk(1, chunk(5, chunk(1, b"g") + b"\xa0\x01\x05" + chunk(6, deep)))
    data = proto.SerializeToString() + chunk(20, chunk(2, deep))
    yield Case("notes", "training-deep", saved(data), ERROR)
    scattered = model([RELU], [X], [Y])
    scattered.graph.node[0].metadata_props.add(key="a", value="b" * 9999)
    scattered.graph.metadata_props.add(key="a", value="b")
    yield Case("notes", "metadata-of-nodes", saved(scattered), RIGHT)


@register
def versions(_rng: random.Random) -> Iterator[Case]:
    """Operator sets and the format's version: absent, doubled, from another age."""

    def imported(*rows: tuple[str, int]) -> Any:
        proto = model([RELU], [X], [Y])
        del proto.opset_import[:]
        proto.opset_import.extend(onnx.OperatorSetIdProto(domain=d, version=v) for d, v in rows)
        return saved(proto)

    rows = {
        "absent": (imported(), EITHER),
        "only-another": (imported(("ai.onnx.ml", 3)), EITHER),
        "twice-the-same": (imported(("", 17), ("", 17)), RIGHT),
        "twice-not-the-same": (imported(("", 17), ("", 16)), ERROR),
        "long-name": (imported(("ai.onnx", 17)), RIGHT),
        "both-names": (imported(("", 17), ("ai.onnx", 17)), RIGHT),
        "both-names-differ": (imported(("", 17), ("ai.onnx", 7)), ERROR),
        "negative": (imported(("", -1)), ERROR),
        "min": (imported(("", -(2**63))), ERROR),
        "max": (imported(("", 2**63 - 1)), ERROR),
        "unknown-domains": (imported(("", 17), *((f"d{i}", i) for i in range(1000))), RIGHT),
        "odd-domain": (imported(("", 17), ("\u202e\n", 1)), RIGHT),
    }
    for name, (build, expect) in rows.items():
        yield Case("versions", f"opset-{name}", build, expect)
    for version in (0, 1, 3, 99, -1, 2**62, -(2**63)):
        proto = model([RELU], [X], [Y])
        proto.ir_version = version
        yield Case("versions", f"ir-{version}", saved(proto), EITHER)
    proto = model([RELU], [X], [Y])
    proto.ClearField("ir_version")
    yield Case("versions", "ir-absent", saved(proto), EITHER)


@register
def wide(_rng: random.Random) -> Iterator[Case]:
    """Graphs of many paths, readers and results."""
    kind = "wide"
    diamonds = [node("Add", f"v{i} v{i}", f"v{i + 1}") for i in range(60)]
    yield Case(kind, "diamonds-2^60", saved(model(diamonds, [info("v0")], ["v60"])), RIGHT)
    pairs = [
        part
        for i in range(100)
        for part in (node("Neg", f"v{i}", f"a{i}"), node("Relu", f"v{i}", f"b{i}"),
                     node("Sub", f"a{i} b{i}", f"v{i + 1}"))
    ]  # fmt: skip
    yield Case(kind, "diamonds-of-three", saved(model(pairs, [info("v0")], ["v100"])), RIGHT)
    for op, count, expect in (("Sum", 5_000, RIGHT), ("Concat", 5_000, RIGHT),
                              ("Max", 3_000, RIGHT)):  # fmt: skip
        attrs = {"axis": 0} if op == "Concat" else {}
        proto = partial(model, [node(op, "x " * count, "y", **attrs)], [X], ["y"])
        yield Case(kind, f"{op.lower()}-{count}", later(proto), expect)
    parts = node("Split", "x", " ".join(f"y{i}" for i in range(5_000)), axis=0)
    proto = model([parts], [info("x", shape=(5_000,))], [f"y{i}" for i in range(5_000)])
    yield Case(kind, "split-5000", saved(proto), RIGHT)
    outputs = [f"y{i}" for i in range(3_000)]
    many = model([node("Neg", "x", o) for o in outputs], [X], outputs)
    yield Case(kind, "outputs-3000", saved(many), RIGHT)
    inputs = [info(f"x{i}") for i in range(3_000)]
    fed = model([node("Sum", " ".join(i.name for i in inputs), "y")], inputs, ["y"])
    yield Case(kind, "inputs-3000", saved(fed), RIGHT)
    yield Case(kind, "attributes", later(_attributes))
    ints = b"\x08\x08" + chunk(7, chunk(1, chunk(4, b"Relu") + chunk(5, chunk(1, b"a")
                                 + b"\xa0\x01\x07" + chunk(8, varint(1) * 4_000_000))))  # fmt: skip
    yield Case(kind, "ints-4000000", saved(ints))


def _attributes() -> bytes:
    """A node of many attributes, none of which it has."""
    attrs = b"".join(
        chunk(5, chunk(1, b"a%d" % i) + b"\xa0\x01\x02\x18\x01") for i in range(200_000)
    )
    body = chunk(1, chunk(1, b"x") + chunk(2, b"y") + chunk(4, b"Nobody") + attrs)
    body += chunk(11, X.SerializeToString()) + chunk(12, Y.SerializeToString())
    return b"\x08\x0a" + chunk(7, body) + chunk(8, b"\x10\x11")
