"""The LLVM engine: IR in, addresses of machine code for this processor out."""

from __future__ import annotations

import functools
import importlib.util
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from crossdock.devices import cpu_cache, cpu_object, topology
from crossdock.runtime import settings
from crossdock.runtime.errors import CompileError

PASSES = "instcombine, simplifycfg; codegen 3"

_LOCK = threading.Lock()
_ADDRESSES: dict[str, int] = {}
_MADE: dict[str, str] = {}
"""Functions loaded by this process, by name: where they are, and the key of their code."""


@functools.cache
def _target() -> tuple[Any, Any, Any]:
    """The LLVM binding, the machine description of this processor, and the engine."""
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    llvm.initialize_native_asmparser()
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=_processor(), features=_features(), opt=3, jit=True
    )
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    return llvm, machine, engine


_LEVEL2 = (
    "64bit", "cmov", "crc32", "cx16", "cx8", "fxsr", "mmx", "popcnt", "sahf", "sse", "sse2", "sse3",
    "sse4.1", "sse4.2", "ssse3",
)  # fmt: skip
_LEVEL3 = (*_LEVEL2, "avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe", "xsave")
_LEVEL4 = (*_LEVEL3, "avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl")
LEVELS = {"x86-64-v2": _LEVEL2, "x86-64-v3": _LEVEL3, "x86-64-v4": _LEVEL4}
"""Instruction sets of the x86-64 psABI's levels, by LLVM's names."""


def _processor() -> str:
    """The processor that code is tuned for, by LLVM's name."""
    import llvmlite.binding as llvm

    return settings.cpu_level() or str(llvm.get_host_cpu_name())


@functools.cache
def _features() -> str:
    """What this processor has and code may use (``+``), and what it may not (``-``)."""
    import llvmlite.binding as llvm

    found, level = llvm.get_host_cpu_features(), settings.cpu_level()
    kept = LEVELS.get(level, found)
    return ",".join(f"{'+' if has and name in kept else '-'}{name}" for name, has in found.items())


@functools.cache
def host_features() -> frozenset[str]:
    """The processor's instruction sets by LLVM's names (``avx2``, ``fma``, ``f16c`` ...)."""
    return frozenset(f[1:] for f in _features().split(",") if f.startswith("+"))


@functools.cache
def toolchain() -> str:
    """What machine code hangs on beside its source: compiler and processor.

    Told without loading LLVM, where the system says what the processor is.
    """
    found = importlib.util.find_spec("llvmlite")
    library = Path(found.origin or "").parent / "binding" / "libllvmlite.so" if found else None
    features = topology.cpu_features()
    if library is None or not library.is_file() or not features:
        llvm = _target()[0]
        version = ".".join(str(part) for part in llvm.llvm_version_info)
        return "|".join((PASSES, version, _processor(), _features()))
    status = library.stat()
    level = settings.cpu_level()
    return "|".join((PASSES, str(status.st_size), str(status.st_mtime_ns), features, level))


def compile_ir(text: str, names: Sequence[str]) -> list[int]:
    """Compile LLVM IR and return the addresses of the functions ``names``.

    A name stands for the same code as long as the process lives, and so does the code. Only cheap
    passes are run: kernels are written with vector types and with their invariants outside of
    loops. Object code is kept on disk, and then LLVM is not even loaded. Safe to call from any
    thread.

    Raises:
        CompileError: the IR is refused; ``log`` has LLVM's text and ``source`` the IR.
    """
    with _LOCK:
        key = cpu_cache.key(toolchain(), text)
        if not all(_MADE.get(name) == key for name in names):
            code = cpu_cache.load(key)
            if code is None:
                code = _object_code(text, names)
                cpu_cache.save(key, code)
            _link(code, names, key)
        return [_ADDRESSES[name] for name in names]


def made_as(name: str) -> str | None:
    """The key in the cache of machine code that the function of this name has, if there is one."""
    return _MADE.get(name)


def kept_function(name: str, key: str) -> int | None:
    """The address of a function compiled by an earlier process; None where it is not kept."""
    with _LOCK:
        if _MADE.get(name) != key:
            code = cpu_cache.load(key)
            if code is None:
                return None
            _link(code, (name,), key)
        return _ADDRESSES[name]


def _link(code: bytes, names: Sequence[str], key: str) -> None:
    """Load object code and note where its functions are; the lock is held."""
    try:
        found = cpu_object.link(code)
    except cpu_object.Unsupported:
        llvm, _, engine = _target()
        engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        engine.finalize_object()
        found = {name: int(engine.get_function_address(name)) for name in names}
    for name in names:
        _ADDRESSES[name] = found[name]
        _MADE[name] = key


def _object_code(text: str, names: Sequence[str]) -> bytes:
    llvm, machine, _ = _target()
    try:
        module = llvm.parse_assembly(text)
        module.triple = machine.triple
        module.data_layout = str(machine.target_data)
        module.verify()
    except RuntimeError as error:
        raise CompileError(
            f"cpu: LLVM refuses the code of {', '.join(names)}", log=str(error), source=text
        ) from error
    builder = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(1))
    passes = llvm.create_new_module_pass_manager()
    passes.add_instruction_combine_pass()
    passes.add_simplify_cfg_pass()
    passes.run(module, builder)
    return bytes(machine.emit_object(module))
