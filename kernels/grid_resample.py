"""resample2d and resize on a grid: tables of source cells and weights, made on the host.

At most two axes are interpolated; each result adds up the products of both axes' taps at once.
Where every result is one source cell, elements are copied as they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from crossdock.devices.base import DeviceInfo
from crossdock.devices.program import GridLaunch, In, Lowered, Out, Pack, Packed
from crossdock.kernels.grid_common import (
    KINDS,
    MAX_ROWS,
    RAW,
    Args,
    accessors,
    define,
    i32,
    item_size,
    launch,
    obstacle,
    on_cpu,
    operand,
)
from crossdock.kernels.grid_move import copy
from crossdock.kernels.grid_pointwise import LOOP, row_blocks
from crossdock.kernels.ops_pool import taps_of
from crossdock.kernels.ops_resample import Taps
from crossdock.kernels.ops_resize import resize_taps
from crossdock.kernels.refusal import Cause, Refusal
from crossdock.kernels.spec import OpCall
from crossdock.kernels.table import kernel
from crossdock.runtime.tensor import TensorSpec

_BEGIN = r"""
#if LOOPS
    const i32 first = GROUP_ID(0) * PER, last = first + PER < rows ? first + PER : rows;
    for (i32 r = first; r < last; ++r) {
#else
    const i32 r = GLOBAL_ID(1);
    if (r < rows) {
#endif
        const i32 rest = r / between, m = r - rest * between;
        const i32 o = rest / out_a, a = rest - o * out_a;
        CONSTANT i32 *cells_b = cells + out_a * taps_a;
"""

_COLUMNS = r"""
#if LOOPS
        for (i32 c = 0; c < columns; ++c) {
#else
        const i32 c = GLOBAL_ID(0);
        if (c < columns) {
#endif
            const i32 b = INNER == 1 ? c : c / inner, i = c - b * inner;
"""

_PARAMS = (
    "GLOBAL T *RESTRICT y, i32 columns, i32 rows, i32 inner, i32 between, i32 out_a, i32 in_a, "
    "i32 in_b, i32 taps_a, i32 taps_b"
)

_COPY = (
    "KERNEL void pick(CONSTANT T *RESTRICT x, CONSTANT i32 *RESTRICT cells, "
    + _PARAMS
    + ") {"
    + _BEGIN
    + r"""
        CONSTANT T *from = x + ((o * in_a + cells[a]) * between + m) * in_b * inner;
"""
    + _COLUMNS
    + r"""
            y[r * columns + c] = from[cells_b[b] * inner + i];
        }
    }
}
"""
)

_WEIGH = (
    "KERNEL void weigh(CONSTANT T *RESTRICT x, CONSTANT i32 *RESTRICT cells, "
    "CONSTANT float *RESTRICT weights, "
    + _PARAMS
    + ") {"
    + _BEGIN
    + r"""
        CONSTANT float *weights_b = weights + out_a * taps_a;
        CONSTANT T *from = x + (o * in_a * between + m) * in_b * inner;
"""
    + _COLUMNS
    + r"""
            float sum = 0.0f;
            UNROLL for (i32 p = 0; p < TAPS_A; ++p) {
                CONSTANT T *line = from + cells[a * taps_a + p] * between * in_b * inner + i;
                float part = 0.0f;
                UNROLL for (i32 q = 0; q < TAPS_B; ++q)
                    part += weights_b[b * taps_b + q]
                        * T_LOAD(line, cells_b[b * taps_b + q] * inner);
                sum += weights[a * taps_a + p] * part;
            }
            T_STORE(y, r * columns + c, RESULT);
        }
    }
}
"""
)

ONE = Taps(np.zeros((1, 1), np.int64), np.ones((1, 1)))
FLOATS = ("float32", "float16", "bfloat16")
ROUNDED = {"int8": (-128, 127), "uint8": (0, 255), "int16": (-32768, 32767), "uint16": (0, 65535)}


@dataclass(frozen=True)
class Sampling:
    """The operand seen as [outer, a, between, b, inner], and the taps along a and b."""

    dims: tuple[int, int, int, int, int]
    a: Taps
    b: Taps

    @property
    def out(self) -> tuple[int, int]:
        """Results along a and b."""
        return self.a.cells.shape[0], self.b.cells.shape[0]

    @property
    def copies(self) -> bool:
        """True where each result is one source cell."""
        return self.a.is_copy and self.b.is_copy

    @property
    def rows(self) -> int:
        """Rows of the grid: everything but b and what lies inside it."""
        return self.dims[0] * self.out[0] * self.dims[2]

    @classmethod
    def of(cls, dims: tuple[int, ...], taps: Mapping[int, Taps]) -> Sampling:
        """From the taps of one or two axes."""
        axes = sorted(taps)
        if len(axes) == 1:
            at = axes[0]
            return cls(
                (math.prod(dims[:at]), 1, 1, dims[at], math.prod(dims[at + 1 :])), ONE, taps[at]
            )
        a, b = axes
        sizes = (
            math.prod(dims[:a]), dims[a], math.prod(dims[a + 1 : b]), dims[b],
            math.prod(dims[b + 1 :]),
        )  # fmt: skip
        return cls(sizes, taps[a], taps[b])


def sampled(
    sampling: Sampling, dtype: str, device: DeviceInfo
) -> tuple[GridLaunch, tuple[Pack, ...]]:
    """The launch, and its tables: cells, then weights where there are any."""
    _, in_a, between, in_b, inner = sampling.dims
    a, b = sampling.a, sampling.b
    cells = np.concatenate([t.cells.reshape(-1) for t in (a, b)]).astype(np.int32)
    columns = sampling.out[1] * inner
    numbers = i32(
        columns, sampling.rows, inner, between, sampling.out[0], in_a, in_b,
        a.cells.shape[1], b.cells.shape[1],
    )  # fmt: skip
    items, block = row_blocks(columns, sampling.rows)
    shape = define(
        LOOPS=int(on_cpu(device)),
        INNER=1 if inner == 1 else 0,
        TAPS_A=a.cells.shape[1],
        TAPS_B=b.cells.shape[1],
    )
    if on_cpu(device):
        per = max(1, min(LOOP // columns, sampling.rows // (4 * max(1, device.compute_units))))
        items, block = (-(-sampling.rows // per), 1), (1, 1)
        shape += define(PER=per)
    packs = [Pack(lambda: cells, TensorSpec.of(cells))]
    if sampling.copies:
        picked: Args = (In(0), Packed(0), Out(0), *numbers)
        raw = define(T=RAW[item_size(dtype)]) + shape
        return launch(_COPY, "pick", picked, items, block, raw), tuple(packs)
    weights = np.concatenate([t.weights.reshape(-1) for t in (a, b)]).astype(np.float32)
    packs.append(Pack(lambda: weights, TensorSpec.of(weights)))
    result = "sum"
    if dtype in ROUNDED:
        low, high = ROUNDED[dtype]
        result = f"X_MIN(X_MAX(X_RINT(sum), {low}.0f), {high}.0f)"
    defines = (*accessors(dtype), *define(RESULT=result), *shape)
    tabled: Args = (In(0), Packed(0), Packed(1), Out(0), *numbers)
    return launch(_WEIGH, "weigh", tabled, items, block, defines), tuple(packs)


def _taps(call: OpCall) -> dict[int, Taps]:
    """The taps of each axis that changes."""
    dims, attrs = operand(call, 0).dims, call.attrs
    found = {}
    for i, axis in enumerate(attrs["axes"]):
        if call.op == "resize":
            taps, _ = resize_taps(dims[axis], i, attrs)
        else:
            taps = taps_of(dims[axis], attrs["sizes"][i], attrs["mode"])
        if not taps.is_identity(dims[axis]):
            found[axis] = taps
    return found


def _fits(call: OpCall, device: DeviceInfo) -> str | None:
    if (why := obstacle(call, device)) is not None:
        return why
    spec, taps = operand(call, 0), _taps(call)
    if len(taps) > 2:
        return Refusal("more than two axes", Cause.RANK)
    if call.op == "resize" and call.attrs["coordinate_transformation_mode"] == "tf_crop_and_resize":
        return "no crop and resize"
    if not taps:
        return None
    sampling = Sampling.of(spec.dims, taps)
    if not sampling.copies and spec.dtype not in (*FLOATS, *ROUNDED):
        return Refusal(f"no {spec.dtype} interpolation", Cause.DTYPE)
    return Refusal(f"more than {MAX_ROWS} rows", Cause.SIZE) if sampling.rows > MAX_ROWS else None


def _lower(call: OpCall, device: DeviceInfo) -> Lowered:
    spec, taps = operand(call, 0), _taps(call)
    if not taps:
        step = copy(spec.dtype, (spec.size,), device, source=In(0), strides=(1,))
        return Lowered((step,))
    launched, packs = sampled(Sampling.of(spec.dims, taps), spec.dtype, device)
    return Lowered((launched,), packs=packs)


for _op in ("resample2d", "resize"):
    kernel(f"grid.{_op}", _op, KINDS, when=_fits, rank=20)(_lower)
