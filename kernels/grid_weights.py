"""matmul and gemm on a processor with known weights on the right: packed ahead, read as vectors.

Weights lie in panels as wide as two vectors, in the order that they are read. An item goes along
blocks of rows with one panel, which stays in its caches; the sums of a block stay in registers.
The left factor is read as it is, an element at a time for all columns of the panel.
"""

from __future__ import annotations

import numpy as np

from crossdock.devices.base import DeviceInfo
from crossdock.devices.program import Argument, Lowered, Packed
from crossdock.kernels.grid_common import (
    KINDS,
    define,
    f32,
    i32,
    launch,
    obstacle,
    on_cpu,
    operand,
    vector_width,
    vectors,
)
from crossdock.kernels.grid_matmul import Factors, factors_of
from crossdock.kernels.grid_window import Assembly
from crossdock.kernels.refusal import Cause, Refusal
from crossdock.kernels.spec import OpCall
from crossdock.kernels.table import kernel
from crossdock.runtime.tensor import Array, TensorSpec

_WEIGHTS = r"""
#if HAS_C
#define ADDED(m, n) + beta * c[(m) * cm + (n) * cn]
#else
#define ADDED(m, n)
#endif
KERNEL BLOCK_SIZE(1, 1, 1)
void weights(CONSTANT float *RESTRICT a, CONSTANT float *RESTRICT b, @C@
             GLOBAL float *RESTRICT y, i32 M, i32 N, i32 K, i32 per, float alpha, float beta,
             i32 cm, i32 cn)
{
    const i32 n0 = GROUP_ID(1) * RN, end = N - n0 < RN ? N - n0 : RN, blocks = (M + RM - 1) / RM;
    const i32 first = GROUP_ID(0) * per, last = first + per < blocks ? first + per : blocks;
    CONSTANT float *panel = b + GROUP_ID(1) * K * RN;
    for (i32 r = first; r < last; ++r) {
        CONSTANT float *from[RM];
        VEC acc[RM][2], sums[RM][2];
        UNROLL for (i32 i = 0; i < RM; ++i) {
            from[i] = a + (r * RM + i < M ? r * RM + i : M - 1) * K;
            acc[i][0] = acc[i][1] = VSPLAT(0.0f);
        }
        for (i32 k = 0; k < K; ++k) {
            const VEC b0 = VLOAD(panel + k * RN), b1 = VLOAD(panel + k * RN + VW);
            UNROLL for (i32 i = 0; i < RM; ++i) {
                const VEC left = VSPLAT(from[i][k]);
                acc[i][0] = VFMA(left, b0, acc[i][0]);
                acc[i][1] = VFMA(left, b1, acc[i][1]);
            }
        }
        UNROLL for (i32 i = 0; i < RM; ++i) { sums[i][0] = acc[i][0]; sums[i][1] = acc[i][1]; }
        for (i32 i = 0; i < RM && r * RM + i < M; ++i) {
            const i32 m = r * RM + i;
            const float *sum = (const float *)sums[i];
            GLOBAL float *row = y + m * N + n0;
            if (end == RN) {
                for (i32 l = 0; l < RN; ++l) row[l] = alpha * sum[l] ADDED(m, n0 + l);
            } else {
                for (i32 l = 0; l < end; ++l) row[l] = alpha * sum[l] ADDED(m, n0 + l);
            }
        }
    }
}
"""


def panels(weights: Array, wide: int, *, transposed: bool) -> Array:
    """Weights [k, n], or [n, k], as [panels, k, wide], with zeros beyond n."""
    dense = weights.T if transposed else weights
    k, n = dense.shape
    count = -(-n // wide)
    flat = np.zeros((k, count * wide), np.float32)
    flat[:, :n] = dense
    return np.ascontiguousarray(flat.reshape(k, count, wide).transpose(1, 0, 2))


def _fits(call: OpCall, device: DeviceInfo) -> str | None:
    if (why := obstacle(call, device)) is not None:
        return why
    if not on_cpu(device):
        return "for processors"
    if operand(call, 0).dtype != "float32":
        return Refusal("float32 only", Cause.DTYPE)
    if 1 not in call.constants:
        return "weights that are not known"
    factors = factors_of(call)
    if factors.batch or operand(call, 1).rank != 2:
        return "a batch of weights"
    return "rows that lie as columns" if factors.a_transposed else None


def _height(factors: Factors, device: DeviceInfo, rows: int) -> int:
    return min(factors.m, rows if vector_width(device) != 8 else rows // 2)


def _lower(call: OpCall, device: DeviceInfo, rows: int) -> Lowered:
    factors, parts = factors_of(call), Assembly(call, device)
    width = vector_width(device)
    tall, wide = _height(factors, device, rows), 2 * width
    blocks, count = -(-factors.m // tall), -(-factors.n // wide)
    known, turned = call.constants[1], factors.b_transposed
    spec = TensorSpec("float32", (count, factors.k, wide))
    slot = parts.pack(lambda: panels(known, wide, transposed=turned), spec)
    assert isinstance(slot, Packed)
    parts.unused.add(1)
    wanted = max(1, 12 * max(1, device.compute_units) // count)
    per = max(1, blocks // wanted)
    args: tuple[Argument, ...] = (
        factors.a, slot, *((factors.c,) if factors.c else ()), factors.y,
        *i32(factors.m, factors.n, factors.k, per), *f32(factors.alpha, factors.beta),
        *i32(*factors.c_strides),
    )  # fmt: skip
    text = _WEIGHTS.replace("@C@", "CONSTANT float *RESTRICT c," if factors.c else "")
    known_now = define(RM=tall, RN=wide, HAS_C=int(factors.c is not None))
    items = (-(-blocks // per), count)
    parts.steps.append(launch(text, "weights", args, items, (1, 1), (*known_now, *vectors(width))))
    return parts.lowered()


for _op in ("matmul", "gemm"):

    @kernel(f"grid.{_op}.weights", _op, KINDS, when=_fits, rank=12)
    def lower_weights(call: OpCall, device: DeviceInfo) -> Lowered:
        """One launch; blocks of as many rows as the registers hold."""
        return _lower(call, device, 12)

    @kernel(f"grid.{_op}.weights_low", _op, KINDS, when=_fits, rank=13)
    def lower_weights_low(call: OpCall, device: DeviceInfo) -> Lowered:
        """The same in lower blocks, which waste fewer rows."""
        return _lower(call, device, 8)
