"""Attention by cuDNN, on CUDA devices, in float16 and bfloat16.

Query, key and value are read where they lie, heads beside each other in a row among them, and
results are written so. Shares are rounded to the operands' type before they weigh values, which is
why the kernel is not exact.

What cuDNN makes of a bias of minus infinity differs between its versions (NaN, the mean of all
values, or 0), so that it gets none: a launch before it widens the bias to float32, with a finite
number in its place that every share vanishes under, and notes for each row which is the first key
that it lets through. Where that is none, a launch afterwards writes the op's answer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from crossdock.devices.base import DeviceInfo
from crossdock.devices.cuda_dnn_attention import Attention
from crossdock.devices.program import GridLaunch, In, Lowered, Out, Scratch, Step
from crossdock.kernels.fused_attention import extents_of, result_strides, strides_of
from crossdock.kernels.grid_common import (
    Args,
    accessors,
    broadcast_strides,
    define,
    has,
    i32,
    launch,
    not_among,
    operand,
)
from crossdock.kernels.library_kernels import TENSOR_UNITS, misfit, register, without_cudnn
from crossdock.kernels.refusal import Cause, Refusal
from crossdock.kernels.spec import OpCall

OPS = ("scaled_dot_product_attention", "fused_attention")
RANK = 13
"""Before that of cuBLASLt, which keeps all scores in memory and reads them in a launch between."""
DTYPES = ("float16", "bfloat16")
PIECE = 8
"""Elements that cuDNN reads at once: rows of features begin and end at whole pieces."""
WIDEST = 256
MOST_BYTES = 1 << 30
"""Of bias, widened, at most."""
SPARE = 64 << 10
MOST_PARTS = 16 << 20
"""Bytes of workspace at most: few queries are split along their keys, and their parts lie there."""
SHORT, FEW, MANY = 128, 32, 128
"""Up to so many keys a row of the bias has few lanes, else many."""
BLOCK = 128

_WIDEN = r"""
#define LEAST -1e30f
#define HIDDEN -2e30f
#define LOWER(a, b) ((a) < (b) ? (a) : (b))
KERNEL BLOCK_SIZE(LANES, 1, 1) IN_SUBGROUPS
void widen(CONSTANT T *RESTRICT bias, GLOBAL float *RESTRICT wide, GLOBAL i32 *RESTRICT first,
           i32 keys)
{
    TEAM_ROOM(i32, room, LANES, 1);
    const i32 lane = LOCAL_ID(0), row = GROUP_ID(0), base = row * keys;
    i32 seen = keys;
    for (i32 k = lane; k < keys; k += LANES) {
        const float x = T_LOAD(bias, SPREAD ? row : base + k);
        const i32 hidden = x == -INFINITY;
        if (!hidden) seen = LOWER(seen, k);
        wide[base + k] = hidden ? HIDDEN : (x < LEAST ? LEAST : x);
    }
    TEAM_REDUCE(i32, seen, LANES, room, LOWER);
    if (lane == 0) first[row] = seen;
}
"""
"""LEAST and HIDDEN keep finite when they are scaled to powers of two, and swallow every score."""

_UNSEEN = r"""
KERNEL BLOCK_SIZE(BLOCK, 1, 1)
void unseen(CONSTANT i32 *RESTRICT first, GLOBAL T *RESTRICT y, i32 rows, i32 heads, i32 length,
            i32 keys, i32 reach, i32 f0, i32 f1, i32 f2, i32 y0, i32 y1, i32 y2, i32 width)
{
    const i32 row = GLOBAL_ID(0);
    if (row < rows) {
        const i32 query = row % length, head = row / length % heads, batch = row / length / heads;
        const i32 last = query + reach < keys - 1 ? query + reach : keys - 1;
        if (first[batch * f0 + head * f1 + query * f2] > last) {
            const i32 base = batch * y0 + head * y1 + query * y2;
            for (i32 e = 0; e < width; ++e) T_STORE(y, base + e, ANSWER);
        }
    }
}
"""


@dataclass(frozen=True)
class _Bias:
    """The sizes of a bias, [batch, heads, queries, keys], each whole or 1; the last one whole."""

    sizes: tuple[int, int, int, int]
    spread: bool
    """Whether there is one element for all keys of a row."""

    @classmethod
    def of(cls, call: OpCall) -> _Bias:
        """The bias of an attention."""
        dims = operand(call, 3).dims
        batch, heads, rows, last = (1,) * (4 - len(dims)) + dims
        keys = extents_of(call).keys
        return cls((batch, heads, rows, keys), last != keys)

    @property
    def rows(self) -> int:
        """Rows of keys."""
        return math.prod(self.sizes[:3])

    @property
    def nbytes(self) -> int:
        """Bytes in float32."""
        return 4 * math.prod(self.sizes)


def _fits(rounds: str, call: OpCall, device: DeviceInfo) -> str | None:
    if (why := without_cudnn(device) or misfit(rounds, call, device)) is not None:
        return why
    if (why := not_among(DTYPES, call)) is not None:
        return why
    if float(device.details.get("compute_capability", "0")) < TENSOR_UNITS:
        return Refusal(
            f"cuDNN's attention begins with compute capability {TENSOR_UNITS:g}", Cause.LACKS
        )
    return _form(call) or _room(call)


def _form(call: OpCall) -> str | None:
    sizes, attrs = extents_of(call), call.attrs
    if attrs["softcap"]:
        return "a soft cap of the scores"
    if (attrs["causal_offset"] or 0) < 0:
        return "queries before the first key see none"
    numbers = [n for at in range(3) for n in strides_of(call, at)]
    if any(n % PIECE for n in (sizes.width, sizes.out_width, *numbers, *result_strides(call))):
        return f"features that do not lie in whole pieces of {PIECE}"
    return None


def _room(call: OpCall) -> str | None:
    sizes = extents_of(call)
    if max(sizes.width, sizes.out_width) > WIDEST:
        return Refusal(f"heads of more than {WIDEST} features", Cause.SIZE)
    if has(call, 3) and _Bias.of(call).nbytes > MOST_BYTES:
        return Refusal(f"more than {MOST_BYTES} bytes of bias in float32", Cause.SIZE)
    return None


def _reach(call: OpCall) -> int | None:
    """How far behind its own place a query sees keys; None where that is all of them."""
    offset = call.attrs["causal_offset"]
    return None if offset is None or offset >= extents_of(call).keys - 1 else int(offset)


def _asked(rounds: str, call: OpCall) -> Attention:
    sizes, scale, reach = extents_of(call), call.attrs["scale"], _reach(call)
    places = [strides_of(call, at) for at in range(3)]
    rows = sizes.batch * sizes.heads * sizes.length
    last = reach is not None and reach > 0 and reach == sizes.keys - sizes.length
    return Attention(
        operand(call, 0).dtype,
        rounds,
        SPARE + min(MOST_PARTS, 32 * 4 * rows * (sizes.out_width + 2)),
        tuple(sizes.operand(at) for at in range(3)),
        tuple((batch, head, row, 1) for _, batch, head, row in places),
        tuple(begin for begin, *_ in places),
        (sizes.batch, sizes.heads, sizes.length, sizes.out_width),
        (*result_strides(call), 1),
        1.0 / math.sqrt(sizes.width) if scale is None else float(scale),
        _Bias.of(call).sizes if has(call, 3) else (),
        0 if last else reach,
        last,
    )


def _widen(call: OpCall, bias: _Bias) -> GridLaunch:
    """The launch before: the bias in the second scratch, first keys in the third."""
    keys = bias.sizes[3]
    lanes = FEW if keys <= SHORT else MANY
    known = (*accessors(operand(call, 3).dtype), *define(LANES=lanes, SPREAD=int(bias.spread)))
    args: Args = (In(3), Scratch(1), Scratch(2), *i32(keys))
    return launch(_WIDEN, "widen", args, (bias.rows * lanes,), (lanes,), known)


def _unseen(call: OpCall, bias: _Bias) -> GridLaunch:
    """The launch afterwards, over the result."""
    sizes, reach = extents_of(call), _reach(call)
    rows = sizes.batch * sizes.heads * sizes.length
    shape = (sizes.batch, sizes.heads, sizes.length)
    answer = "0.0f" if call.attrs.get("hidden_zero", True) else "NAN"
    known = (*accessors(operand(call, 0).dtype), *define(BLOCK=BLOCK, ANSWER=answer))
    args: Args = (
        Scratch(2), Out(0),
        *i32(rows, sizes.heads, sizes.length, sizes.keys, sizes.keys if reach is None else reach),
        *i32(*broadcast_strides(bias.sizes[:3], shape), *result_strides(call), sizes.out_width),
    )  # fmt: skip
    return launch(_UNSEEN, "unseen", args, (rows,), (BLOCK,), known)


def _lower(rounds: str, call: OpCall, device: DeviceInfo) -> Lowered:  # noqa: ARG001 - Lower
    asked = _asked(rounds, call)
    if not has(call, 3):
        return Lowered((asked.step(),), (asked.workspace,))
    bias = _Bias.of(call)
    steps: tuple[Step, ...] = (_widen(call, bias), asked.step(Scratch(1)), _unseen(call, bias))
    return Lowered(steps, (asked.workspace, bias.nbytes, 4 * bias.rows))


for _op in OPS:
    register("cudnn.attention", _op, RANK, "", _fits, _lower, exact=False)
