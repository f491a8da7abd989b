"""LLVM IR in, object code for this processor out; run as a program, a compiler for a parent.

It imports LLVM's binding and the standard library alone: a process of it starts in a tenth of a
second. As a program it reads from its standard input, and answers on its standard output::

    its parent's module search path and the level of instruction sets, JSON, as one frame
    then, again and again: the text of a module, as a frame; the answer is a byte, 1 where it
    compiled, and a frame, the object code or what LLVM says

A frame is its size in 8 bytes, little-endian, and its content.
"""

from __future__ import annotations

import json
import sys
from typing import IO, Any

PASSES = "instcombine, simplifycfg; codegen 3"
AS_WRITTEN = "; addresses as written\n"
"""How a text begins whose loops count as they are written.

LLVM looks for fewer counters for the addresses in a loop (its pass loop strength reduction). Where
a loop has hundreds of addresses, that takes most of the time of compiling, and runs no faster.
"""

_LEVEL2 = (
    "64bit", "cmov", "crc32", "cx16", "cx8", "fxsr", "mmx", "popcnt", "sahf", "sse", "sse2", "sse3",
    "sse4.1", "sse4.2", "ssse3",
)  # fmt: skip
_LEVEL3 = (*_LEVEL2, "avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe", "xsave")
_LEVEL4 = (*_LEVEL3, "avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl")
LEVELS = {"x86-64-v2": _LEVEL2, "x86-64-v3": _LEVEL3, "x86-64-v4": _LEVEL4}
"""Instruction sets of the x86-64 psABI's levels, by LLVM's names."""


def processor(level: str) -> str:
    """The processor that code is tuned for, by LLVM's name; ``level`` is empty or of ``LEVELS``."""
    import llvmlite.binding as llvm

    return level or str(llvm.get_host_cpu_name())


def features(level: str) -> str:
    """What this processor has and code may use (``+``), and what it may not (``-``)."""
    import llvmlite.binding as llvm

    found = llvm.get_host_cpu_features()
    kept = LEVELS.get(level, found)
    return ",".join(f"{'+' if has and name in kept else '-'}{name}" for name, has in found.items())


def machine(level: str) -> Any:
    """LLVM's description of this processor, with the instruction sets of a level at most."""
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    llvm.initialize_native_asmparser()
    target = llvm.Target.from_default_triple()
    return target.create_target_machine(
        cpu=processor(level), features=features(level), opt=3, jit=True
    )


def optimised(target: Any, text: str) -> Any:
    """LLVM's module of a text for a machine.

    Only cheap passes are run: kernels are written with vector types and with their invariants
    outside of loops.

    Raises:
        RuntimeError: LLVM refuses it.
    """
    import llvmlite.binding as llvm

    module = llvm.parse_assembly(text)
    module.triple = target.triple
    module.data_layout = str(target.target_data)
    module.verify()
    builder = llvm.create_pass_builder(target, llvm.create_pipeline_tuning_options(1))
    passes = llvm.create_new_module_pass_manager()
    passes.add_instruction_combine_pass()
    passes.add_simplify_cfg_pass()
    passes.run(module, builder)
    return module


def object_code(target: Any, text: str) -> bytes:
    """Compile a module for a ``machine``.

    Raises:
        RuntimeError: LLVM refuses it.
    """
    import llvmlite.binding as llvm

    module = optimised(target, text)
    if not text.startswith(AS_WRITTEN):
        return bytes(target.emit_object(module))
    llvm.set_option("crossdock", "-disable-lsr=true")  # for all that this process compiles
    try:
        return bytes(target.emit_object(module))
    finally:
        llvm.set_option("crossdock", "-disable-lsr=false")


def read_frame(file: IO[bytes]) -> bytes:
    """The next frame; raises EOFError where there is none, or only a part of one."""
    size = int.from_bytes(_exactly(file, 8), "little")
    return _exactly(file, size)


def write_frame(file: IO[bytes], content: bytes) -> None:
    """Write a frame."""
    file.write(len(content).to_bytes(8, "little") + content)
    file.flush()


def _exactly(file: IO[bytes], size: int) -> bytes:
    found = file.read(size)
    if len(found) != size:
        raise EOFError
    return found


def _serve(asked: IO[bytes], answers: IO[bytes]) -> None:
    """Compile what a parent asks for until it closes the pipe."""
    sys.path[:], level = json.loads(read_frame(asked))
    target = machine(level)
    while True:
        text = read_frame(asked).decode()
        try:
            compiled, answer = b"\1", object_code(target, text)
        except RuntimeError as error:
            compiled, answer = b"\0", str(error).encode()
        answers.write(compiled)
        write_frame(answers, answer)


if __name__ == "__main__":
    try:
        _serve(sys.stdin.buffer, sys.stdout.buffer)
    except (EOFError, BrokenPipeError):  # the parent is done, or gone
        sys.exit(0)
