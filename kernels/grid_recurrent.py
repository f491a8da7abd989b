"""lstm, gru and their cells on a grid.

One product makes the input's part of all gates for all steps. Then one work-group for each batch
element and direction goes through the steps, its state in local memory; a barrier ends a step. The
recurrent weights are transposed first, so that neighbouring work items read neighbouring weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from crossdock.devices.base import DeviceInfo
from crossdock.devices.program import Argument, GridLaunch, In, Lowered, Out, Slot
from crossdock.kernels.grid_common import (
    KINDS,
    Defines,
    accessors,
    define,
    has,
    i32,
    item_size,
    launch,
    not_among,
    obstacle,
    operand,
    power_of_two,
)
from crossdock.kernels.grid_matmul import DTYPES, FEW_ROWS, Factors, few_rows, no_tile, tiled
from crossdock.kernels.grid_window import Assembly
from crossdock.kernels.refusal import Cause, Refusal
from crossdock.kernels.spec import OpCall
from crossdock.kernels.table import kernel

_BEGIN = r"""
KERNEL BLOCK_SIZE(ITEMS, 1, 1)
void recur(CONSTANT T *RESTRICT drive, CONSTANT T *RESTRICT weights, @PARAMS@
           i32 steps, i32 batch, i32 backward)
{
    LOCAL float h[2][H];
    LOCAL float other[H];
    const i32 lane = LOCAL_ID(0), b = GROUP_ID(0), d = GROUP_ID(1);
    const i32 state = (d * batch + b) * H;
    for (i32 j = lane; j < H; j += ITEMS) {
        h[0][j] = FIRST_H;
        other[j] = FIRST_C;
    }
    BARRIER();
    for (i32 s = 0; s < steps; ++s) {
        const i32 t = d == 1 || backward ? steps - 1 - s : s, now = s & 1;
        const i32 from = ((d * steps + t) * batch + b) * (GATES * H);
"""

_LSTM = r"""
        for (i32 j = lane; j < H; j += ITEMS) {
            float gi = T_LOAD(drive, from + AT_I * H + j) + R_BIAS(AT_I);
            float gf = T_LOAD(drive, from + AT_F * H + j) + R_BIAS(AT_F);
            float gg = T_LOAD(drive, from + AT_G * H + j) + R_BIAS(AT_G);
            float go = T_LOAD(drive, from + AT_O * H + j) + R_BIAS(AT_O);
            CONSTANT T *column = weights + d * H * GATES * H + j;
            for (i32 k = 0; k < H; ++k) {
                const float v = h[now][k];
                gi += v * T_LOAD(column, (k * GATES + AT_I) * H);
                gf += v * T_LOAD(column, (k * GATES + AT_F) * H);
                gg += v * T_LOAD(column, (k * GATES + AT_G) * H);
                go += v * T_LOAD(column, (k * GATES + AT_O) * H);
            }
            const float c = other[j];
            const float in = ACT_0(gi + PEEP(0, c)), keep = ACT_0(gf + PEEP(2, c));
            const float fresh = keep * c + in * ACT_1(gg);
            const float next = ACT_0(go + PEEP(1, c)) * ACT_2(fresh);
            other[j] = fresh;
            h[1 - now][j] = next;
            KEEP(seq, (t * DIRECTIONS + d) * batch * H + b * H + j, next)
        }
        BARRIER();
    }
    for (i32 j = lane; j < H; j += ITEMS) {
        T_STORE(y, state + j, h[steps & 1][j]);
        T_STORE(y_c, state + j, other[j]);
    }
}
"""

_GRU = r"""
        CONSTANT T *matrix = weights + d * H * GATES * H;
#define DOT(sum, vector, gate) \
        for (i32 k = 0; k < H; ++k) sum += vector[k] * T_LOAD(matrix, (k * GATES + gate) * H + j);
