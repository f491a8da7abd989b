"""Tensor files again: headers of every version, archives whose records lie, and legal oddities."""

from __future__ import annotations

import io
import json
import random
import struct
import zipfile
from collections.abc import Iterator

import numpy as np

from tests.runtime.hostile.kit import EITHER, ERROR, RIGHT, Case, register, written
from tests.runtime.hostile.tensor_files import entry, npy, npz, safetensors

ONE = npy(np.arange(4.0))


def _raw(text: bytes, payload: bytes = b"", *, claimed: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if claimed is None else claimed) + text + payload


A, B = entry([2], 0, 8), entry([1], 8, 12)
SOUND = json.dumps({"a": A, "b": B}).encode()
DATA = b"\0" * 12

SAFETENSORS: dict[str, tuple[bytes, str]] = {
    "unordered": (safetensors({"b": B, "a": A}, DATA), RIGHT),
    "blanks-behind": (_raw(SOUND + b" " * 99, DATA), RIGHT),
    "blanks-before": (_raw(b"  " + SOUND, DATA), ERROR),
    "byte-order-mark": (_raw(b"\xef\xbb\xbf" + SOUND, DATA), ERROR),
    "utf-16": (_raw(SOUND.decode().encode("utf-16"), DATA), ERROR),
    "not-utf-8": (_raw(SOUND.replace(b'"a"', b'"\xff"'), DATA), ERROR),
    "nul-behind": (_raw(SOUND + b"\0", DATA), ERROR),
    "two-objects": (_raw(SOUND + SOUND, DATA), ERROR),
    "metadata": (safetensors({"__metadata__": {"format": "pt"}, "a": entry([3], 0, 12)}, DATA),
                 RIGHT),
    "metadata-alone": (safetensors({"__metadata__": {"k": "v"}}), RIGHT),
    "metadata-number": (safetensors({"__metadata__": {"k": 1}, "a": entry([3], 0, 12)}, DATA),
                        EITHER),
    "metadata-list": (safetensors({"__metadata__": [1], "a": entry([3], 0, 12)}, DATA), EITHER),
    "metadata-deep": (_raw(b'{"__metadata__":' + b"[" * 5000 + b"]" * 5000 + b"}"), ERROR),
    "metadata-flood": (safetensors({"__metadata__": {f"k{i}": "v" * 9 for i in range(50_000)}}),
                       EITHER),
    "twice-by-escape": (_raw(b'{"a": %s, "\\u0061": %s}' % ((json.dumps(A).encode(),) * 2),
                             b"\0" * 8), ERROR),
    "key-of-entry-twice": (_raw(b'{"a": {"dtype": "F32", "dtype": "F32", "shape": [2], '
                                b'"data_offsets": [0, 8]}}', b"\0" * 8), ERROR),
    "more-keys": (safetensors({"a": {**A, "more": 1}}, b"\0" * 8), EITHER),
    "scalar": (safetensors({"a": entry([], 0, 4)}, b"\0" * 4), RIGHT),
    "zero-size": (safetensors({"a": A, "n": entry([0, 2**40], 8, 8), "b": B}, DATA), EITHER),
    "zero-size-first": (safetensors({"n": entry([0], 0, 0), "a": A}, b"\0" * 8), RIGHT),
    "bool-of-two": (safetensors({"a": entry([2], 0, 2, "BOOL")}, b"\2\xff"), EITHER),
    "float8": (safetensors({"a": entry([2], 0, 2, "F8_E4M3")}, b"\0" * 2), EITHER),
    "dtype-lower": (safetensors({"a": entry([2], 0, 8, "f32")}, b"\0" * 8), ERROR),
    "dtype-null": (safetensors({"a": entry([2], 0, 8, None)}, b"\0" * 8), ERROR),
    "offset-float": (safetensors({"a": entry([2], 0.0, 8.0)}, b"\0" * 8), ERROR),
    "offset-text": (safetensors({"a": entry([2], "0", "8")}, b"\0" * 8), ERROR),
    "offset-2^64": (safetensors({"a": entry([2], 2**64 - 8, 2**64)}, b"\0" * 8), ERROR),
    "offset-exponent": (_raw(b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8e0]}}',
                             b"\0" * 8), ERROR),
    "shape-null": (safetensors({"a": entry(None, 0, 8)}, b"\0" * 8), ERROR),
    "claims-one-less": (_raw(SOUND, DATA, claimed=len(SOUND) - 1), ERROR),
    "claims-one-more": (_raw(SOUND, DATA, claimed=len(SOUND) + 1), ERROR),
    "claims-all": (_raw(SOUND, DATA, claimed=len(SOUND) + 12), ERROR),
    "claims-nothing": (_raw(SOUND, DATA, claimed=0), ERROR),
    "names": (safetensors({n: entry([0], 0, 0) for n in ("", ".", "..", "/", "\0", "é", "🦀" * 9)}),
              RIGHT),
    "name-lone-surrogate": (_raw(b'{"\\ud800": {"dtype": "F32", "shape": [0], '
                                 b'"data_offsets": [0, 0]}}'), EITHER),
}  # fmt: skip


