"""Products by cuBLASLt, with a bias, a matrix that is added and a ReLU in the call.

cupy binds none of it (14.2), so it is called through ctypes. Its interface is C, over opaque
descriptors with numbered attributes; what is used here is the same in the headers of 12.9 and
13.10, and other major versions are refused. A CUDA graph may hold its calls, unlike those that go
through cupy.

As in ``cuda_blas``, y = a b by rows is asked for as y' = b' a' by columns; a bias of one value a
column of y is then cuBLASLt's, which is one a row of y'.
"""

from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Callable, Mapping
from ctypes import byref, c_float, c_int, c_int32, c_int64, c_size_t, c_uint32, c_uint64, c_void_p
from dataclasses import asdict, dataclass
from functools import cache, partial
from typing import Any
from weakref import finalize

from crossdock.devices.cuda_blas import (
    CUDA_TYPES,
    HALVES,
    LibraryCall,
    Prepared,
    Product,
    addresses,
    compute_type,
    factors,
    failed,
    load,
    transposed,
)
from crossdock.devices.program import ArrayCall, In, Out, Scratch, Slot
from crossdock.runtime.errors import CompileError, Declined
from crossdock.runtime.tensor import TensorSpec, to_numpy

KNOWN = (12, 13)
"""Major versions whose headers were read."""

# cublasLt.h: attributes with the types of their values.
TRANSA, TRANSB, EPILOGUE, BIAS_POINTER = 3, 4, 7, 8
BATCH_COUNT, BATCH_STRIDE = 5, 6
MAX_WORKSPACE, REDUCTIONS, ALIGNMENTS = 1, 3, (5, 6, 7, 8)
PLAIN, RELU, BIAS = 1, 2, 4
WIDE_SUMS = 2
"""CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE: parts of a sum are added up in the type of sums."""
ALIGNED = 256
"""Bytes that cuBLASLt takes for granted that operands are aligned to, as buffers of ours are."""

Descriptor = c_void_p


