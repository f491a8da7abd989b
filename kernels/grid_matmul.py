"""matmul and gemm on a grid: the tiled product, and products of a few rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from crossdock.devices.base import DeviceInfo
from crossdock.devices.program import Argument, GridLaunch, In, Lowered, Out, Slot
from crossdock.kernels import grid_panels, grid_product
from crossdock.kernels.grid_common import (
    KINDS,
    MAX_ROWS,
    Space,
    accessors,
    broadcast_strides,
    define,
    f32,
    has,
    i32,
    launch,
    not_among,
    obstacle,
    on_cpu,
    operand,
    row_major,
)
from crossdock.kernels.grid_tile import Parts, Tile, launched
from crossdock.kernels.refusal import Cause, Refusal
from crossdock.kernels.spec import OpCall
from crossdock.kernels.table import kernel

DTYPES = ("float32", "float16", "bfloat16")
USUAL_BATCH_DIMS = 3
"""Batch dimensions that every text takes; more of them, where they do not join, take a text of
their own."""
FEW_ROWS = 8
CHUNK = 64
"""Columns of a work item on a processor, in products of few rows."""

_PARAMS = (
    "CONSTANT T *RESTRICT a, CONSTANT T *RESTRICT b, @C_PARAM@ GLOBAL T *RESTRICT y, "
    "i32 M, i32 N, i32 K, i32 lda, i32 ldb, float alpha, float beta, @BATCH@, i32 cm, i32 cn"
)

_BATCH = r"""
    i32 left_z = z;
    @INDICES@
    a += @A@;
    b += @B@;
    y += z * M * N;
#if HAS_C
    c += @C@;
#define ADDED(m, n) + beta * T_LOAD(c, (m) * cm + (n) * cn)
#else
#define ADDED(m, n)
#endif
"""

_STORE = r"""
                STORE_LOOP for (i32 l = 0; l < W; ++l)
                    if (l < left) T_STORE(y, m * N + n + l, alpha * sum[l] ADDED(m, n + l));
