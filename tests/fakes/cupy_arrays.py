"""Arrays of the fake cupy: numpy's results, cupy's rules.

Only names that cupy 14 has exist (cupy_names.txt). A numpy array among the arguments is an error,
and so is turning a device array into a numpy array without ``get``: both are in cupy. Results of
reductions are arrays without axes. Every access to device memory goes through the machine.
"""

from __future__ import annotations

import ctypes
import functools
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from crossdock.devices import dlpack
from tests.fakes.cuda_machine import Machine, Range

NAMES = frozenset(Path(__file__).with_name("cupy_names.txt").read_text().split())
TAKES_HOST = frozenset({"array", "asarray", "asanyarray", "ascontiguousarray"})
WRITES_FIRST = frozenset({"copyto", "put", "putmask", "place", "fill_diagonal", "put_along_axis"})
FACTS = frozenset({"shape", "dtype", "ndim", "size", "nbytes", "itemsize", "strides", "flags"})
METHODS = frozenset(
    {
        "reshape", "astype", "transpose", "sum", "mean", "max", "min", "copy", "ravel", "squeeze",
        "flatten", "view", "swapaxes", "argmax", "argmin", "any", "all", "clip", "cumsum", "dot",
        "cumprod", "repeat", "take", "prod", "std", "var", "round", "argsort", "diagonal",
        "nonzero",
    }
)  # fmt: skip
IN_PLACE = frozenset({"fill", "sort", "put"})


class Context:
    """Where arrays tell the machine what they do."""

    def __init__(
        self, machine: Machine, current: Callable[[], int], named: Callable[[], int]
    ) -> None:
        self.machine = machine
        self.current = current
        self.named = named

    def touch(self, reads: list[Any], writes: list[Any], what: str) -> None:
        spans = [[s for a in arrays if (s := self._span(a))] for arrays in (reads, writes)]
        self.machine.refuse_capture(f"an array call ({what})", self.current())
        self.machine.submit(self.current(), spans[0], spans[1], what)

    def _span(self, array: np.ndarray) -> Range | None:
        if array.size == 0:
            return None
        low, high = np.lib.array_utils.byte_bounds(array)
        span = Range(low, high - low)
        return span if self.machine.find(span) is not None else None


CUDA, BFLOAT = 2, 4
"""kDLCUDA and kDLBfloat (dlpack.h)."""
NEW, USED = b"dltensor_versioned", b"used_dltensor_versioned"
_NAMED = (ctypes.py_object, ctypes.c_char_p)
_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, *_NAMED)(("PyCapsule_GetPointer", ctypes.pythonapi))
_rename = ctypes.PYFUNCTYPE(ctypes.c_int, *_NAMED)(("PyCapsule_SetName", ctypes.pythonapi))


class Held(np.ndarray):
    """Memory that a capsule keeps, and with it the array that it is of."""

    owner: Any = None


def exported(array: Any) -> Any:
    """A capsule of DLPack's, with what numpy says of the memory but for where it is."""
    narrow = array._a.dtype.name == "bfloat16"
    memory = (array._a.view(np.uint16) if narrow else array._a).view(Held)
    memory.owner = array
    capsule = memory.__dlpack__(max_version=(1, 0))
    found = dlpack.tensor_of(capsule)
    found.device_type, found.device_id = array.__dlpack_device__()
    found.dtype.code = BFLOAT if narrow else found.dtype.code
    EXPORTED[found.data or 0] = array
    return capsule


EXPORTED: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
"""Arrays by where they lie, for who takes them."""


def taken(capsule: Any) -> tuple[Any, np.dtype[Any]]:
    """The array of a capsule, which may be taken once, and the type that the capsule says."""
    found = dlpack.tensor_of(capsule)
    if found.dtype.code == BFLOAT:
        raise NotImplementedError("CuPy does not support bfloat16 yet")
    array = EXPORTED[found.data or 0]
    shape = tuple(found.shape[i] for i in range(found.ndim))
    kinds = {0: "i", 1: "u", 2: "f", 5: "c", 6: "b"}
    dtype = np.dtype(f"{kinds[found.dtype.code]}{found.dtype.bits // 8}")
    assert shape == array._a.shape
    managed = dlpack.ManagedVersioned.from_address(_pointer(capsule, NEW))
    _rename(capsule, USED)
    ctypes.CFUNCTYPE(None, ctypes.c_void_p)(managed.deleter)(ctypes.addressof(managed))
    return array, dtype


