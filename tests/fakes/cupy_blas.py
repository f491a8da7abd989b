"""cuBLAS as the fake cupy has it: column-major products that check what they are given.

Operands are rounded as the compute type permits, as badly as it permits it: TF32 cuts the low bits
off, bfloat16 rounds to nearest. A call that cuBLAS refuses raises its status; one that it would
take, and read or write where it should not, is an error of the machine.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from crossdock.runtime.tensor import to_numpy
from tests.fakes.cuda_machine import Machine, Range

INVALID_VALUE = 7
NOT_SUPPORTED = 15
SUMS_STAY_WIDE = 16
STATUS = {3: "CUBLAS_STATUS_ALLOC_FAILED", 7: "CUBLAS_STATUS_INVALID_VALUE",
          13: "CUBLAS_STATUS_EXECUTION_FAILED", 15: "CUBLAS_STATUS_NOT_SUPPORTED"}  # fmt: skip
TYPES = {0: "float32", 1: "float64", 2: "float16", 14: "bfloat16"}
"""cudaDataType_t (library_types.h)."""
COMPUTE = {"CUBLAS_COMPUTE_16F": 64, "CUBLAS_COMPUTE_32F": 68, "CUBLAS_COMPUTE_32F_PEDANTIC": 69,
           "CUBLAS_COMPUTE_64F": 70, "CUBLAS_COMPUTE_32F_FAST_16F": 74,
           "CUBLAS_COMPUTE_32F_FAST_16BF": 75, "CUBLAS_COMPUTE_32F_FAST_TF32": 77}  # fmt: skip
"""cublasComputeType_t (cublas_api.h)."""
HALVES = ("float16", "bfloat16")
SUPPORTED = {
    68: {("float32", "float32"), *((h, c) for h in HALVES for c in (h, "float32"))},
    70: {("float64", "float64")},
    75: {("float32", "float32")},
    77: {("float32", "float32")},
}
"""Types of A and B, and of C, that each compute type takes (cuBLAS manual, cublasGemmEx)."""


class CUBLASError(RuntimeError):
    def __init__(self, status: int) -> None:
        self.status = status
        super().__init__(STATUS[status])


def cut_to_tf32(x: np.ndarray) -> np.ndarray:
    """float32 with the low 13 of 23 bits off, as tensor units read it."""
    return (x.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)


def round_to_bfloat16(x: np.ndarray) -> np.ndarray:
    """float32 to the nearest bfloat16."""
    return x.astype(to_numpy("bfloat16")).astype(np.float32)


ROUND = {77: cut_to_tf32, 75: round_to_bfloat16}


@dataclass(frozen=True)
class Matrices:
    """A batch of matrices by columns, with a leading dimension."""

    name: str
    address: int
    dtype: str
    rows: int
    columns: int
    ld: int
    stride: int
    count: int

    @property
    def itemsize(self) -> int:
        return int(to_numpy(self.dtype).itemsize)

    def spans(self) -> list[Range]:
        """The bytes of each matrix of the batch."""
        size = ((self.columns - 1) * self.ld + self.rows) * self.itemsize
        steps = {i * self.stride * self.itemsize for i in range(self.count)}
        return [Range(self.address + step, size) for step in sorted(steps)]

    def overlap(self) -> bool:
        """Whether two of the elements lie in one place."""
        at, row, column = np.ix_(range(self.count), range(self.rows), range(self.columns))
        places = at * self.stride + row + column * self.ld
        return int(np.unique(places).size) < places.size

    def on(self, machine: Machine) -> np.ndarray:
        """The matrices as (count, rows, columns), in the machine's memory."""
        found = machine.need(self.spans()[0], self.name)
        size = self.itemsize
        strides = (self.stride * size, size, self.ld * size)
        shape = (self.count, self.rows, self.columns)
        offset = self.address - found.address
        return np.ndarray(shape, to_numpy(self.dtype), found.memory, offset, strides)