"""

_FEW_ROWS = r"""
KERNEL BLOCK_SIZE(LANES, DEPTH, 1)
void few_rows(@PARAMS@)
{
    LOCAL float part[DEPTH][ROWS][LANES];
    const i32 tx = LOCAL_ID(0), ty = LOCAL_ID(1), n = GLOBAL_ID(0), z = GROUP_ID(2);
    float acc[ROWS];
    @SETUP@
    UNROLL for (i32 i = 0; i < ROWS; ++i) acc[i] = 0.0f;
    if (n < N) {
        for (i32 k = ty; k < K; k += DEPTH) {
            const float right = T_LOAD(b, k * ldb + n);
            UNROLL for (i32 i = 0; i < ROWS; ++i)
                acc[i] += T_LOAD(a, i * lda + k) * right;
        }
    }
    UNROLL for (i32 i = 0; i < ROWS; ++i) part[ty][i][tx] = acc[i];
    BARRIER();
    if (n < N) {
        for (i32 i = ty; i < ROWS; i += DEPTH) {
            float sum = 0.0f;
            for (i32 q = 0; q < DEPTH; ++q) sum += part[q][i][tx];
            T_STORE(y, i * N + n, alpha * sum ADDED(i, n));
        }
    }
}
"""

_FEW_ROWS_TRANSPOSED = r"""
KERNEL BLOCK_SIZE(LANES, 1, 1)
void few_rows(@PARAMS@)
{
    LOCAL float part[ROWS][LANES];
    const i32 tx = LOCAL_ID(0), n = GROUP_ID(0), z = GROUP_ID(2);
    float acc[ROWS];
    @SETUP@
    UNROLL for (i32 i = 0; i < ROWS; ++i) acc[i] = 0.0f;
    for (i32 k = tx; k < K; k += LANES) {
        const float right = T_LOAD(b, n * ldb + k);
        UNROLL for (i32 i = 0; i < ROWS; ++i)
            acc[i] += T_LOAD(a, i * lda + k) * right;
    }
    UNROLL for (i32 i = 0; i < ROWS; ++i) part[i][tx] = acc[i];
    BARRIER();
    if (tx < ROWS) {
        float sum = 0.0f;
        for (i32 q = 0; q < LANES; ++q) sum += part[tx][q];
        T_STORE(y, tx * N + n, alpha * sum ADDED(tx, n));
    }
}
"""


_FEW_ROWS_ONE_ITEM = r"""
#define ADD(W) for (i32 l = 0; l < W; ++l) acc[i][l] += left * T_LOAD(from, l);
#define DOT(W) for (i32 l = 0; l < W; ++l) part[l] += T_LOAD(row, k + l) * T_LOAD(from, k + l);
KERNEL BLOCK_SIZE(1, 1, 1)
void few_rows(@PARAMS@)
{
    const i32 n0 = GROUP_ID(0) * CHUNK, z = GROUP_ID(2);
    const i32 wide = N - n0 < CHUNK ? N - n0 : CHUNK;
    float acc[ROWS][CHUNK];
    @SETUP@
    for (i32 i = 0; i < ROWS; ++i)
        for (i32 l = 0; l < CHUNK; ++l) acc[i][l] = 0.0f;
#if B_TRANSPOSED
    for (i32 n = 0; n < wide; ++n) {
        CONSTANT T *from = b + (n0 + n) * ldb;
        for (i32 i = 0; i < ROWS; ++i) {
            CONSTANT T *row = a + i * lda;
            float part[16] = {0.0f};
            i32 k = 0;
            for (; k + 16 <= K; k += 16) DOT(16)
            for (; k < K; ++k) DOT(1)
            for (i32 l = 0; l < 16; ++l) acc[i][n] += part[l];
        }
    }
#else
    for (i32 k = 0; k < K; ++k) {
        CONSTANT T *from = b + k * ldb + n0;
        for (i32 i = 0; i < ROWS; ++i) {
            const float left = T_LOAD(a, i * lda + k);
            if (wide == CHUNK) { ADD(CHUNK) } else { ADD(wide) }
        }
    }
#endif
    for (i32 i = 0; i < ROWS; ++i)
        for (i32 l = 0; l < wide; ++l)
            T_STORE(y, i * N + n0 + l, alpha * acc[i][l] ADDED(i, n0 + l));
}
"""


@dataclass(frozen=True)
class Factors:
    """A batch of products y = alpha a b + beta c.

    Batch strides are in elements, one for each of the ``batch`` dimensions; ``c_strides`` are
    those of ``c`` along rows and columns. A transposed factor is stored as its transpose.
    """

    m: int
    n: int
    k: int
    dtype: str
    batch: tuple[int, ...] = ()
    a_batch: tuple[int, ...] = ()
    b_batch: tuple[int, ...] = ()
    c_batch: tuple[int, ...] = ()
    c_strides: tuple[int, int] = (0, 0)
    a_transposed: bool = False
    b_transposed: bool = False
    alpha: float = 1.0
    beta: float = 1.0
    a: Slot = In(0)  # noqa: RUF009 - immutable
    b: Slot = In(1)  # noqa: RUF009 - immutable
    c: Slot | None = None
    y: Slot = Out(0)  # noqa: RUF009 - immutable

    def space(self) -> Space:
        """The collapsed batch, with the strides of a, b, c and y."""
        size = self.m * self.n
        written = tuple(s * size for s in row_major(self.batch))
        c_batch = self.c_batch or (0,) * len(self.batch)
        return Space(self.batch, (self.a_batch, self.b_batch, c_batch, written)).collapsed()

    @property
    def batch_dims(self) -> int:
        """Batch dimensions in the text."""
        return max(USUAL_BATCH_DIMS, len(self.space().dims))

    def arguments(self) -> tuple[Argument, ...]:
        """Kernel arguments, in the order of the texts."""
        space = self.space()
        wide = self.batch_dims - len(space.dims)
        dims = (1,) * wide + space.dims
        strides = [(0,) * wide + s for s in space.strides[:3]]
        lda = self.m if self.a_transposed else self.k
        ldb = self.k if self.b_transposed else self.n
        slots: tuple[Argument, ...] = (self.a, self.b, *((self.c,) if self.c else ()), self.y)
        return (
            *slots,
            *i32(self.m, self.n, self.k, lda, ldb),
            *f32(self.alpha, self.beta),
            *i32(*dims[1:], *strides[0], *strides[1], *strides[2], *self.c_strides),
        )

    def aligned(self) -> tuple[bool, bool]:
        """Whether runs of four elements along a row start at multiples of four."""
        lda = self.m if self.a_transposed else self.k
        ldb = self.k if self.b_transposed else self.n
        return (
            lda % 4 == 0 and all(s % 4 == 0 for s in self.a_batch),
            ldb % 4 == 0 and all(s % 4 == 0 for s in self.b_batch),
        )


def _params(factors: Factors) -> str:
    n = factors.batch_dims
    names = [*(f"d{i}" for i in range(1, n)), *(f"{t}{i}" for t in "abc" for i in range(n))]
    text = _PARAMS.replace("@BATCH@", ", ".join(f"i32 {name}" for name in names))
    return text.replace("@C_PARAM@", "CONSTANT T *RESTRICT c," if factors.c else "")


def _batch(factors: Factors) -> str:
    """From the number ``z`` of a product in the batch to its operands."""
    n = factors.batch_dims
    indices = [f"const i32 z{i} = left_z % d{i}; left_z /= d{i};" for i in range(n - 1, 0, -1)]
    text = _BATCH.replace("@INDICES@", " ".join([*indices, "const i32 z0 = left_z;"]))
    for tensor in "abc":
        offset = " + ".join(f"z{i} * {tensor}{i}" for i in range(n))
        text = text.replace(f"@{tensor.upper()}@", offset)
    return text


def tiled(factors: Factors, device: DeviceInfo) -> GridLaunch:
    """The product through tiles of both factors."""
    sizes = (factors.m, factors.n, math.prod(factors.batch))
    cpu = on_cpu(device)
    texts = grid_panels if cpu else grid_product
    parts = Parts(
        _params(factors),
        _batch(factors),
        texts.COLUMNS_OF_A if factors.a_transposed else texts.ROWS_OF_A,
        texts.COLUMNS_OF_B if factors.b_transposed else texts.ROWS_OF_B,
        _STORE,
    )
    args, dtype, aligned = factors.arguments(), factors.dtype, factors.aligned()
    defines = define(HAS_C=int(factors.c is not None))

    def made(tile: Tile) -> GridLaunch:
        if cpu:
            return grid_panels.product(tile, parts, sizes, args, dtype, defines=defines)
        return grid_product.product(
            tile, parts, sizes, args, dtype, aligned=aligned, defines=defines
        )

    return launched(texts.fitting(device), sizes, factors.k, device, made)


def no_tile(device: DeviceInfo) -> str | None:
    """The reason where no tile fits a device."""
    texts = grid_panels if on_cpu(device) else grid_product
    fits = texts.fitting(device)
    return None if fits else Refusal("too little local memory or too small work-groups", Cause.SIZE)


def few_rows(factors: Factors, device: DeviceInfo) -> GridLaunch:
    """The product of few rows: each element of the right factor is read once."""
    batch = math.prod(factors.batch)
    cpu = on_cpu(device)
    block: tuple[int, int, int] = (1, 1, 1)
    if cpu:
        text = _FEW_ROWS_ONE_ITEM
        items = (-(-factors.n // CHUNK), 1, batch)
    elif factors.b_transposed:
        text, block = _FEW_ROWS_TRANSPOSED, (64, 1, 1)
        items = (factors.n * block[0], 1, batch)
    else:
        text, block = _FEW_ROWS, (32, 8, 1)
        items = (factors.n, block[1], batch)
    text = text.replace("@PARAMS@", _params(factors)).replace("@SETUP@", _batch(factors))
    defines = define(
        ROWS=factors.m, LANES=block[0], DEPTH=block[1], HAS_C=int(factors.c is not None),
        CHUNK=CHUNK, B_TRANSPOSED=int(factors.b_transposed),
    )  # fmt: skip
    return launch(
        text, "few_rows", factors.arguments(), items, block, (*defines, *accessors(factors.dtype))
    )


# --- candidates -----------------------------------------------------------------------------------


def factors_of(call: OpCall) -> Factors:
    """The product that a matmul or gemm asks for."""
    a, b = operand(call, 0), operand(call, 1)
    if call.op == "matmul":
        batch = call.outputs[0].dims[:-2]
        a_batch, b_batch = (_batch_strides(s.dims, batch) for s in (a, b))
        m, n, k = a.dims[-2], b.dims[-1], a.dims[-1]
        if a.dims[:-2] == batch and not any(b_batch):
            return Factors(math.prod(batch) * m, n, k, a.dtype)
        return Factors(m, n, k, a.dtype, batch, a_batch, b_batch)
    attrs = call.attrs
    m, n = call.outputs[0].dims
    c_strides = (0, 0)
    if has(call, 2):
        c_strides = _pair(broadcast_strides(operand(call, 2).dims, (m, n)))
    return Factors(
        m,
        n,
        a.dims[0 if attrs["a_transpose"] else 1],
        a.dtype,
        c_strides=c_strides,
        a_transposed=attrs["a_transpose"],
        b_transposed=attrs["b_transpose"],
        alpha=attrs["alpha"],
        beta=attrs["beta"],
        c=In(2) if has(call, 2) else None,
    )


def _pair(values: Sequence[int]) -> tuple[int, int]:
    first, second = values
    return first, second


def _batch_strides(dims: tuple[int, ...], batch: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of an operand's batch dimensions, broadcast to those of the result."""
    size = dims[-2] * dims[-1]
    return tuple(s * size for s in broadcast_strides(dims[:-2], batch))


