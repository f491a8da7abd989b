"""The LLVM engine: IR in, addresses of machine code for this processor out."""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence
from typing import Any

from crossdock.devices import cpu_cache
from crossdock.runtime.errors import CompileError

PASSES = "instcombine, simplifycfg; codegen 3"

_LOCK = threading.Lock()


@functools.cache
def _target() -> tuple[Any, Any, Any]:
    """The LLVM binding, the machine description of this processor, and the engine."""
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    llvm.initialize_native_asmparser()
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=_features(), opt=3, jit=True
    )
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    return llvm, machine, engine


@functools.cache
def _features() -> str:
    import llvmlite.binding as llvm

    return str(llvm.get_host_cpu_features().flatten())


@functools.cache
def host_features() -> frozenset[str]:
    """The processor's instruction sets by LLVM's names (``avx2``, ``fma``, ``f16c`` ...)."""
    return frozenset(f[1:] for f in _features().split(",") if f.startswith("+"))


def compile_ir(text: str, names: Sequence[str]) -> list[int]:
    """Compile LLVM IR and return the addresses of the functions ``names``.

    Names must not have been used before in this process; the code lives until it ends. Only
    cheap passes are run: kernels are written with vector types and with their invariants outside
    of loops. Object code is kept on disk. Safe to call from any thread.

    Raises:
        CompileError: the IR is refused; ``log`` has LLVM's text and ``source`` the IR.
    """
    with _LOCK:
        llvm, machine, engine = _target()
        version = ".".join(str(part) for part in llvm.llvm_version_info)
        key = cpu_cache.key(PASSES, version, llvm.get_host_cpu_name(), _features(), text)
        code = cpu_cache.load(key)
        if code is None:
            code = _object_code(llvm, machine, text, names)
            cpu_cache.save(key, code)
        engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        engine.finalize_object()
        return [int(engine.get_function_address(name)) for name in names]


def _object_code(llvm: Any, machine: Any, text: str, names: Sequence[str]) -> bytes:
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
