"""Matrix products by cuBLAS, through cupy's binding of it.

cuBLAS reads matrices by columns, and ours lie by rows: a matrix by rows is its own transpose by
columns. So y = a b is asked for as y' = b' a', with the operands swapped and nothing moved.

cupy binds no cuBLASLt (14.2), and refuses cuBLAS while a stream captures.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass
from functools import partial
from typing import Any

import numpy as np

from crossdock.devices.choice import Choice
from crossdock.devices.program import ArrayCall, In, Out, Slot
from crossdock.runtime.errors import CompileError, DeviceError, OutOfMemory
from crossdock.runtime.tensor import Array, TensorSpec

CUDA_TYPES = {"float32": "CUDA_R_32F", "float64": "CUDA_R_64F", "float16": "CUDA_R_16F",
              "bfloat16": "CUDA_R_16BF"}  # fmt: skip
COMPUTE_TYPES = {"": "CUBLAS_COMPUTE_32F", "tf32": "CUBLAS_COMPUTE_32F_FAST_TF32",
                 "bfloat16": "CUBLAS_COMPUTE_32F_FAST_16BF"}  # fmt: skip
"""By the format that float32 operands are rounded to."""
BITS = {"bfloat16": "uint16"}
"""Types that cupy has no arrays of, and those whose arrays hold their bits."""
HALVES = ("float16", "bfloat16")
SUMS_STAY_WIDE = 16
"""CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION: parts of a sum are not added up as halves."""
ALLOC_FAILED = 3
MOST_CALLS = 64
"""Calls that one op may take, each of which has one batch dimension."""


@dataclass(frozen=True)
class Product:
    """A batch of products y = alpha a b, all matrices by rows.

    a is (m, k) and b (k, n), or as their transposes where that is said; elements are ``dtype``,
    those of y ``result``. Strides of the ``batch`` dimensions are in elements. Sums are float32, or
    float64 for that type; float32 operands are rounded to the format ``rounds``, if it is not "".

    ``rows`` are elements from one row of a, b and y, as they lie, to the next (0: no gaps),
    ``begins`` where a and b begin, ``y_steps`` strides of y's batch dimensions (none: no gaps).
    """

    m: int
    n: int
    k: int
    dtype: str
    result: str
    batch: tuple[int, ...] = ()
    a_strides: tuple[int, ...] = ()
    b_strides: tuple[int, ...] = ()
    a_transposed: bool = False
    b_transposed: bool = False
    alpha: float = 1.0
    rounds: str = ""
    rows: tuple[int, int, int] = (0, 0, 0)
    begins: tuple[int, int] = (0, 0)
    y_steps: tuple[int, ...] = ()

    @property
    def lda(self) -> int:
        """Elements from one row of a, as it lies, to the next."""
        return self.rows[0] or (self.m if self.a_transposed else self.k)

    @property
    def ldb(self) -> int:
        """Elements from one row of b, as it lies, to the next."""
        return self.rows[1] or (self.k if self.b_transposed else self.n)

    @property
    def ldy(self) -> int:
        """Elements from one row of y to the next."""
        return self.rows[2] or self.n

    @property
    def y_strides(self) -> tuple[int, ...]:
        """Strides of y's batch dimensions."""
        if self.y_steps:
            return self.y_steps
        after = [math.prod(self.batch[i + 1 :]) for i in range(len(self.batch))]
        return tuple(self.m * self.n * count for count in after)

    @property
    def inner(self) -> tuple[int, int, int, int]:
        """The last batch dimension, which one call does: its size, and strides of a, b and y."""
        if not self.batch:
            return 1, 0, 0, 0
        return self.batch[-1], self.a_strides[-1], self.b_strides[-1], self.y_strides[-1]

    def offsets(self) -> Iterator[tuple[int, int, int]]:
        """Where a, b and y begin for each call, in elements."""
        strides = list(zip(self.a_strides, self.b_strides, self.y_strides, strict=True))[:-1]
        for at in itertools.product(*map(range, self.batch[:-1])):
            a, b, y = (sum(i * s[which] for i, s in zip(at, strides, strict=True))
                       for which in range(3))  # fmt: skip
            yield self.begins[0] + a, self.begins[1] + b, y

    def step(self, a: Slot = In(0), b: Slot = In(1), y: Slot = Out(0)) -> ArrayCall:  # noqa: B008 - immutable
        """The call as a step, over flat arrays."""
        a_rows, a_columns = (self.k, self.m) if self.a_transposed else (self.m, self.k)
        b_rows, b_columns = (self.n, self.k) if self.b_transposed else (self.k, self.n)
        sizes = (
            self.begins[0] + _end((a_rows, a_columns), self.lda, self.batch, self.a_strides),
            self.begins[1] + _end((b_rows, b_columns), self.ldb, self.batch, self.b_strides),
            _end((self.m, self.n), self.ldy, self.batch, self.y_strides),
        )
        types = (self.dtype, self.dtype, self.result)
        x1, x2, made = (
            TensorSpec(BITS.get(dtype, dtype), (size,))
            for dtype, size in zip(types, sizes, strict=True)
        )
        return ArrayCall(Gemm(self), (a, b), (y,), (x1, x2), (made,), self._form)

    def _form(self) -> tuple[str, str, Any]:
        """What another process makes the step's function of."""
        return __name__, remade.__name__, self.plain()

    def plain(self) -> list[Any]:
        """Plain data, as ``of_plain`` reads it."""
        return [list(v) if isinstance(v, tuple) else v for v in astuple(self)]

    @classmethod
    def of_plain(cls, data: Sequence[Any]) -> Product:
        """The product of such data."""
        values: list[Any] = [tuple(v) if isinstance(v, list) else v for v in data]
        return cls(*values)


