"""Every op as array code: the candidate for any op on any device kind that runs array calls.

The op entry's ``run(xp, ...)`` is its meaning; what it returns is copied into the result's
memory, or written there at once where the op is one ufunc.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from crossdock.devices.base import Cap, DeviceInfo
from crossdock.devices.program import ArrayCall, ArrayFn, In, Lowered, Out
from crossdock.kernels import call_data, table
from crossdock.kernels.refusal import Cause, Refusal
from crossdock.kernels.spec import OpCall, OpSpec
from crossdock.kernels.table import kernel
from crossdock.runtime.tensor import Array

KINDS = ("cpu", "sim", "cuda")
NUMPY = ("cpu", "sim")
"""Kinds whose arrays are numpy's; the others' libraries have no bfloat16."""

NAME = "array"
COMPILED = frozenset({"fused_matmul", "fused_attention", "by_image"})
"""Ops that passes make of several, for kernels that do them at once; arrays are for where there is
no such kernel."""

PRODUCTS = frozenset({"matmul", "gemm"})
"""Ops that cupy does with operands rounded to TF32 where its environment says so."""

OF_BLAS = PRODUCTS | {
    "conv2d", "conv_integer", "conv_transpose2d", "det", "fused_attention", "fused_conv2d",
    "fused_matmul", "gru", "gru_cell", "lstm", "lstm_cell", "matmul_integer", "quantized_conv2d",
    "quantized_matmul", "scaled_dot_product_attention",
}  # fmt: skip
"""Ops whose array code makes products or solves: cupy asks cuBLAS and its like for them."""

UFUNCS = {
    "add": "add", "sub": "subtract", "mul": "multiply", "abs": "absolute", "neg": "negative",
    "exp": "exp", "log": "log", "sqrt": "sqrt", "sin": "sin", "cos": "cos", "tan": "tan",
    "tanh": "tanh", "floor": "floor", "ceil": "ceil", "round_even": "rint", "max": "maximum",
    "min": "minimum", "matmul": "matmul",
}  # fmt: skip
"""Ops that are one function with an ``out`` argument, where operands and result share a type."""


def _fits(call: OpCall, device: DeviceInfo) -> str | None:
    if Cap.ARRAY not in device.caps:
        return Refusal(f"{device.id} runs no array calls", Cause.LACKS)
    if call.op in COMPILED and (found := table.other_than(NAME, call, device)) is not None:
        return f"{found} does it in one pass, and arrays in several"
    if device.kind in NUMPY:
        return None
    if call.op in PRODUCTS and (found := table.other_than(NAME, call, device)) is not None:
        return f"{found} does it in the same way whatever CUPY_TF32 says"
    if call.op in OF_BLAS and (missing := device.details.get("no cublas")):
        return Refusal(f"cuBLAS cannot be loaded ({missing})", Cause.LIBRARY)
    if table.op(call.op).host:
        return f"{call.op} runs where Python runs"
    if any(s is not None and s.dtype == "bfloat16" for s in (*call.inputs, *call.outputs)):
        return Refusal(f"{device.id} has no bfloat16 arrays", Cause.DTYPE)
    return None


@kernel(NAME, "*", KINDS, when=_fits, rank=90)
def lower_array(call: OpCall, _device: DeviceInfo) -> Lowered:
    """Lower an op to one array call over all of its operands."""
    step = array_call(call, array_function(table.op(call.op), call))
    return Lowered((replace(step, form=partial(_form, call)),))


def _form(call: OpCall) -> tuple[str, str, Any] | None:
    """What ``remade`` makes the op's function of elsewhere; None with a large attribute."""
    large: list[Array] = []
    data = call_data.plain(call, large)
    return None if data is None or large else (__name__, remade.__name__, data)


def remade(data: list[Any]) -> ArrayFn:
    """The function of an op that ``call_data.plain`` wrote."""
    call = call_data.read(data, ())
    return array_function(table.op(call.op), call)


def array_call(call: OpCall, fn: ArrayFn) -> ArrayCall:
    """An array call over the op's operands and results."""
    return ArrayCall(
        fn,
        tuple(None if s is None else In(i) for i, s in enumerate(call.inputs)),
        tuple(Out(i) for i in range(len(call.outputs))),
        call.inputs,
        call.outputs,
    )


def array_function(spec: OpSpec, call: OpCall) -> ArrayFn:
    """The op as ``fn(xp, ins, outs)``."""
    ufunc = UFUNCS.get(call.op)
    types = {s.dtype for s in (*call.inputs, *call.outputs) if s is not None}
    if ufunc is not None and len(types) == 1 and "bool" not in types:
        return lambda xp, ins, outs: _write(getattr(xp, ufunc), ins, outs[0])
    run, attrs = spec.run, dict(call.attrs)

    def fn(xp: Any, ins: list[Any], outs: list[Any]) -> None:
        results = run(xp, *ins, **attrs)
        if not isinstance(results, tuple | list):
            results = (results,)
        for out, result in zip(outs, results, strict=True):
            out[...] = result

    return fn


def _write(ufunc: Any, ins: list[Any], out: Any) -> None:
    ufunc(*ins, out=out)
