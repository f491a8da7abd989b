"""ONNX tensors into arrays: every way a TensorProto may hold its data.

External data is read only from regular files under the model's own folder (or, where the model is
a link into a hub's cache, under the folder of the real file): ONNX IR.md, External Tensor Data.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import os
import re
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np

from crossdock.runtime.errors import LimitError, LoadError, MalformedModel, UnsafeModel
from crossdock.runtime.files import open_regular
from crossdock.runtime.limits import MAX_RANK, Budget, require_free
from crossdock.runtime.loaders.onnx_model import (
    ONNX_DTYPES,
    SMALL_DTYPES,
    Opaque,
    dtype_name,
    shown,
)
from crossdock.runtime.loaders.source import Source
from crossdock.runtime.tensor import Array, to_numpy

_STRING = 8
_COMPLEX = {14: 64, 15: 128}
"""TensorProto.DataType of strings, and of complex numbers with their widths in bits."""

_SMALL = ("int32", "int16", "int8", "uint16", "uint8", "bool", "float16", "bfloat16")

# The typed field that holds each element type, and how it is stored there.
_FIELDS: dict[str, tuple[str, str]] = {
    "float32": ("float_data", "float32"),
    "float64": ("double_data", "float64"),
    "int64": ("int64_data", "int64"),
    "uint32": ("uint64_data", "uint64"),
    "uint64": ("uint64_data", "uint64"),
    **dict.fromkeys(_SMALL, ("int32_data", "int32")),
}
_DATA_FIELDS = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data")


def decode(proto: Any, source: Source, where: str) -> Array | Opaque:
    """Return a TensorProto's array (read-only), or Opaque where its type cannot be read.

    Strings are arrays of objects, and small floats and integers have dtypes of ``ml_dtypes``.

    Raises:
        MalformedModel: shape and data do not fit each other.
        UnsafeModel: external data outside the model's folder.
    """
    name = ONNX_DTYPES.get(proto.data_type)
    if proto.HasField("segment"):
        raise MalformedModel(f"{where}: tensors in segments were never part of a release")
    shape = checked_shape(proto.dims, where)
    if name is None:
        return _unlike(proto, shape, source, where)
    dtype = to_numpy(name)
    want = math.prod(shape) * dtype.itemsize
    if proto.data_location == 1:
        array = _external(proto, source, want, where).view(dtype.newbyteorder("<"))
    elif proto.HasField("raw_data"):
        _only(proto, None, where)
        if len(proto.raw_data) != want:
            raise MalformedModel(
                f"{where}: {name}{list(shape)} takes {want} bytes, its data has "
                f"{len(proto.raw_data)}"
            )
        array = np.frombuffer(proto.raw_data, dtype=dtype.newbyteorder("<"))
    else:
        array = _typed(proto, name, math.prod(shape), where)
    if name == "bool":
        array = array.view(np.uint8) != 0
    array = array.astype(dtype, copy=False).reshape(shape)
    array.flags.writeable = False
    return array


def _unlike(proto: Any, shape: tuple[int, ...], source: Source, where: str) -> Array | Opaque:
    """A tensor of a type that only the host holds: strings, complex numbers, small numbers."""
    number = proto.data_type
    if number == _STRING:
        if len(proto.string_data) != math.prod(shape):
            raise MalformedModel(
                f"{where}: {math.prod(shape)} strings are due, it has {len(proto.string_data)}"
            )
        words = [value.decode("utf-8", "replace") for value in proto.string_data]
        array: Array = np.array(words, dtype=object).reshape(shape)
    elif number in SMALL_DTYPES or number in _COMPLEX:
        array = _decoded(_inlined(proto, shape, source, where), shape, where)
    else:
        return Opaque(dtype_name(number))
    array.flags.writeable = False
    return array


def _inlined(proto: Any, shape: tuple[int, ...], source: Source, where: str) -> Any:
    """The tensor with its external data, if any, read into it; packed numbers fill whole bytes."""
    if proto.data_location != 1:
        return proto
    number = proto.data_type
    bits = _COMPLEX[number] if number in _COMPLEX else _bits(SMALL_DTYPES[number])
    copy = type(proto)(data_type=number, dims=shape)
    copy.raw_data = _external(proto, source, -(-math.prod(shape) * bits // 8), where).tobytes()
    return copy


def _bits(name: str) -> int:
    """The width of a small number, which follows its kind: float8_e5m2, uint4."""
    return int(name.lstrip("uintfloa")[0])


def _decoded(proto: Any, shape: tuple[int, ...], where: str) -> Array:
    """Small and complex numbers, as the package ``onnx`` unpacks them."""
    helper = importlib.import_module("onnx.numpy_helper")
    try:
        array: Array = np.array(helper.to_array(proto))
    except (ImportError, TypeError, ValueError, IndexError) as error:
        raise MalformedModel(f"{where}: its data cannot be read: {error}") from error
    if array.shape != shape:
        raise MalformedModel(f"{where}: its data does not fit {list(shape)}")
    return array


def checked_shape(dims: Any, where: str) -> tuple[int, ...]:
    """A TensorProto's dims as a shape; raises MalformedModel where it is none."""
    shape = tuple(int(d) for d in dims)
    spanned = math.prod(max(1, d) for d in shape)  # numpy refuses an empty array over it, too
    if len(shape) > MAX_RANK or any(d < 0 for d in shape) or spanned >= 1 << 59:
        raise MalformedModel(f"{where}: {list(shape)[:MAX_RANK]} is no shape of a tensor")
    return shape


