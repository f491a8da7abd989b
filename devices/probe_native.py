"""The probe's kernels as LLVM IR, for devices that run native steps.

A function gets its argument words and a range of items; see ``NativeCall``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from crossdock.devices.probe_source import CHAINS
from crossdock.devices.program import Argument, NativeCall

_TYPES = {"float32": ("float", 4), "float64": ("double", 8), "int32": ("i32", 4)}
DTYPES = frozenset(_TYPES)

# Runs BODY for %i from %begin to %end; SETUP loads what does not change.
_LOOP = """
define void @{name}(i64* %args, i64 %begin, i64 %end) {{
entry:
{setup}
  %some = icmp slt i64 %begin, %end
  br i1 %some, label %item, label %done
item:
  %i = phi i64 [%begin, %entry], [%next, %{last}]
{body}
  %next = add i64 %i, 1
  %more = icmp slt i64 %next, %end
  br i1 %more, label %item, label %done
done:
  ret void
}}
"""


def _pointers(kind: str, names: str) -> str:
    """Load one pointer an argument word: %x, %y ... of type ``kind``."""
    lines = []
    for i, name in enumerate(names):
        lines += [
            f"  %at_{name} = getelementptr i64, i64* %args, i64 {i}",
            f"  %word_{name} = load i64, i64* %at_{name}",
            f"  %{name} = inttoptr i64 %word_{name} to {kind}*",
        ]
    return "\n".join(lines)


def _copy() -> str:
    line = "<16 x float>"
    body = f"""
  %p = getelementptr {line}, {line}* %x, i64 %i
  %q = getelementptr {line}, {line}* %y, i64 %i
  %v = load {line}, {line}* %p, align 4
  store {line} %v, {line}* %q, align 4"""
    return _LOOP.format(name="copy", setup=_pointers(line, "xy"), body=body, last="item")


def _axpy(dtype: str) -> str:
    kind, size = _TYPES[dtype]
    whole = kind == "i32"
    times, plus, three = ("mul", "add", "3") if whole else ("fmul contract", "fadd contract", "3.0")
    body = f"""
  %p = getelementptr {kind}, {kind}* %x, i64 %i
  %q = getelementptr {kind}, {kind}* %y, i64 %i
  %r = getelementptr {kind}, {kind}* %z, i64 %i
  %u = load {kind}, {kind}* %p, align {size}
  %v = load {kind}, {kind}* %q, align {size}
  %w = {times} {kind} %u, {three}
  %s = {plus} {kind} %w, %v
  store {kind} %s, {kind}* %r, align {size}"""
    return _LOOP.format(name="axpy", setup=_pointers(kind, "xyz"), body=body, last="item")


def _fma(dtype: str, width: int) -> str:
    """CHAINS independent chains of ``width`` lanes, as many rounds as argument word 1 says."""
    kind, size = _TYPES[dtype]
    lanes = f"<{width} x {kind}>"
    scale, shift = ("<" + ", ".join([f"{kind} {value}"] * width) + ">" for value in ("0.5", "0.25"))
    phis = "\n".join(
        f"  %s{c} = phi {lanes} [{shift}, %item], [%f{c}, %round]" for c in range(CHAINS)
    )
    chains = "\n".join(
        f"  %m{c} = fmul contract {lanes} %s{c}, {scale}\n"
        f"  %f{c} = fadd contract {lanes} %m{c}, %start{c}"
        for c in range(CHAINS)
    )
    # Each chain has a start of its own, from memory, or they would all be one to the compiler.
    starts = "\n".join(
        f"  %at{c} = getelementptr {lanes}, {lanes}* %y, i64 {c}\n"
        f"  %start{c} = load {lanes}, {lanes}* %at{c}, align {size}"
        for c in range(CHAINS)
    )
    sums = "\n".join(
        f"  %t{c} = fadd {lanes} %{'t' if c > 1 else 'f'}{c - 1}, %f{c}" for c in range(1, CHAINS)
    )
    setup = f"""{_pointers(lanes, "y")}
  %at_rounds = getelementptr i64, i64* %args, i64 1
  %rounds = load i64, i64* %at_rounds
{starts}"""
    body = f"""  br label %round
round:
  %k = phi i64 [0, %item], [%knext, %round]
{phis}
{chains}
  %knext = add i64 %k, 1
  %again = icmp slt i64 %knext, %rounds
  br i1 %again, label %round, label %total
total:
{sums}
  %slot = add i64 %i, {CHAINS}
  %out = getelementptr {lanes}, {lanes}* %y, i64 %slot
  store {lanes} %t{CHAINS - 1}, {lanes}* %out, align {size}"""
    return _LOOP.format(name="fma_chains", setup=setup, body=body, last="total")


_TINY = """
define void @tiny(i64* %args, i64 %begin, i64 %end) {
  %word = load i64, i64* %args
  %y = inttoptr i64 %word to float*
  store float 1.0, float* %y
  ret void
}
"""


@functools.cache
def _compiled(text: str, name: str) -> int:
    from crossdock.devices.cpu_llvm import compile_ir

    return compile_ir(text, [name])[0]


def _call(
    text: str, name: str, args: tuple[Argument, ...], extent: int, grain: int = 1
) -> NativeCall:
    address: Callable[[], int] = functools.partial(_compiled, text, name)
    return NativeCall(f"probe.{name}", address, args, extent, grain)


def copy(args: tuple[Argument, ...], nbytes: int) -> NativeCall:
    """Copy a multiple of 64 bytes; no share is smaller than 16 KiB."""
    return _call(_copy(), "copy", args, nbytes // 64, 256)


def axpy(args: tuple[Argument, ...], dtype: str, n: int) -> NativeCall:
    """z[i] = 3 * x[i] + y[i]; no share is smaller than 4096 elements."""
    return _call(_axpy(dtype), "axpy", args, n, 4096)


def fma(args: tuple[Argument, ...], dtype: str, width: int, items: int) -> NativeCall:
    """Multiply-adds in registers: 2 * CHAINS * width * rounds operations an item.

    The buffer holds (CHAINS + items) vectors; the first CHAINS are read.
    """
    return _call(_fma(dtype, width), "fma_chains", args, items)


def tiny(args: tuple[Argument, ...]) -> NativeCall:
    """Store one float."""
    return _call(_TINY, "tiny", args, 1)
