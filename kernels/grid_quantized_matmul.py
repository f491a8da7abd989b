"""matmul_integer and quantized_matmul on a grid.

Cards multiply words of four bytes (``grid_quantized_product``). Processors have no such instruction
in OpenCL C: bytes less their zero points are multiplied as floats, exactly, in ``grid_panels``.
Zero points that vary along the sum, which only processors' tiles take in, are left to a work item a
result, as are batches that no grid takes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from crossdock.devices.base import DeviceInfo
from crossdock.devices.program import Argument, GridLaunch, In, Lowered, Out, Slot
from crossdock.kernels import grid_panels, grid_quantized_product
from crossdock.kernels.grid_common import (
    KINDS,
    MAX_ROWS,
    Space,
    accessors,
    broadcast_strides,
    define,
    has,
    i32,
    launch,
    obstacle,
    on_cpu,
    operand,
)
from crossdock.kernels.grid_quantized_ending import Ending, ending
from crossdock.kernels.grid_quantized_product import flip, signed_zero
from crossdock.kernels.grid_quantized_words import FLOAT_TERMS
from crossdock.kernels.grid_tile import Parts, choose
from crossdock.kernels.grid_window import Assembly
from crossdock.kernels.ops_quantized import MATMUL, PLAIN, zeros_of
from crossdock.kernels.refusal import Cause, Refusal
from crossdock.kernels.spec import OpCall
from crossdock.kernels.table import kernel
from crossdock.runtime.tensor import Array, TensorSpec

USUAL_BATCH_DIMS = 3
"""Batch dimensions that every text takes; more of them, where they do not join, take a text of
their own."""
BLOCK = 64
"""Work items of a group where each makes a result."""

_PARAMS = (
    "CONSTANT A *RESTRICT a, CONSTANT @B@ *RESTRICT b, @ZEROS@ @ENDING@ GLOBAL Y *RESTRICT y, "
    "i32 M, i32 N, i32 K, i32 lda, i32 um, i32 uk, i32 vk, i32 vn, @BATCH@"
)

_STORE = r"""
                if (left == W) {
                    STORE_LOOP for (i32 l = 0; l < W; ++l)
                        y[m * N + n + l] = FINISHED(sum[l], n + l);
                } else {
                    for (i32 l = 0; l < left; ++l) y[m * N + n + l] = FINISHED(sum[l], n + l);
                }
"""

_WORDS_OF_B = r"""
        for (i32 e = t; e < QUADS * TN; e += ITEMS) {
            const i32 q = e / TN, n = n0 + e % TN, left = n < N ? rest - 4 * q : 0;
            b_tile[e] = left > 0 ? b[(k0 / 4 + q) * N + n] : 0;
        }
"""
"""Reads a tile of weights that lie in words: see ``packed``."""

_ROWS_OF_B = r"""
        for (i32 e = t; e < QUADS * TN; e += ITEMS) {
            const i32 q = e / TN, n = n0 + e % TN, left = n < N ? rest - 4 * q : 0;
            CONSTANT B *p = b + (k0 + 4 * q) * N + n;
            u32 quad = 0;
            UNROLL for (i32 l = 0; l < 4; ++l) if (l < left) quad |= BYTE(p[l * N], FLIP_B, l);
            b_tile[e] = quad;
        }
"""

FLOATS_OF_A = r"""
        for (i32 m = 0; m < rows; ++m) {
            CONSTANT A *from = a + (m0 + m) * lda + k0;
#if ZERO_A_VARIES
            for (i32 k = 0; k < depth; ++k)
                as[m * TK + k] = (float)(from[k] - ZERO_A(m0 + m, k0 + k));
#else
            const i32 zero = ZERO_A(m0 + m, 0);
            for (i32 k = 0; k < depth; ++k) as[m * TK + k] = (float)(from[k] - zero);
#endif
        }
