"""Ops that only move elements, as native strided copies: transpose, slice, concat, pad, gather.

A copy walks the same index space in the source and in the target, each with strides of its own in
elements. Dimensions that both walk alike are merged. Three loops are compiled: rows that are
contiguous in both, rows of any stride, and tiles where the source is contiguous along one dimension
and the target along another (a transpose), so that both are read and written by cache lines.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from crossdock.devices.base import DeviceInfo
from crossdock.devices.program import (
    Argument,
    In,
    Lowered,
    NativeCall,
    Out,
    Pack,
    Packed,
    Scalar,
    Slot,
    Step,
)
from crossdock.kernels.cpu_copy_loops import GATHER_WORDS, TILE, write_copy, write_gather
from crossdock.kernels.cpu_ir import compiled
from crossdock.kernels.cpu_rows import words
from crossdock.kernels.spec import OpCall
from crossdock.kernels.table import kernel
from crossdock.runtime.tensor import TensorSpec, to_numpy

GRAIN_BYTES = 1 << 18


@dataclass(frozen=True)
class Walk:
    """Where an index space lies in an array: the first element, and a stride a dimension."""

    slot: Slot
    first: int
    strides: tuple[int, ...]


def dense(dims: Sequence[int]) -> tuple[int, ...]:
    """Strides of a dense array in elements."""
    return tuple(math.prod(dims[i + 1 :]) for i in range(len(dims)))


def copy_call(dtype: str, sizes: Sequence[int], source: Walk, target: Walk) -> NativeCall:
    """Copy elements from one walk to another over the index space ``sizes``."""
    item = to_numpy(dtype).itemsize
    dims = _merged(sizes, source.strides, target.strides)
    dims, form = _ordered(dims)
    unit, scale = item, 1
    if form == "row":
        unit = next(u for u in (8, 4, 2, 1) if (dims[-1][0] * item) % u == 0 and u % item == 0)
        scale = unit // item
    outer = dims[:-2] if form == "tile" else dims[:-1]
    inner = dims[len(outer) :]
    numbers = [Scalar(np.int64(d[0])) for d in outer]
    numbers += [Scalar(np.int64(d[k])) for k in (1, 2) for d in outer]
    last = [(n // scale, s, t) for n, s, t in inner] if form == "row" else inner
    numbers += [Scalar(np.int64(v)) for d in last for v in d]
    rows = math.prod(d[0] for d in outer)
    items = rows * -(-inner[0][0] // TILE) if form == "tile" else rows
    single = form == "row" and not outer
    args: tuple[Argument, ...] = (
        target.slot,
        source.slot,
        Scalar(np.int64(target.first)),
        Scalar(np.int64(source.first)),
        *numbers,
    )
    each = max(1, math.prod(sizes) * item // max(1, items))
    return NativeCall(
        name="copy",
        address=compiled(
            f"copy {form} {item} {unit} {len(outer)}",
            lambda code: write_copy(code, form, item, unit, len(outer)),
        ),
        args=args,
        extent=last[0][0] if single else items,
        grain=max(1, GRAIN_BYTES // (unit if single else each)),
    )


Dims = list[tuple[int, int, int]]  # size, source stride, target stride


def _merged(sizes: Sequence[int], source: Sequence[int], target: Sequence[int]) -> Dims:
    """Drop dimensions of size 1 and merge those that both arrays walk as one."""
    dims: Dims = []
    for size, s, t in zip(sizes, source, target, strict=True):
        if size == 1:
            continue
        if dims and dims[-1][1] == s * size and dims[-1][2] == t * size:
            dims[-1] = (dims[-1][0] * size, s, t)
        else:
            dims.append((size, s, t))
    return dims or [(1, 1, 1)]


def _ordered(dims: Dims) -> tuple[Dims, str]:
    """Dimensions with the loop's own last, and which loop: row, tile or any."""
    if dims[-1][1] == 1 and dims[-1][2] == 1:
        return dims, "row"
    along_source = next((d for d in dims if d[1] == 1), None)
    along_target = next((d for d in dims if d[2] == 1), None)
    if along_source and along_target and along_source is not along_target:
        rest = [d for d in dims if d is not along_source and d is not along_target]
        return [*rest, along_source, along_target], "tile"
    return dims, "any"


# --- ops ------------------------------------------------------------------------------------------


def _always(call: OpCall, device: DeviceInfo) -> str | None:  # noqa: ARG001 - a candidate's guard
    return None