class Blas(ModuleType):
    """``cupy.cuda.cublas``."""

    CUBLASError = CUBLASError
    CUBLAS_OP_N, CUBLAS_OP_T, CUBLAS_OP_C = range(3)
    CUBLAS_GEMM_DEFAULT = -1

    def __init__(self, cuda: Any) -> None:
        super().__init__("cupy_backends.cuda.libs.cublas")
        vars(self).update(COMPUTE)
        self._cuda = cuda
        self._modes: dict[int, int] = {}

    def getVersion(self, handle: int) -> int:  # noqa: N802 - cupy's names, here and below
        del handle
        return 120903

    def getMathMode(self, handle: int) -> int:  # noqa: N802
        return self._modes.get(handle, 0)

    def setMathMode(self, handle: int, mode: int) -> None:  # noqa: N802
        self._modes[handle] = mode

    def gemmStridedBatchedEx(  # noqa: N802 - cupy's
        self, handle: int, transa: int, transb: int, m: int, n: int, k: int, alpha: int,
        a: int, a_type: int, lda: int, a_stride: int,
        b: int, b_type: int, ldb: int, b_stride: int, beta: int,
        c: int, c_type: int, ldc: int, c_stride: int,
        count: int, compute: int, algo: int,
    ) -> None:  # fmt: skip
        """C = alpha op(A) op(B) + beta C, by columns, for each of a batch."""
        self._ready(handle)
        if min(m, n, k, count) < 0 or not {transa, transb} <= {0, 1, 2} or algo not in (-1, 99):
            raise CUBLASError(INVALID_VALUE)
        types = [TYPES.get(t) for t in (a_type, b_type, c_type)]
        if types[0] != types[1] or (types[0], types[2]) not in SUPPORTED.get(compute, ()):
            raise CUBLASError(NOT_SUPPORTED)
        wide = str(types[0])
        first = Matrices("A", a, wide, *((k, m) if transa else (m, k)), lda, a_stride, count)
        second = Matrices("B", b, wide, *((n, k) if transb else (k, n)), ldb, b_stride, count)
        made = Matrices("C", c, str(types[2]), m, n, ldc, c_stride, count)
        if any(x.ld < max(1, x.rows) for x in (first, second, made)):
            raise CUBLASError(INVALID_VALUE)
        if not m * n * k * count:
            return
        factors = self._factors(alpha, beta, compute)
        self.check(first, second, made, k, compute, made.spans() if factors[1] else [], [])
        narrow = made.dtype in HALVES and not self.getMathMode(handle) & SUMS_STAY_WIDE
        out = made.on(self._cuda.machine)
        with np.errstate(all="ignore"):
            result = self.product(first, second, (transa, transb), compute, narrow=narrow)
            result = result.dtype.type(factors[0]) * result
            if factors[1]:
                result += result.dtype.type(factors[1]) * out.astype(result.dtype)
            out[...] = result.astype(out.dtype)

    def _ready(self, handle: int) -> None:
        machine: Machine = self._cuda.machine
        self._cuda.runtime.check()
        if machine.capture_of(self._cuda.current()) is not None:
            raise NotImplementedError(
                "calling cuBLAS API during stream capture is currently unsupported"
            )
        if handle != self._cuda.get_cublas_handle():
            raise machine.problem("a cuBLAS handle of another device or thread")

    def _factors(self, alpha: int, beta: int, compute: int) -> tuple[float, float]:
        """Host memory in the type that sums have."""
        kind = ctypes.c_double if compute == COMPUTE["CUBLAS_COMPUTE_64F"] else ctypes.c_float
        return kind.from_address(alpha).value, kind.from_address(beta).value

    def check(
        self,
        a: Matrices,
        b: Matrices,
        c: Matrices,
        k: int,
        compute: int,
        reads: list[Range],
        writes: list[Range],
        aligned: tuple[int, ...] = (),
    ) -> None:
        """Hold where matrices lie against the memory there is, and note the work.

        ``reads`` and ``writes`` are of what there is beside A, B and C; ``aligned`` bytes that each
        was said to be aligned to, where it was.
        """
        machine: Machine = self._cuda.machine
        tensor = compute in ROUND or a.dtype in HALVES
        wanted = 1 if not tensor or a.count == 1 else 16 if k % 8 == 0 else 4 if k % 2 == 0 else 1
        for x, bytes_ in zip((a, b, c), aligned or (wanted,) * 3, strict=True):
            if x.address % x.itemsize or any(s.address % bytes_ for s in x.spans()):
                raise machine.problem(f"cuBLAS: matrix {x.name} is misaligned")
            first, last = x.spans()[0], x.spans()[-1]
            reach = last.address + last.nbytes - first.address
            machine.need(Range(first.address, reach), f"cuBLAS: matrix {x.name}")
        written = c.spans()
        if c.count > 1 and c.overlap():
            raise machine.problem(f"cuBLAS: matrices of {c.name} overlap")
        if any(x.meets(y) for x in written for y in (*a.spans(), *b.spans())):
            raise machine.problem(f"cuBLAS: {c.name} overlaps an operand")
        reads = [*a.spans(), *b.spans(), *reads]
        machine.submit(self._cuda.current(), reads, [*written, *writes], "a product")

    def product(
        self, a: Matrices, b: Matrices, transposed: tuple[int, int], compute: int, *, narrow: bool
    ) -> np.ndarray:
        """The products in the type of sums, with operands rounded as the compute type permits it.

        ``narrow`` adds up halves of the sums in the operands' type, which is that of the result.
        """
        wide = np.float64 if a.dtype == "float64" else np.float32
        rounded = ROUND.get(compute, np.asarray)
        sides = []
        for x, turned in zip((a, b), transposed, strict=True):
            values = rounded(np.ascontiguousarray(x.on(self._cuda.machine).astype(wide)))
            sides.append(values.swapaxes(1, 2) if turned else values)
        with np.errstate(all="ignore"):
            return _sums(*sides, to_numpy(a.dtype) if narrow else None)


def _sums(a: np.ndarray, b: np.ndarray, narrow: Any) -> np.ndarray:
    if narrow is None:
        return np.asarray(np.matmul(a, b))
    half = a.shape[-1] // 2
    parts = np.matmul(a[..., :half], b[:, :half]), np.matmul(a[..., half:], b[:, half:])
    return (parts[0].astype(narrow) + parts[1].astype(narrow)).astype(a.dtype)
