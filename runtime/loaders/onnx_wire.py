"""A look over a serialised ModelProto before protobuf makes objects of it.

A parsed message takes up to fifty times the bytes that it has in the file, and protobuf says
nothing of where a file is broken. This walk makes nothing: it follows lengths, with a stack of its
own, counts messages and nested graphs, and names the byte where the encoding breaks. Encoding and
field numbers: Protocol Buffers, "Encoding"; onnx.proto.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from crossdock.runtime.errors import LimitError, MalformedModel
from crossdock.runtime.limits import Limits, too_many_nodes

MESSAGES_A_NODE = 8
"""Messages that a file may have for each node that ``Limits`` allow."""

MAX_NESTED = 100
"""Messages in one another that protobuf reads."""

_MODEL, _GRAPH, _NODE, _FUNCTION, _ATTRIBUTE, _TENSOR, _LEAF = range(7)
_INFO, _TYPE, _DENSE, _LIST, _MAP, _SHAPE, _SPARSE, _TRAINING, _GROUP = range(7, 16)

_FIELDS: Mapping[int, Mapping[int, int]] = {
    _MODEL: {7: _GRAPH, 8: _LEAF, 14: _LEAF, 20: _TRAINING, 25: _FUNCTION},
    _GRAPH: {1: _NODE, 5: _TENSOR, 11: _INFO, 12: _INFO, 13: _INFO, 14: _LEAF, 15: _SPARSE,
             16: _LEAF},
    _NODE: {5: _ATTRIBUTE, 9: _LEAF},
    _FUNCTION: {7: _NODE, 9: _LEAF, 11: _ATTRIBUTE, 12: _INFO, 14: _LEAF},
    _ATTRIBUTE: {5: _TENSOR, 6: _GRAPH, 10: _TENSOR, 11: _GRAPH, 14: _TYPE, 15: _TYPE,
                 22: _SPARSE, 23: _SPARSE},
    _TENSOR: {3: _LEAF, 13: _LEAF, 16: _LEAF},
    _INFO: {2: _TYPE, 4: _LEAF},
    _TYPE: {1: _DENSE, 4: _LIST, 5: _MAP, 7: _LEAF, 8: _DENSE, 9: _LIST},
    _DENSE: {2: _SHAPE},
    _LIST: {1: _TYPE},
    _MAP: {2: _TYPE},
    _SHAPE: {1: _LEAF},
    _SPARSE: {1: _TENSOR, 2: _TENSOR},
    _TRAINING: {1: _GRAPH, 2: _GRAPH, 3: _LEAF, 4: _LEAF},
    _LEAF: {},
    _GROUP: {},
}  # fmt: skip
"""The fields of each kind of message that hold messages; the rest is skipped by its length."""

_SCALARS = re.compile(
    rb"(?:[\x08\x10\x18\x20\x28\x30\x38\x40\x48\x50\x58\x60\x68\x70\x78]"
    rb"[\x80-\xff]{0,9}[\x00-\x7f]|[\x0d\x15\x1d\x25\x2d\x35\x3d\x45\x4d\x55\x5d\x65\x6d\x75\x7d]"
    rb".{4})++",
    re.DOTALL,
)
"""A run of numbers with field numbers below 16: lists of them can be long."""


def scan(data: bytes, label: str, limits: Limits) -> None:
    """Walk over a serialised ModelProto.

    Raises:
        MalformedModel: the encoding is broken, with the offset of the byte.
        LimitError: there are more nodes, messages or nested graphs than ``limits`` allow.
    """
    _Walk(data, label, limits).run()


class _Walk:
    def __init__(self, data: bytes, label: str, limits: Limits) -> None:
        self.data = data
        self.label = label
        self.limits = limits
        self.stack = [(_MODEL, len(data), 0)]  # kind, end, number of the field
        self.graphs = 0
        self.nodes = 0
        self.left = MESSAGES_A_NODE * limits.nodes

    def run(self) -> None:
        """Walk to the end."""
        at = 0
        while self.stack:
            kind, end, _ = self.stack[-1]
            at = self.skipped(at, end, _FIELDS[kind])
            if at < end:
                at = self.field(at, kind, end)
            elif kind == _GROUP:
                raise self.broken(at, "a group has no end")
            else:
                self.stack.pop()
                self.graphs -= kind == _GRAPH

    def skipped(self, at: int, end: int, inside: Mapping[int, int]) -> int:
        """Go over numbers and short strings, which are most of the fields there are."""
        data = self.data
        while at < end:
            key = data[at]
            if key & 0x87 == 2 and key >> 3 not in inside and at + 1 < end and data[at + 1] < 0x80:
                after = at + 2 + data[at + 1]
                if after > end:
                    return at
                at = after
            elif (run := _SCALARS.match(data, at, end)) is not None:
                at = run.end()
            else:
                return at
        return at

    def field(self, at: int, kind: int, end: int) -> int:
        """Go over a field, or into it; the offset of what comes next."""
        start = at
        key, at = self.varint(at, end)
        number, wire = key >> 3, key & 7
        if number == 0:
            raise self.broken(start, "a field has the number 0")
        if wire == 2:
            size, at = self.varint(at, end)
            if size > end - at:
                raise self.broken(
                    start, f"a field claims {size} bytes where {end - at} are left; truncated?"
                )
            inner = _FIELDS[kind].get(number)
            if inner is not None:
                self.enter(inner, at + size, number, start)
                return at
            return at + size
        if wire == 0:
            return self.varint(at, end)[1]
        if wire == 3:
            self.enter(_GROUP, end, number, start)
            return at
        if wire == 4:
            self.leave_group(number, start)
            return at
        width = {1: 8, 5: 4}.get(wire)
        if width is None or at + width > end:
            raise self.broken(start, "a field of no known encoding, or cut off")
        return at + width

    def varint(self, at: int, end: int) -> tuple[int, int]:
        """A number of up to ten bytes, and the offset behind it."""
        value = shift = 0
        for index in range(at, min(end, at + 10)):
            byte = self.data[index]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, index + 1
            shift += 7
        raise self.broken(at, "a number has no end")

    def enter(self, kind: int, end: int, number: int, at: int) -> None:
        """Begin a message, where the budgets allow one more."""
        self.left -= 1
        self.graphs += kind == _GRAPH
        self.nodes += kind == _NODE
        if self.nodes > self.limits.nodes:
            raise too_many_nodes(self.limits, self.label)
        if self.left < 0:
            raise LimitError(
                f"{self.label}: more than {MESSAGES_A_NODE * self.limits.nodes:,} parts at byte "
                f"{at}; raise Limits.nodes if that is right"
            )
        if self.graphs > self.limits.depth:
            raise LimitError(
                f"{self.label}: more than {self.limits.depth} graphs in one another at byte {at}; "
                "raise Limits.depth if that is right"
            )
        if len(self.stack) >= MAX_NESTED:
            raise LimitError(
                f"{self.label}: more than {MAX_NESTED} messages in one another at byte {at}, which "
                "protobuf does not read; write the model with fewer nested graphs or types"
            )
        self.stack.append((kind, end, number))

    def leave_group(self, number: int, at: int) -> None:
        """End a group of an unknown field; it must be the one that is open."""
        kind, _, opened = self.stack[-1]
        if kind != _GROUP or opened != number:
            raise self.broken(at, "a group ends that was not begun")
        self.stack.pop()

    def broken(self, at: int, what: str) -> MalformedModel:
        """The error for an encoding that breaks at an offset."""
        return MalformedModel(
            f"{self.label}: no ONNX model, or a damaged one: the protobuf cannot be decoded from "
            f"byte {at} on: {what}"
        )