def _spec(call: OpCall, index: int = 0) -> TensorSpec:
    spec = call.inputs[index]
    assert spec is not None
    return spec


def _whole(slot: Slot, dims: Sequence[int]) -> Walk:
    return Walk(slot, 0, dense(dims))


def _one(dtype: str, sizes: Sequence[int], source: Walk, target: Walk) -> Lowered:
    return Lowered((copy_call(dtype, sizes, source, target),))


@kernel("cpu.transpose", "transpose", ("cpu",), when=_always, rank=20)
def lower_transpose(call: OpCall, device: DeviceInfo) -> Lowered:  # noqa: ARG001 - the same
    """Lower a transpose to one copy."""
    spec, out = _spec(call), call.outputs[0]
    strides = dense(spec.dims)
    source = Walk(In(0), 0, tuple(strides[axis] for axis in call.attrs["permutation"]))
    return _one(spec.dtype, out.dims, source, _whole(Out(0), out.dims))


@kernel("cpu.slice", "slice", ("cpu",), when=_always, rank=20)
def lower_slice(call: OpCall, device: DeviceInfo) -> Lowered:  # noqa: ARG001 - the same
    """Lower a slice to one copy."""
    spec, out, attrs = _spec(call), call.outputs[0], call.attrs
    strides = dense(spec.dims)
    first = sum(start * stride for start, stride in zip(attrs["starts"], strides, strict=True))
    steps = tuple(s * step for s, step in zip(strides, attrs["strides"], strict=True))
    return _one(spec.dtype, out.dims, Walk(In(0), first, steps), _whole(Out(0), out.dims))


@kernel("cpu.reverse", "reverse", ("cpu",), when=_always, rank=20)
def lower_reverse(call: OpCall, device: DeviceInfo) -> Lowered:  # noqa: ARG001 - the same
    """Lower a reversal to one copy with negative strides."""
    spec, axes = _spec(call), call.attrs["axes"]
    strides = list(dense(spec.dims))
    first = 0
    for axis in axes:
        first += (spec.dims[axis] - 1) * strides[axis]
        strides[axis] = -strides[axis]
    source = Walk(In(0), first, tuple(strides))
    return _one(spec.dtype, spec.dims, source, _whole(Out(0), spec.dims))


@kernel("cpu.expand", "expand", ("cpu",), when=_always, rank=20)
def lower_expand(call: OpCall, device: DeviceInfo) -> Lowered:  # noqa: ARG001 - the same
    """Lower a broadcast to one copy with strides of 0."""
    spec, out = _spec(call), call.outputs[0]
    missing = len(out.dims) - len(spec.dims)
    dims = (1,) * missing + spec.dims
    steps = tuple(0 if d == 1 else s for d, s in zip(dims, dense(dims), strict=True))
    return _one(spec.dtype, out.dims, Walk(In(0), 0, steps), _whole(Out(0), out.dims))


@kernel("cpu.tile", "tile", ("cpu",), when=_always, rank=20)
def lower_tile(call: OpCall, device: DeviceInfo) -> Lowered:  # noqa: ARG001 - the same
    """Lower repetitions to one copy: each axis becomes two, of which the outer one repeats."""
    spec = _spec(call)
    sizes, source, target = [], [], []
    strides, out = dense(spec.dims), dense(call.outputs[0].dims)
    for axis, count in enumerate(call.attrs["repetitions"]):
        sizes += [count, spec.dims[axis]]
        source += [0, strides[axis]]
        target += [out[axis] * spec.dims[axis], out[axis]]
    return _one(spec.dtype, sizes, Walk(In(0), 0, tuple(source)), Walk(Out(0), 0, tuple(target)))


@kernel("cpu.split", "split", ("cpu",), when=_always, rank=20)
def lower_split(call: OpCall, device: DeviceInfo) -> Lowered:  # noqa: ARG001 - the same
    """Lower a split to one copy a part."""
    spec, axis = _spec(call), call.attrs["axis"]
    strides, at = dense(spec.dims), 0
    steps: list[Step] = []
    for i, part in enumerate(call.outputs):
        source = Walk(In(0), at * strides[axis], strides)
        steps.append(copy_call(spec.dtype, part.dims, source, _whole(Out(i), part.dims)))
        at += part.dims[axis]
    return Lowered(tuple(steps))