def _header(text: str, payload: bytes, version: int, *, claimed: int | None = None) -> bytes:
    width, encoding = (2, "latin1") if version == 1 else (4, "utf8")
    coded = text.encode(encoding)
    size = len(coded) if claimed is None else claimed
    return b"\x93NUMPY" + bytes((version, 0)) + size.to_bytes(width, "little") + coded + payload


H = "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }\n"
P = b"\0" * 8

NPY: dict[str, tuple[bytes, str]] = {
    "version-2": (_header(H, P, 2), RIGHT),
    "version-3": (_header(H, P, 3), RIGHT),
    "version-1.7": (_header(H, P, 1).replace(b"NUMPY\x01\x00", b"NUMPY\x01\x07"), EITHER),
    "version-0": (_header(H, P, 1).replace(b"NUMPY\x01", b"NUMPY\x00"), ERROR),
    "version-2-short": (_header(H, P, 2, claimed=2**31), ERROR),
    "version-3-unicode": (_header(H.replace("<f4", "名"), P, 3), ERROR),
    "not-utf-8": (_header(H, P, 3).replace(b"<f4", b"\xff\xfe\xff"), ERROR),
    "padded": (_header(H.rstrip() + " " * 3000 + "\n", P, 1), RIGHT),
    "padded-9999": (_header(H.rstrip() + " " * 9000 + "\n", P, 2), EITHER),
    "padded-10^6": (_header(H.rstrip() + " " * 10**6 + "\n", P, 2), ERROR),
    "keys-in-any-order": (
        _header("{'shape': (2,), 'fortran_order': False, 'descr': '<f4'}", P, 1),
        RIGHT,
    ),
    "double-quotes": (_header(H.replace("'", '"'), P, 1), EITHER),
    "no-blanks": (_header(H.replace(" ", ""), P, 1), RIGHT),
    "scalar": (npy(np.float32(3)), RIGHT),
    "zero-size": (npy(np.zeros((0, 3), np.float32)), RIGHT),
    "zero-by-2^40": (_header(H.replace("(2,)", "(0, 1099511627776)"), b"", 1), EITHER),
    "fortran-zero-size": (npy(np.asfortranarray(np.zeros((3, 0, 2)))), RIGHT),
    "bools": (npy(np.array([True, False])), RIGHT),
    "bool-of-two": (_header(H.replace("<f4", "|b1"), b"\2\xff", 1), EITHER),
    "native-order": (_header(H.replace("<f4", "=f4"), P, 1), EITHER),
    "long-name": (_header(H.replace("<f4", "float32"), P, 1), EITHER),
    "longdouble": (npy(np.ones(2, np.longdouble)), ERROR),
    "datetime": (npy(np.array(["2020-01-01"], "M8[D]")), ERROR),
    "bytes": (npy(np.array([b"ab"])), ERROR),
    "extra-key": (_header(H.replace("}", "'more': True, }"), P, 1), ERROR),
    "order-is-a-number": (_header(H.replace("False", "0"), P, 1), ERROR),
    "shape-is-a-list": (_header(H.replace("(2,)", "[2]"), P, 1), ERROR),
    "shape-is-a-number": (_header(H.replace("(2,)", "2"), P, 1), ERROR),
    "shape-in-digits-of-others": (_header(H.replace("(2,)", "(٢,)"), P, 3), ERROR),
    "shape-leading-zeros": (_header(H.replace("(2,)", "(0000000000000000002,)"), P, 1), EITHER),
    "comment": (_header(H.rstrip() + "# x\n", P, 1), EITHER),
    "two-dicts": (_header(H.strip() + H, P, 1), ERROR),
    "empty-dict": (_header("{}\n", P, 1), ERROR),
    "regex-bomb": (_header("{" + "'a' : 'b' ," * 900, P, 1), ERROR),
    "blank-bomb": (_header("{" + " " * 9000 + "x", P, 1), ERROR),
}


def _entry_of(data: bytes, magic: bytes, offset: int, value: bytes) -> bytes:
    """An archive with bytes of a record replaced, counted from the record's start."""
    at = data.index(magic) + offset
    return data[:at] + value + data[at + len(value) :]


LOCAL, CENTRAL, END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"


def _built(name: str = "a.npy", data: bytes = ONE, method: int = 0, *, big: bool = False) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        made = zipfile.ZipInfo(name)
        made.compress_type = method
        with archive.open(made, "w", force_zip64=big) as out:
            out.write(data)
    return buffer.getvalue()


def _zip64_end(count: int, size: int, offset: int) -> bytes:
    """An archive whose end is given in 64 bits, with numbers of one's own."""
    plain = _built()
    body, tail = plain[: plain.index(END)], plain[plain.index(END) :]
    record = b"PK\x06\x06" + struct.pack("<QHHLLQQQQ", 44, 45, 45, 0, 0, count, count, size, offset)
    locator = b"PK\x06\x07" + struct.pack("<LQL", 0, len(body), 1)
    end = END + struct.pack("<HHHHLL", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF) + tail[20:]
    return body + record + locator + end