#if RESET_AFTER
        for (i32 j = lane; j < H; j += ITEMS) {
            float gz = T_LOAD(drive, from + AT_Z * H + j) + R_BIAS(AT_Z);
            float gr = T_LOAD(drive, from + AT_R * H + j) + R_BIAS(AT_R);
            float pull = R_BIAS(AT_N);
            DOT(gz, h[now], AT_Z)
            DOT(gr, h[now], AT_R)
            DOT(pull, h[now], AT_N)
            const float z = ACT_0(gz), rest = REST_0(gz), r = ACT_0(gr);
            const float n = ACT_1(T_LOAD(drive, from + AT_N * H + j) + r * pull);
#else
        for (i32 j = lane; j < H; j += ITEMS) {
            float gr = T_LOAD(drive, from + AT_R * H + j) + R_BIAS(AT_R);
            DOT(gr, h[now], AT_R)
            other[j] = ACT_0(gr) * h[now][j];
        }
        BARRIER();
        for (i32 j = lane; j < H; j += ITEMS) {
            float gz = T_LOAD(drive, from + AT_Z * H + j) + R_BIAS(AT_Z);
            float pull = R_BIAS(AT_N);
            DOT(gz, h[now], AT_Z)
            DOT(pull, other, AT_N)
            const float z = ACT_0(gz), rest = REST_0(gz);
            const float n = ACT_1(T_LOAD(drive, from + AT_N * H + j) + pull);
#endif
            const float next = z * h[now][j] + rest * n;
            h[1 - now][j] = next;
            KEEP(seq, (t * DIRECTIONS + d) * batch * H + b * H + j, next)
        }
        BARRIER();
    }
    for (i32 j = lane; j < H; j += ITEMS) T_STORE(y, state + j, h[steps & 1][j]);
}
"""

_ACTIVATIONS = {
    "relu": "X_MAX(x, 0.0f)",
    "sigmoid": "(1.0f / (1.0f + X_EXP(-(x))))",
    "tanh": "X_TANH(x)",
}
_COMPLEMENTS = {"sigmoid": "(1.0f / (1.0f + X_EXP(x)))"}
"""One minus an activation where that can be had without cancellation."""


@dataclass(frozen=True)
class Names:
    """Where an op's operands stand; a cell has no direction, no sequence and one step."""

    lstm: bool
    bias: int
    recurrent_bias: int
    h0: int
    c0: int = -1
    peephole: int = -1
    cell: bool = False

    @property
    def gates(self) -> int:
        """Gates stacked along the weights' rows."""
        return 4 if self.lstm else 3


OPS = {
    "lstm": Names(True, 3, 4, 6, c0=7, peephole=5),
    "lstm_cell": Names(True, 5, 6, 3, c0=4, peephole=7, cell=True),
    "gru": Names(False, 3, 4, 5),
    "gru_cell": Names(False, 4, 5, 3, cell=True),
}


@dataclass(frozen=True)
class Sizes:
    """Directions, steps, batch, input width and hidden size."""

    directions: int
    steps: int
    batch: int
    width: int
    hidden: int

    @classmethod
    def of(cls, call: OpCall) -> Sizes:
        """Read an op instance."""
        dims, weights = operand(call, 0).dims, operand(call, 1).dims
        directions = weights[0] if len(weights) == 3 else 1
        steps = dims[0] if len(dims) == 3 else 1
        return cls(directions, steps, dims[-2], dims[-1], call.attrs["hidden_size"])


def _given(call: OpCall, at: int) -> bool:
    return at >= 0 and has(call, at)


def _fits(call: OpCall, device: DeviceInfo) -> str | None:
    why = obstacle(call, device) or not_among(DTYPES, call) or no_tile(device)
    if why is not None:
        return why
    need = 12 * Sizes.of(call).hidden
    return (
        Refusal("a state too large for local memory", Cause.SIZE)
        if need > device.local_memory > 0
        else None
    )


def _drive(call: OpCall, names: Names, sizes: Sizes, device: DeviceInfo, y: Slot) -> GridLaunch:
    """The input's part of the gates, [directions, steps * batch, gates * hidden]."""
    rows = names.gates * sizes.hidden
    bias = In(names.bias) if has(call, names.bias) else None
    factors = Factors(
        sizes.steps * sizes.batch,
        rows,
        sizes.width,
        operand(call, 0).dtype,
        batch=(sizes.directions,),
        a_batch=(0,),
        b_batch=(rows * sizes.width,),
        c_batch=(rows,),
        c_strides=(0, 1),
        b_transposed=True,
        c=bias,
        y=y,
    )
    return (few_rows if factors.m <= FEW_ROWS else tiled)(factors, device)


