"""Matrix products by cuBLAS, through cupy's binding of it.

cuBLAS reads matrices by columns, and ours lie by rows: a matrix by rows is its own transpose by
columns. So y = a b is asked for as y' = b' a', with the operands swapped and nothing moved.

cupy binds no cuBLASLt (14.2), and refuses cuBLAS while a stream captures.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np

from crossdock.devices.program import ArrayCall, In, Out, Slot
from crossdock.runtime.errors import CompileError, DeviceError, OutOfMemory
from crossdock.runtime.tensor import TensorSpec

CUDA_TYPES = {"float32": "CUDA_R_32F", "float64": "CUDA_R_64F", "float16": "CUDA_R_16F",
              "bfloat16": "CUDA_R_16BF"}  # fmt: skip
COMPUTE_TYPES = {"": "CUBLAS_COMPUTE_32F", "tf32": "CUBLAS_COMPUTE_32F_FAST_TF32",
                 "bfloat16": "CUBLAS_COMPUTE_32F_FAST_16BF"}  # fmt: skip
"""By the format that float32 operands are rounded to."""
BITS = {"bfloat16": "uint16"}
"""Types that cupy has no arrays of, and those whose arrays hold their bits."""
ALLOC_FAILED = 3
MOST_CALLS = 64
"""Calls that one op may take, each of which has one batch dimension."""


@dataclass(frozen=True)
class Product:
    """A batch of products y = alpha a b, all matrices by rows, without gaps.

    a is (m, k) and b (k, n), or as their transposes where that is said; elements are ``dtype``,
    those of y ``result``. Strides of the ``batch`` dimensions are in elements. Sums are float32, or
    float64 for that type; float32 operands are rounded to the format ``rounds``, if it is not "".
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

    @property
    def lda(self) -> int:
        """Elements from one row of a, as it lies, to the next."""
        return self.m if self.a_transposed else self.k

    @property
    def ldb(self) -> int:
        """Elements from one row of b, as it lies, to the next."""
        return self.k if self.b_transposed else self.n

    @property
    def y_strides(self) -> tuple[int, ...]:
        """Strides of y's batch dimensions."""
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
            yield a, b, y

    def step(self, a: Slot = In(0), b: Slot = In(1), y: Slot = Out(0)) -> ArrayCall:  # noqa: B008 - immutable
        """The call as a step, over flat arrays."""
        sizes = (
            _end(self.m * self.k, self.batch, self.a_strides),
            _end(self.k * self.n, self.batch, self.b_strides),
            _end(self.m * self.n, self.batch, self.y_strides),
        )
        types = (self.dtype, self.dtype, self.result)
        x1, x2, made = (
            TensorSpec(BITS.get(dtype, dtype), (size,))
            for dtype, size in zip(types, sizes, strict=True)
        )
        return ArrayCall(Gemm(self), (a, b), (y,), (x1, x2), (made,), self._form)

    def _form(self) -> tuple[str, str, Any]:
        """What another process makes the step's function of."""
        return __name__, remade.__name__, [_plain(value) for value in astuple(self)]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def remade(data: Sequence[Any]) -> Gemm:
    """The function of a product's step, from its plain data."""
    values: list[Any] = [tuple(v) if isinstance(v, list) else v for v in data]
    return Gemm(Product(*values))


def _end(size: int, batch: Sequence[int], strides: Sequence[int]) -> int:
    """Elements from the first to the last of a batch of matrices."""
    return size + sum((count - 1) * s for count, s in zip(batch, strides, strict=True))


class Gemm:
    """A product as a function over arrays of cupy."""

    def __init__(self, product: Product) -> None:
        self.product = product
        wide = np.float64 if product.dtype == "float64" else np.float32
        self._factors = np.array([product.alpha, 0.0], wide)  # cuBLAS reads them where they lie
        base = int(self._factors.ctypes.data)
        self._alpha, self._beta = base, base + self._factors.itemsize

    def prepare(self, cp: Any) -> None:
        """Load cuBLAS; raises CompileError where cupy does not find it."""
        try:
            cp.cuda.get_cublas_handle()
            _ = cp.cuda.cublas.gemmStridedBatchedEx
        except (ImportError, OSError, RuntimeError) as error:
            raise CompileError(
                f"cupy cannot load cuBLAS ({str(error).strip()}); pip install nvidia-cublas"
            ) from error

    def __call__(self, cp: Any, ins: list[Any], outs: list[Any]) -> None:
        """Put the product on the current stream."""
        p, blas = self.product, cp.cuda.cublas
        (a, b), (y,) = (x.data.ptr for x in ins), (x.data.ptr for x in outs)
        wide, result = ins[0].dtype.itemsize, outs[0].dtype.itemsize
        types = [getattr(cp.cuda.runtime, CUDA_TYPES[t]) for t in (p.dtype, p.result)]
        compute = getattr(blas, _compute_type(p))
        count, a_step, b_step, y_step = p.inner
        handle = cp.cuda.get_cublas_handle()
        try:
            for a_at, b_at, y_at in p.offsets():
                blas.gemmStridedBatchedEx(
                    handle, *self._transposed(blas), p.n, p.m, p.k, self._alpha,
                    b + b_at * wide, types[0], p.ldb, b_step,
                    a + a_at * wide, types[0], p.lda, a_step, self._beta,
                    y + y_at * result, types[1], p.n, y_step,
                    count, compute, blas.CUBLAS_GEMM_DEFAULT,
                )  # fmt: skip
        except blas.CUBLASError as error:
            raise _translated(error, cp.cuda.Device().id, p) from error

    def _transposed(self, blas: Any) -> tuple[int, int]:
        """What is done to the first and the second operand of the call, which are b and a."""
        p, as_is, turned = self.product, blas.CUBLAS_OP_N, blas.CUBLAS_OP_T
        return (turned if p.b_transposed else as_is), (turned if p.a_transposed else as_is)


def _compute_type(product: Product) -> str:
    return "CUBLAS_COMPUTE_64F" if product.dtype == "float64" else COMPUTE_TYPES[product.rounds]


def _translated(error: Any, index: int, p: Product) -> DeviceError:
    """CuBLAS's error as ours."""
    what = f"cuda:{index}: cuBLAS, {p.m}x{p.k} times {p.k}x{p.n} in {p.dtype}: {error}"
    if error.status == ALLOC_FAILED:
        return OutOfMemory(f"{what}; it has no memory for its workspace; lower constraints.memory")
    return DeviceError(what)
