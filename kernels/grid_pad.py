"""pad and triangular: copies in which a place may hold a value of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from crossdock.devices.base import DeviceInfo
from crossdock.devices.program import Argument, GridLaunch, In, Lowered, Out, Scalar, Slot
from crossdock.kernels.grid_common import (
    KINDS,
    MAX_RANK,
    MAX_ROWS,
    RAW,
    define,
    i32,
    item_size,
    launch,
    obstacle,
    on_cpu,
    operand,
    row_major,
)
from crossdock.kernels.grid_pointwise import LONG_ROW, decode, row_blocks
from crossdock.kernels.refusal import Cause, Refusal
from crossdock.kernels.spec import OpCall
from crossdock.kernels.table import kernel
from crossdock.runtime.tensor import to_numpy

_PAD = r"""
#if MODE == 0
#define FOLD(v, n) (v)
#elif MODE == 1
#define FOLD(v, n) ((v) < 0 ? 0 : (v) >= (n) ? (n) - 1 : (v))
#else
#define FOLD(v, n) ((v) < 0 ? -(v) : (v) >= (n) ? 2 * (n) - 2 - (v) : (v))
#endif
KERNEL void pad(CONSTANT T *RESTRICT x, GLOBAL T *RESTRICT y, T value, i32 columns, i32 rows,
                @PARAMS@) {
    const i32 c = GLOBAL_ID(0), r = GLOBAL_ID(1) + GLOBAL_ID(2) * STRIPE;
    if (c < columns && r < rows) {
        @DECODE@
        const i32 v = FOLD(c - before, inner);
        bool inside = v >= 0 && v < inner;
        @OUTER@
        y[r * columns + c] = inside ? x[@FROM@ + v] : value;
    }
}
"""

_PAD_ROWS = r"""
#define FOLD(v, n) (v)
KERNEL BLOCK_SIZE(1, 1, 1)
void pad(CONSTANT T *RESTRICT x, GLOBAL T *RESTRICT y, T value, i32 columns, i32 rows,
         @PARAMS@) {
    const i32 first = GROUP_ID(0) * PER, last = first + PER < rows ? first + PER : rows;
    for (i32 r = first; r < last; ++r) {
        bool inside = 1;
        @DECODE@
        @OUTER@
        GLOBAL T *to = y + r * columns;
        if (inside) {
            CONSTANT T *from = x + @FROM@;
            for (i32 c = 0; c < before; ++c) to[c] = value;
            for (i32 c = 0; c < inner; ++c) to[before + c] = from[c];
            for (i32 c = before + inner; c < columns; ++c) to[c] = value;
        } else {
            for (i32 c = 0; c < columns; ++c) to[c] = value;
        }
    }
}
"""
"""Constant padding on a processor: an item copies some rows with plain loops."""

_TRIANGLE = r"""
KERNEL void triangle(CONSTANT T *RESTRICT x, GLOBAL T *RESTRICT y, i32 n, i32 width, i32 height,
                     i32 diagonal) {
    const i32 i = GLOBAL_ID(0);
    if (i < n) {
        const i32 column = i % width, row = (i / width) % height;
        y[i] = column - row @OP@ diagonal ? x[i] : 0;
    }
}
"""

MODES = {"constant": 0, "edge": 1, "reflection": 2}


@dataclass(frozen=True)
class Padding:
    """Sizes of the source and cells added before and after, a dimension each."""

    dims: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]

    @property
    def out(self) -> tuple[int, ...]:
        """Sizes of the result."""
        return tuple(a + n + b for n, a, b in zip(self.dims, self.before, self.after, strict=True))

    def collapsed(self, *, constant: bool) -> Padding:
        """The same with unpadded dimensions merged into the one before them.

        That one may itself be padded only where padding is constant.
        """
        merged: list[tuple[int, int, int]] = []
        for n, a, b in zip(self.dims, self.before, self.after, strict=True):
            plain = a == 0 and b == 0
            if merged and plain and (constant or merged[-1][1:] == (0, 0)):
                merged[-1] = (merged[-1][0] * n, merged[-1][1] * n, merged[-1][2] * n)
            else:
                merged.append((n, a, b))
        merged = merged or [(1, 0, 0)]
        return Padding(*(tuple(part) for part in zip(*merged, strict=True)))


def padded(
    dtype: str,
    padding: Padding,
    *,
    device: DeviceInfo,
    mode: str = "constant",
    value: float = 0,
    source: Slot = In(0),  # noqa: B008 - immutable
    target: Slot = Out(0),  # noqa: B008 - immutable
) -> GridLaunch:
    """A padded copy of a dense tensor."""
    small = padding.collapsed(constant=mode == "constant")
    outer = len(small.dims) - 1
    strides, out = row_major(small.dims), small.out
    numbers = {"inner": small.dims[-1], "before": small.before[-1]}
    lines, terms = [], []
    for k in range(outer):
        numbers |= {f"n{k}": small.dims[k], f"b{k}": small.before[k], f"s{k}": strides[k]}
        if k:
            numbers[f"d{k}"] = out[k]
        lines.append(
            f"const i32 v{k} = FOLD(i{k} - b{k}, n{k}); "
            f"inside = inside && v{k} >= 0 && v{k} < n{k};"
        )
        terms.append(f"v{k} * s{k}")
    rows, columns = math.prod(out[:-1]), out[-1]
    by_rows = on_cpu(device) and mode == "constant" and columns >= LONG_ROW
    text = _PAD_ROWS if by_rows else _PAD
    text = text.replace("@PARAMS@", ", ".join(f"i32 {n}" for n in numbers))
    text = text.replace("@DECODE@", " ".join(decode("r", outer)))
    text = text.replace("@OUTER@", " ".join(lines))
    text = text.replace("@FROM@", " + ".join(terms) or "0")
    args: tuple[Argument, ...] = (
        source,
        target,
        _raw(value, dtype),
        *i32(columns, rows, *numbers.values()),
    )
    types = define(T=RAW[item_size(dtype)])
    if by_rows:
        per = max(1, min(32, rows // (4 * max(1, device.compute_units))))
        return launch(text, "pad", args, (-(-rows // per),), (1,), types + define(PER=per))
    (_, _), block = row_blocks(columns, rows)
    stripe = min(MAX_ROWS // block[1] * block[1], -(-rows // block[1]) * block[1])
    return launch(
        text,
        "pad",
        args,
        (columns, stripe, -(-rows // stripe)),
        (*block, 1),
        types + define(MODE=MODES[mode], STRIPE="GLOBAL_SIZE(1)"),
    )


def _raw(value: Any, dtype: str) -> Scalar:
    """A value's bits as an unsigned integer of its size."""
    bits = np.asarray(value).astype(to_numpy(dtype)).reshape(1)
    return Scalar(bits.view(f"uint{8 * bits.itemsize}")[0])


