"""cuBLASLt as a library: loading it, its functions, and descriptors that end with who made them.

cupy binds none of it (14.2), so it is called through ctypes. Its interface is C, over opaque
descriptors with numbered attributes; what is used here is the same in the headers of 12.9 and
13.10, and other major versions are refused.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Mapping
from ctypes import byref, c_int, c_int32, c_int64, c_size_t, c_uint64, c_void_p
from functools import cache
from typing import Any
from weakref import finalize

from crossdock.devices.cuda_blas import load
from crossdock.devices.cuda_lt_choice import Algorithm, Chosen
from crossdock.devices.cuda_versions import fingerprint
from crossdock.runtime.errors import CompileError

KNOWN = (12, 13)
"""Major versions whose headers were read."""
ID, TILE, PARTS, STAGES = 0, 1, 2, 6
"""CUBLASLT_ALGO_CONFIG: what tells algorithms apart (cublasLt.h)."""

Descriptor = c_void_p

PROTOTYPES: Mapping[str, tuple[Any, ...]] = {
    "cublasLtCreate": (c_void_p,),
    "cublasLtMatmulDescCreate": (c_void_p, c_int, c_int),
    "cublasLtMatmulDescSetAttribute": (Descriptor, c_int, c_void_p, c_size_t),
    "cublasLtMatmulDescDestroy": (Descriptor,),
    "cublasLtMatrixLayoutCreate": (c_void_p, c_int, c_uint64, c_uint64, c_int64),
    "cublasLtMatrixLayoutSetAttribute": (Descriptor, c_int, c_void_p, c_size_t),
    "cublasLtMatrixLayoutDestroy": (Descriptor,),
    "cublasLtMatmulPreferenceCreate": (c_void_p,),
    "cublasLtMatmulPreferenceSetAttribute": (Descriptor, c_int, c_void_p, c_size_t),
    "cublasLtMatmulPreferenceDestroy": (Descriptor,),
    "cublasLtMatmulAlgoGetHeuristic": (
        c_void_p, Descriptor, Descriptor, Descriptor, Descriptor, Descriptor, Descriptor,
        c_int, c_void_p, c_void_p,
    ),
    "cublasLtMatmulAlgoCheck": (
        c_void_p, Descriptor, Descriptor, Descriptor, Descriptor, Descriptor, c_void_p, c_void_p,
    ),
    "cublasLtMatmulAlgoConfigGetAttribute": (c_void_p, c_int, c_void_p, c_size_t, c_void_p),
    "cublasLtMatmul": (
        c_void_p, Descriptor, c_void_p, c_void_p, Descriptor, c_void_p, Descriptor, c_void_p,
        c_void_p, Descriptor, c_void_p, Descriptor, c_void_p, c_void_p, c_size_t, c_void_p,
    ),
}  # fmt: skip
"""Arguments of the functions used; each returns a cublasStatus_t."""


class Refused(Exception):
    """A status that is not success, and the function that returned it."""

    def __init__(self, status: int, function: str) -> None:
        self.status = status
        super().__init__(f"{function} returned status {status}")


class Library:
    """cuBLASLt, loaded."""

    def __init__(self, functions: Any) -> None:
        self.functions = functions
        self._handles: dict[int, int] = {}
        self._cards: dict[int, str] = {}
        self.chosen: dict[str, Chosen] = {}
        """Algorithms that were chosen by timing them, by name; also where no cache keeps them."""
        for name, arguments in PROTOTYPES.items():
            function = getattr(functions, name)
            function.argtypes, function.restype = arguments, c_int
        functions.cublasLtGetVersion.argtypes = ()
        functions.cublasLtGetVersion.restype = c_size_t
        self.version = int(functions.cublasLtGetVersion())

    def call(self, name: str, *args: Any) -> None:
        """Call a function; raises Refused."""
        if status := getattr(self.functions, name)(*args):
            raise Refused(status, name)

    def handle(self, device: int) -> int:
        """The handle of the current device, by its index.

        Any thread may use it; it is made when the first product is prepared, and not in a capture.
        """
        if device not in self._handles:
            made = c_void_p()
            self.call("cublasLtCreate", byref(made))
            self._handles[device] = made.value or 0
        return self._handles[device]

    def card(self, cp: Any) -> str:
        """What tells the current device from others that it chooses otherwise for."""
        index = cp.cuda.Device().id
        if index not in self._cards:
            facts = cp.cuda.runtime.getDeviceProperties(index)
            self._cards[index] = f"{fingerprint(cp, facts)}|{facts['multiProcessorCount']}"
        return self._cards[index]

    def config(self, algorithm: Algorithm, attribute: int) -> int:
        """An attribute of an algorithm."""
        value, written = c_int32(), c_size_t()
        self.call(
            "cublasLtMatmulAlgoConfigGetAttribute", byref(algorithm), attribute, byref(value),
            ctypes.sizeof(value), byref(written),
        )  # fmt: skip
        return value.value

    def described(self, algorithm: Algorithm) -> str:
        """What tells an algorithm from others."""
        number, tile, parts, stages = (
            self.config(algorithm, attribute) for attribute in (ID, TILE, PARTS, STAGES)
        )
        split = f", sums in {parts} parts" if parts > 1 else ""
        return f"cuBLASLt's algorithm {number} (tile {tile}, stages {stages}{split})"

    def create(self, kind: str, *args: Any) -> int:
        """A new descriptor (MatmulDesc, MatrixLayout, MatmulPreference)."""
        made = c_void_p()
        self.call(f"cublasLt{kind}Create", byref(made), *args)
        assert made.value is not None
        return made.value

    def set(self, kind: str, descriptor: int, attribute: int, value: Any) -> None:
        """Set an attribute of a descriptor to a ctypes value."""
        size = ctypes.sizeof(value)
        self.call(f"cublasLt{kind}SetAttribute", descriptor, attribute, byref(value), size)


def open_functions(name: str) -> Any:
    """The library by its file's name: it is in the process already, with cuBLAS that needs it."""
    return ctypes.CDLL(name)


