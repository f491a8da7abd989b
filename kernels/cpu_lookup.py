"""Elementwise ops on bytes with bytes as results, as a table of 256 entries on the host.

Whatever a fused chain does to one operand of bytes and constants of one element, its results are
256 bytes, worked out once a session by the chain's own array code. With AVX-512 VBMI a vector of
bytes is looked up in registers.
"""

from __future__ import annotations

import numpy as np

from crossdock.devices.base import DeviceInfo
from crossdock.devices.cpu_llvm import host_features
from crossdock.devices.program import Argument, In, Lowered, NativeCall, Out, Pack, Packed
from crossdock.kernels import table
from crossdock.kernels.cpu_ir import Code, compiled
from crossdock.kernels.cpu_rows import Words, words
from crossdock.kernels.fused import body_of
from crossdock.kernels.refusal import Cause, Refusal
from crossdock.kernels.spec import OpCall
from crossdock.kernels.table import kernel
from crossdock.runtime.tensor import Array, TensorSpec, to_numpy

BYTES = ("uint8", "int8")
WORDS = ("out", "in", "table")
GRAIN = 1 << 18
LANES = 64
ENTRIES = 256


def _source(call: OpCall) -> int | None:
    """The operand that is looked up, None where the op is no function of one operand's bytes."""
    varying = [i for i in range(len(call.inputs)) if i not in call.constants]
    if len(varying) != 1 or body_of(call) is None or call.outputs[0].dtype not in BYTES:
        return None
    (source,) = varying
    spec = call.inputs[source]
    if spec is None or spec.dtype not in BYTES or spec.size != call.outputs[0].size:
        return None
    return source if all(a.size == 1 for a in call.constants.values()) else None


def _fits(call: OpCall, device: DeviceInfo) -> str | None:  # noqa: ARG001 - a candidate's guard
    if _source(call) is None:
        return "not a function of one operand of bytes with bytes as results"
    if call.outputs[0].size < ENTRIES:
        return Refusal("fewer elements than a table has entries", Cause.SIZE)
    return None


@kernel("cpu.lookup", "*", ("cpu",), when=_fits, rank=15)
def lower_lookup(call: OpCall, device: DeviceInfo) -> Lowered:  # noqa: ARG001 - the same
    """Lower a function of bytes to one native call."""
    source, body = _source(call), body_of(call)
    assert source is not None
    assert body is not None
    spec = call.inputs[source]
    assert spec is not None

    def entries() -> Array:
        every = np.arange(ENTRIES, dtype=np.uint8).view(to_numpy(spec.dtype))
        operands = [
            every if i == source else call.constants[i].reshape(()) for i in range(len(call.inputs))
        ]
        with np.errstate(all="ignore"):
            made = table.op("fused").run(np, *operands, body=body)
        return np.ascontiguousarray(made, to_numpy(call.outputs[0].dtype)).view(np.uint8)

    wide = {"avx512vbmi", "avx512bw"} <= host_features()
    slots: dict[str, Argument] = {"out": Out(0), "in": In(source), "table": Packed(0)}
    step = NativeCall(
        name="lookup",
        address=compiled(f"lookup {wide}", lambda code: write(code, wide=wide)),
        args=words(WORDS, slots, {}),
        extent=call.outputs[0].size,
        grain=GRAIN,
        align=LANES,
    )
    unused = frozenset(call.constants)
    return Lowered((step,), packs=(Pack(entries, TensorSpec("uint8", (ENTRIES,))),), unused=unused)


def write(code: Code, *, wide: bool) -> None:
    """Append the function: vectors where there are such lookups, then what is left."""
    w = Words(code, WORDS, 3)
    rest = "%begin"
    if wide:
        parts = [
            code.let(f"load <64 x i8>, ptr {code.at(w['table'], 'i8', 64 * i)}, align 1")
            for i in range(4)
        ]
        last = code.sub("%end", LANES - 1)
        with code.loop("%begin", last, LANES) as loop:
            index = code.let(f"load <64 x i8>, ptr {code.at(w['in'], 'i8', loop.index)}, align 1")
            found = vector_of(code, parts, index)
            at = code.at(w["out"], "i8", loop.index)
            code.do(f"store <64 x i8> {found}, ptr {at}, align 1")
        rest = loop.index
    with code.loop(rest, "%end") as loop:
        byte = code.load("i8", code.at(w["in"], "i8", loop.index))
        index = code.let(f"zext i8 {byte} to i64")
        entry = code.load("i8", code.at(w["table"], "i8", index))
        code.store("i8", entry, code.at(w["out"], "i8", loop.index))


def vector_of(code: Code, parts: list[str], index: str) -> str:
    """Entries of a table in four registers for a vector of indices."""
    kind = "<64 x i8>"
    fn = code.declare("llvm.x86.avx512.vpermi2var.qi.512", f"{kind} @({kind}, {kind}, {kind})")
    low, high = (
        code.let(f"call {kind} {fn}({kind} {a}, {kind} {index}, {kind} {b})")
        for a, b in (parts[:2], parts[2:])
    )
    upper = code.let(f"icmp slt {kind} {index}, zeroinitializer")
    return code.let(f"select <64 x i1> {upper}, {kind} {high}, {kind} {low}")
