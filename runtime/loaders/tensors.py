"""Tensor files into arrays: safetensors, npy and npz, never a pickle.

Formats: safetensors (https://github.com/huggingface/safetensors, section Format) and NumPy's NEP 1.
Headers are read, and held against the file's size and the budget, before the data is, so that a
file can neither run code nor claim more bytes than it has.
"""

from __future__ import annotations

import json
import math
import os
import re
import struct
import zipfile
import zlib
from collections import Counter
from pathlib import Path
from typing import IO, Any

import numpy as np

from crossdock.runtime.errors import (
    LimitError,
    LoadError,
    MalformedModel,
    UnsafeModel,
    UnsupportedModel,
)
from crossdock.runtime.files import label_of, open_regular
from crossdock.runtime.limits import MAX_RANK, Limits, limits_of, require_free
from crossdock.runtime.loaders import content
from crossdock.runtime.loaders.onnx_model import shown
from crossdock.runtime.loaders.source import check_size
from crossdock.runtime.tensor import DTYPES, Array, to_numpy

MAX_HEADER = 100_000_000
MAX_NPY_HEADER = 10_000

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


def load_tensors(path: str | os.PathLike[str], *, limits: Limits | None = None) -> dict[str, Array]:
    """Read a safetensors, npy or npz file (told by content) into arrays by name.

    Args:
        path: the file; the array of an npy file is named after the file's stem.
        limits: ``file_bytes`` is for the file and, where it is compressed, for what it unpacks to;
            ``nodes`` for the tensors of a file (default: those of ``Limits()``).

    Returns:
        Arrays that own their memory or share the file's copy of it; all writable.

    Raises:
        MalformedModel: the file is broken or of another kind.
        UnsupportedModel: an element type is one crossdock lacks.
        UnsafeModel: it holds Python objects.
        LimitError: it is larger than ``limits`` allow, or than the memory that is free.
        LoadError: it cannot be read.
    """
    if not isinstance(path, str | os.PathLike):
        raise LoadError(f"cannot read tensors from a {type(path).__name__}; give a path")
    file = Path(path)
    label = label_of(file)
    limits = limits_of(limits)
    fd = open_regular(file, label)
    with os.fdopen(fd, "rb") as stream:
        size = os.fstat(fd).st_size
        check_size(size, label, limits)
        try:
            return _read(stream, size, file, limits)
        except (MemoryError, RecursionError) as error:
            raise LimitError(f"{label}: there is not enough memory to read it") from error
        except OSError as error:
            raise LoadError(f"{label}: cannot be read: {error.strerror or error}") from error


def _read(stream: IO[bytes], size: int, file: Path, limits: Limits) -> dict[str, Array]:
    label = label_of(file)
    head = stream.read(content.HEAD)
    stream.seek(0)
    if content.is_npy(head):
        return {file.stem: read_npy(stream, size, label)}
    if content.is_zip(head):
        return read_npz(stream, label, limits)
    known = content.describe(head)
    if known is not None and not content.is_safetensors(head):
        raise MalformedModel(f"{label}: this is {known[0]}; {known[1]}")
    return read_safetensors(stream, size, label, limits)


def read_safetensors(stream: IO[bytes], size: int, label: str, limits: Limits) -> dict[str, Array]:
    """Read a safetensors file of ``size`` bytes; arrays share one writable buffer."""
    header, start = _header(stream, size, label)
    if len(header) > limits.nodes:
        raise LimitError(
            f"{label}: {len(header):,} tensors, over the limit of {limits.nodes:,}; raise "
            "Limits.nodes if that is right"
        )
    rows = [
        (name, *_entry(name, entry, label))
        for name, entry in header.items()
        if name != "__metadata__"
    ]
    spans = [(begin, end, name) for name, _, _, begin, end in rows]
    _check_cover(spans, size - start, label)
    payload = bytearray(size - start)
    if stream.readinto(payload) != len(payload):  # type: ignore[attr-defined]
        raise MalformedModel(f"{label}: could not be read to its end; truncated?")
    view = memoryview(payload)
    arrays: dict[str, Array] = {}
    for name, dtype, shape, begin, end in rows:
        flat = np.frombuffer(view[begin:end], dtype=dtype)
        arrays[name] = np.require(flat.reshape(shape), requirements=["A", "W"])
    return arrays