class Algorithm(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t; the first member is the algorithm."""

    _fields_ = (
        ("algorithm", c_uint64 * 8),
        ("workspace", c_size_t),
        ("state", c_int),
        ("waves", c_float),
        ("reserved", c_int * 4),
    )


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
        for name, arguments in PROTOTYPES.items():
            function = getattr(functions, name)
            function.argtypes, function.restype = arguments, c_int

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


def library(cp: Any) -> Library:
    """CuBLASLt of the version that cupy's cuBLAS has.

    Raises:
        CompileError: it cannot be loaded, or is of a version that is not known.
    """
    major = load(cp) // 10000
    name = f"cublasLt64_{major}.dll" if sys.platform == "win32" else f"libcublasLt.so.{major}"
    if major not in KNOWN:
        raise CompileError(f"{name}: its interface is not known; known are versions {KNOWN}")
    try:
        return _library(name, open_functions)
    except (OSError, AttributeError) as error:
        raise CompileError(f"{name} cannot be loaded ({error})") from error


@cache
def _library(name: str, opener: Callable[[str], Any]) -> Library:
    return Library(opener(name))


@dataclass(frozen=True)
class LtProduct:
    """y = f(alpha a b + beta c + bias): a product with c and a bias, each if there is one.

    ``c`` has y's shape, ``bias`` one value a column, both y's type; f is max(x, 0) with ``relu``.
    ``workspace`` is in bytes.
    """

    product: Product
    bias: bool = False
    c: bool = False
    beta: float = 0.0
    relu: bool = False
    workspace: int = 0

    @property
    def epilogue(self) -> int:
        """cublasLtEpilogue_t."""
        wanted = (RELU if self.relu else 0) | (BIAS if self.bias else 0)
        return wanted or PLAIN

    def step(
        self,
        bias: Slot | None = None,
        c: Slot | None = None,
        a: Slot = In(0),  # noqa: B008 - immutable
        b: Slot = In(1),  # noqa: B008 - immutable
        y: Slot = Out(0),  # noqa: B008 - immutable
        workspace: Slot = Scratch(0),  # noqa: B008 - immutable
    ) -> ArrayCall:
        """The call as a step, over flat arrays."""
        plain = self.product.step()
        (left, right), (made,) = plain.in_specs, plain.out_specs
        column = TensorSpec(made.dtype, (self.product.n,))
        there: list[tuple[Slot, TensorSpec | None]] = [(a, left), (b, right)]
        there += [(slot, spec) for slot, spec in ((bias, column), (c, made)) if slot is not None]
        outs: list[tuple[Slot, TensorSpec]] = [(y, made)]
        if self.workspace:
            outs.append((workspace, TensorSpec("uint8", (self.workspace,))))
        return ArrayCall(
            LtGemm(self),
            tuple(slot for slot, _ in there),
            tuple(slot for slot, _ in outs),
            tuple(spec for _, spec in there),
            tuple(spec for _, spec in outs),
            self._form,
            captured=True,
        )

    def _form(self) -> tuple[str, str, Any]:
        """What another process makes the step's function of."""
        data = {**asdict(self), "product": list(self.product.plain())}
        return __name__, remade.__name__, [list(item) for item in data.items()]


def remade(data: Any) -> LtGemm:
    """The function of a product's step, from its plain data."""
    given = dict(data)
    return LtGemm(LtProduct(**{**given, "product": Product.of_plain(given["product"])}))


class LtGemm(LibraryCall):
    """A product by cuBLASLt."""

    def __init__(self, wanted: LtProduct) -> None:
        self.wanted = wanted

    def prepare(self, cp: Any) -> Prepared:
        """Load cuBLASLt and let it choose an algorithm; CompileError where it has none."""
        return _LtGemm(cp, library(cp), self.wanted)


class _LtGemm(Prepared):
    def __init__(self, cp: Any, lt: Library, wanted: LtProduct) -> None:
        self.cp, self.lt, self.wanted = cp, lt, wanted
        p = wanted.product
        self.factors = factors(p.dtype, p.alpha, wanted.beta)
        try:
            self.handle = lt.handle(cp.cuda.Device().id)
            self.layouts = _Layouts(cp, lt, p)
            self.algorithm = self._chosen()
        except Refused as error:
            raise Declined(
                f"cuBLASLt has no product {p.m}x{p.k} times {p.k}x{p.n} in {p.dtype} with epilogue "
                f"{wanted.epilogue} ({error})",
                log=f"{wanted}: {error}",
            ) from error

    def _chosen(self) -> Algorithm:
        """The algorithm that it takes for the fastest."""
        lt, found, count = self.lt, Algorithm(), c_int()
        wish = _Owned(lt, "MatmulPreference")
        wish.set(MAX_WORKSPACE, c_uint64(self.wanted.workspace))
        if self.wanted.product.result in HALVES:
            wish.set(REDUCTIONS, c_uint32(WIDE_SUMS))
        for number, aligned in zip(ALIGNMENTS, self._alignments(), strict=True):
            wish.set(number, c_uint32(aligned))
        made = self._description(ALIGNED)
        a, b, y = self.layouts.all
        lt.call(
            "cublasLtMatmulAlgoGetHeuristic", self.handle, made.at, a.at, b.at, y.at, y.at,
            wish.at, 1, byref(found), byref(count),
        )  # fmt: skip
        if not count.value or found.state or found.workspace > self.wanted.workspace:
            raise Refused(found.state or 15, "cublasLtMatmulAlgoGetHeuristic")
        return found

    def _alignments(self) -> tuple[int, int, int, int]:
        """Bytes that all matrices b and a, what is added and y begin at multiples of."""
        p = self.wanted.product
        sizes = [to_numpy(dtype).itemsize for dtype in (p.dtype, p.dtype, p.result)]
        begin = [ALIGNED, ALIGNED, ALIGNED]
        for at in (*p.offsets(), p.inner[1:]):
            begin = [math.gcd(n, i * size) for n, i, size in zip(begin, at, sizes, strict=True)]
        a, b, y = begin
        return b, a, y, y

    def _description(self, bias: int) -> _Owned:
        """What is computed; ``bias`` is its address."""
        blas, p = self.cp.cuda.cublas, self.wanted.product
        scale = self.cp.cuda.runtime.CUDA_R_32F
        made = _Owned(self.lt, "MatmulDesc", getattr(blas, compute_type(p)), scale)
        first, second = transposed(blas, p)
        made.set(TRANSA, c_int32(first))
        made.set(TRANSB, c_int32(second))
        made.set(EPILOGUE, c_uint32(self.wanted.epilogue))
        if self.wanted.bias:
            made.set(BIAS_POINTER, c_void_p(bias))
        return made

    def bound(self, ins: list[Any], outs: list[Any]) -> Callable[[], None]:
        """The call with its memory in place."""
        a, b, *others = (x.data.ptr for x in ins)
        y, workspace = outs[0].data.ptr, outs[1].data.ptr if len(outs) > 1 else 0
        bias = others.pop(0) if self.wanted.bias else 0
        c = others.pop(0) if self.wanted.c else y
        made = self._description(bias)
        alpha, beta = addresses(self.factors)
        left, right, result = self.layouts.all
        wide, size = ins[0].itemsize, outs[0].itemsize
        calls = tuple(
            (
                self.handle, made.at, alpha, b + b_at * wide, left.at, a + a_at * wide, right.at,
                beta, c + y_at * size, result.at, y + y_at * size, result.at,
                byref(self.algorithm), workspace, self.wanted.workspace,
            )
            for a_at, b_at, y_at in self.wanted.product.offsets()
        )  # fmt: skip
        return partial(self._run, calls, (made, ins, outs))

    def _run(self, calls: tuple[tuple[Any, ...], ...], kept: Any) -> None:
        del kept
        stream = self.cp.cuda.get_current_stream().ptr
        for args in calls:
            if status := self.lt.functions.cublasLtMatmul(*args, stream):
                text, index = f"cublasLtMatmul returned {status}", self.cp.cuda.Device().id
                raise failed(status, text, index, self.wanted.product)


class _Owned:
    """A descriptor that is destroyed with this."""

    def __init__(self, lt: Library, kind: str, *args: Any) -> None:
        self._lt, self._kind = lt, kind
        self.at = lt.create(kind, *args)
        finalize(self, lt.call, f"cublasLt{kind}Destroy", self.at).atexit = False

    def set(self, attribute: int, value: Any) -> None:
        self._lt.set(self._kind, self.at, attribute, value)


class _Layouts:
    """How b, a and y lie, by columns: the first and second operand, and the result."""

    def __init__(self, cp: Any, lt: Library, p: Product) -> None:
        count, a_step, b_step, y_step = p.inner
        types = [getattr(cp.cuda.runtime, CUDA_TYPES[t]) for t in (p.dtype, p.dtype, p.result)]
        sizes = (
            (p.k, p.n, p.ldb) if p.b_transposed else (p.n, p.k, p.ldb),
            (p.m, p.k, p.lda) if p.a_transposed else (p.k, p.m, p.lda),
            (p.n, p.m, p.ldy),
        )
        self.all = tuple(
            _Owned(lt, "MatrixLayout", kind, *size) for kind, size in zip(types, sizes, strict=True)
        )
        if count == 1:
            return
        for layout, step in zip(self.all, (b_step, a_step, y_step), strict=True):
            layout.set(BATCH_COUNT, c_int32(count))
            layout.set(BATCH_STRIDE, c_int64(step))