@kernel("cpu.concat", "concat", ("cpu",), when=_always, rank=20)
def lower_concat(call: OpCall, device: DeviceInfo) -> Lowered:  # noqa: ARG001 - the same
    """Lower a concatenation to one copy an operand."""
    axis, out = call.attrs["axis"], call.outputs[0]
    strides, at = dense(out.dims), 0
    steps: list[Step] = []
    for i in range(len(call.inputs)):
        part = _spec(call, i)
        target = Walk(Out(0), at * strides[axis], strides)
        steps.append(copy_call(part.dtype, part.dims, _whole(In(i), part.dims), target))
        at += part.dims[axis]
    return Lowered(tuple(steps))


def _padded_axes(call: OpCall) -> list[int]:
    begin, end = call.attrs["beginning_padding"], call.attrs["ending_padding"]
    return [axis for axis, widths in enumerate(zip(begin, end, strict=True)) if any(widths)]


def _pad_fits(call: OpCall, device: DeviceInfo) -> str | None:  # noqa: ARG001 - a guard
    if call.attrs["mode"] != "constant" and len(_padded_axes(call)) > 1:
        return f"mode {call.attrs['mode']} along several axes is not native"
    return None


@kernel("cpu.pad", "pad", ("cpu",), when=_pad_fits, rank=20)
def lower_pad(call: OpCall, device: DeviceInfo) -> Lowered:  # noqa: ARG001 - the same
    """Lower padding: the input into its place, before that the value, or after it the sides."""
    spec, out, begin = _spec(call), call.outputs[0], call.attrs["beginning_padding"]
    strides = dense(out.dims)
    first = sum(b * s for b, s in zip(begin, strides, strict=True))
    body = copy_call(spec.dtype, spec.dims, _whole(In(0), spec.dims), Walk(Out(0), first, strides))
    if call.attrs["mode"] != "constant":
        return Lowered((body, *_sides(call)))
    fill = copy_call(spec.dtype, (out.size,), Walk(Packed(0), 0, (0,)), Walk(Out(0), 0, (1,)))
    value = call.attrs["value"]
    pack = Pack(lambda: np.full(1, value, to_numpy(spec.dtype)), TensorSpec(spec.dtype, (1,)))
    return Lowered((fill, body), (), (pack,))


def _sides(call: OpCall) -> Iterator[NativeCall]:
    """Copies of the input into both sides of the one padded axis: mirrored, or its edge."""
    spec, out, mode = _spec(call), call.outputs[0], call.attrs["mode"]
    sources, targets = dense(spec.dims), dense(out.dims)
    for axis in _padded_axes(call):
        size, before = spec.dims[axis], call.attrs["beginning_padding"][axis]
        after = call.attrs["ending_padding"][axis]
        for count, nearest, place in ((before, 0, 0), (after, size - 1, before + size)):
            if not count:
                continue
            mirrored = (before if place == 0 else size - 2) if mode == "reflection" else nearest
            step = -sources[axis] if mode == "reflection" else 0
            sizes = tuple(count if a == axis else d for a, d in enumerate(spec.dims))
            walk = tuple(step if a == axis else s for a, s in enumerate(sources))
            yield copy_call(
                spec.dtype,
                sizes,
                Walk(In(0), mirrored * sources[axis], walk),
                Walk(Out(0), place * targets[axis], targets),
            )


# --- gather ---------------------------------------------------------------------------------------


def _gather_fits(call: OpCall, device: DeviceInfo) -> str | None:  # noqa: ARG001 - a guard
    kind = _spec(call, 1).dtype
    return None if kind in ("int32", "int64", "uint32") else f"indices of {kind}"


@kernel("cpu.gather", "gather", ("cpu",), when=_gather_fits, rank=20)
def lower_gather(call: OpCall, device: DeviceInfo) -> Lowered:  # noqa: ARG001 - the same
    """Lower a gather to one native call that copies a row for each index."""
    spec, indices, axis = _spec(call), _spec(call, 1), call.attrs["axis"]
    row = math.prod(spec.dims[axis + 1 :]) * to_numpy(spec.dtype).itemsize
    unit = next(u for u in (8, 4, 2, 1) if row % u == 0)
    slots: dict[str, Argument] = {"out": Out(0), "in": In(0), "indices": In(1)}
    numbers = {"size": spec.dims[axis], "count": indices.size, "row": row // unit}
    step = NativeCall(
        name="gather",
        address=compiled(
            f"gather {indices.dtype} {unit}",
            lambda code: write_gather(code, indices.dtype, unit),
        ),
        args=words(GATHER_WORDS, slots, numbers),
        extent=math.prod(spec.dims[:axis]) * indices.size,
        grain=max(1, GRAIN_BYTES // max(1, row)),
    )
    return Lowered((step,))