def _header(stream: IO[bytes], size: int, label: str) -> tuple[dict[str, Any], int]:
    """The JSON object that a safetensors file starts with, and the offset of what follows."""
    if size < 8:
        raise MalformedModel(f"{label}: {size} bytes are no tensor file; truncated?")
    (length,) = struct.unpack("<Q", stream.read(8))
    if length > MAX_HEADER or 8 + length > size:
        raise MalformedModel(
            f"{label}: neither safetensors, npy nor npz, or truncated (a header of {length} bytes "
            f"in a file of {size})"
        )
    try:
        text = stream.read(length).decode()
        header = json.loads(text, object_pairs_hook=_unique) if text[:1] == "{" else None
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
    where = f"{label}: tensor {shown(name)}"
    if not isinstance(entry, dict):
        raise MalformedModel(f"{where}: its header entry is no JSON object")
    dtype = SAFETENSORS_DTYPES.get(str(entry.get("dtype")))
    if dtype is None:
        raise UnsupportedModel(
            f"{where}: element type {shown(str(entry.get('dtype')))} is not supported"
        )
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
        raise MalformedModel(f"{where}: {shown(str(value))} is no list of sizes")
    return tuple(value)


def _check_cover(spans: list[tuple[int, int, str]], size: int, label: str) -> None:
    """Raise unless the spans of all tensors follow each other and fill the file."""
    at = 0
    for begin, end, name in sorted(spans):
        if end > size:
            raise MalformedModel(
                f"{label}: tensor {shown(name)} ends at byte {end} of {size}; truncated?"
            )
        if begin != at:
            raise MalformedModel(
                f"{label}: tensor {shown(name)} starts at byte {begin}, but the one before ends "
                f"at {at}"
            )
        at = end
    if at != size:
        raise MalformedModel(f"{label}: {size - at} bytes after the last tensor belong to none")


def read_npy(stream: IO[bytes], size: int, label: str) -> Array:
    """Read an npy file, or a member of an npz, of ``size`` bytes."""
    dtype, fortran, shape, start = _npy_header(stream, size, label)
    count = math.prod(shape)
    if size - start != count * dtype.itemsize:
        raise MalformedModel(
            f"{label}: {dtype}{list(shape)} takes {count * dtype.itemsize} bytes, the file has "
            f"{size - start}"
        )
    require_free(count * dtype.itemsize, label)
    data = bytearray(stream.read(size - start))
    if len(data) != size - start:
        raise MalformedModel(f"{label}: could not be read to its end; truncated?")
    flat = np.frombuffer(data, dtype=dtype, count=count)
    array = flat.reshape(shape, order="F" if fortran else "C")
    native: Array = array.astype(dtype.newbyteorder("="), copy=False)
    return np.require(native, requirements=["A", "W"])


_HEADER = re.compile(
    r"\s*\{((?:\s*'\w+'\s*:\s*(?:'[^'\\]*'|True|False|\[[^{}]*\]|\([^(){}\[\]]*\))\s*,?)*)\s*\}\s*"
)
_ENTRY = re.compile(r"\s*'(\w+)'\s*:\s*('[^'\\]*'|True|False|\[[^{}]*\]|\([^(){}\[\]]*\))\s*,?")
_SHAPE = re.compile(r"\(\s*(?:\d{1,19}L?\s*,\s*)*(?:\d{1,19}L?)?\s*\)", re.ASCII)
"""What a header may be: a dict of a string, a bool and a tuple of numbers, as numpy writes it."""


