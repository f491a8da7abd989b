"""Ops that move elements without computing: transpose, slice, expand, tile, concat, split, reverse.

Each is one strided copy, or one for each piece. Elements move as unsigned integers of their size.
On a GPU a transpose of two long dimensions goes through a tile in local memory, so that reads and
writes are both dense.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from crossdock.devices.base import DeviceInfo
from crossdock.devices.program import GridLaunch, In, Lowered, Out, Slot
from crossdock.kernels.expression import Ref
from crossdock.kernels.grid_common import (
    KINDS,
    MAX_RANK,
    MAX_ROWS,
    RAW,
    Space,
    broadcast_strides,
    define,
    i32,
    item_size,
    launch,
    obstacle,
    on_cpu,
    operand,
    row_major,
)
from crossdock.kernels.grid_emit import Step
from crossdock.kernels.grid_pointwise import Operand, Target, decode, pointwise
from crossdock.kernels.refusal import Cause, Refusal
from crossdock.kernels.spec import OpCall
from crossdock.kernels.table import kernel
from crossdock.runtime.tensor import TensorSpec

RAW_DTYPES = {1: "uint8", 2: "uint16", 4: "uint32", 8: "uint64"}
TILE = 32
TILE_ROWS = 8

_TRANSPOSE = r"""
KERNEL BLOCK_SIZE(TILE, TILE_ROWS, 1)
void transpose(CONSTANT T *RESTRICT x, GLOBAL T *RESTRICT y, @PARAMS@) {
    LOCAL T tile[TILE][TILE + 1];
    const i32 tx = LOCAL_ID(0), ty = LOCAL_ID(1);
    const i32 z = GROUP_ID(2);
    @DECODE@
    const i32 from = @FROM@, to = @TO@;
    const i32 near0 = GROUP_ID(0) * TILE, far0 = GROUP_ID(1) * TILE;
    for (i32 k = ty; k < TILE; k += TILE_ROWS)
        if (far0 + k < far && near0 + tx < near)
            tile[k][tx] = x[from + (far0 + k) * far_in + near0 + tx];
    BARRIER();
    for (i32 k = ty; k < TILE; k += TILE_ROWS)
        if (near0 + k < near && far0 + tx < far)
            y[to + (near0 + k) * near_out + far0 + tx] = tile[tx][k];
}
"""


def copy(
    dtype: str,
    dims: Sequence[int],
    device: DeviceInfo,
    *,
    source: Slot,
    strides: Sequence[int],
    offset: int = 0,
    target: Target | None = None,
) -> GridLaunch:
    """A copy of ``dims`` elements read with ``strides`` from ``offset`` on, into ``target``."""
    raw = RAW_DTYPES[item_size(dtype)]
    step = Step(Ref(0), (0,), raw)
    read = Operand(source, raw, tuple(dims), tuple(strides), offset)
    return pointwise([step], [read], TensorSpec(raw, tuple(dims)), device, target=target)


def _space(dims: Sequence[int], *strides: Sequence[int]) -> Space:
    return Space(tuple(dims), tuple(tuple(s) for s in strides)).collapsed()


# --- transpose ------------------------------------------------------------------------------------


def transposed(
    dtype: str,
    dims: Sequence[int],
    order: Sequence[int],
    device: DeviceInfo,
    source: Slot,
    target: Slot,
) -> GridLaunch:
    """A dense tensor of ``dims`` with its axes in ``order``, dense again."""
    strides = row_major(dims)
    out = tuple(dims[a] for a in order)
    read = tuple(strides[a] for a in order)
    space = _space(out, row_major(out), read)
    if not on_cpu(device) and _tiles(space):
        return _tiled(dtype, space, source, target)
    return copy(dtype, out, device, source=source, strides=read, target=Target(target))


def _near(space: Space) -> int | None:
    """The dimension that is dense in the source, where it is not dense in the result too."""
    found = [k for k, s in enumerate(space.strides[1][:-1]) if s == 1]
    return found[0] if found else None


def _tiles(space: Space) -> bool:
    near = _near(space)
    if near is None or len(space.dims) > 4:
        return False
    rest = math.prod(space.dims[:-1]) // space.dims[near]
    return min(space.dims[near], space.dims[-1]) >= TILE // 2 and rest <= MAX_ROWS


def _tiled(dtype: str, space: Space, source: Slot, target: Slot) -> GridLaunch:
    near = _near(space)
    assert near is not None
    last = len(space.dims) - 1
    rest = [k for k in range(last) if k != near]
    written, read = space.strides
    numbers = {
        "near": space.dims[near],
        "far": space.dims[last],
        "far_in": read[last],
        "near_out": written[near],
    }
    numbers |= {f"d{i}": space.dims[k] for i, k in enumerate(rest) if i}
    numbers |= {f"a{i}": read[k] for i, k in enumerate(rest)}
    numbers |= {f"b{i}": written[k] for i, k in enumerate(rest)}
    text = _TRANSPOSE.replace("@PARAMS@", ", ".join(f"i32 {n}" for n in numbers))
    text = text.replace("@DECODE@", " ".join(decode("z", len(rest))))
    text = text.replace("@FROM@", " + ".join(f"i{i} * a{i}" for i in range(len(rest))) or "0")
    text = text.replace("@TO@", " + ".join(f"i{i} * b{i}" for i in range(len(rest))) or "0")
    blocks = [-(-space.dims[k] // TILE) for k in (near, last)]
    return launch(
        text,
        "transpose",
        (source, target, *i32(*numbers.values())),
        (blocks[0] * TILE, blocks[1] * TILE_ROWS, math.prod(space.dims[k] for k in rest)),
        (TILE, TILE_ROWS, 1),
        define(T=RAW[item_size(dtype)], TILE=TILE, TILE_ROWS=TILE_ROWS),
    )


def _fits_transpose(call: OpCall, device: DeviceInfo) -> str | None:
    if (why := obstacle(call, device)) is not None:
        return why
    return transposable(operand(call, 0).dims, call.attrs["permutation"])


def transposable(dims: Sequence[int], order: Sequence[int]) -> str | None:
    """Why a dense tensor of ``dims`` cannot have its axes put in ``order``, or None."""
    strides = row_major(dims)
    out = [dims[a] for a in order]
    return _too_deep(_space(out, row_major(out), [strides[a] for a in order]))


def _too_deep(space: Space) -> str | None:
    deep = len(space.dims) > MAX_RANK
    return Refusal(f"more than {MAX_RANK} dimensions", Cause.RANK) if deep else None


@kernel("grid.transpose", "transpose", KINDS, when=_fits_transpose, rank=20)
def lower_transpose(call: OpCall, device: DeviceInfo) -> Lowered:
    """One launch, tiled where both ends are long."""
    spec = operand(call, 0)
    order = call.attrs["permutation"]
    return Lowered((transposed(spec.dtype, spec.dims, order, device, In(0), Out(0)),))


# --- one strided read -----------------------------------------------------------------------------

Reading = tuple[tuple[int, ...], tuple[int, ...], int]
"""The dimensions copied, the strides that read them, and where reading starts."""


def _slice(call: OpCall) -> Reading:
    spec, attrs = operand(call, 0), call.attrs
    dense = row_major(spec.dims)
    strides = tuple(s * step for s, step in zip(dense, attrs["strides"], strict=True))
    start = sum(a * s for a, s in zip(attrs["starts"], dense, strict=True))
    return call.outputs[0].dims, strides, start


def _expand(call: OpCall) -> Reading:
    dims = call.outputs[0].dims
    return dims, broadcast_strides(operand(call, 0).dims, dims), 0


def _reverse(call: OpCall) -> Reading:
    dims = operand(call, 0).dims
    dense = row_major(dims)
    axes = call.attrs["axes"]
    strides = tuple(-s if k in axes else s for k, s in enumerate(dense))
    return dims, strides, sum((dims[k] - 1) * dense[k] for k in axes)


def _tile(call: OpCall) -> Reading:
    dims = operand(call, 0).dims
    dense = row_major(dims)
    pairs = list(zip(call.attrs["repetitions"], dims, dense, strict=True))
    return (
        tuple(n for times, size, _ in pairs for n in (times, size)),
        tuple(n for _, _, stride in pairs for n in (0, stride)),
        0,
    )


def _register(op: str, reading: Callable[[OpCall], Reading]) -> None:
    def fits(call: OpCall, device: DeviceInfo) -> str | None:
        if (why := obstacle(call, device)) is not None:
            return why
        dims, strides, _ = reading(call)
        return _too_deep(_space(dims, row_major(dims), strides))

    @kernel(f"grid.{op}", op, KINDS, when=fits, rank=20)
    def lower(call: OpCall, device: DeviceInfo) -> Lowered:
        dims, strides, start = reading(call)
        dtype = operand(call, 0).dtype
        step = copy(dtype, dims, device, source=In(0), strides=strides, offset=start)
        return Lowered((step,))


_register("slice", _slice)
_register("expand", _expand)
_register("reverse", _reverse)
_register("tile", _tile)


# --- pieces along an axis -------------------------------------------------------------------------


def _fits_pieces(call: OpCall, device: DeviceInfo) -> str | None:
    return obstacle(call, device)


@kernel("grid.concat", "concat", KINDS, when=_fits_pieces, rank=20)
def lower_concat(call: OpCall, device: DeviceInfo) -> Lowered:
    """One copy for each operand, into its place."""
    whole, axis = row_major(call.outputs[0].dims), call.attrs["axis"]
    steps, at = [], 0
    for i in range(len(call.inputs)):
        spec = operand(call, i)
        place = Target(Out(0), whole, at * whole[axis])
        dense = row_major(spec.dims)
        steps.append(copy(spec.dtype, spec.dims, device, source=In(i), strides=dense, target=place))
        at += spec.dims[axis]
    return Lowered(tuple(steps))


@kernel("grid.split", "split", KINDS, when=_fits_pieces, rank=20)
def lower_split(call: OpCall, device: DeviceInfo) -> Lowered:
    """One copy for each result, from its place."""
    spec, axis = operand(call, 0), call.attrs["axis"]
    whole = row_major(spec.dims)
    steps, at = [], 0
    for i, out in enumerate(call.outputs):
        steps.append(
            copy(
                spec.dtype,
                out.dims,
                device,
                source=In(0),
                strides=whole,
                offset=at * whole[axis],
                target=Target(Out(i)),
            )
        )
        at += out.dims[axis]
    return Lowered(tuple(steps))
