"""Attention on CUDA devices: two products by cuBLASLt, and between them one launch over the scores.

The products read queries, keys and values where they lie, heads beside each other in a row among
them, and write results the same way, so that nothing is transposed. The scores, float32, are a
matrix in memory; the launch caps, biases and hides them, and makes them shares.

Sums are float32 for half types, too. But the second product has operands of one type, so that the
launch rounds the shares to that of the values, as Dao et al., 2022, do: a result is off by up to
half a unit in the last place of the largest value that it weighs, where only its own last place is
rounded otherwise. That kernel is not exact. Shares of many keys are small, and float16 has few bits
for what is below 2^-14: there they are multiplied by 2^15, and the results divided by it.
"""

from __future__ import annotations

import math
from functools import partial

from crossdock.devices.base import DeviceInfo
from crossdock.devices.cuda_blas import MOST_CALLS, Product
from crossdock.devices.cuda_lt import LtProduct
from crossdock.devices.program import GridLaunch, In, Lowered, Scratch
from crossdock.kernels.cublas_matmul import fits_device
from crossdock.kernels.cublaslt_matmul import RANK, workspace_of
from crossdock.kernels.fused_attention import extents_of, result_strides, strides_of
from crossdock.kernels.grid_common import (
    Space,
    accessors,
    broadcast_strides,
    define,
    f32,
    has,
    i32,
    item_size,
    launch,
    not_among,
    operand,
)
from crossdock.kernels.library_kernels import register
from crossdock.kernels.precision import FORMATS
from crossdock.kernels.refusal import Cause, Refusal
from crossdock.kernels.spec import OpCall

OPS = ("scaled_dot_product_attention", "fused_attention")
MOST_BYTES = 1 << 30
"""Of scores, at most."""
HALVES = ("float16", "bfloat16")
RAISED = {"float16": 2.0**15}
"""What shares are multiplied by, to be normal numbers of their type: a power of two below its
largest number."""
SHORT, FEW, MANY = 128, 32, 128
"""Up to so many keys a row has few lanes, else many."""

_SHARES = r"""
#define PLUS(a, b) ((a) + (b))
KERNEL BLOCK_SIZE(LANES, 1, 1) IN_SUBGROUPS
void shares(@BIAS@ GLOBAL float *RESTRICT scores, @SHARES@ i32 heads, i32 length, i32 keys,
            float softcap, i32 offset, i32 b0, i32 b1, i32 b2, i32 b3)
{
    TEAM_ROOM(float, tops, LANES, 1);
    TEAM_ROOM(float, sums, LANES, 1);
#if MASKED
    TEAM_ROOM(float, seen, LANES, 1);
#endif
    const i32 lane = LOCAL_ID(0), row = GROUP_ID(0), base = row * keys;
    const i32 query = row % length, head = row / length % heads, batch = row / length / heads;
    const i32 from = batch * b0 + head * b1 + query * b2;
    float top = -INFINITY, shown = MASKED ? -INFINITY : 0.0f, sum = 0.0f;
    for (i32 k = lane; k < keys; k += LANES) {
        float x = scores[base + k], hidden = 0.0f;
#if CAPPED
        x = softcap * X_TANH(x / softcap);
#endif
#if HAS_BIAS
        hidden += T_LOAD(bias, from + k * b3);
#endif
#if CAUSAL
        if (k > query + offset) hidden = -INFINITY;
#endif
        x += hidden;
#if MASKED
        shown = X_MAX(shown, hidden);
#endif
        scores[base + k] = x;
        top = X_MAX(top, x);
    }
    TEAM_REDUCE(float, top, LANES, tops, X_MAX);
#if MASKED
    TEAM_REDUCE(float, shown, LANES, seen, X_MAX);
#endif
    if (top == -INFINITY) top = 0.0f;
    for (i32 k = lane; k < keys; k += LANES) {
        const float x = X_EXP(scores[base + k] - top);
        scores[base + k] = x;
        sum += x;
    }
    TEAM_REDUCE(float, sum, LANES, sums, PLUS);
    for (i32 k = lane; k < keys; k += LANES) {
        const float x = shown == -INFINITY ? 0.0f : scores[base + k] / sum;
#if NARROW
        T_STORE(shares, base + k, x * RAISED);
#else
        scores[base + k] = x;
#endif
    }
}
"""