class ndarray(NDArrayOperatorsMixin):  # noqa: N801 - cupy's name
    """``cupy.ndarray``; each machine has a class of its own, with its context."""

    context: Context
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, shape: Any, dtype: Any = float, memptr: Any = None) -> None:
        self._a = np.empty(shape, dtype) if memptr is None else memptr.array(shape, dtype)
        self._memptr = memptr

    @classmethod
    def of(cls, value: Any) -> Any:
        """Device results for numpy's: arrays without axes for scalars, too."""
        if isinstance(value, tuple | list):
            return type(value)(cls.of(v) for v in value)
        if not isinstance(value, np.ndarray | np.generic):
            return value
        made = object.__new__(cls)
        made._a = np.asarray(value)
        made._memptr = None
        return made

    @classmethod
    def call(cls, function: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
        """Run one of numpy's functions on the memory behind device arrays."""
        if name not in TAKES_HOST:
            refuse_host((*args, *kwargs.values()), name)
        out = inside(kwargs.get("out", ()))
        reads = inside(tuple(v for k, v in kwargs.items() if k != "out")) + inside(tuple(args))
        if name in WRITES_FIRST or name in IN_PLACE:
            out, reads = out + inside(args[0]), reads[1:]
        cls.context.touch(reads, out, name)
        with np.errstate(all="ignore"):
            result = function(*bare(tuple(args)), **{k: bare(v) for k, v in kwargs.items()})
        given = kwargs.get("out")
        if given is None:
            return cls.of(result)
        return given[0] if isinstance(given, tuple) else given

    def __array_ufunc__(self, ufunc: Any, method: str, *args: Any, **kwargs: Any) -> Any:
        return self.call(getattr(ufunc, method), ufunc.__name__, args, kwargs)

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        return self.call(func, func.__name__, args, kwargs)

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("Implicit conversion to a NumPy array is not allowed.")

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self.context.machine.home(int(self._a.ctypes.data))

    def __dlpack__(
        self, stream: Any = None, max_version: Any = None, dl_device: Any = None, copy: Any = None
    ) -> Any:
        """The stream that asks waits for the current one; a copy for the host is waited for."""
        machine, current = self.context.machine, self.context.current()
        if dl_device is not None and int(dl_device[0]) == 1:
            return self.get().__dlpack__(max_version=max_version)
        if stream is None:
            raise machine.problem("an export for the default stream")
        if stream != -1 and stream != current:
            machine.wait(stream, machine.clock(current))
        return exported(self)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self._a.shape, "typestr": self._a.dtype.str, "version": 3,
            "data": (int(self._a.ctypes.data), False), "stream": self.context.named(),
            "strides": None if self._a.flags.c_contiguous else self._a.strides,
        }  # fmt: skip

    def get(self) -> np.ndarray:
        machine, stream = self.context.machine, self.context.current()
        self.context.touch([self._a], [], "get")
        machine.synchronize(machine.clock(stream))
        return self._a.copy()

    def item(self) -> Any:
        return self.get().item()

    def tolist(self) -> Any:
        return self.get().tolist()

    def __bool__(self) -> bool:
        return bool(self.get())

    def __int__(self) -> int:
        return int(self.get())

    def __float__(self) -> float:
        return float(self.get())

    def __index__(self) -> int:
        return int(self.get().__index__())

    def __len__(self) -> int:
        return len(self._a)

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self._a)))

    def __getitem__(self, key: Any) -> Any:
        found = self._a[bare(key)]
        if not np.may_share_memory(found, self._a):
            self.context.touch([self._a, *inside(key)], [], "indexing")
        return self.of(found)

    def __setitem__(self, key: Any, value: Any) -> None:
        refuse_host((value,), "assignment")
        part = np.asarray(self._a[bare(key)])
        target = part if np.may_share_memory(part, self._a) else self._a
        self.context.touch(inside(value) + inside(key), [target], "assignment")
        self._a[bare(key)] = bare(value)

    @property
    def data(self) -> Any:
        """A pointer to the first element."""
        return self._memptr or SimpleNamespace(ptr=int(self._a.ctypes.data))

    @property
    def T(self) -> Any:  # noqa: N802 - cupy's name
        return self.of(self._a.T)

    def __getattr__(self, name: str) -> Any:
        if name in FACTS:
            return getattr(self._a, name)
        if name in METHODS or name in IN_PLACE:
            return functools.partial(self._method, name)
        raise AttributeError(f"'cupy.ndarray' object has no attribute {name!r}")

    def _method(self, name: str, *args: Any, **kwargs: Any) -> Any:
        def run(a: np.ndarray, *rest: Any, **named: Any) -> Any:
            return getattr(a, name)(*rest, **named)

        return self.call(run, name, (self, *args), kwargs)


def bare(value: Any) -> Any:
    """Numpy's arrays for device arrays, in tuples and lists too."""
    if isinstance(value, ndarray):
        return value._a
    if isinstance(value, tuple | list):
        return type(value)(bare(v) for v in value)
    return value


def inside(value: Any) -> list[np.ndarray]:
    """The device arrays among arguments."""
    if isinstance(value, ndarray):
        return [value._a]
    if isinstance(value, tuple | list):
        return [a for v in value for a in inside(v)]
    return []


def refuse_host(args: Any, name: str) -> None:
    """cupy does not compute on numpy arrays."""
    for value in args:
        if isinstance(value, np.ndarray) and value.ndim:
            raise TypeError(f"{name}: Unsupported type {type(value)}")
        if isinstance(value, tuple | list):
            refuse_host(value, name)


def numpy_name(name: str, kind: type[ndarray]) -> Any:
    """What the fake has under a name of cupy's: numpy's types and constants, checked functions."""
    if name not in NAMES:
        raise AttributeError(f"module 'cupy' has no attribute {name!r}")
    found = getattr(np, name)
    if isinstance(found, type) or not callable(found):
        return found
    return lambda *args, **kwargs: kind.call(found, name, args, kwargs)
