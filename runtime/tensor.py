"""Tensor specifications: element type and shape, with symbolic dimensions.

Element types are named as WebNN names them (``float32``, ``uint8`` ...), plus ``float64``,
``bool``, ``int16``, ``uint16`` and ``bfloat16`` for the formats that have them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from crossdock.runtime.errors import ShapeError, Unavailable

Dim = int | str
"""A dimension: a size, or the name of a symbol bound later."""

Array = np.ndarray[Any, np.dtype[Any]]

WEBNN_DTYPES = ("float32", "float16", "int32", "uint32", "int64", "uint64", "int8", "uint8")
DTYPES = (*WEBNN_DTYPES, "float64", "bfloat16", "bool", "int16", "uint16")
FLOATS = frozenset({"float16", "bfloat16", "float32", "float64"})


@functools.cache
def to_numpy(dtype: str) -> np.dtype[Any]:
    """Return the numpy dtype of a type name; bfloat16 needs the package ``ml_dtypes``."""
    if dtype not in DTYPES:
        raise ShapeError(f"unknown element type {dtype!r}; use one of {', '.join(DTYPES)}")
    if dtype == "bfloat16":
        try:
            import ml_dtypes
        except ImportError:
            raise Unavailable(
                "bfloat16 needs the package ml_dtypes: pip install ml_dtypes"
            ) from None
        return np.dtype(ml_dtypes.bfloat16)  # type: ignore[no-any-return,unused-ignore]
    return np.dtype(dtype)


def from_numpy(dtype: Any) -> str:
    """Return the type name of a numpy dtype (or anything ``numpy.dtype`` takes)."""
    name = type_name(np.dtype(dtype))
    if name not in DTYPES:
        raise ShapeError(f"element type {name!r} is not supported; use one of {', '.join(DTYPES)}")
    return name


@functools.cache
def type_name(dtype: np.dtype[Any]) -> str:
    """A numpy dtype's name; numpy itself puts it together anew each time."""
    return str(dtype.name)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Element type and shape of a tensor; a shape may hold symbols until it is bound."""

    dtype: str
    shape: tuple[Dim, ...]

    @property
    def rank(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def is_static(self) -> bool:
        """True where no dimension is a symbol."""
        return all(isinstance(d, int) for d in self.shape)

    @property
    def dims(self) -> tuple[int, ...]:
        """The shape as integers; raises ShapeError while a symbol is unbound."""
        for d in self.shape:
            if not isinstance(d, int):
                raise ShapeError(f"shape {self} still has symbols; bind them first")
        return self.shape  # type: ignore[return-value]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.dims)

    @property
    def nbytes(self) -> int:
        """Size in bytes, densely packed."""
        return self.size * to_numpy(self.dtype).itemsize

    @property
    def symbols(self) -> frozenset[str]:
        """Names of the unbound dimensions."""
        return frozenset(d for d in self.shape if isinstance(d, str))

    def with_shape(self, shape: Iterable[Dim]) -> TensorSpec:
        """Same element type, another shape."""
        return TensorSpec(self.dtype, tuple(shape))

    def with_dtype(self, dtype: str) -> TensorSpec:
        """Same shape, another element type."""
        return TensorSpec(dtype, self.shape)

    def bind(self, dims: dict[str, int]) -> TensorSpec:
        """Replace the symbols that ``dims`` names."""
        return self.with_shape(dims.get(d, d) if isinstance(d, str) else d for d in self.shape)

    @classmethod
    def of(cls, array: Array) -> TensorSpec:
        """The spec of an array."""
        return cls(from_numpy(array.dtype), tuple(int(d) for d in array.shape))

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(str(d) for d in self.shape)}]"