def _npy_header(
    stream: IO[bytes], size: int, label: str
) -> tuple[np.dtype[Any], bool, tuple[int, ...], int]:
    start = stream.read(8)
    major = start[6] if len(start) == 8 and content.is_npy(start) else 0
    width = 2 if major == 1 else 4
    if major not in (1, 2, 3):
        raise MalformedModel(f"{label}: the npy header is broken or of an unknown version")
    length = int.from_bytes(stream.read(width), "little")
    if length > MAX_NPY_HEADER or 8 + width + length > size:
        raise MalformedModel(f"{label}: the npy header claims {length} bytes; truncated?")
    text = stream.read(length).decode("utf8" if major == 3 else "latin1", "replace")
    if not _HEADER.fullmatch(text):
        raise MalformedModel(f"{label}: the npy header is broken")
    pairs = _ENTRY.findall(text.strip()[1:])
    header = dict(pairs)
    if len(pairs) != 3 or header.keys() != {"descr", "fortran_order", "shape"}:
        raise MalformedModel(f"{label}: the npy header lacks descr, fortran_order or shape")
    if header["fortran_order"] not in ("True", "False") or not _SHAPE.fullmatch(header["shape"]):
        raise MalformedModel(f"{label}: the npy header's shape or order is broken")
    shape = _sizes([int(n) for n in re.findall(r"\d+", header["shape"])], label)
    dtype = _npy_dtype(header["descr"], label)
    return dtype, header["fortran_order"] == "True", shape, 8 + width + length


def _npy_dtype(descr: str, label: str) -> np.dtype[Any]:
    """The element type of a header's ``descr``, still in its quotes; a list is a record's."""
    if re.search(r"O\d*'", descr):
        raise UnsafeModel(f"{label}: it holds pickled Python objects, which are never opened")
    if not descr.startswith("'"):
        raise UnsupportedModel(f"{label}: element type {shown(descr)} is not supported")
    try:
        dtype = np.dtype(descr[1:-1])
    except (TypeError, ValueError, SyntaxError) as error:
        raise MalformedModel(f"{label}: element type {shown(descr)} is none of numpy's") from error
    if dtype.hasobject:
        raise UnsafeModel(f"{label}: it holds pickled Python objects, which are never opened")
    if dtype.name not in DTYPES:
        raise UnsupportedModel(f"{label}: element type {shown(descr)} is not supported")
    return dtype


def read_npz(stream: IO[bytes], label: str, limits: Limits) -> dict[str, Array]:
    """Read an npz file (a zip of npy files), each member up to the size that it claims."""
    try:
        with zipfile.ZipFile(stream) as archive:
            members = archive.infolist()
            _check_members(members, label, limits)
            return {m.filename[: -len(".npy")]: _member(archive, m, label) for m in members}
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise MalformedModel(f"{label}: the npz is broken: {error}") from error
    except LoadError:
        raise
    except (RuntimeError, ValueError, OSError, struct.error) as error:
        raise MalformedModel(f"{label}: the npz cannot be unpacked: {error}") from error


def _member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, label: str) -> Array:
    where = f"{label}: {shown(member.filename)}"
    with archive.open(member) as packed:  # it gives no more than ``file_size`` bytes
        return read_npy(packed, member.file_size, where)


def _check_members(members: list[zipfile.ZipInfo], label: str, limits: Limits) -> None:
    if len(members) > limits.nodes:
        raise LimitError(
            f"{label}: {len(members):,} arrays, over the limit of {limits.nodes:,}; raise "
            "Limits.nodes if that is right"
        )
    names = [m.filename for m in members]
    for member in members:
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise MalformedModel(
                f"{label}: {shown(member.filename)} is packed in a way no npz uses"
            )
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise MalformedModel(f"{label}: {shown(twice)} stands in the archive twice")
    for name in names:
        if not name.endswith(".npy"):
            raise MalformedModel(
                f"{label}: a zip archive with {shown(name)} in it is no npz; PyTorch checkpoints "
                "hold pickles, which are never opened: save the weights as safetensors"
            )
    total = sum(m.file_size for m in members)
    if total > limits.file_bytes:
        raise LimitError(
            f"{label}: unpacks to {total:,} bytes, more than the limit of {limits.file_bytes:,}; "
            "raise Limits.file_bytes if that is right"
        )
    packed = sum(m.compress_size for m in members)
    if total > limits.tensor(packed):
        raise LimitError(
            f"{label}: {packed:,} bytes unpack to {total:,}, over the limit of "
            f"{limits.tensor(packed):,}; raise Limits.tensor_bytes if that is right"
        )
    require_free(total, label)
