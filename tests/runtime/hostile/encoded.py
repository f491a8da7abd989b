"""Files whose bytes are broken, and files that are something else."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import random
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from onnx import TensorProto as T

from tests.runtime.hostile.kit import (
    EITHER,
    RIGHT,
    Case,
    chunk,
    info,
    later,
    model,
    node,
    register,
    saved,
    seed_model,
    varint,
    written,
)

CUTS, FLIPS = 24, 48


@register
def damaged(rng: random.Random) -> Iterator[Case]:
    """Truncated anywhere, and with single bits or whole bytes changed."""
    data = seed_model().SerializeToString()
    for cut in sorted(rng.sample(range(1, len(data)), CUTS)):
        yield Case("truncated", f"at-{cut}", saved(data[:cut]), EITHER)
    for index in range(FLIPS):
        broken = bytearray(data)
        for _ in range(rng.choice((1, 1, 1, 4, 16))):
            broken[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        yield Case("bit-flips", f"{index}", saved(bytes(broken)), EITHER)
    for index in range(8):
        yield Case("random-bytes", f"{index}", saved(rng.randbytes(rng.choice((1, 9, 999)))))


@register
def other_kinds(_rng: random.Random) -> Iterator[Case]:
    """What people take for a model: archives, pages, pointers, pickles."""
    data = seed_model().SerializeToString()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("model.onnx", data)
    kinds = {
        "empty": b"",
        "gzip": gzip.compress(data),
        "zip": buffer.getvalue(),
        "html": b"<!DOCTYPE html><html><body>404</body></html>",
        "lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
        "pickle": pickle.dumps({"state": 1}),
        "json": b'{"graph": {}}',
        "text": b"ir_version: 8\ngraph { }",
        "zeros": b"\0" * 4096,
        "no-graph": b"\x08\x08",
    }
    for name, content in kinds.items():
        yield Case("other-file", name, saved(content))


@register
def bombs(_rng: random.Random) -> Iterator[Case]:
    """Lengths, counts and nesting that no file has."""
    seed = seed_model().SerializeToString()
    huge = varint(2**63 - 1)
    yield Case("protobuf", "length-2^63", saved(b"\x08\x08\x3a" + huge + b"\0\0"))
    yield Case("protobuf", "length-2^31", saved(b"\x08\x08\x3a" + varint(2**31) + b"\0\0"))
    yield Case("protobuf", "endless-varint", saved(b"\x08" + b"\xff" * 4096))
    yield Case("protobuf", "field-0", saved(seed + b"\x00\x00"))
    yield Case("protobuf", "wire-type-7", saved(seed + b"\x7f\x00"))
    yield Case("protobuf", "varint-flood", saved(b"\x08\x08" * 4_000_000))
    yield Case("protobuf", "empty-nodes", later(lambda: chunk(7, chunk(1, b"") * 3_000_000)))
    yield Case("protobuf", "empty-values", later(lambda: chunk(7, chunk(13, b"") * 5_000_000)))
    yield Case("protobuf", "empty-dims", saved(chunk(7, chunk(5, b"\x08\x00" * 3_000_000))))
    yield Case("protobuf", "string-flood", saved(chunk(7, chunk(5, b"\x32\x00" * 3_000_000))))
    yield Case("protobuf", "unknown-fields", saved(seed + chunk(1000, b"x" * 99) * 999), RIGHT)
    yield Case("protobuf", "unknown-numbers", saved(seed + b"\xc0\x3e\x07" * 9999), RIGHT)
    yield Case("protobuf", "group", saved(seed + b"\xa3\x06\xa4\x06"), RIGHT)
    yield Case("protobuf", "open-group", saved(seed + b"\xa3\x06"))
    yield Case("protobuf", "group-bomb", saved(seed + b"\xa3\x06" * 100_000))
    yield Case("protobuf", "graph-twice", saved(seed + chunk(7, b"")), EITHER)
    for depth in (20, 60, 10_000):
        expect = RIGHT if depth < 30 else "error"
        yield Case("nesting", f"ifs-{depth}", later(partial(_nested_ifs, depth)), expect)
    for depth in (12, 40, 10_000):
        expect = EITHER if depth < 16 else "error"
        yield Case("nesting", f"types-{depth}", later(partial(_nested_type, depth)), expect)

    def sparse(folder: Path) -> Path:
        path = folder / "model.onnx"
        path.write_bytes(seed)
        os.truncate(path, 40 << 30)
        return path

    yield Case("other-file", "sparse-40-gb", sparse)
    yield Case("other-file", "device", lambda _: Path("/dev/zero"))
    yield Case("other-file", "endless-pipe", _pipe)
    yield Case("other-file", "folder", lambda folder: folder)
    yield Case("other-file", "absent", lambda folder: folder / "none.onnx")
    yield Case("other-file", "nul-in-path", lambda folder: folder / "a\0b")
    yield Case("other-file", "pickle-as-tensors", written(pickle.dumps([1]), "w.bin"),
               reader="tensors")  # fmt: skip


def _pipe(folder: Path) -> Path:
    os.mkfifo(folder / "model.onnx")
    return folder / "model.onnx"


def _nested_ifs(depth: int) -> bytes:
    """Conditionals in one another, written by hand: protobuf's own objects would overflow."""
    ends = info("y").SerializeToString()
    graph = node("Relu", "x", "y").SerializeToString()
    body = chunk(1, graph) + chunk(2, b"g0") + chunk(12, ends)
    for level in range(depth):
        name = b"y%d" % level if level < depth - 1 else b"out"
        attrs = b"".join(
            chunk(5, chunk(1, branch) + b"\xa0\x01\x05" + chunk(6, body))
            for branch in (b"then_branch", b"else_branch")[: 2 if level == 0 else 1]
        )
        if level:
            other = chunk(1, node("Neg", "x", "z").SerializeToString()) + chunk(2, b"e")
            other += chunk(12, info("z").SerializeToString())
            attrs += chunk(5, chunk(1, b"else_branch") + b"\xa0\x01\x05" + chunk(6, other))
        this = chunk(1, b"c") + chunk(2, name) + chunk(4, b"If") + attrs
        body = chunk(1, this) + chunk(2, b"g") + chunk(12, info(name.decode()).SerializeToString())
        if len(body) > 8 << 20:
            return b"\x08\x0a" + chunk(7, body)
    for value in (info("x"), info("c", T.BOOL, ())):
        body += chunk(11, value.SerializeToString())
    return b"\x08\x0a" + chunk(7, body) + chunk(8, b"\x10\x11")


def _nested_type(depth: int) -> bytes:
    """An input that is a sequence of sequences of ..."""
    kind = info("x").type.SerializeToString()
    for _ in range(depth):
        kind = chunk(4, chunk(1, kind))
    proto = model([node("SequenceLength", "x", "n")], [], ["n"])
    data = proto.graph.SerializeToString() + chunk(11, chunk(1, b"x") + chunk(2, kind))
    return b"\x08\x0a" + chunk(7, data) + chunk(8, b"\x10\x11")