def _fits(call: OpCall, device: DeviceInfo) -> str | None:
    if (why := obstacle(call, device) or not_among(DTYPES, call)) is not None:
        return why
    factors = factors_of(call)
    return (
        Refusal(f"a batch over {MAX_ROWS}", Cause.SIZE)
        if math.prod(factors.batch) > MAX_ROWS
        else None
    )


def _fits_tiled(call: OpCall, device: DeviceInfo) -> str | None:
    if (why := _fits(call, device) or no_tile(device)) is not None:
        return why
    return Refusal(f"at most {FEW_ROWS} rows", Cause.SIZE) if _few(call) else None


def _fits_few_rows(call: OpCall, device: DeviceInfo) -> str | None:
    if (why := _fits(call, device)) is not None:
        return why
    return None if _few(call) else Refusal(f"more than {FEW_ROWS} rows", Cause.SIZE)


def _few(call: OpCall) -> bool:
    factors = factors_of(call)
    return factors.m <= FEW_ROWS and not (factors.a_transposed and factors.m > 1)


for _op in ("matmul", "gemm"):

    @kernel(f"grid.{_op}.tiled", _op, KINDS, when=_fits_tiled, rank=20)
    def lower_tiled(call: OpCall, device: DeviceInfo) -> Lowered:
        """One launch of the tiled product."""
        return Lowered((tiled(factors_of(call), device),))

    @kernel(f"grid.{_op}.few_rows", _op, KINDS, when=_fits_few_rows, rank=20)
    def lower_few_rows(call: OpCall, device: DeviceInfo) -> Lowered:
        """One launch that reads the right factor once."""
        return Lowered((few_rows(factors_of(call), device),))
