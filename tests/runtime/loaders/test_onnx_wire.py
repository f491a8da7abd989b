"""The walk over the bytes of a model: where they break, and what there is too much of."""

from __future__ import annotations

from typing import Any

import onnx
import pytest

from crossdock.runtime.errors import LimitError, LoadError, MalformedModel, UnsafeModel
from crossdock.runtime.limits import Limits
from crossdock.runtime.loaders import load
from crossdock.runtime.loaders.onnx_wire import MESSAGES_A_NODE, scan
from tests.runtime.hostile.encoded import _nested_ifs, _nested_type
from tests.runtime.hostile.kit import chunk, info, model, node, seed_model

SOUND = seed_model().SerializeToString()


@pytest.mark.parametrize(
    ("rest", "what"),
    [
        (b"\x08" + b"\xff" * 20, "a number has no end"),
        (b"\x08\xff", "a number has no end"),
        (b"\x00\x00", "a field has the number 0"),
        (b"\x7f\x00", "a field of no known encoding"),
        (b"\x0d\x00", "a field of no known encoding, or cut off"),
        (b"\xa3\x06", "a group has no end"),
        (b"\xa4\x06", "a group ends that was not begun"),
        (b"\xa3\x06\xac\x06", "a group ends that was not begun"),
        (b"\x3a\x05\x08", "a field claims 5 bytes where 1 are left"),
    ],
)
def test_the_byte_and_what_is_wrong_there(rest: bytes, what: str) -> None:
    at = rf"from byte ({len(SOUND)}|{len(SOUND) + 1}|{len(SOUND) + 2}|{len(SOUND + rest)}) on"
    with pytest.raises(MalformedModel, match=rf"{at}: {what}"):
        scan(SOUND + rest, "m", Limits())


def test_what_the_walk_leaves_to_protobuf_is_no_error_of_another_kind() -> None:
    """It skips numbers that are packed, in which a number may have no end."""
    broken = SOUND + chunk(7, chunk(5, chunk(1, b"\xff")))
    scan(broken, "m", Limits())
    with pytest.raises(MalformedModel, match="the protobuf cannot be decoded"):
        load(broken)


def test_nodes_and_their_parts_are_counted_before_they_are_made() -> None:
    data = chunk(7, chunk(1, b"") * 9)
    scan(data, "m", Limits(nodes=9))
    with pytest.raises(LimitError, match=r"more than 8 nodes; raise Limits\.nodes"):
        scan(data, "m", Limits(nodes=8))
    parts = chunk(7, chunk(13, b"") * (MESSAGES_A_NODE - 1))
    scan(parts, "m", Limits(nodes=1))
    with pytest.raises(LimitError, match=rf"more than {MESSAGES_A_NODE} parts at byte \d+"):
        scan(parts + chunk(7, b""), "m", Limits(nodes=1))


@pytest.mark.parametrize("data", [_nested_type(10_000), SOUND + b"\xa3\x06" * 101])
def test_messages_in_one_another(data: bytes) -> None:
    with pytest.raises(LimitError, match="more than 100 messages in one another at byte"):
        scan(data, "m", Limits())


def proto_of(data: bytes) -> Any:
    made = onnx.ModelProto()
    made.ParseFromString(data)
    return made


def test_graphs_in_one_another_where_there_are_no_bytes() -> None:
    proto = proto_of(_nested_ifs(5))
    assert load(proto, limits=Limits(depth=6))
    with pytest.raises(LimitError, match="more than 5 graphs in one another, at 'g0'"):
        load(proto, limits=Limits(depth=5))


@pytest.mark.parametrize("depth", [20, 40])
def test_types_in_one_another(depth: int) -> None:
    with pytest.raises(MalformedModel, match="the type of 'x' is nested too deep"):
        load(_nested_type(depth))


class Endless:
    """A file object that never ends."""

    def __init__(self) -> None:
        self.given = 0

    def read(self, size: int) -> bytes:
        self.given += size
        assert self.given < 1 << 30, "nobody stops reading"
        return bytes(size)


def test_a_file_object_is_read_up_to_the_limit() -> None:
    source: Any = Endless()
    with pytest.raises(UnsafeModel, match=r"raise Limits\.file_bytes"):
        load(source, limits=Limits(file_bytes=1 << 25))
    assert source.given <= 1 << 26


@pytest.mark.parametrize("name", ["\u202egnp.exe", "a\nb", "n" * 5000, "\x1b[31m"])
def test_names_in_messages_are_escaped_and_cut(name: str) -> None:
    broken = node("Relu", "nothing", "y")
    broken.name, broken.input[0] = name, name
    with pytest.raises(LoadError) as caught:
        load(model([broken], [info("x")], ["y"]))
    text = str(caught.value)
    assert text.isprintable()
    assert len(text) < 400
    assert repr(name if len(name) <= 80 else f"{name[:77]}...") in text
