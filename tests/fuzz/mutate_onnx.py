"""ONNX models changed as messages: a field of some message in them, then written again.

Most changes are to any field of any message by the format's own description; some keep a model
likely to load: another operator, an attribute that the operator has, a tensor of another shape with
data to match.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from onnx import TensorProto as T

from tests.fuzz.mutate import FLOATS, NUMBERS, WORDS, plain

Rng = random.Random

MOST = 5_000
"""Messages of a model that are looked at."""

DOMAINS = ("", "", "", "ai.onnx", "ai.onnx.ml", "com.microsoft", "mine", "ai.onnx.preview.training")
LOCATIONS = (
    "w", "w", "a/b/w", "./w", "../elsewhere/w", "/etc/hostname", "link", "hard", "pipe", "dir",
    "d/w", "w/", "a/../w", "%77", "..\\w", "w\0", "", "/dev/zero", "a//b/w", "circle",
)  # fmt: skip
KEYS = ("location", "offset", "length", "checksum", "basepath", "Location")
COUNTS = (
    "0",
    "24",
    "4",
    "-1",
    "1e3",
    "0x18",
    " 24",
    "+24",
    "٢",
    "9" * 30,
    "18446744073709551592",
    "",
)

_INTEGERS = {
    FieldDescriptor.CPPTYPE_INT32: 32, FieldDescriptor.CPPTYPE_INT64: 64,
    FieldDescriptor.CPPTYPE_UINT32: 32, FieldDescriptor.CPPTYPE_UINT64: 64,
}  # fmt: skip
_UNSIGNED = (FieldDescriptor.CPPTYPE_UINT32, FieldDescriptor.CPPTYPE_UINT64)


def model(data: bytes, rng: Rng, donors: Sequence[bytes] = (), *, external: bool = False) -> bytes:
    """A serialised ModelProto with some fields changed; plainly changed where it is none.

    ``external``: tensors may come to say that their data is in another file.
    """
    proto = parsed(data)
    if proto is None or rng.random() < 0.05:
        return plain(data, rng)
    other = parsed(rng.choice(donors)) if donors and rng.random() < 0.3 else None
    for _ in range(rng.choice((1, 1, 1, 1, 2, 3, 5))):
        if external and rng.random() < 0.3:
            _external(proto, rng)
        else:
            _step(proto, other or proto, rng)
    try:
        return bytes(proto.SerializeToString())
    except (ValueError, DecodeError):  # grown over what a message may have
        return plain(data, rng)


def crossed(data: bytes, donor: bytes, rng: Rng) -> bytes:
    """A model with parts of another in it."""
    proto, other = parsed(data), parsed(donor)
    if proto is None or other is None:
        return plain(data, rng)
    for _ in range(rng.choice((1, 2, 4))):
        _graft(proto, other, rng)
    return bytes(proto.SerializeToString())


def parsed(data: bytes) -> Any:
    """The message, or None."""
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except (DecodeError, RecursionError):
        return None
    return proto


def _step(proto: Any, other: Any, rng: Rng) -> None:
    known = (_operator, _attribute, _tensor, _declared, _reader, _opset)
    step = rng.choice(known) if rng.random() < 0.5 else rng.choice((_field, _field, _field, _graft))
    if step is _graft:
        _graft(proto, other, rng)
    else:
        step(proto, rng)


def messages(proto: Message) -> list[Message]:
    """The message and those in it, up to ``MOST``."""
    stack, found = [proto], []
    while stack and len(found) < MOST:
        at = stack.pop()
        found.append(at)
        for field, value in at.ListFields():
            if field.message_type is not None:
                stack.extend(value if _many(value) else [value])
    return found


def _many(value: Any) -> bool:
    return not isinstance(value, Message | int | float | str | bytes)


def _of(proto: Any, name: str) -> list[Any]:
    return [m for m in messages(proto) if m.DESCRIPTOR.name == name]


# --- any field ------------------------------------------------------------------------------------


def _field(proto: Any, rng: Rng) -> None:
    at = rng.choice(messages(proto))
    set_ones = [f for f, _ in at.ListFields()]
    fields = set_ones if set_ones and rng.random() < 0.8 else list(at.DESCRIPTOR.fields)
    if not fields:
        return
    field = rng.choice(fields)
    value = getattr(at, field.name)
    if _many(value):
        _list(value, field, proto, rng)
    elif field.message_type is not None:
        at.ClearField(field.name) if rng.random() < 0.5 else value.SetInParent()
    elif rng.random() < 0.15:
        at.ClearField(field.name)
    else:
        _put(at, field, _scalar(field, value, proto, rng))


def _put(at: Any, field: Any, value: Any) -> None:
    try:
        setattr(at, field.name, value)
    except (ValueError, TypeError):  # an enumeration takes no other number
        at.ClearField(field.name)


def _list(values: Any, field: Any, proto: Any, rng: Rng) -> None:
    size = len(values)
    what = rng.randrange(5)
    if size and what == 0:
        del values[rng.randrange(size)]
    elif field.message_type is not None:
        if size and what == 1:
            held = type(values[0])()
            held.CopyFrom(values[rng.randrange(size)])
            values.add().CopyFrom(held)
        elif size > 1 and what == 2:
            one, two = rng.sample(range(size), 2)
            held = type(values[one])()
            held.CopyFrom(values[one])
            values[one].CopyFrom(values[two])
            values[two].CopyFrom(held)
        elif what == 3:
            values.add()
        elif size:
            del values[rng.randrange(size) :]
    elif size and what < 3:
        at = rng.randrange(size)
        values[at] = _scalar(field, values[at], proto, rng)
    elif what == 3:
        values.append(_scalar(field, values[0] if size else _default(field), proto, rng))
    else:
        values.extend(list(values)[: 1 << 12])


def _default(field: Any) -> Any:
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return b"" if field.type == FieldDescriptor.TYPE_BYTES else ""
    return 0


def _scalar(field: Any, value: Any, proto: Any, rng: Rng) -> Any:
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return _string(field, value, proto, rng)
    if field.cpp_type in _INTEGERS:
        near = (value + 1, value - 1, 2 * value, -value)
        return _fits(rng.choice((*NUMBERS, *near, *near)), field)
    if field.cpp_type == FieldDescriptor.CPPTYPE_ENUM:
        return rng.randrange(0, 30)
    made = rng.choice((*FLOATS, value * 2, -value))
    return made if abs(made) < 3.4e38 or field.cpp_type != FieldDescriptor.CPPTYPE_FLOAT else 3e38


def _fits(value: int, field: Any) -> int:
    bits = _INTEGERS[field.cpp_type]
    value &= (1 << bits) - 1
    unsigned = field.cpp_type in _UNSIGNED or value < 1 << (bits - 1)
    return value if unsigned else value - (1 << bits)


def _string(field: Any, value: Any, proto: Any, rng: Rng) -> Any:
    if field.type == FieldDescriptor.TYPE_BYTES:
        odd = (plain(value, rng), value + b"\0", value[:-1], b"", rng.choice(WORDS).encode())
        return rng.choice(odd)
    if field.name == "op_type":
        return rng.choice(_operators())
    if field.name == "domain":
        return rng.choice(DOMAINS)
    if field.name in ("key", "value") and field.containing_type.name == "StringStringEntryProto":
        return rng.choice(KEYS if field.name == "key" else (*LOCATIONS, *COUNTS))
    names = _names(proto)
    if names and rng.random() < 0.7:
        return rng.choice(names)
    return rng.choice((*WORDS, value + "x", value[:-1]))


def _names(proto: Any) -> list[str]:
    return [name for n in proto.graph.node for name in (*n.input, *n.output)][:500]


def _graft(proto: Any, other: Any, rng: Rng) -> None:
    """A part of another model in the place of one, or beside one, of the same kind."""
    parts = messages(other)[1:]
    if not parts:
        return
    chosen = rng.choice(parts)
    kind = chosen.DESCRIPTOR.name
    part = type(chosen)()  # it may hold the place that it is put into
    part.CopyFrom(chosen)
    holders = [
        (at, field)
        for at in messages(proto)
        for field in at.DESCRIPTOR.fields
        if field.message_type is not None and field.message_type.name == kind
    ]
    if not holders:
        return
    at, field = rng.choice(holders)
    value = getattr(at, field.name)
    if not _many(value):
        value.CopyFrom(part)
    elif len(value) and rng.random() < 0.5:
        value[rng.randrange(len(value))].CopyFrom(part)
    else:
        value.add().CopyFrom(part)


# --- likely to load -------------------------------------------------------------------------------


@cache
def _operators() -> list[str]:
    return sorted({s.name for s in onnx.defs.get_all_schemas()})


@cache
def _by_inputs() -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for schema in onnx.defs.get_all_schemas():
        for count in range(schema.min_input, min(schema.max_input, 6) + 1):
            found.setdefault(count, []).append(schema.name)
    return found


def _operator(proto: Any, rng: Rng) -> None:
    """Another operator that takes as many inputs."""
    nodes = _of(proto, "NodeProto")
    if nodes:
        node = rng.choice(nodes)
        node.op_type = rng.choice(_by_inputs().get(len(node.input)) or _operators())
        if rng.random() < 0.7:
            del node.attribute[:]


def _attribute(proto: Any, rng: Rng) -> None:
    """An attribute that the operator has, of its type, with some value."""
    nodes = _of(proto, "NodeProto")
    if not nodes:
        return
    node = rng.choice(nodes)
    if not onnx.defs.has(node.op_type, node.domain):
        return
    known = onnx.defs.get_schema(node.op_type, node.domain).attributes
    if not known:
        return
    name = rng.choice(sorted(known))
    value = _value(str(known[name].type).rpartition(".")[2], rng)
    if value is None:
        return
    kept = [a for a in node.attribute if a.name != name]
    del node.attribute[:]
    node.attribute.extend(kept)
    node.attribute.append(onnx.helper.make_attribute(name, value))


def _value(kind: str, rng: Rng) -> Any:
    small = (0, 1, 2, 3, -1, -2, 4, 7, 11, 16)
    number = lambda: rng.choice(small if rng.random() < 0.8 else NUMBERS)  # noqa: E731
    match kind:
        case "INT":
            return number()
        case "INTS":
            return [number() for _ in range(rng.randrange(1, 7))]
        case "FLOAT":
            return rng.choice(FLOATS[:9])
        case "FLOATS":
            return [rng.choice(FLOATS[:9]) for _ in range(rng.randrange(1, 5))]
        case "STRING":
            return rng.choice(
                (*WORDS[:8], "linear", "nearest", "constant", "reflect", "SAME_UPPER", "ij,jk")
            )
        case "STRINGS":
            return [rng.choice(("Relu", "Tanh", "x"))] * rng.randrange(1, 4)
        case "TENSOR":
            return onnx.numpy_helper.from_array(_array(rng), "")
    return None


def _array(rng: Rng) -> Any:
    shape = tuple(rng.choice((0, 1, 1, 2, 3, 4)) for _ in range(rng.randrange(4)))
    dtype = rng.choice((np.float32, np.int64, np.int32, np.bool_, np.float64, np.uint8))
    values = [rng.choice((-2, -1, 0, 1, 2, 3)) for _ in range(int(np.prod(shape)))]
    return np.array(values).reshape(shape).astype(dtype)


def _tensor(proto: Any, rng: Rng) -> None:
    """An initialiser of another shape, type or content, with data to match."""
    held = _of(proto, "TensorProto")
    if not held:
        return
    tensor = rng.choice(held)
    name = tensor.name
    tensor.CopyFrom(onnx.numpy_helper.from_array(_array(rng), name))


def _declared(proto: Any, rng: Rng) -> None:
    """Another type or shape of a declared value; or nothing declared of the outputs."""
    if rng.random() < 0.3:
        for value in proto.graph.output:
            value.ClearField("type")
        return
    values = [*proto.graph.input, *proto.graph.output]
    if not values:
        return
    kind = rng.choice(values).type.tensor_type
    if rng.random() < 0.4:
        kind.elem_type = rng.choice(
            (T.FLOAT, T.INT64, T.BOOL, T.FLOAT16, T.INT32, T.STRING, T.UINT8)
        )
        return
    dims = kind.shape.dim
    match rng.randrange(4):
        case 0:
            dims.add().dim_value = rng.choice((0, 1, 2, 3, 2**31, 2**62, -1))
        case 1 if len(dims):
            del dims[rng.randrange(len(dims))]
        case 2 if len(dims):
            rng.choice(dims).dim_param = rng.choice(("n", "N", "?", "", "a b", "名", "0", "-1"))
        case _ if len(dims):
            rng.choice(dims).dim_value = rng.choice((0, 1, 2, 3, 5, 16))


def _reader(proto: Any, rng: Rng) -> None:
    """One more node that reads what is there, its result an output."""
    names = [v.name for v in (*proto.graph.input, *proto.graph.initializer)] + _names(proto)
    if not names:
        return
    schema = rng.choice(onnx.defs.get_all_schemas())
    count = rng.randint(schema.min_input, max(schema.min_input, min(schema.max_input, 4)))
    made = f"made{len(proto.graph.node)}"
    proto.graph.node.add(op_type=schema.name, domain=schema.domain, output=[made],
                         input=[rng.choice(names) for _ in range(count)])  # fmt: skip
    proto.graph.output.add(name=made)
    if schema.domain and schema.domain not in {o.domain for o in proto.opset_import}:
        proto.opset_import.add(domain=schema.domain, version=schema.since_version)


def _external(proto: Any, rng: Rng) -> None:
    """A tensor whose data is said to be in another file."""
    held = _of(proto, "TensorProto")
    if not held:
        return
    tensor = rng.choice(held)
    for name in ("raw_data", "float_data", "int32_data", "int64_data", "external_data"):
        tensor.ClearField(name)
    tensor.data_location = T.EXTERNAL
    rows = {"location": rng.choice(LOCATIONS)}
    if rng.random() < 0.5:
        rows[rng.choice(KEYS)] = rng.choice(COUNTS)
    for key, value in rows.items():
        tensor.external_data.add(key=key, value=value)


def _opset(proto: Any, rng: Rng) -> None:
    """Another version of the operators, as models of all ages have."""
    for item in proto.opset_import:
        if not item.domain:
            item.version = rng.randint(1, 27) if rng.random() < 0.9 else rng.choice(NUMBERS)