def _meaning(call: OpCall, names: Names) -> Defines:
    """What the op's attributes choose in the text."""
    layout = call.attrs["layout"]
    gates = tuple((f"AT_{g.upper()}", str(layout.index(g))) for g in layout)
    activations = tuple(
        (f"ACT_{i}(x)", _ACTIVATIONS[name]) for i, name in enumerate(call.attrs["activations"])
    )
    rest = _COMPLEMENTS.get(call.attrs["activations"][0], "(1.0f - ACT_0(x))")
    bias = "T_LOAD(r_bias, d * GATES * H + (gate) * H + j)"
    peephole = "c * T_LOAD(peephole, d * 3 * H + (which) * H + j)"
    return (
        *gates,
        *activations,
        ("REST_0(x)", rest),
        ("R_BIAS(gate)", bias if _given(call, names.recurrent_bias) else "0.0f"),
        ("PEEP(which, c)", peephole if _given(call, names.peephole) else "0.0f"),
        ("FIRST_H", "T_LOAD(h0, state + j)" if _given(call, names.h0) else "0.0f"),
        ("FIRST_C", "T_LOAD(c0, state + j)" if _given(call, names.c0) else "0.0f"),
        ("RESET_AFTER", str(int(bool(call.attrs.get("reset_after"))))),
    )


def _pointers(call: OpCall, names: Names) -> tuple[list[str], list[Argument]]:
    """Parameters of the optional operands and of the results."""
    params, slots = [], []
    for name, at in (
        ("r_bias", names.recurrent_bias),
        ("peephole", names.peephole),
        ("h0", names.h0),
        ("c0", names.c0),
    ):
        if _given(call, at):
            params.append(f"CONSTANT T *RESTRICT {name}")
            slots.append(In(at))
    results: Sequence[str] = ("y", "y_c", "seq") if names.lstm else ("y", "seq")
    params += [f"GLOBAL T *RESTRICT {r}" for r in results[: len(call.outputs)]]
    return params, [*slots, *(Out(i) for i in range(len(call.outputs)))]


def _recur(
    call: OpCall, names: Names, sizes: Sizes, device: DeviceInfo, drive: Slot, weights: Slot
) -> GridLaunch:
    params, slots = _pointers(call, names)
    sequence = len(call.outputs) > (2 if names.lstm else 1)
    text = _BEGIN + (_LSTM if names.lstm else _GRU)
    text = text.replace("@PARAMS@", "".join(f"{p}, " for p in params))
    items = min(power_of_two(sizes.hidden), 256, device.max_work_group or 256)
    backward = int(call.attrs.get("direction") == "backward")
    defines = (
        *accessors(operand(call, 0).dtype),
        *define(
            ITEMS=items, H=sizes.hidden, GATES=names.gates, DIRECTIONS=sizes.directions,
        ),
        ("KEEP(p, i, x)", "T_STORE(p, i, x);" if sequence else ""),
        *_meaning(call, names),
    )  # fmt: skip
    return launch(
        text,
        "recur",
        (drive, weights, *slots, *i32(sizes.steps, sizes.batch, backward)),
        (items * sizes.batch, sizes.directions),
        (items, 1),
        defines,
    )


def _lower(call: OpCall, device: DeviceInfo) -> Lowered:
    names, sizes = OPS[call.op], Sizes.of(call)
    dtype, hidden = operand(call, 0).dtype, sizes.hidden
    rows = names.gates * hidden
    parts = Assembly(call, device)
    weights = parts.arranged(2, (sizes.directions, hidden, rows), (rows * hidden, 1, hidden))
    drive = parts.buffer(sizes.directions * sizes.steps * sizes.batch * rows * item_size(dtype))
    parts.steps.append(_drive(call, names, sizes, device, drive))
    parts.steps.append(_recur(call, names, sizes, device, drive, weights))
    return parts.lowered()


for _op in OPS:
    kernel(f"grid.{_op}", _op, KINDS, when=_fits, rank=20)(_lower)
