"""Matrix products on the host: BLAS called from native steps, and small ones without it.

The routine of numpy's OpenBLAS is called by address from compiled code, so that a product costs no
Python. BLAS itself runs on one thread; large products are cut into blocks of rows or columns for
the device's own threads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from crossdock.devices.base import DeviceInfo
from crossdock.devices.cpu_blas import blas, routine
from crossdock.devices.program import (
    Argument,
    ArrayCall,
    In,
    Lowered,
    NativeCall,
    Out,
    Scalar,
    Slot,
    Step,
)
from crossdock.kernels import cpu_dense
from crossdock.kernels.array_kernels import array_call
from crossdock.kernels.cpu_blas_call import PLAIN, TRANSPOSED, BlasCall
from crossdock.kernels.cpu_elementwise import elementwise_call, nest
from crossdock.kernels.cpu_expression import obstacle
from crossdock.kernels.cpu_ir import Code, compiled
from crossdock.kernels.cpu_rows import Words, register_lanes, words
from crossdock.kernels.cpu_vector import LLVM_TYPES, Value, Vector
from crossdock.kernels.fused import FusedBody, FusedStep
from crossdock.kernels.fused_matmul import product_of, whole_body
from crossdock.kernels.refusal import Cause, Refusal
from crossdock.kernels.spec import OpCall
from crossdock.kernels.table import kernel
from crossdock.runtime.tensor import TensorSpec

GRAIN_FLOPS = 2e6
SMALL = 16 * 16 * 16
"""Products of at most so many multiply-adds cost less without BLAS."""

WORDS = (
    "out", "a", "b", "blas", "ta", "tb", "m", "n", "k", "lda", "ldb", "ldc", "alpha", "beta",
    "step_a", "step_b", "step_c",
)  # fmt: skip


@dataclass(frozen=True)
class Product:
    """``out = alpha * op(a) @ op(b) + beta * out``, ``batch`` times.

    The strides are in elements from one product to the next.
    """

    dtype: str
    m: int
    n: int
    k: int
    a_transposed: bool = False
    b_transposed: bool = False
    alpha: float = 1.0
    beta: float = 0.0
    batch: int = 1
    a_stride: int = 0
    b_stride: int = 0


def _blas_fits(call: OpCall, device: DeviceInfo) -> str | None:  # noqa: ARG001 - a candidate's guard
    if call.outputs[0].dtype not in ("float32", "float64"):
        return Refusal(f"BLAS has no {call.outputs[0].dtype}", Cause.DTYPE)
    if blas() is None:
        return Refusal("numpy's BLAS is not OpenBLAS", Cause.LIBRARY)
    if call.op == "matmul" and _matmul(call) is None:
        return "the batch broadcasts along more than one stride"
    return None


def _small_fits(call: OpCall, device: DeviceInfo) -> str | None:  # noqa: ARG001 - the same
    if call.outputs[0].dtype not in ("float32", "float64"):
        return Refusal(f"{call.outputs[0].dtype}, not float32 or float64", Cause.DTYPE)
    product = _matmul(call)
    if product is None:
        return "the batch broadcasts along more than one stride"
    if product.m * product.n * product.k > SMALL:
        return Refusal("too large to go without BLAS", Cause.SIZE)
    return None


def _fused_fits(call: OpCall, device: DeviceInfo) -> str | None:
    if cpu_dense.obstacle_of(call) is None:
        return "its matrix is packed once, and BLAS would pack it in each run"
    body, _ = whole_body(call)
    stuck = (why for step in body.steps if (why := obstacle(step)) is not None)
    return _blas_fits(product_of(call), device) or next(stuck, None)


@kernel("cpu.matmul.blas", "matmul", ("cpu",), when=_blas_fits, rank=20, steady=False)
def lower_matmul(call: OpCall, device: DeviceInfo) -> Lowered:  # noqa: ARG001 - the same
    """Lower a product, or a batch of them, to one native call."""
    product = _matmul(call)
    assert product is not None
    return Lowered((gemm_call(product, Out(0), In(0), In(1)),))


@kernel("cpu.matmul.small", "matmul", ("cpu",), when=_small_fits, rank=15)
def lower_small(call: OpCall, device: DeviceInfo) -> Lowered:  # noqa: ARG001 - the same
    """Lower small products to loops over the rows of the result."""
    product = _matmul(call)
    assert product is not None
    numbers = {
        "m": product.m, "n": product.n, "k": product.k,
        "step_a": product.a_stride, "step_b": product.b_stride,
    }  # fmt: skip
    slots: dict[str, Argument] = {"out": Out(0), "a": In(0), "b": In(1)}
    lanes = register_lanes() // (2 if product.dtype == "float64" else 1)
    step = NativeCall(
        name="matmul small",
        address=compiled(
            f"matmul small {product.dtype} {lanes}",
            lambda code: _write_small(code, product.dtype, lanes),
        ),
        args=words(SMALL_WORDS, slots, numbers),
        extent=product.batch,
        grain=_grain(product.m * product.n * product.k),
    )
    return Lowered((step,))


@kernel("cpu.gemm.blas", "gemm", ("cpu",), when=_blas_fits, rank=20, steady=False)
def lower_gemm(call: OpCall, device: DeviceInfo) -> Lowered:  # noqa: ARG001 - the same
    """Lower a general product: the addend is spread over the result first, then added to."""
    attrs, out = call.attrs, call.outputs[0]
    a = call.inputs[0]
    assert a is not None
    m, n = out.dims
    product = Product(
        out.dtype, m, n, a.dims[0 if attrs["a_transpose"] else 1],
        attrs["a_transpose"], attrs["b_transpose"], attrs["alpha"],
    )  # fmt: skip
    steps: list[Step] = []
    addend = call.inputs[2] if len(call.inputs) > 2 else None
    if addend is not None and attrs["beta"] != 0.0:
        steps.append(spread(addend, In(2), out))
        product = replace(product, beta=attrs["beta"])
    steps.append(gemm_call(product, Out(0), In(0), In(1)))
    return Lowered(tuple(steps))


@kernel("cpu.fused_matmul.blas", "fused_matmul", ("cpu",), when=_fused_fits, rank=20, steady=False)
def lower_fused(call: OpCall, device: DeviceInfo) -> Lowered:  # noqa: ARG001 - the same
    """Lower a product and what follows it: BLAS, then elementwise steps where its result lies."""
    product, out = _matmul(product_of(call)), call.outputs[0]
    assert product is not None
    steps: list[Step] = [gemm_call(product, Out(0), In(0), In(1))]
    body, places = whole_body(call)
    if body.steps:
        specs = [out, *(call.inputs[i] for i in places)]
        steps.append(elementwise_call(body, specs, out, [Out(0), *(In(i) for i in places)]))
    return Lowered(tuple(steps))


def _matmul_fits_numpy(call: OpCall, device: DeviceInfo) -> str | None:  # noqa: ARG001 - the same
    if call.outputs[0].dtype in ("float32", "float64"):
        return None
    return Refusal(f"BLAS has no {call.outputs[0].dtype}", Cause.DTYPE)


@kernel("cpu.matmul.numpy", "matmul", ("cpu",), when=_matmul_fits_numpy, rank=40)
def lower_numpy(call: OpCall, device: DeviceInfo) -> Lowered:  # noqa: ARG001 - the same
    """Lower a product to numpy's, which calls whatever BLAS it has."""

    def fn(xp: object, ins: list[object], outs: list[object]) -> None:  # noqa: ARG001 - ArrayFn
        np.matmul(ins[0], ins[1], out=outs[0])  # type: ignore[call-overload]

    step: ArrayCall = array_call(call, fn)
    return Lowered((step,))