def remade(data: Sequence[Any]) -> Gemm:
    """The function of a product's step, from its plain data."""
    return Gemm(Product.of_plain(data))


def _end(shape: tuple[int, int], row: int, batch: Sequence[int], strides: Sequence[int]) -> int:
    """Elements from the first to the last of a batch of matrices."""
    size = (shape[0] - 1) * row + shape[1]
    return size + sum((count - 1) * s for count, s in zip(batch, strides, strict=True))


class Prepared(Choice, ABC):
    """A library's call on a card, ready for memory; the device is the current one when it is used.

    It is also the choice among the algorithms that the library lets us choose.
    """

    @abstractmethod
    def bound(self, ins: list[Any], outs: list[Any]) -> Callable[[], None]:
        """What puts the call on the current stream, with its arrays in place."""


class LibraryCall(ABC):
    """A function over arrays that a library of NVIDIA's computes."""

    @abstractmethod
    def prepare(self, cp: Any) -> Prepared:
        """Load the library, and choose what it will do; raises CompileError where it cannot."""

    def __call__(self, cp: Any, ins: list[Any], outs: list[Any]) -> None:
        """Put the call on the current stream."""
        self.prepare(cp).bound(ins, outs)()


class Gemm(LibraryCall):
    """A product by cuBLAS."""

    def __init__(self, product: Product) -> None:
        self.product = product

    def prepare(self, cp: Any) -> Prepared:
        """Load cuBLAS; raises CompileError where cupy does not find it."""
        load(cp)
        return _Gemm(cp, self.product)


def load(cp: Any) -> int:
    """Load cuBLAS and return its version, 10000 for each major one.

    Raises:
        CompileError: cupy does not find it.
    """
    try:
        return int(cp.cuda.cublas.getVersion(cp.cuda.get_cublas_handle()))
    except (ImportError, OSError, RuntimeError) as error:
        raise CompileError(
            f"cupy cannot load cuBLAS ({str(error).strip()}); pip install nvidia-cublas"
        ) from error


class _Gemm(Prepared):
    def __init__(self, cp: Any, product: Product) -> None:
        self.cp, self.product = cp, product
        self.factors = factors(product.dtype, product.alpha, 0.0)

    def bound(self, ins: list[Any], outs: list[Any]) -> Callable[[], None]:
        """The calls, one for each of the outer batch dimensions."""
        arrays = (*ins, *outs)  # which keep what the pointers are of
        a, b, y = (x.data.ptr for x in arrays)
        calls = self._arguments(a, b, y, ins[0].itemsize, outs[0].itemsize)
        return partial(self._run, calls, arrays)

    def _arguments(
        self, a: int, b: int, y: int, wide: int, result: int
    ) -> tuple[tuple[int, ...], ...]:
        """The arguments of cublasGemmStridedBatchedEx, after its handle."""
        p, blas = self.product, self.cp.cuda.cublas
        types = [getattr(self.cp.cuda.runtime, CUDA_TYPES[t]) for t in (p.dtype, p.result)]
        count, a_step, b_step, y_step = p.inner
        alpha, beta = addresses(self.factors)
        return tuple(
            (
                *transposed(blas, p), p.n, p.m, p.k, alpha,
                b + b_at * wide, types[0], p.ldb, b_step,
                a + a_at * wide, types[0], p.lda, a_step, beta,
                y + y_at * result, types[1], p.ldy, y_step,
                count, getattr(blas, compute_type(p)), blas.CUBLAS_GEMM_DEFAULT,
            )
            for a_at, b_at, y_at in p.offsets()
        )  # fmt: skip

    def _run(self, calls: tuple[tuple[int, ...], ...], arrays: tuple[Any, ...]) -> None:
        del arrays
        cuda = self.cp.cuda
        blas, handle = cuda.cublas, cuda.get_cublas_handle()
        halves = self.product.result in HALVES
        before = blas.getMathMode(handle) if halves else 0
        try:
            if halves:
                blas.setMathMode(handle, before | SUMS_STAY_WIDE)
            for call in calls:
                blas.gemmStridedBatchedEx(handle, *call)
        except blas.CUBLASError as error:
            raise failed(error.status, str(error), cuda.Device().id, self.product) from error
        finally:
            if halves:
                blas.setMathMode(handle, before)


def factors(dtype: str, alpha: float, beta: float) -> Array:
    """Both in the type that sums have: cuBLAS reads them where they lie, when it is called."""
    return np.array([alpha, beta], np.float64 if dtype == "float64" else np.float32)


def addresses(values: Array) -> tuple[int, int]:
    """Where ``factors`` are."""
    base = int(values.ctypes.data)
    return base, base + values.itemsize


def transposed(blas: Any, product: Product) -> tuple[int, int]:
    """What is done to the first and the second operand of a call, which are b and a."""
    as_is, turned = blas.CUBLAS_OP_N, blas.CUBLAS_OP_T
    b, a = product.b_transposed, product.a_transposed
    return (turned if b else as_is), (turned if a else as_is)


def compute_type(product: Product) -> str:
    """The name of its cublasComputeType_t."""
    return "CUBLAS_COMPUTE_64F" if product.dtype == "float64" else COMPUTE_TYPES[product.rounds]


def failed(status: int, text: str, index: int, p: Product) -> DeviceError:
    """A status of cuBLAS as our error."""
    what = f"cuda:{index}: cuBLAS, {p.m}x{p.k} times {p.k}x{p.n} in {p.dtype}: {text}"
    if status == ALLOC_FAILED:
        return OutOfMemory(f"{what}; it has no memory for its workspace; lower constraints.memory")
    return DeviceError(what)