def _padding(call: OpCall) -> Padding:
    attrs = call.attrs
    before: Sequence[int] = attrs["beginning_padding"]
    return Padding(operand(call, 0).dims, tuple(before), tuple(attrs["ending_padding"]))


def _fits_pad(call: OpCall, device: DeviceInfo) -> str | None:
    if (why := obstacle(call, device)) is not None:
        return why
    small = _padding(call).collapsed(constant=call.attrs["mode"] == "constant")
    if len(small.dims) > MAX_RANK:
        return Refusal(f"more than {MAX_RANK} dimensions", Cause.RANK)
    return None


@kernel("grid.pad", "pad", KINDS, when=_fits_pad, rank=20)
def lower_pad(call: OpCall, device: DeviceInfo) -> Lowered:
    """One launch over the result."""
    mode, value = call.attrs["mode"], call.attrs["value"]
    dtype = operand(call, 0).dtype
    return Lowered((padded(dtype, _padding(call), device=device, mode=mode, value=value),))


@kernel("grid.triangular", "triangular", KINDS, when=obstacle, rank=20)
def lower_triangular(call: OpCall, device: DeviceInfo) -> Lowered:  # noqa: ARG001 - lower
    """Elements on the kept side of the diagonal; zeros elsewhere."""
    spec = operand(call, 0)
    height, width = spec.dims[-2:]
    text = _TRIANGLE.replace("@OP@", ">=" if call.attrs["upper"] else "<=")
    sizes = i32(spec.size, width, height, call.attrs["diagonal"])
    args: tuple[Argument, ...] = (In(0), Out(0), *sizes)
    defines = define(T=RAW[item_size(spec.dtype)])
    return Lowered((launch(text, "triangle", args, (spec.size,), (256,), defines),))