def _file(major: int) -> str:
    return f"cublasLt64_{major}.dll" if sys.platform == "win32" else f"libcublasLt.so.{major}"


def told(cp: Any) -> str:
    """What of it belongs to a device's fingerprint: its version, which kernels are timed with.

    Nothing where it cannot be loaded; cuBLAS, which is of the runtime's major version, brings it.
    """
    try:
        found = open_functions(_file(int(cp.cuda.runtime.runtimeGetVersion()) // 1000))
        found.cublasLtGetVersion.restype = c_size_t
        return f"|cuBLASLt {found.cublasLtGetVersion()}"
    except (OSError, AttributeError):
        return ""


def library(cp: Any) -> Library:
    """CuBLASLt of the version that cupy's cuBLAS has.

    Raises:
        CompileError: it cannot be loaded, or is of a version that is not known.
    """
    major = load(cp) // 10000
    name = _file(major)
    if major not in KNOWN:
        raise CompileError(f"{name}: its interface is not known; known are versions {KNOWN}")
    try:
        return _library(name, open_functions)
    except (OSError, AttributeError) as error:
        raise CompileError(f"{name} cannot be loaded ({error})") from error


@cache
def _library(name: str, opener: Callable[[str], Any]) -> Library:
    return Library(opener(name))


class Owned:
    """A descriptor that is destroyed with this."""

    def __init__(self, lt: Library, kind: str, *args: Any) -> None:
        self._lt, self._kind = lt, kind
        self.at = lt.create(kind, *args)
        finalize(self, lt.call, f"cublasLt{kind}Destroy", self.at).atexit = False

    def set(self, attribute: int, value: Any) -> None:
        """Set an attribute to a ctypes value."""
        self._lt.set(self._kind, self.at, attribute, value)
