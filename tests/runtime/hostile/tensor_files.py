"""Tensor files: safetensors, npy and npz that lie about what they hold."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tests.runtime.hostile.kit import EITHER, RIGHT, Build, Case, later, register, written


def safetensors(header: Any, payload: bytes = b"") -> bytes:
    """A file of a header and a payload."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + payload


def entry(shape: Any, begin: Any, end: Any, dtype: Any = "F32") -> dict[str, Any]:
    """A header's entry."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def npy(array: Any) -> bytes:
    """An npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def header(text: str, payload: bytes = b"\0" * 8, version: int = 1) -> bytes:
    """An npy file with a header of one's own."""
    return (
        b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H", len(text)) + text.encode() + payload
    )


def npz(members: dict[str, bytes], *, packed: bool = False, twice: str = "") -> bytes:
    """A zip of members."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED if packed else 0) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
        if twice:
            archive.writestr(twice + "x", members[twice])
    data = buffer.getvalue()
    return data.replace((twice + "x").encode(), twice.encode() + b"\0") if twice else data


GOOD = safetensors({"a": entry([2], 0, 8), "b": entry([1], 8, 12)}, b"\0" * 12)

SAFETENSORS: dict[str, tuple[bytes, str]] = {
    "sound": (GOOD, RIGHT),
    "empty-header": (safetensors({}), RIGHT),
    "header-2^63": (struct.pack("<Q", 2**63) + b"{}", "error"),
    "header-10^8": (struct.pack("<Q", 10**8) + b"{}", "error"),
    "header-list": (safetensors([1]), "error"),
    "header-deep": (safetensors(b"[" * 100_000), "error"),
    "header-deep-object": (safetensors(b'{"a":' * 100_000), "error"),
    "header-nan": (safetensors(b'{"a": NaN}'), "error"),
    "header-long-number": (safetensors(b'{"a": ' + b"9" * 9999 + b"}"), "error"),
    "header-twice": (safetensors(b'{"a": {}, "a": {}}'), "error"),
    "entry-null": (safetensors({"a": None}), "error"),
    "entry-empty": (safetensors({"a": {}}), "error"),
    "dtype-unknown": (safetensors({"a": entry([2], 0, 8, "F99")}, b"\0" * 8), "error"),
    "dtype-list": (safetensors({"a": entry([2], 0, 8, ["F32"])}, b"\0" * 8), "error"),
    "shape-negative": (safetensors({"a": entry([-2], 0, 8)}, b"\0" * 8), "error"),
    "shape-2^62": (safetensors({"a": entry([2**62], 0, 8)}, b"\0" * 8), "error"),
    "shape-product": (safetensors({"a": entry([2**32, 2**32], 0, 8)}, b"\0" * 8), "error"),
    "shape-rank-10000": (safetensors({"a": entry([1] * 10_000, 0, 4)}, b"\0" * 4), "error"),
    "shape-true": (safetensors({"a": entry([True], 0, 4)}, b"\0" * 4), "error"),
    "shape-float": (safetensors({"a": entry([1.0], 0, 4)}, b"\0" * 4), "error"),
    "shape-text": (safetensors({"a": entry("22", 0, 16)}, b"\0" * 16), "error"),
    "offsets-reversed": (safetensors({"a": entry([2], 8, 0)}, b"\0" * 8), "error"),
    "offsets-beyond": (safetensors({"a": entry([2], 8, 16)}, b"\0" * 8), "error"),
    "offsets-negative": (safetensors({"a": entry([2], -8, 0)}, b"\0" * 8), "error"),
    "offsets-three": (
        safetensors({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8, 16]}}, b"\0" * 8),
        "error",
    ),
    "overlap": (safetensors({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, b"\0" * 12), "error"),
    "same-span": (safetensors({"a": entry([2], 0, 8), "b": entry([2], 0, 8)}, b"\0" * 8), "error"),
    "hole": (safetensors({"a": entry([1], 0, 4), "b": entry([1], 8, 12)}, b"\0" * 12), "error"),
    "rest": (GOOD + b"\0", "error"),
    "many-names": (safetensors({f"t{i}": entry([0], 0, 0) for i in range(300_000)}), "error"),
    "odd-names": (safetensors({"a\n\u202e; rm": entry([0], 0, 0), "": entry([0], 0, 0)}), RIGHT),
}

_H = "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }\n"

NPY: dict[str, tuple[bytes, str]] = {
    "sound": (npy(np.ones(3)), RIGHT),
    "own-header": (header(_H), RIGHT),
    "old-longs": (header(_H.replace("(2,)", "(2L,)")), RIGHT),
    "objects": (npy(np.array([{}], dtype=object)), "error"),
    "objects-by-name": (header(_H.replace("<f4", "O8")), "error"),
    "pickle-inside": (header(_H.replace("<f4", "|O"), pickle.dumps([1])), "error"),
    "record": (npy(np.zeros(2, "i4,f4")), "error"),
    "record-of-objects": (header(_H.replace("'<f4'", "[('a', '|O')]")), "error"),
    "complex": (npy(np.ones(2, np.complex64)), "error"),
    "unicode": (npy(np.array(["ab"])), "error"),
    "void": (header(_H.replace("<f4", "V2147483647")), "error"),
    "sub-array": (header(_H.replace("<f4", "(1000,1000)f4")), "error"),
    "type-unknown": (header(_H.replace("<f4", "zzz")), "error"),
    "type-long": (header(_H.replace("<f4", "f" * 9000)), "error"),
    "shape-huge": (header(_H.replace("(2,)", "(9223372036854775807,)")), "error"),
    "shape-product": (header(_H.replace("(2,)", "(4294967296, 4294967296)")), "error"),
    "shape-negative": (header(_H.replace("(2,)", "(-2,)")), "error"),
    "shape-text": (header(_H.replace("(2,)", "'2'")), "error"),
    "shape-digits": (header(_H.replace("(2,)", f"({'9' * 5000},)")), "error"),
    "rank-1000": (header(_H.replace("(2,)", "(" + "1," * 1000 + ")")), "error"),
    "code": (header("__import__('os').system('id')\n"), "error"),
    "code-in-shape": (header(_H.replace("(2,)", "(print(1),)")), "error"),
    "deep": (header("(" * 9000 + "\n"), "error"),
    "deep-minus": (header("-" * 9000 + "1\n"), "error"),
    "twice": (header(_H.replace("'fortran_order'", "'descr'")), "error"),
    "no-shape": (header("{'descr': '<f4', 'fortran_order': False}\n"), "error"),
    "header-cut": (header(_H)[:20], "error"),
    "header-64k": (b"\x93NUMPY\x01\x00\xff\xff", "error"),
    "header-4g": (b"\x93NUMPY\x02\x00\xff\xff\xff\xff", "error"),
    "version-9": (header(_H, version=9), "error"),
    "data-cut": (npy(np.ones(3))[:-1], "error"),
    "data-rest": (npy(np.ones(3)) + b"\0", "error"),
    "magic-only": (b"\x93NUMPY", "error"),
    "big-endian": (npy(np.ones(3, ">f4")), RIGHT),
    "fortran": (npy(np.asfortranarray(np.ones((2, 3)))), RIGHT),
}


def _sized(data: bytes, size: int) -> Build:
    """A sparse file."""

    def build(folder: Path) -> Path:
        path = folder / "weights.bin"
        path.write_bytes(data)
        os.truncate(path, size)
        return path

    return build


@register
def tables(_rng: random.Random) -> Iterator[Case]:
    """Headers that lie."""
    for kind, rows in (("safetensors", SAFETENSORS), ("npy", NPY)):
        for name, (data, expect) in rows.items():
            yield Case(kind, name, written(data, "weights.bin"), expect, "tensors")
    count = (64 << 30) // 4
    long = safetensors({"a": entry([count], 0, 4 * count)})
    yield Case("safetensors", "sparse-64-gb", _sized(long, len(long) + 4 * count), reader="tensors")
    text = _H.replace("(2,)", f"({(40 << 30) // 4},)")
    full = header(text, b"")
    yield Case("npy", "sparse-40-gb", _sized(full, len(full) + (40 << 30)), reader="tensors")
    yield Case("npy", "pipe", _pipe, reader="tensors")
    yield Case("npy", "device", lambda _: Path("/dev/zero"), reader="tensors")


def _pipe(folder: Path) -> Path:
    os.mkfifo(folder / "w.npy")
    return folder / "w.npy"


@register
def archives(_rng: random.Random) -> Iterator[Case]:
    """Zip bombs, names, checksums and sizes that lie."""
    one = npy(np.arange(4.0))
    plain = npz({"a.npy": one})
    crc = bytearray(plain)
    crc[crc.index(one) + len(one) - 1] ^= 1
    lie = plain.replace(struct.pack("<II", len(one), len(one)), struct.pack("<II", 2**31, 2**31))
    rows = {
        "sound": (plain, RIGHT),
        "packed": (npz({"a.npy": one}, packed=True), RIGHT),
        "twice": (npz({"a.npy": one, "a.npy ": one}).replace(b"a.npy ", b"a.npy\0"), EITHER),
        "checksum": (bytes(crc), "error"),
        "size-lies": (lie, "error"),
        "cut": (plain[:-30], "error"),
        "no-directory": (plain[:40], "error"),
        "objects": (npz({"a.npy": npy(np.array([{}], dtype=object))}), "error"),
        "pickle-member": (npz({"data.pkl": pickle.dumps([1])}), "error"),
        "npy-is-a-pickle": (npz({"a.npy": pickle.dumps([1])}), "error"),
        "empty": (npz({}), EITHER),
        "up": (npz({"../../a.npy": one}), RIGHT),
        "many": (npz({f"a{i}.npy": b"" for i in range(20_000)}), "error"),
        "encrypted": (plain.replace(b"PK\x03\x04\x14\x00\x00", b"PK\x03\x04\x14\x00\x01"), EITHER),
    }  # fmt: skip
    yield Case("npz", "bomb", later(_bomb), reader="tensors")
    for name, (data, expect) in rows.items():
        yield Case("npz", name, written(data, "weights.npz"), expect, "tensors")


def _bomb() -> bytes:
    zeros = npy(np.zeros(80 << 20, np.uint8))
    return npz({f"a{i}.npy": zeros for i in range(8)}, packed=True)


@register
def damaged(rng: random.Random) -> Iterator[Case]:
    """Sound files with bits flipped, or cut."""
    sound = {"safetensors": GOOD, "npy": npy(np.ones(3)), "npz": npz({"a.npy": npy(np.ones(3))})}
    for kind, data in sound.items():
        for index in range(8):
            broken = bytearray(data)
            broken[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            if index % 4 == 3:
                broken = broken[: rng.randrange(1, len(data))]
            yield Case(kind, f"damage-{index}", written(bytes(broken), "w.bin"), EITHER, "tensors")