def scores_of(call: OpCall, rounds: str) -> Product:
    """Queries times keys, scaled: [batch, heads, queries, keys] in float32."""
    sizes, scale = extents_of(call), call.attrs["scale"]
    dims = (sizes.batch, sizes.shared, sizes.heads // sizes.shared)
    (q_at, q_batch, q_head, q_row), (k_at, k_batch, k_head, k_row) = (
        strides_of(call, at) for at in (0, 1)
    )
    one = sizes.length * sizes.keys
    space = _space(
        dims, (q_batch, dims[2] * q_head, q_head), (k_batch, k_head, 0),
        (sizes.heads * one, dims[2] * one, one),
    )  # fmt: skip
    return Product(
        sizes.length, sizes.keys, sizes.width, operand(call, 0).dtype, "float32", *space[:3],
        b_transposed=True, alpha=1.0 / math.sqrt(sizes.width) if scale is None else float(scale),
        rounds=rounds, rows=(q_row, k_row, 0), begins=(q_at, k_at), y_steps=space[3],
    )  # fmt: skip


def results_of(call: OpCall, rounds: str) -> Product:
    """Shares times values, where the op's result lies."""
    sizes, dtype = extents_of(call), operand(call, 0).dtype
    dims = (sizes.batch, sizes.shared, sizes.heads // sizes.shared)
    v_at, v_batch, v_head, v_row = strides_of(call, 2)
    y_batch, y_head, y_row = result_strides(call)
    one = sizes.length * sizes.keys
    space = _space(
        dims, (sizes.heads * one, dims[2] * one, one), (v_batch, v_head, 0),
        (y_batch, dims[2] * y_head, y_head),
    )  # fmt: skip
    return Product(
        sizes.length, sizes.out_width, sizes.keys, dtype, dtype, *space[:3],
        alpha=1.0 / RAISED.get(dtype, 1.0), rounds=rounds, rows=(0, v_row, y_row),
        begins=(0, v_at), y_steps=space[3],
    )  # fmt: skip


def _space(
    dims: tuple[int, ...], *strides: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """The batch in as few dimensions as can be, and its strides of a, b and y."""
    found = Space(dims, strides).collapsed()
    if found.size == 1:
        return (), (), (), ()
    a, b, y = found.strides
    return found.dims, a, b, y


def _fits(dtypes: tuple[str, ...], rounds: str, call: OpCall, device: DeviceInfo) -> str | None:
    if (why := fits_device(rounds, call, device) or not_among(dtypes, call)) is not None:
        return why
    sizes = extents_of(call)
    if 4 * sizes.batch * sizes.heads * sizes.length * sizes.keys > MOST_BYTES:
        return Refusal(f"more than {MOST_BYTES} bytes of scores", Cause.SIZE)
    products = scores_of(call, rounds), results_of(call, rounds)
    if any(len(list(p.offsets())) > MOST_CALLS for p in products):
        return Refusal(f"more than {MOST_CALLS} calls for its batch", Cause.SIZE)
    return None


def _shares(call: OpCall) -> GridLaunch:
    """The launch between: scores become shares, of half types in memory of their own."""
    attrs, sizes, dtype = call.attrs, extents_of(call), operand(call, 0).dtype
    narrow = dtype in HALVES
    biased, offset = has(call, 3), attrs["causal_offset"]
    strides: tuple[int, ...] = (0, 0, 0, 0)
    if biased:
        whole = (sizes.batch, sizes.heads, sizes.length, sizes.keys)
        strides = broadcast_strides(operand(call, 3).dims, whole)
    text = _SHARES.replace("@BIAS@", "CONSTANT T *RESTRICT bias," if biased else "")
    text = text.replace("@SHARES@", "GLOBAL T *RESTRICT shares," if narrow else "")
    masked = (biased or offset is not None) and attrs.get("hidden_zero", True)
    lanes = FEW if sizes.keys <= SHORT else MANY
    known = define(
        LANES=lanes, CAPPED=int(bool(attrs["softcap"])),
        HAS_BIAS=int(biased), CAUSAL=int(offset is not None), MASKED=int(masked),
        NARROW=int(narrow), RAISED=f"{RAISED.get(dtype, 1.0)}f",
    )  # fmt: skip
    known += accessors(dtype)
    args = (
        *((In(3),) if biased else ()), Scratch(0), *((Scratch(2),) if narrow else ()),
        *i32(sizes.heads, sizes.length, sizes.keys), *f32(float(attrs["softcap"])),
        *i32(offset or 0, *strides),
    )  # fmt: skip
    rows = sizes.batch * sizes.heads * sizes.length
    return launch(text, "shares", args, (rows * lanes,), (lanes,), known)


def _lower(rounds: str, call: OpCall, device: DeviceInfo) -> Lowered:
    sizes, space = extents_of(call), workspace_of(call, device)
    count, dtype = sizes.batch * sizes.heads * sizes.length * sizes.keys, operand(call, 0).dtype
    shares = Scratch(2 if dtype in HALVES else 0)
    first = LtProduct(scores_of(call, rounds), workspace=space)
    second = LtProduct(results_of(call, rounds), workspace=space)
    steps = (
        first.step(y=Scratch(0), workspace=Scratch(1)),
        _shares(call),
        second.step(a=shares, b=In(2), workspace=Scratch(1)),
    )
    narrow = (count * item_size(dtype),) if dtype in HALVES else ()
    return Lowered(steps, (4 * count, space, *narrow))


for _op in OPS:
    for _rounds in ("", *FORMATS):
        _plain = partial(_fits, ("float32",))
        register("cublaslt.attention", _op, RANK, _rounds, _plain, _lower)
    _halves = partial(_fits, HALVES)
    register("cublaslt.attention.halves", _op, RANK, "", _halves, _lower, exact=False)