def _nested() -> bytes:
    return npz({"a.npy": ONE, "b.npy": npz({"c.npy": ONE})})


def _stored_twice() -> bytes:
    """Two entries of the directory that share one member's bytes."""
    data = _built()
    at, end = data.index(CENTRAL), data.index(END)
    row = data[at:end]
    other = row.replace(b"a.npy", b"b.npy")
    tail = bytearray(data[end:])
    struct.pack_into("<HHL", tail, 8, 2, 2, len(row) * 2)
    return data[:end] + other + bytes(tail)


PLAIN = _built()
NPZ: dict[str, tuple[bytes, str]] = {
    "zip64-entry": (_built(big=True), RIGHT),
    "zip64-end-lies-count": (_zip64_end(2**62, 100, 0), ERROR),
    "zip64-end-lies-size": (_zip64_end(1, 2**62, 0), ERROR),
    "zip64-end-lies-offset": (_zip64_end(1, 50, 2**62), ERROR),
    "size-2^32-1": (_entry_of(PLAIN, CENTRAL, 24, b"\xff" * 4), ERROR),
    "packed-size-2^32-1": (_entry_of(PLAIN, CENTRAL, 20, b"\xff" * 4), EITHER),
    "size-one-less": (_entry_of(PLAIN, CENTRAL, 24, struct.pack("<L", len(ONE) - 1)), ERROR),
    "offset-beyond": (_entry_of(PLAIN, CENTRAL, 42, struct.pack("<L", 2**31)), ERROR),
    "name-longer": (_entry_of(PLAIN, CENTRAL, 28, b"\xff\xff"), EITHER),
    "extra-longer": (_entry_of(PLAIN, CENTRAL, 30, b"\xff\xff"), EITHER),
    "comment-longer": (_entry_of(PLAIN, CENTRAL, 32, b"\xff\xff"), EITHER),
    "local-name-differs": (_entry_of(PLAIN, LOCAL, 30, b"b"), ERROR),
    "local-no-magic": (_entry_of(PLAIN, LOCAL, 0, b"XX"), ERROR),
    "count-too-many": (_entry_of(PLAIN, END, 8, b"\x09\0\x09\0"), EITHER),
    "count-none": (_entry_of(PLAIN, END, 8, b"\0\0\0\0"), EITHER),
    "directory-size": (_entry_of(PLAIN, END, 12, b"\xff\xff\xff\x7f"), ERROR),
    "directory-offset": (_entry_of(PLAIN, END, 16, b"\xff\xff\xff\x7f"), ERROR),
    "disk-number": (_entry_of(PLAIN, END, 4, b"\x07\0"), EITHER),
    "method-99": (_entry_of(PLAIN, CENTRAL, 10, b"\x63\0"), ERROR),
    "encrypted": (_entry_of(PLAIN, CENTRAL, 8, b"\x01\0"), ERROR),
    "patched-data": (_entry_of(PLAIN, CENTRAL, 8, b"\x20\0"), EITHER),
    "bzip2": (_built(method=zipfile.ZIP_BZIP2), EITHER),
    "lzma": (_built(method=zipfile.ZIP_LZMA), EITHER),
    "says-deflated": (_entry_of(PLAIN, CENTRAL, 10, b"\x08\0"), ERROR),
    "comment": (PLAIN[:-2] + b"\x03\0abc", RIGHT),
    "two-ends": (PLAIN + PLAIN[PLAIN.index(END) :], EITHER),
    "something-before": (b"#!/bin/sh\n" + PLAIN, ERROR),
    "something-behind": (PLAIN + b"x" * 70_000, ERROR),
    "two-entries-of-one-member": (_stored_twice(), EITHER),
    "folder": (_built("a/", b""), ERROR),
    "folder-of-arrays": (_built("a/b.npy"), RIGHT),
    "absolute": (_built("/etc/a.npy"), RIGHT),
    "nameless": (_built(".npy"), RIGHT),
    "unicode": (_built("名🦀.npy"), RIGHT),
    "line-break": (_built("a\nb\u202e.npy"), RIGHT),
    "upper-case": (_built("a.NPY"), ERROR),
    "no-suffix": (_built("a"), ERROR),
    "empty-member": (_built(data=b""), ERROR),
    "nested": (_nested(), ERROR),
    "scalar": (_built(data=npy(np.float32(3))), RIGHT),
    "zero-size": (_built(data=npy(np.zeros((0, 3)))), RIGHT),
    "deflated-rest": (_built(data=ONE + b"\0" * 9, method=zipfile.ZIP_DEFLATED), ERROR),
    "objects-behind-good": (npz({"a.npy": ONE, "b.npy": npy(np.array([{}], object))}), ERROR),
}


@register
def more(_rng: random.Random) -> Iterator[Case]:
    """The rows above."""
    for kind, rows in (("safetensors", SAFETENSORS), ("npy", NPY), ("npz", NPZ)):
        for name, (data, expect) in rows.items():
            yield Case(kind, f"more-{name}", written(data, "weights.bin"), expect, "tensors")
