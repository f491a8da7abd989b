"""Bytes changed at random: plainly, and JSON and tensor files within their structure."""

from __future__ import annotations

import copy
import io
import json
import random
import struct
import warnings
import zipfile
from typing import Any

NUMBERS = (
    0, 1, -1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 127, 128, 255, 256, 999,
    1023, 4096, 65535, 65536, 2**20, 2**31 - 1, 2**31, -(2**31), 2**32, 2**40, 2**53, 2**62,
    2**63 - 1, -(2**63), -2, -3,
)  # fmt: skip
"""Whole numbers at the edges of something; all fit a signed word of 64 bits."""

FLOATS = (0.0, -0.0, 1.0, -1.0, 0.5, 2.0, 1e-45, 1e-7, 1e7, 1e30, 3.5e38, 1e308, -1e308,
          float("nan"), float("inf"), float("-inf"))  # fmt: skip

WORDS = (
    "", "x", "a", "\0", "\n", "é", "名", "\u202e", "a" * 300, "..", "/", "None", "NaN", "0", "-1",
    "cpu:0", "{}", "[]", "%s", "float32", "int64", "x" * 5000,
)  # fmt: skip

Rng = random.Random


def plain(data: bytes, rng: Rng) -> bytes:
    """Some bytes flipped, replaced, removed, repeated or moved."""
    made = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        if not made:
            return rng.randbytes(rng.choice((1, 8, 64)))
        at, size = rng.randrange(len(made)), rng.choice((1, 1, 2, 4, 8, 64))
        match rng.randrange(6):
            case 0:
                made[at] ^= 1 << rng.randrange(8)
            case 1:
                made[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
            case 2:
                del made[at : at + size]
            case 3:
                made[at:at] = made[at : at + size]
            case 4:
                made[at : at + size] = rng.randbytes(size)
            case _:
                other = rng.randrange(len(made))
                made[at : at + size] = made[other : other + size]
    return bytes(made)


# --- JSON -----------------------------------------------------------------------------------------


def json_text(data: bytes, rng: Rng) -> bytes:
    """A JSON text with values changed, or with what no writer of JSON would write."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return plain(data, rng)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        value = json_value(value, rng)
    text = json.dumps(value).encode()
    return _odd_text(text, rng) if rng.random() < 0.1 else text


def json_value(value: Any, rng: Rng) -> Any:
    """Plain data with one place of it changed."""
    made = copy.deepcopy(value)
    if not isinstance(made, dict | list) or not made:
        return _odd(made, rng)
    at = made
    while True:
        keys: list[Any] = list(at) if isinstance(at, dict) else list(range(len(at)))
        key = rng.choice(keys)
        inner = at[key]
        if isinstance(inner, dict | list) and inner and rng.random() < 0.85:
            at = inner
            continue
        break
    match rng.randrange(8):
        case 0:
            del at[key]
        case 1 if isinstance(at, list):
            at.insert(rng.randrange(len(at) + 1), copy.deepcopy(at[key]))
        case 1:
            at[_odd_key(key, rng)] = copy.deepcopy(at[key])
        case 2 if isinstance(at, dict):
            at[_odd_key(key, rng)] = at.pop(key)
        case 3:
            at[key] = copy.deepcopy(_somewhere(made, rng))
        case 4 if isinstance(at, list):
            rng.shuffle(at)
        case _:
            at[key] = _odd(at[key], rng)
    return made


def _odd_key(key: Any, rng: Rng) -> str:
    return rng.choice((*WORDS, f"{key} ", str(key).upper(), str(key)[:-1]))


def _somewhere(value: Any, rng: Rng) -> Any:
    while isinstance(value, dict | list) and value and rng.random() < 0.8:
        value = rng.choice(list(value.values()) if isinstance(value, dict) else value)
    return value


def _odd(value: Any, rng: Rng) -> Any:
    """Another value: near to this one, or what does not belong there."""
    if isinstance(value, bool) or rng.random() < 0.3:
        options = (None, True, False, "", [], {}, [[]], {"": None}, 0, -1, 1.5, "x", 2**70, 1e308)
        return copy.deepcopy(rng.choice(options))
    if isinstance(value, int):
        return rng.choice((*NUMBERS, value + 1, value - 1, -value, 2 * value, float(value), 2**70))
    if isinstance(value, float):
        return rng.choice((*FLOATS, value * 2, -value, value * 1e9, 7))
    if isinstance(value, str):
        return rng.choice((*WORDS, value + "x", value[:-1], value.upper()))
    if isinstance(value, list):
        return rng.choice(([], value * 2, value[:1], [value], value[::-1]))
    return rng.choice((None, {}, [], [value]))


def _odd_text(text: bytes, rng: Rng) -> bytes:
    at = rng.choice([i for i, c in enumerate(text) if c in b":,[{"] or [0]) + 1
    what = rng.choice((
        b"NaN,", b"Infinity,", b"9" * 5000, b"1e999,", b"[" * 2000, b'{"a":' * 2000, b"1.,",
        b'"\\ud800",', b"\xff", b"-0,", b'"a":1,"a":1,', b" " * 500,
    ))  # fmt: skip
    return text[:at] + what + text[at:]


# --- tensor files ---------------------------------------------------------------------------------


def tensors(data: bytes, rng: Rng) -> bytes:
    """A safetensors, npy or npz file changed within its structure."""
    if data.startswith(b"\x93NUMPY"):
        return _npy(data, rng)
    if data.startswith(b"PK"):
        return _npz(data, rng)
    return _safetensors(data, rng)


def _safetensors(data: bytes, rng: Rng) -> bytes:
    if len(data) < 8:
        return plain(data, rng)
    (size,) = struct.unpack_from("<Q", data)
    text, rest = data[8 : 8 + size], data[8 + size :]
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        header = None
    if isinstance(header, dict) and rng.random() < 0.3:
        header, rest = _more_tensors(header, rest, rng)
        text = json.dumps(header).encode()
    elif rng.random() < 0.8:
        text = json_text(text, rng)
    text += b" " * rng.choice((0, 0, 0, 1, 7, -len(text) % 8))
    if rng.random() < 0.2:
        rest = rng.choice((rest[:-1], rest + b"\0", rest * 2, b""))
    size = len(text) if rng.random() < 0.9 else rng.choice((0, len(text) + 1, 2**31, 2**64 - 1))
    return struct.pack("<Q", size) + text + rest


def _more_tensors(header: dict[str, Any], rest: bytes, rng: Rng) -> tuple[dict[str, Any], bytes]:
    """One more tensor after the others, of any type and shape, as it should be."""
    widths = {"F32": 4, "F16": 2, "BF16": 2, "I64": 8, "U8": 1, "BOOL": 1, "F64": 8, "F8_E4M3": 1}
    dtype = rng.choice(list(widths))
    shape = [rng.choice((0, 1, 2, 3)) for _ in range(rng.randrange(5))]
    nbytes = widths[dtype]
    for size in shape:
        nbytes *= size
    span = [len(rest), len(rest) + nbytes]
    name = rng.choice((*WORDS, f"t{rng.randrange(9)}"))
    row = {"dtype": dtype, "shape": shape, "data_offsets": span}
    return {**header, name: row}, rest + rng.randbytes(nbytes)


_DESCR = (
    "<f4", ">f4", "<f8", "|b1", "|u1", "<i8", "<f2", "|O", "O8", "<c8", "<U3", "|S4", "V4", "=f4",
    "f4", "float32", "<M8[ns]", "<m8", "(2,)f4", "f4,i4", "<f16", "bfloat16", "<i0", "",
)  # fmt: skip
_SHAPES = (
    "()", "(1,)", "(3,)", "(3, 1)", "(0,)", "(0, 4)", "(-1,)", "(3L,)", "(9223372036854775808,)",
    "(4294967296, 4294967296)", "3", "[3]", "(1,)*3", "(True,)", "(3.0,)", "(,)", "(03,)",
)  # fmt: skip


def _npy(data: bytes, rng: Rng) -> bytes:
    major = data[6] if len(data) > 6 else 1
    width = 2 if major == 1 else 4
    if len(data) < 8 + width or rng.random() < 0.1:
        return plain(data, rng)
    size = int.from_bytes(data[8 : 8 + width], "little")
    text, rest = data[8 + width : 8 + width + size], data[8 + width + size :]
    for _ in range(rng.choice((1, 1, 2))):
        text, rest = _npy_step(text, rest, rng)
    major = rng.choice((major, major, major, 1, 2, 3, 0, 4))
    width = 2 if major == 1 else 4
    size = len(text) if rng.random() < 0.9 else rng.choice((0, len(text) - 1, 2**16 - 1))
    size = max(0, min(size, 256**width - 1))
    return b"\x93NUMPY" + bytes((major, 0)) + size.to_bytes(width, "little") + text + rest


def _npy_step(text: bytes, rest: bytes, rng: Rng) -> tuple[bytes, bytes]:
    match rng.randrange(6):
        case 0:
            return plain(text, rng), rest
        case 1:
            return text, rng.choice((rest[:-1], rest + b"\0", rest * 2, b"", plain(rest, rng)))
        case 2:
            return text.replace(b"True", b"?").replace(b"False", b"True").replace(
                b"?", b"False"
            ), rest
        case 3:
            return _between(text, b"'descr':", b",", f" '{rng.choice(_DESCR)}'"), rest
        case 4:
            return _between(text, b"'shape':", b"}", f" {rng.choice(_SHAPES)}, "), rest
    shape, descr = rng.choice(_SHAPES[:6]), rng.choice(_DESCR[:7])
    count = 1
    for part in shape.strip("()").split(","):
        count *= int(part) if part.strip() else 1
    nbytes = count * int(descr[-1])
    head = f"{{'descr': '{descr}', 'fortran_order': {rng.random() < 0.5}, 'shape': {shape}, }}"
    return head.encode().ljust(117) + b"\n", rng.randbytes(nbytes)


def _between(text: bytes, start: bytes, end: bytes, put: str) -> bytes:
    before, found, after = text.partition(start)
    if not found:
        return text
    _, sep, rest = after.partition(end)
    return before + found + put.encode() + sep + rest


def _npz(data: bytes, rng: Rng) -> bytes:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [(m.filename, archive.read(m)) for m in archive.infolist()[:16]]
    except Exception:  # noqa: BLE001 - whatever zipfile says of a broken archive
        return plain(data, rng)
    match rng.randrange(6):
        case 0:
            return plain(data, rng)
        case 1 if members:
            members.append(rng.choice(members))
        case 2 if members:
            name, held = members.pop(rng.randrange(len(members)))
            members.append((rng.choice((*WORDS[:12], name + "x", "../a.npy", "a/b.npy")), held))
        case 3:
            return _patched(data, rng)
        case _ if members:
            at = rng.randrange(len(members))
            members[at] = (members[at][0], _npy(members[at][1], rng))
    return _zipped(members, rng)


def _zipped(members: list[tuple[str, bytes]], rng: Rng) -> bytes:
    buffer = io.BytesIO()
    packed = rng.choice(
        (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
    )
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", packed) as archive:
        warnings.simplefilter("ignore")  # names may stand there twice
        for name, held in members:
            entry = zipfile.ZipInfo(name or "_")
            entry.compress_type = packed
            with archive.open(entry, "w", force_zip64=rng.random() < 0.3) as out:
                out.write(held)
    return buffer.getvalue()


def _patched(data: bytes, rng: Rng) -> bytes:
    """A number in a record of the archive's directory changed: sizes, offsets, counts, flags."""
    made = bytearray(data)
    starts = (b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07")
    places = [i for magic in starts for i in _all(data, magic)]
    at = rng.choice(places or [0]) + 4 + rng.randrange(42)
    width = rng.choice((1, 2, 4))
    if at + width <= len(made):
        value = rng.choice((0, 1, 2**15, 2**31, 2**32 - 1, rng.getrandbits(32)))
        made[at : at + width] = (value % 256**width).to_bytes(width, "little")
    return bytes(made)


def _all(data: bytes, part: bytes) -> list[int]:
    found, at = [], data.find(part)
    while at >= 0:
        found.append(at)
        at = data.find(part, at + 1)
    return found