def _only(proto: Any, field: str | None, where: str) -> None:
    others = [f for f in _DATA_FIELDS if f != field and len(getattr(proto, f))]
    if others:
        raise MalformedModel(f"{where}: has data in more than one field ({others[0]})")


def _typed(proto: Any, name: str, count: int, where: str) -> Array:
    field, stored = _FIELDS[name]
    _only(proto, field, where)
    values = getattr(proto, field)
    if len(values) != count:
        raise MalformedModel(f"{where}: {count} values are due in {field}, it has {len(values)}")
    flat: Array = np.array(values, dtype=stored)
    if name in ("float16", "bfloat16"):
        return flat.astype(np.uint16).view(to_numpy(name))
    return flat.astype(to_numpy(name))


def decode_sparse(proto: Any, source: Source, where: str) -> Array | Opaque:
    """Return a SparseTensorProto's dense array (read-only).

    Indices are int64, of shape [elements] or [elements, rank], ascending and each there once
    (onnx.proto, SparseTensorProto).
    """
    values = decode(proto.values, source, where)
    indices = decode(proto.indices, source, where)
    if isinstance(values, Opaque) or isinstance(indices, Opaque) or values.dtype == object:
        return Opaque("sparse tensor")
    shape = checked_shape(proto.dims, where)
    budget = Budget(source.limits, values.nbytes + indices.nbytes)
    budget.tensor(math.prod(shape) * values.dtype.itemsize, f"{where}, made dense")
    flat = _flat_indices(indices, shape)
    if flat is None or values.shape != flat.shape or not _ascending(flat, math.prod(shape)):
        raise MalformedModel(
            f"{where}: sparse indices {list(indices.shape)} and values {list(values.shape)} do not "
            f"fit {list(shape)}, or are not ascending"
        )
    dense: Array = np.zeros(shape, dtype=values.dtype)
    dense.reshape(-1)[flat] = values
    dense.flags.writeable = False
    return dense


def _flat_indices(indices: Array, shape: tuple[int, ...]) -> Array | None:
    """Sparse indices as those of the flat tensor; None where they are none of the shape's."""
    if indices.dtype != np.int64 or not shape:
        return None
    if indices.ndim == 1:
        return indices
    if indices.ndim != 2 or indices.shape[1] != len(shape):
        return None
    if ((indices < 0) | (indices >= shape)).any():
        return None
    flat: Array = np.ravel_multi_index(tuple(indices.T), shape)
    return flat


