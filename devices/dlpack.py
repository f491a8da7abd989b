"""The element type that a DLPack capsule names: bfloat16, for libraries that do not have it.

cupy 14.0 has no bfloat16 arrays, and numpy exports none, but both share the bits as uint16.
What DLPack hands over is a C structure (dlpack.h, versions 0.x and 1.x) in a capsule, made anew for
each export and nobody else's until it is taken; so the type in it is written over.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from ctypes import POINTER, c_int32, c_int64, c_uint8, c_uint16, c_uint32, c_uint64, c_void_p
from typing import Any

import numpy as np

from crossdock.runtime.tensor import Array, to_numpy

UINT, BFLOAT = 1, 4
"""kDLUInt and kDLBfloat."""


class DataType(ctypes.Structure):
    """DLDataType."""

    _fields_ = (("code", c_uint8), ("bits", c_uint8), ("lanes", c_uint16))


class Tensor(ctypes.Structure):
    """DLTensor."""

    _fields_ = (
        ("data", c_void_p),
        ("device_type", c_int32),
        ("device_id", c_int32),
        ("ndim", c_int32),
        ("dtype", DataType),
        ("shape", POINTER(c_int64)),
        ("strides", POINTER(c_int64)),
        ("byte_offset", c_uint64),
    )


class Managed(ctypes.Structure):
    """DLManagedTensor."""

    _fields_ = (("tensor", Tensor), ("manager_ctx", c_void_p), ("deleter", c_void_p))


class ManagedVersioned(ctypes.Structure):
    """DLManagedTensorVersioned."""

    _fields_ = (
        ("major", c_uint32),
        ("minor", c_uint32),
        ("manager_ctx", c_void_p),
        ("deleter", c_void_p),
        ("flags", c_uint64),
        ("tensor", Tensor),
    )


KINDS: Mapping[bytes, type[Managed | ManagedVersioned]] = {
    b"dltensor_versioned": ManagedVersioned,
    b"dltensor": Managed,
}
"""By the name of a capsule that nobody has taken yet."""

_NAMED = (ctypes.py_object, ctypes.c_char_p)
_valid = ctypes.PYFUNCTYPE(ctypes.c_int, *_NAMED)(("PyCapsule_IsValid", ctypes.pythonapi))
_pointer = ctypes.PYFUNCTYPE(c_void_p, *_NAMED)(("PyCapsule_GetPointer", ctypes.pythonapi))


def tensor_of(capsule: Any) -> Tensor:
    """The structure in a capsule, which may be read and written while the capsule is there.

    Raises:
        BufferError: it is no capsule of DLPack's, or it was taken.
    """
    for name, kind in KINDS.items():
        if _valid(capsule, name):
            found: Tensor = kind.from_address(_pointer(capsule, name)).tensor
            return found
    raise BufferError(f"{type(capsule).__name__} is no DLPack capsule that can be taken")


def as_bits(capsule: Any) -> bool:
    """Let a capsule of bfloat16 be one of uint16; whether it was one."""
    dtype = tensor_of(capsule).dtype
    found = (dtype.code, dtype.bits, dtype.lanes) == (BFLOAT, 16, 1)
    if found:
        dtype.code = UINT
    return found


class _Export:
    """What an array exports, for a library without bfloat16; ``bits``: it was of that."""

    def __init__(self, value: Any) -> None:
        self._value = value
        self.bits = False

    def __dlpack__(self, **options: Any) -> Any:
        capsule = self._value.__dlpack__(**options)
        self.bits = as_bits(capsule)
        return capsule

    def __dlpack_device__(self) -> Any:
        return self._value.__dlpack_device__()


def as_numpy(value: Any, **options: Any) -> Array:
    """``numpy.from_dlpack``, for arrays of bfloat16, too; raises what that and ``value`` raise."""
    export = _Export(value)
    made = np.from_dlpack(export, **options)
    return made.view(to_numpy("bfloat16")) if export.bits else made


class Bfloat16:
    """An array of bfloat16 for other libraries, over one of another library with its bits."""

    def __init__(self, bits: Any) -> None:
        self._bits = bits

    def __dlpack__(self, **options: Any) -> Any:
        """The capsule of the bits, with their type."""
        capsule = self._bits.__dlpack__(**options)
        tensor_of(capsule).dtype.code = BFLOAT
        return capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        """DLPack's device type and number."""
        kind, number = self._bits.__dlpack_device__()
        return int(kind), int(number)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """The CUDA array interface, with what ml_dtypes calls the type; it knows no bfloat16."""
        return {**self._bits.__cuda_array_interface__, "typestr": TYPESTR}


TYPESTR = "<V2"
"""bfloat16 in interfaces of numpy's kind: two bytes, as ml_dtypes and PyTorch have it."""
