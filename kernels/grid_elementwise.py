"""Elementwise ops and fused chains on a grid: candidates; ``grid_pointwise`` has the texts."""

from __future__ import annotations

from collections.abc import Sequence

from crossdock.devices.base import DeviceInfo
from crossdock.devices.program import In, Lowered
from crossdock.kernels.expression import parse
from crossdock.kernels.fused import body_of
from crossdock.kernels.grid_common import (
    KINDS,
    MAX_RANK,
    Space,
    broadcast_strides,
    has,
    obstacle,
    operand,
    row_major,
)
from crossdock.kernels.grid_emit import Step, steps_of
from crossdock.kernels.grid_pointwise import Operand, pointwise
from crossdock.kernels.refusal import Cause, Refusal
from crossdock.kernels.spec import OpCall
from crossdock.kernels.table import kernel

MAX_OPERANDS = 24


def _collapsed_rank(call: OpCall) -> int:
    dims = call.outputs[0].dims
    strides = [broadcast_strides(s.dims, dims) for s in call.inputs if s is not None]
    return len(Space(dims, (row_major(dims), *strides)).collapsed().dims)


def _fits(call: OpCall, device: DeviceInfo) -> str | None:
    if body_of(call) is None:
        return "not elementwise"
    if (why := obstacle(call, device)) is not None:
        return why
    if len(call.inputs) > MAX_OPERANDS:
        return f"more than {MAX_OPERANDS} operands"
    if _collapsed_rank(call) > MAX_RANK:
        return Refusal(f"more than {MAX_RANK} dimensions", Cause.RANK)
    return None


@kernel("grid.elementwise", "*", KINDS, when=_fits, rank=20)
def lower_elementwise(call: OpCall, device: DeviceInfo) -> Lowered:
    """Lower a plain elementwise op or a fused chain to one launch."""
    body = body_of(call)
    assert body is not None
    operands = [
        Operand(In(i), operand(call, i).dtype, operand(call, i).dims)
        for i in range(len(call.inputs))
    ]
    scalars = {
        i: float(array.reshape(-1)[0])
        for i, array in call.constants.items()
        if array.size == 1 and array.dtype.kind == "f"
    }
    return Lowered((pointwise(steps_of(body), operands, call.outputs[0], device, scalars=scalars),))


QUANTIZED = {
    "int8": (-128, 127), "uint8": (0, 255), "int16": (-32768, 32767), "uint16": (0, 65535),
}  # fmt: skip


def _blocks(call: OpCall) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The operand's dimensions, each cut in (blocks, block), and the strides of the scale there."""
    dims, blocks = operand(call, 0).dims, operand(call, 1).dims
    blocks = (1,) * (len(dims) - len(blocks)) + blocks
    dense = broadcast_strides(blocks, blocks)
    cut = tuple(n for size, b in zip(dims, blocks, strict=True) for n in (b, size // b))
    return cut, tuple(n for stride in dense for n in (stride, 0))


def _fits_quantized(call: OpCall, device: DeviceInfo) -> str | None:
    if (why := obstacle(call, device)) is not None:
        return why
    cut, strides = _blocks(call)
    deep = len(Space(cut, (row_major(cut), strides)).collapsed().dims) > MAX_RANK
    return Refusal(f"more than {MAX_RANK} dimensions", Cause.RANK) if deep else None


def _fits_narrow(call: OpCall, device: DeviceInfo) -> str | None:
    if call.outputs[0].dtype not in QUANTIZED:
        return Refusal(f"no {call.outputs[0].dtype} result", Cause.DTYPE)
    return _fits_quantized(call, device)


def _lower_three(call: OpCall, device: DeviceInfo, steps: Sequence[Step]) -> Lowered:
    cut, strides = _blocks(call)
    result = call.outputs[0].with_shape(cut)
    operands = [
        Operand(In(i), operand(call, i).dtype, cut, strides if i else row_major(cut))
        for i in range(3)
    ]
    return Lowered((pointwise(steps, operands, result, device),))


@kernel("grid.quantize_linear", "quantize_linear", KINDS, when=_fits_narrow, rank=20)
def lower_quantize(call: OpCall, device: DeviceInfo) -> Lowered:
    """round(x / scale) + zero point, saturated; scales may stand for blocks."""
    low, high = QUANTIZED[call.outputs[0].dtype]
    text = f"min(max(rint({{0}} / {{1}}) + {{2}}, {low}), {high})"
    return _lower_three(call, device, [Step(parse(text), (0, 1, 2), call.outputs[0].dtype)])


@kernel("grid.dequantize_linear", "dequantize_linear", KINDS, when=_fits_quantized, rank=20)
def lower_dequantize(call: OpCall, device: DeviceInfo) -> Lowered:
    """(x - zero point) * scale; scales may stand for blocks. The difference may need a bit more."""
    wide = "int64" if operand(call, 0).dtype in ("int32", "uint32") else "int32"
    steps = [
        Step(parse("{0}"), (0,), wide),
        Step(parse("{0}"), (2,), wide),
        Step(parse("({0} - {1}) * {2}"), (-1, -2, 1), call.outputs[0].dtype),
    ]
    return _lower_three(call, device, steps)


@kernel("grid.batch_normalization", "batch_normalization", KINDS, when=obstacle, rank=20)
def lower_batch_normalization(call: OpCall, device: DeviceInfo) -> Lowered:
    """(x - mean) / sqrt(variance + epsilon) * scale + bias, with vectors along the axis."""
    spec, axis = operand(call, 0), call.attrs["axis"]
    along = tuple(n if k == axis else 1 for k, n in enumerate(spec.dims))
    operands = [Operand(In(0), spec.dtype, spec.dims)]
    terms = []
    for i in range(1, 5):
        if has(call, i):
            terms.append((i, len(operands)))
            operands.append(Operand(In(i), spec.dtype, along))
    at = dict(terms)
    text = "({0} - {1}) / sqrt({2} + {epsilon})"
    text += f" * {{{at[3]}}}" if 3 in at else ""
    text += f" + {{{at[4]}}}" if 4 in at else ""
    step = Step(parse(text, call.attrs), tuple(range(len(operands))), spec.dtype)
    return Lowered((pointwise([step], operands, call.outputs[0], device),))