def _ascending(flat: Array, size: int) -> bool:
    inside = not flat.size or (flat[0] >= 0 and flat[-1] < size)
    return bool(inside and (flat[1:] > flat[:-1]).all())


def _external(proto: Any, source: Source, want: int, where: str) -> Array:
    entries = {entry.key: entry.value for entry in proto.external_data}
    path = resolve(str(entries.get("location", "")), source, where)
    offset, length = (
        _count(str(entries.get(key) or default), where)
        for key, default in (("offset", 0), ("length", want))
    )
    if length != want or offset < 0:
        raise MalformedModel(
            f"{where}: external data of {length} bytes at {offset}, where {want} are due"
        )
    found = source.spans.get((path, offset, want))
    if found is None:
        _check_reads(path, want, source, where)
        found = _read_span(path, offset, want, source, where)
        found.flags.writeable = False
        source.spans[path, offset, want] = found
        source.taken[path] += want
    return found


def _count(text: str, where: str) -> int:
    """A number of bytes, as a file may have them."""
    if not _COUNT.fullmatch(text):
        raise MalformedModel(
            f"{where}: offset or length of its external data is no number of bytes: {shown(text)}"
        )
    return int(text)


_COUNT = re.compile(r"\s*[+-]?[0-9]{1,19}\s*", re.ASCII)

READ_TWICE = 2
"""How often all of a file may be read as external data, counting different spans alone."""


def _check_reads(path: Path, want: int, source: Source, where: str) -> None:
    """Raise where spans that overlap would make far more of a file than it has."""
    held = source.limits.tensor_bytes
    with contextlib.suppress(OSError):
        held += READ_TWICE * path.stat().st_size
    if source.taken[path] + want > held:
        raise LimitError(
            f"{where}: the tensors in {shown(path.name)} overlap and take more than {held:,} "
            "bytes together; raise Limits.tensor_bytes if that is right"
        )
    require_free(want, where)


def _read_span(path: Path, offset: int, want: int, source: Source, where: str) -> Array:
    try:
        fd = open_regular(path, f"{where}: external data {shown(path.name)}", follow=False)
    except UnsafeModel:
        raise
    except LoadError as error:
        raise MalformedModel(str(error)) from error
    with os.fdopen(fd, "rb") as file:
        status = os.fstat(fd)
        have = status.st_size
        if status.st_nlink > 1 and not source.linked:
            raise UnsafeModel(
                f"{where}: external data {shown(path.name)} is a hard link, so that it may belong "
                "to another folder; put a copy of it beside the model"
            )
        if offset + want > have:
            raise MalformedModel(
                f"{where}: external data {shown(path.name)} has {have} bytes, "
                f"{offset + want} are due; truncated?"
            )
        file.seek(offset)
        data: Array = np.fromfile(file, dtype=np.uint8, count=want)
    if data.size != want:
        raise MalformedModel(
            f"{where}: external data {shown(path.name)} could not be read to its end"
        )
    return data


def resolve(location: str, source: Source, where: str) -> Path:
    """The real path of external data; raises UnsafeModel where it is not the model's to read."""
    if source.folder is None:
        raise LoadError(
            f"{where}: its data is in another file ({shown(location)}); load the model by its path"
        )
    if not location or "\0" in location:
        raise MalformedModel(f"{where}: external data without a location")
    parts = PurePosixPath(location), PureWindowsPath(location)
    if any(p.is_absolute() or p.drive or p.root or ".." in p.parts for p in parts):
        raise UnsafeModel(
            f"{where}: external data {shown(location)} is outside the model's folder; put it "
            "beside the model"
        )
    try:
        path = (source.folder / location).resolve()
    except (OSError, RuntimeError) as error:
        raise UnsafeModel(
            f"{where}: external data {shown(location)} is a link to itself"
        ) from error
    if not any(path.is_relative_to(root) for root in source.roots):
        raise UnsafeModel(
            f"{where}: external data {shown(location)} is a link to {shown(str(path))}, outside "
            "the model's folder; put the file itself beside the model"
        )
    return path