"""
"""Reads a tile of a left factor of bytes, whose rows are dense, on a processor."""

_FLOATS_OF_B = r"""
        for (i32 k = 0; k < depth; ++k) {
            CONSTANT B *from = b + (k0 + k) * N + n0;
            const i32 zero = ZERO_B(k0 + k, n0);
            for (i32 p = 0; p * RN < columns; ++p) {
                LOCAL_PTR float *to = bs + (p * TK + k) * RN;
                const i32 c = p * RN, wide = columns - c < RN ? columns - c : RN;
#if ZERO_B_VARIES
                for (i32 l = 0; l < wide; ++l)
                    to[l] = (float)(from[c + l] - ZERO_B(k0 + k, n0 + c + l));
#else
                if (wide == RN) {
                    for (i32 l = 0; l < RN; ++l) to[l] = (float)(from[c + l] - zero);
                } else {
                    for (i32 l = 0; l < wide; ++l) to[l] = (float)(from[c + l] - zero);
                }
#endif
            }
        }
"""

_EACH = r"""
KERNEL void each(@PARAMS@, i32 count)
{
    const i32 at = GLOBAL_ID(0);
    if (at < count) {
        const i32 row = at / N, n = at - row * N, z = row / M, m = row - z * M;
        u32 total = 0;
        @SETUP@
        for (i32 k = 0; k < K; ++k)
            total += (u32)((a[m * lda + k] - ZERO_A(m, k)) * (b[k * N + n] - ZERO_B(k, n)));
        y[m * N + n] = FINISHED((i32)total, n);
    }
}
"""


@dataclass(frozen=True)
class Zero:
    """A factor's zero point: where it lies, and its strides along the factor's rows and columns."""

    slot: Slot
    strides: tuple[int, int]


@dataclass(frozen=True)
class Bytes:
    """A batch of products of bytes less their zero points.

    ``space`` is the collapsed batch, with the strides of the two factors and their zero points.
    """

    m: int
    n: int
    k: int
    dtypes: tuple[str, str]
    lda: int
    zeros: tuple[Zero | None, Zero | None]
    space: Space
    end: Ending

    @classmethod
    def of(cls, call: OpCall) -> Bytes:
        """Read an op instance: batch dimensions along which the right factor stays are rows."""
        a, b = operand(call, 0), operand(call, 1)
        *batch, m, n = call.outputs[0].dims
        rows = (*batch, m)
        first, second = (broadcast_strides(s.dims, (*batch, *s.dims[-2:])) for s in (a, b))
        zeros: list[Zero | None] = []
        steps = [first[:-1], (*second[:-2], 0)]
        for at, factor in zip(zeros_of(call.op), (a, b), strict=True):
            if not has(call, at):
                zeros.append(None)
                steps.append((0,) * len(rows))
                continue
            strides = broadcast_strides(operand(call, at).dims, (*batch, *factor.dims[-2:]))
            along_rows = strides[-2] if factor is a else 0
            zeros.append(Zero(In(at), (strides[-2], strides[-1])))
            steps.append((*strides[:-2], along_rows))
        space = Space(rows, tuple(steps)).collapsed()
        lda, um = space.strides[0][-1], space.strides[2][-1]
        m = space.dims[-1]
        if space.strides[1][-1] or space.strides[3][-1]:  # rows of one, and a batch
            m, lda, um = 1, 0, 0
        else:
            space = Space(space.dims[:-1] or (1,), tuple(s[:-1] or (0,) for s in space.strides))
        if (left := zeros[0]) is not None:
            zeros[0] = Zero(left.slot, (um, left.strides[1]))
        dtypes = (a.dtype, b.dtype)
        return cls(m, n, a.dims[-1], dtypes, lda, (zeros[0], zeros[1]), space, ending(call))

    @property
    def batch(self) -> int:
        """Products in the batch."""
        return self.space.size

    @property
    def varies(self) -> bool:
        """Whether a zero point varies along the sum."""
        left, right = self.zeros
        return bool((left and left.strides[1]) or (right and right.strides[0]))

    @property
    def batch_dims(self) -> int:
        """Batch dimensions in the text."""
        return max(USUAL_BATCH_DIMS, len(self.space.dims))

    def arguments(self, b: Slot) -> tuple[Argument, ...]:
        """Kernel arguments, in the order of the texts."""
        wide = self.batch_dims - len(self.space.dims)
        dims = (1,) * wide + self.space.dims
        strides = [n for s in self.space.strides for n in (*((0,) * wide), *s)]
        zeros = tuple(z.slot for z in self.zeros if z is not None)
        (um, uk), (vk, vn) = ((0, 0) if z is None else z.strides for z in self.zeros)
        numbers = i32(self.m, self.n, self.k, self.lda, um, uk, vk, vn, *dims[1:], *strides)
        return (In(0), b, *zeros, *self.end.args, Out(0), *numbers)

    def params(self, words: bool = False) -> str:
        """Kernel parameters; ``words``: the right factor lies in words."""
        n = self.batch_dims
        names = [*(f"d{i}" for i in range(1, n)), *(f"{t}{i}" for t in "abuv" for i in range(n))]
        zeros = zip(self.zeros, ("A *RESTRICT u", "B *RESTRICT v"), strict=True)
        there = "".join(f"CONSTANT {param}, " for zero, param in zeros if zero)
        text = _PARAMS.replace("@BATCH@", ", ".join(f"i32 {name}" for name in names))
        text = text.replace("@B@", "u32" if words else "B").replace("@ZEROS@", there)
        return text.replace("@ENDING@", self.end.params)

    def setup(self) -> str:
        """From the number ``z`` of a product in the batch to its operands."""
        n = self.batch_dims
        lines = ["i32 left_z = z;"]
        lines += [f"const i32 z{i} = left_z % d{i}; left_z /= d{i};" for i in range(n - 1, 0, -1)]
        lines.append("const i32 z0 = left_z;")
        moved = [True, True, *(zero is not None for zero in self.zeros)]
        for tensor, there in zip("abuv", moved, strict=True):
            if there:
                offset = " + ".join(f"z{i} * {tensor}{i}" for i in range(n))
                lines.append(f"{tensor} += {offset};")
        return " ".join([*lines, "y += z * M * N;"])

    def types(self, call: OpCall) -> tuple[tuple[str, str], ...]:
        """Defines of element types."""
        named = zip((*self.dtypes, call.outputs[0].dtype), "ABY", strict=True)
        return tuple(d for dtype, tag in named for d in accessors(dtype, tag)[:1])

    def zero_of_each(self) -> tuple[tuple[str, str], ...]:
        """Defines of the zero points of elements."""
        left, right = self.zeros
        return (
            ("ZERO_A(m, k)", "u[(m) * um + (k) * uk]" if left else "0"),
            ("ZERO_B(k, n)", "v[(k) * vk + (n) * vn]" if right else "0"),
        )


def packed(weights: Array) -> Array:
    """Weights [..., k, n] in words [..., ceil(k / 4), n] of four signed bytes along k."""
    signed = weights if weights.dtype == np.int8 else (weights ^ np.uint8(128)).view(np.int8)
    *batch, k, n = signed.shape
    full = np.zeros((*batch, -(-k // 4) * 4, n), np.int8)
    full[..., :k, :] = signed
    quads = full.reshape(*batch, -1, 4, n).swapaxes(-1, -2)
    words: Array = np.ascontiguousarray(quads).view(np.uint32)[..., 0]
    return np.ascontiguousarray(words)


def _on_card(call: OpCall, device: DeviceInfo) -> Lowered:
    parts, given = Assembly(call, device), Bytes.of(call)
    tile = choose(grid_quantized_product.fitting(device), given.m, given.n, given.batch, device)
    right: Slot = In(1)
    known = call.constants.get(1)
    words = known is not None and math.prod(known.shape[:-2]) == 1
    if known is not None and words:
        weights = known
        spec = TensorSpec("uint32", (-(-given.k // 4), given.n))
        right = parts.pack(lambda: packed(weights).reshape(spec.dims), spec)
        parts.unused.add(1)
    left_zero, right_zero = given.zeros
    zeros = (
        signed_zero("u[(m) * um]" if left_zero else None, given.dtypes[0]),
        signed_zero("v[(n) * vn]" if right_zero else None, given.dtypes[1]),
    )
    filled = Parts(
        given.params(words),
        given.setup(),
        grid_quantized_product.ROWS_OF_A,
        _WORDS_OF_B if words else _ROWS_OF_B,
        _STORE,
    )
    runs = (given.lda, *given.space.strides[0])
    parts.steps.append(
        grid_quantized_product.product(
            tile,
            filled,
            (given.m, given.n, given.batch),
            given.arguments(right),
            given.dtypes[0],
            zeros=zeros,
            aligned=all(stride % 4 == 0 for stride in runs),
            head=given.end.text,
            defines=(*given.types(call)[1:], ("FLIP_B", flip(given.dtypes[1]))),
        )
    )
    return parts.lowered()


def _on_processor(call: OpCall, device: DeviceInfo) -> GridLaunch:
    given = Bytes.of(call)
    sizes = (given.m, given.n, given.batch)
    tile = choose(grid_panels.fitting(device), *sizes, device)
    assert tile.tk <= FLOAT_TERMS
    left, right = given.zeros
    parts = Parts(given.params(), given.setup(), FLOATS_OF_A, _FLOATS_OF_B, _STORE)
    defines = define(
        ZERO_A_VARIES=int(bool(left and left.strides[1])),
        ZERO_B_VARIES=int(bool(right and right.strides[1])),
    )
    return grid_panels.product(
        tile, parts, sizes, given.arguments(In(1)), given.dtypes[0], whole=True,
        head=given.end.text, defines=(*defines, *given.types(call), *given.zero_of_each()),
    )  # fmt: skip


# --- candidates -----------------------------------------------------------------------------------


def _fits_tiled(call: OpCall, device: DeviceInfo) -> str | None:
    if (why := obstacle(call, device)) is not None:
        return why
    texts = grid_panels if on_cpu(device) else grid_quantized_product
    if not texts.fitting(device):
        return Refusal("too little local memory or too small work-groups", Cause.SIZE)
    given = Bytes.of(call)
    if given.batch > MAX_ROWS:
        return Refusal(f"a batch over {MAX_ROWS}", Cause.SIZE)
    if given.varies and not on_cpu(device):
        return Refusal("a zero point that varies along the sum", Cause.FORM)
    return None


def _fits_each(call: OpCall, device: DeviceInfo) -> str | None:
    if (why := obstacle(call, device)) is not None:
        return why
    return None if _fits_tiled(call, device) is not None else "tiles fit"


for _op in (MATMUL, PLAIN[MATMUL]):

    @kernel(f"grid.{_op}.tiled", _op, KINDS, when=_fits_tiled, rank=20)
    def lower_tiled(call: OpCall, device: DeviceInfo) -> Lowered:
        """One launch of the tiled product; weights that are known lie in words on a card."""
        if on_cpu(device):
            return Lowered((_on_processor(call, device),))
        return _on_card(call, device)

    @kernel(f"grid.{_op}.each", _op, KINDS, when=_fits_each, rank=25)
    def lower_each(call: OpCall, device: DeviceInfo) -> Lowered:  # noqa: ARG001 - lower
        """One launch in which a work item makes a result."""
        given = Bytes.of(call)
        text = _EACH.replace("@PARAMS@", given.params()).replace("@SETUP@", given.setup())
        count = call.outputs[0].size
        defines = (*given.types(call), *given.zero_of_each())
        args = (*given.arguments(In(1)), *i32(count))
        return Lowered((launch(given.end.text + text, "each", args, (count,), (BLOCK,), defines),))
