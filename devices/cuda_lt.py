"""Products by cuBLASLt, with a bias, a matrix that is added and a ReLU or GELU in the call.

A CUDA graph may hold its calls, unlike those that go through cupy. Of its algorithms for a product
the one is taken that was measured to be the fastest, where that was done (``cuda_lt_choice``).

As in ``cuda_blas``, y = a b by rows is asked for as y' = b' a' by columns; a bias of one value a
column of y is then cuBLASLt's, which is one a row of y'.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from ctypes import (
    byref,
    c_int,
    c_int32,
    c_int64,
    c_uint32,
    c_uint64,
    c_void_p,
)
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from typing import Any

from crossdock.devices import cuda_lt_choice as choice
from crossdock.devices.choice import Timing
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
    transposed,
)
from crossdock.devices.cuda_lt_choice import Algorithm, Chosen
from crossdock.devices.cuda_lt_library import Library, Owned, Refused, library
from crossdock.devices.program import ArrayCall, In, Out, Scratch, Slot
from crossdock.runtime import kept
from crossdock.runtime.errors import Declined
from crossdock.runtime.tensor import TensorSpec, to_numpy

# cublasLt.h: attributes with the types of their values.
TRANSA, TRANSB, EPILOGUE, BIAS_POINTER = 3, 4, 7, 8
BATCH_COUNT, BATCH_STRIDE = 5, 6
MAX_WORKSPACE, REDUCTIONS, ALIGNMENTS = 1, 3, (5, 6, 7, 8)
PLAIN, BIAS = 1, 4
FUNCTIONS = {"": 0, "relu": 2, "gelu": 32}
"""CUBLASLT_EPILOGUE, of what is done to each element."""
WIDE_SUMS = 2
"""CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE: parts of a sum are added up in the type of sums."""
ALIGNED = 256
"""Bytes that cuBLASLt takes for granted that operands are aligned to, as buffers of ours are."""


@dataclass(frozen=True)
class LtProduct:
    """y = f(alpha a b + beta c + bias): a product with c and a bias, each if there is one.

    ``c`` has y's shape, ``bias`` one value a column, both y's type. f is named by ``function``:
    max(x, 0), which may make a zero of a NaN, for "relu"; for "gelu" the approximation by tanh,
    x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))). ``workspace`` is in bytes. ``tuned``: it runs
    by the algorithm that was measured to be the fastest, where one was, and else by the one that
    cuBLASLt takes for that.
    """

    product: Product
    bias: bool = False
    c: bool = False
    beta: float = 0.0
    function: str = ""
    workspace: int = 0
    tuned: bool = True

    @property
    def epilogue(self) -> int:
        """cublasLtEpilogue_t."""
        return FUNCTIONS[self.function] | (BIAS if self.bias else 0) or PLAIN

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
        plain, steady = self.product.step(), replace(self, tuned=False)
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
            self.form,
            captured=True,
            fixed=(LtGemm(steady), steady.form) if self.tuned else None,
        )

    def form(self) -> tuple[str, str, Any]:
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
        """Load cuBLASLt; take the algorithm chosen before, or let it choose one.

        Raises:
            CompileError: it has none.
        """
        return _LtGemm(cp, library(cp), self.wanted)


class _LtGemm(Prepared):
    def __init__(self, cp: Any, lt: Library, wanted: LtProduct) -> None:
        self.cp, self.lt, self.wanted = cp, lt, wanted
        p = wanted.product
        self.factors = factors(p.dtype, p.alpha, wanted.beta)
        try:
            self.handle = lt.handle(cp.cuda.Device().id)
            self.layouts = _Layouts(cp, lt, p)
            self._found: list[Algorithm] = []
            self._kept = self._chosen() if wanted.tuned else None
            self.algorithm = self._first() if self._kept is None else self._kept.algorithm()
        except Refused as error:
            raise Declined(
                f"cuBLASLt has no product {p.m}x{p.k} times {p.k}x{p.n} in {p.dtype} with epilogue "
                f"{wanted.epilogue} ({error})",
                log=f"{wanted}: {error}",
            ) from error

    def _chosen(self) -> Chosen | None:
        """What was measured to be the fastest, if the library still takes it."""
        name = self._name
        found = self.lt.chosen.get(name) or choice.load(name)
        if found is None or not self._takes(found):
            return None
        self.lt.chosen[name] = found
        self.said = found.said
        return found

    @cached_property
    def _name(self) -> str:
        """What a choice is kept by: the product, the card, and the library's version."""
        version = str(self.lt.version)
        return kept.key("cublaslt", version, self.lt.card(self.cp), repr(self.wanted))

    def _takes(self, found: Chosen) -> bool:
        algorithm, result = found.algorithm(), Algorithm()
        a, b, y = self.layouts.all
        made = self._description(ALIGNED)
        status = self.lt.functions.cublasLtMatmulAlgoCheck(
            self.handle, made.at, a.at, b.at, y.at, y.at, byref(algorithm), byref(result)
        )
        takes = max(int(result.workspace), found.workspace)
        return not status and not result.state and takes <= self.wanted.workspace

    def _first(self) -> Algorithm:
        """The algorithm that it takes for the fastest."""
        found = self._asked(1)
        self.said = f"{self.lt.described(found[0])}, {choice.FIRST}, not timed"
        return found[0]

    def _asked(self, most: int) -> list[Algorithm]:
        """Algorithms by the time that it says they take, least first."""
        lt, found, count = self.lt, (Algorithm * most)(), c_int()
        wish = Owned(lt, "MatmulPreference")
        wish.set(MAX_WORKSPACE, c_uint64(self.wanted.workspace))
        if self.wanted.product.result in HALVES:
            wish.set(REDUCTIONS, c_uint32(WIDE_SUMS))
        for number, aligned in zip(ALIGNMENTS, self._alignments(), strict=True):
            wish.set(number, c_uint32(aligned))
        made = self._description(ALIGNED)
        a, b, y = self.layouts.all
        lt.call(
            "cublasLtMatmulAlgoGetHeuristic", self.handle, made.at, a.at, b.at, y.at, y.at,
            wish.at, most, byref(found), byref(count),
        )  # fmt: skip
        able = [x for x in found[: count.value]
                if not x.state and x.workspace <= self.wanted.workspace]  # fmt: skip
        if not able:
            raise Refused(found[0].state or 15, "cublasLtMatmulAlgoGetHeuristic")
        return able

    def algorithms(self) -> int:
        """How many it gives; 0 where one was chosen, or none may be."""
        if self._kept is not None or not self.wanted.tuned:
            return 0
        self._found = self._asked(choice.MOST)
        self.take(0)
        return len(self._found)

    def take(self, index: int) -> None:
        """Let calls that are bound from now on run by another algorithm."""
        self.algorithm = self._found[index]

    def keep(self, index: int, timings: Sequence[Timing]) -> None:
        """Keep the choice."""
        found = self._found[index]
        names = [self.lt.described(x) for x in self._found]
        said = choice.summary(names, index, timings)
        self._kept = Chosen(tuple(found.algorithm), int(found.workspace), said)
        self.said = said
        self.lt.chosen[self._name] = self._kept
        choice.save(self._name, self._kept)

    def _alignments(self) -> tuple[int, int, int, int]:
        """Bytes that all matrices b and a, what is added and y begin at multiples of."""
        p = self.wanted.product
        sizes = [to_numpy(dtype).itemsize for dtype in (p.dtype, p.dtype, p.result)]
        begin = [ALIGNED, ALIGNED, ALIGNED]
        for at in (*p.offsets(), p.inner[1:]):
            begin = [math.gcd(n, i * size) for n, i, size in zip(begin, at, sizes, strict=True)]
        a, b, y = begin
        return b, a, y, y

    def _description(self, bias: int) -> Owned:
        """What is computed; ``bias`` is its address."""
        blas, p = self.cp.cuda.cublas, self.wanted.product
        scale = self.cp.cuda.runtime.CUDA_R_32F
        made = Owned(self.lt, "MatmulDesc", getattr(blas, compute_type(p)), scale)
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
            Owned(lt, "MatrixLayout", kind, *size) for kind, size in zip(types, sizes, strict=True)
        )
        if count == 1:
            return
        for layout, step in zip(self.all, (b_step, a_step, y_step), strict=True):
            layout.set(BATCH_COUNT, c_int32(count))
            layout.set(BATCH_STRIDE, c_int64(step))
