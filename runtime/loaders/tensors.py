"""Tensor files into arrays: safetensors, npy and npz, never a pickle.

Formats: safetensors (https://github.com/huggingface/safetensors, section Format) and NumPy's NEP 1.
Headers are parsed here, so that a file can neither run code nor claim more bytes than it has.
"""

from __future__ import annotations

import ast
import io
import json
import math
import os
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from crossdock.runtime.errors import LoadError, MalformedModel, UnsafeModel, UnsupportedModel
from crossdock.runtime.loaders import content
from crossdock.runtime.loaders.source import read_regular
from crossdock.runtime.tensor import DTYPES, Array, to_numpy

MAX_HEADER = 100_000_000
MAX_NPY_HEADER = 10_000
MAX_RANK = 32

SAFETENSORS_DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "F16": "float16",
    "BF16": "bfloat16",
    "U32": "uint32",
    "I32": "int32",
    "F32": "float32",
    "U64": "uint64",
    "I64": "int64",
    "F64": "float64",
}


def load_tensors(path: str | os.PathLike[str], *, max_bytes: int = 1 << 36) -> dict[str, Array]:
    """Read a safetensors, npy or npz file (told by content) into arrays by name.

    Args:
        path: the file; the array of an npy file is named after the file's stem.
        max_bytes: budget for the file and, where it is compressed, for what it unpacks to.

    Returns:
        Arrays that own their memory or share the file's copy of it; all writable.

    Raises:
        MalformedModel: the file is broken or of another kind.
        UnsupportedModel: an element type is one crossdock lacks.
        UnsafeModel: it holds Python objects, or is larger than ``max_bytes``.
        LoadError: it cannot be read.
    """
    file = Path(os.fspath(path))
    label = str(file)
    data = bytearray(read_regular(file, label, max_bytes))
    head = bytes(data[: content.HEAD])
    if content.is_npy(head):
        return {file.stem: read_npy(data, label)}
    if content.is_zip(head):
        return read_npz(data, label, max_bytes)
    known = content.describe(head)
    if known is not None and not content.is_safetensors(head):
        raise MalformedModel(f"{label}: this is {known[0]}; {known[1]}")
    return read_safetensors(data, label)


def read_safetensors(data: bytearray, label: str) -> dict[str, Array]:
    """Read a safetensors buffer; the arrays are views of it."""
    header, start = _header(data, label)
    payload = memoryview(data)[start:]
    spans: list[tuple[int, int, str]] = []
    arrays: dict[str, Array] = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        dtype, shape, begin, end = _entry(name, entry, label)
        if end > len(payload):
            raise MalformedModel(
                f"{label}: tensor {name!r} ends at byte {end} of {len(payload)}; truncated?"
            )
        spans.append((begin, end, name))
        flat = np.frombuffer(payload[begin:end], dtype=dtype)
        arrays[name] = np.require(flat.reshape(shape), requirements=["A", "W"])
    _check_cover(spans, len(payload), label)
    return arrays