def _matmul(call: OpCall) -> Product | None:
    """The product of a matmul, or None where its batch has no single stride an operand."""
    a, b = call.inputs[0], call.inputs[1]
    assert a is not None
    assert b is not None
    out = call.outputs[0]
    (m, k), n = a.dims[-2:], b.dims[-1]
    if math.prod(b.dims[:-2]) == 1:  # rows of all matrices are rows of one
        return Product(out.dtype, math.prod(a.dims[:-1]), n, k)
    space = nest(out.dims[:-2], [a.dims[:-2], b.dims[:-2]])
    if len(space.sizes) != 1:
        return None
    (a_step,), (b_step,) = space.strides
    return Product(
        out.dtype, m, n, k, batch=space.inner, a_stride=a_step * m * k, b_stride=b_step * k * n
    )


def spread(source: TensorSpec, slot: Slot, target: TensorSpec) -> NativeCall:
    """Broadcast an array over the whole of ``Out(0)``."""
    copy = FusedStep("cast", {"data_type": target.dtype}, (0,), target.dtype, (source.dtype,))
    return elementwise_call(FusedBody((copy,)), [source], target, [slot])


def gemm_call(product: Product, out: Slot, a: Slot, b: Slot) -> NativeCall:
    """One native call of BLAS; cut by rows or columns, or by products of a batch."""
    library = blas()
    assert library is not None
    p = product
    lda, ldb = (p.m if p.a_transposed else p.k), (p.k if p.b_transposed else p.n)
    split = "batch" if p.batch > 1 else "rows" if p.m >= p.n else "columns"
    if split == "batch":
        steps, extent = (p.a_stride, p.b_stride, p.m * p.n), p.batch
    elif split == "rows":
        steps, extent = (1 if p.a_transposed else lda, 0, p.n), p.m
    else:
        steps, extent = (0, ldb if p.b_transposed else 1, 1), p.n
    form = "vector" if p.m == 1 and split == "columns" else split
    double = p.dtype == "float64"
    kind = "gemv" if form == "vector" else "gemm"
    numbers = {
        "ta": TRANSPOSED if p.a_transposed else PLAIN,
        "tb": TRANSPOSED if p.b_transposed else PLAIN,
        "m": p.m, "n": p.n, "k": p.k, "lda": lda, "ldb": ldb, "ldc": p.n,
        "step_a": steps[0], "step_b": steps[1], "step_c": steps[2],
    }  # fmt: skip
    slots: dict[str, Argument] = {
        "out": out, "a": a, "b": b, "blas": routine(("d" if double else "s") + kind),
        "alpha": Scalar(np.float64(p.alpha)), "beta": Scalar(np.float64(p.beta)),
    }  # fmt: skip
    key = f"gemm {p.dtype} {library.wide} {form} {p.b_transposed}"
    return NativeCall(
        name="gemm",
        address=compiled(
            key, lambda code: _write_gemm(code, p.dtype, library.wide, form, p.b_transposed)
        ),
        args=words(WORDS, slots, numbers),
        extent=extent,
        grain=_grain(p.m * p.n * p.k // (1 if form == "batch" else extent)),
        align=1 if form == "batch" else BLOCK,
        blas=p.m * p.n * p.k > ALONE,
    )


ALONE = 1 << 16
"""Multiply-adds up to which OpenBLAS uses one thread whatever it was told: less than the least that
it shares out (interface/gemm.c and gemv.c), so nothing need be told it."""
BLOCK = 16
"""Rows or columns that BLAS takes at a time. A cut within them would have those beside the cut
summed in another order than the rest: equal columns would give unequal results."""


def _grain(multiplies: int) -> int:
    return max(1, int(GRAIN_FLOPS / (2.0 * max(multiplies, 1))))


def _write_gemm(code: Code, dtype: str, wide: bool, form: str, b_transposed: bool) -> None:
    """Call BLAS on each product of a batch, or on the block [begin, end) of rows or columns."""
    w = Words(code, WORDS, 4)
    if form == "batch":
        with code.loop("%begin", "%end") as items:
            call = BlasCall(code, dtype, wide, w["blas"])
            _product(call, w, items.index, w["m"], w["n"])
        return
    count = code.sub("%end", "%begin")
    with code.when(code.less(0, count)):
        call = BlasCall(code, dtype, wide, w["blas"])
        if form == "vector":
            _vector(call, w, count, b_transposed)
        elif form == "rows":
            _product(call, w, "%begin", count, w["n"])
        else:
            _product(call, w, "%begin", w["m"], count)


def _at(call: BlasCall, w: Words, name: str, item: str) -> str:
    step = call.code.mul(item, w["step_c" if name == "out" else f"step_{name}"])
    return call.code.at(w[name], call.kind, step)


def _product(call: BlasCall, w: Words, item: str, m: str, n: str) -> None:
    call.gemm(
        (w["ta"], w["tb"]), (m, n, w["k"]), (call.scale(w["alpha"]), call.scale(w["beta"])),
        (_at(call, w, "a", item), w["lda"]), (_at(call, w, "b", item), w["ldb"]),
        (_at(call, w, "out", item), w["ldc"]),
    )  # fmt: skip


def _vector(call: BlasCall, w: Words, count: str, b_transposed: bool) -> None:
    """A row times a matrix."""
    call.gemv(
        str(PLAIN if b_transposed else TRANSPOSED),
        (count, w["k"]) if b_transposed else (w["k"], count),
        (call.scale(w["alpha"]), call.scale(w["beta"])),
        (_at(call, w, "b", "%begin"), w["ldb"]), w["a"], _at(call, w, "out", "%begin"),
    )  # fmt: skip


SMALL_ROWS = 4
"""Rows of a tile: as many sums, which do not wait for each other."""
SMALL_WORDS = ("out", "a", "b", "m", "n", "k", "step_a", "step_b")


def _write_small(code: Code, dtype: str, lanes: int) -> None:
    """Each row of the result is a sum of rows of ``b``; tiles of rows by lanes of columns."""
    w = Words(code, SMALL_WORDS, 3)
    kind = LLVM_TYPES[dtype]
    size = code.mul(w["m"], w["n"])
    whole = code.let(f"and i64 {w['m']}, -{SMALL_ROWS}")
    with code.loop("%begin", "%end") as items:
        a0 = code.at(w["a"], kind, code.mul(items.index, w["step_a"]))
        b0 = code.at(w["b"], kind, code.mul(items.index, w["step_b"]))
        c0 = code.at(w["out"], kind, code.mul(items.index, size))
        for count, first, last in ((SMALL_ROWS, "0", whole), (1, whole, w["m"])):
            with code.loop(first, last, count) as rows:
                a = code.at(a0, kind, code.mul(rows.index, w["k"]))
                c = code.at(c0, kind, code.mul(rows.index, w["n"]))
                _small_rows(code, dtype, lanes, count, (a, b0, c), w)


def _small_rows(
    code: Code, dtype: str, lanes: int, rows: int, at: tuple[str, str, str], w: Words
) -> None:
    """Rows of the result, a register's lanes at a time, then half as many, down to one."""
    start, width = "0", lanes
    while width:
        stop = code.let(f"and i64 {w['n']}, -{width}") if width > 1 else w["n"]
        with code.loop(start, stop, width) as columns:
            _dot(code, dtype, width, rows, at, columns.index, w)
        start, width = stop, width // 2


def _dot(
    code: Code, dtype: str, width: int, rows: int, at: tuple[str, str, str], column: str, w: Words
) -> None:
    """One tile of the result: each row of ``b`` is read once for all its rows."""
    kind, vector = LLVM_TYPES[dtype], Vector(code, width)
    a, b, c = at
    zero = (vector.t(dtype), vector.const(dtype, 0.0).name)
    lines = [code.at(a, kind, code.mul(str(r), w["k"])) for r in range(rows)]
    with code.loop(0, w["k"], carried=[zero] * rows) as loop:
        at_row = code.at(b, kind, code.add(code.mul(loop.index, w["n"]), column))
        row = vector.load(at_row, dtype)
        made = []
        for line, total in zip(lines, loop.values, strict=True):
            one = Vector(code, 1).load(code.at(line, kind, loop.index), dtype)
            made.append(vector.fma(vector.splat(one), row, Value(total, dtype)).name)
        loop.next = made
    for r, total in enumerate(loop.values):
        place = code.at(c, kind, code.add(code.mul(str(r), w["n"]), column))
        vector.store(Value(total, dtype), place, dtype)