def _header(data: bytearray, label: str) -> tuple[dict[str, Any], int]:
    if len(data) < 8:
        raise MalformedModel(f"{label}: {len(data)} bytes are no tensor file; truncated?")
    (length,) = struct.unpack_from("<Q", data)
    if length > MAX_HEADER or 8 + length > len(data):
        raise MalformedModel(
            f"{label}: neither safetensors, npy nor npz, or truncated (a header of {length} bytes "
            f"in a file of {len(data)})"
        )
    try:
        header = json.loads(bytes(data[8 : 8 + length]), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise MalformedModel(f"{label}: the safetensors header is broken: {error}") from error
    if not isinstance(header, dict):
        raise MalformedModel(f"{label}: the safetensors header is no JSON object")
    return header, 8 + length


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name stands in it twice")
    return table


def _entry(name: str, entry: Any, label: str) -> tuple[np.dtype[Any], tuple[int, ...], int, int]:
    where = f"{label}: tensor {name!r}"
    if not isinstance(entry, dict):
        raise MalformedModel(f"{where}: its header entry is no JSON object")
    dtype = SAFETENSORS_DTYPES.get(str(entry.get("dtype")))
    if dtype is None:
        raise UnsupportedModel(f"{where}: element type {entry.get('dtype')!r} is not supported")
    shape = _sizes(entry.get("shape"), where)
    offsets = _sizes(entry.get("data_offsets"), where)
    if len(offsets) != 2:
        raise MalformedModel(f"{where}: data_offsets {list(offsets)} are no pair of byte offsets")
    begin, end = offsets
    want = math.prod(shape) * to_numpy(dtype).itemsize
    if end - begin != want:
        raise MalformedModel(
            f"{where}: {dtype}{list(shape)} takes {want} bytes, its span {end - begin}"
        )
    return to_numpy(dtype).newbyteorder("<"), shape, begin, end


def _sizes(value: Any, where: str) -> tuple[int, ...]:
    if (
        not isinstance(value, list | tuple)
        or len(value) > MAX_RANK
        or any(type(v) is not int or v < 0 for v in value)
    ):
        raise MalformedModel(f"{where}: {value!r} is no list of sizes")
    return tuple(value)


def _check_cover(spans: list[tuple[int, int, str]], size: int, label: str) -> None:
    at = 0
    for begin, end, name in sorted(spans):
        if begin != at:
            raise MalformedModel(
                f"{label}: tensor {name!r} starts at byte {begin}, but the one before ends at {at}"
            )
        at = end
    if at != size:
        raise MalformedModel(f"{label}: {size - at} bytes after the last tensor belong to none")


def read_npy(data: bytes | bytearray, label: str) -> Array:
    """Read an npy buffer; the array is a view of it where that is writable."""
    dtype, fortran, shape, start = _npy_header(data, label)
    count = math.prod(shape)
    have = len(data) - start
    if have != count * dtype.itemsize:
        raise MalformedModel(
            f"{label}: {dtype}{list(shape)} takes {count * dtype.itemsize} bytes, the file has "
            f"{have}"
        )
    flat = np.frombuffer(data, dtype=dtype, count=count, offset=start)
    array = flat.reshape(shape, order="F" if fortran else "C")
    native: Array = array.astype(dtype.newbyteorder("="), copy=False)
    return np.require(native, requirements=["A", "W"])


def _npy_header(
    data: bytes | bytearray, label: str
) -> tuple[np.dtype[Any], bool, tuple[int, ...], int]:
    major = data[6] if len(data) > 6 else 0
    width = 2 if major == 1 else 4
    if major not in (1, 2, 3) or len(data) < 8 + width:
        raise MalformedModel(f"{label}: the npy header is broken or of an unknown version")
    length = int.from_bytes(data[8 : 8 + width], "little")
    start = 8 + width + length
    if length > MAX_NPY_HEADER or start > len(data):
        raise MalformedModel(f"{label}: the npy header claims {length} bytes; truncated?")
    try:
        text = bytes(data[8 + width : start]).decode("latin1" if major < 3 else "utf8")
        header = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise MalformedModel(f"{label}: the npy header is broken") from error
    if not isinstance(header, dict) or set(header) != {"descr", "fortran_order", "shape"}:
        raise MalformedModel(f"{label}: the npy header lacks descr, fortran_order or shape")
    shape = _sizes(header["shape"], label)
    return _npy_dtype(header["descr"], label), bool(header["fortran_order"]), shape, start


def _npy_dtype(descr: Any, label: str) -> np.dtype[Any]:
    try:
        dtype = np.dtype(descr) if isinstance(descr, str) else None
    except (TypeError, ValueError, SyntaxError) as error:
        raise MalformedModel(f"{label}: element type {descr!r} is none of numpy's") from error
    if dtype is not None and dtype.hasobject:
        raise UnsafeModel(f"{label}: it holds pickled Python objects, which are never opened")
    if dtype is None or dtype.name not in DTYPES:
        raise UnsupportedModel(f"{label}: element type {descr!r} is not supported")
    return dtype


def read_npz(data: bytearray, label: str, max_bytes: int) -> dict[str, Array]:
    """Read an npz buffer (a zip of npy files)."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            _check_members(members, label, max_bytes)
            return {
                m.filename[: -len(".npy")]: read_npy(
                    bytearray(archive.read(m)), f"{label}: {m.filename}"
                )
                for m in members
            }
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise MalformedModel(f"{label}: the npz is broken: {error}") from error
    except (RuntimeError, ValueError, OSError) as error:
        if isinstance(error, LoadError):
            raise
        raise MalformedModel(f"{label}: the npz cannot be unpacked: {error}") from error


def _check_members(members: list[zipfile.ZipInfo], label: str, max_bytes: int) -> None:
    names = [m.filename for m in members]
    for member in members:
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise MalformedModel(f"{label}: {member.filename!r} is packed in a way no npz uses")
    twice = sorted({n for n in names if names.count(n) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise MalformedModel(f"{label}: {twice[0]!r} stands in the archive twice")
    for name in names:
        if not name.endswith(".npy"):
            raise MalformedModel(
                f"{label}: a zip archive with {name!r} in it is no npz; PyTorch checkpoints hold "
                "pickles, which are never opened: save the weights as safetensors"
            )
    total = sum(m.file_size for m in members)
    if total > max_bytes:
        raise UnsafeModel(
            f"{label}: unpacks to {total:,} bytes, more than the budget of {max_bytes:,}; "
            "raise max_bytes if that is right"
        )
