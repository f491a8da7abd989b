"""The LLVM engine: IR in, addresses of machine code for this processor out."""

from __future__ import annotations

import functools
import importlib.util
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from crossdock.devices import cpu_cache, cpu_compiler, cpu_object, topology
from crossdock.devices.cpu_compiler import PASSES
from crossdock.runtime import settings
from crossdock.runtime.errors import CompileError

_LOCK = threading.Lock()
_ADDRESSES: dict[str, int] = {}
_MADE: dict[str, str] = {}
"""Functions loaded by this process, by name: where they are, and the key of their code."""
_AHEAD: dict[str, bytes] = {}
"""Code compiled ahead and not loaded yet, by key."""


@functools.cache
def _target() -> tuple[Any, Any, Any]:
    """The LLVM binding, the machine description of this processor, and the engine."""
    import llvmlite.binding as llvm

    machine = cpu_compiler.machine(settings.cpu_level())
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    return llvm, machine, engine


@functools.cache
def _features() -> str:
    """What this processor has and code may use (``+``), and what it may not (``-``)."""
    return cpu_compiler.features(settings.cpu_level())


@functools.cache
def host_features() -> frozenset[str]:
    """The processor's instruction sets by LLVM's names (``avx2``, ``fma``, ``f16c`` ...).

    What LLVM says is kept on disk: to load it takes a tenth of a second and 40 MB.
    """
    key = cpu_cache.key("features", toolchain())
    kept = cpu_cache.load(key)
    told = _features() if kept is None else kept.decode()
    if kept is None:
        cpu_cache.save(key, told.encode())
    return frozenset(f[1:] for f in told.split(",") if f.startswith("+"))


@functools.cache
def toolchain() -> str:
    """What machine code hangs on beside its source: compiler and processor.

    Told without loading LLVM, where the system says what the processor is.
    """
    found = importlib.util.find_spec("llvmlite")
    library = Path(found.origin or "").parent / "binding" / "libllvmlite.so" if found else None
    features = topology.cpu_features()
    level = settings.cpu_level()
    if library is None or not library.is_file() or not features:
        llvm = _target()[0]
        version = ".".join(str(part) for part in llvm.llvm_version_info)
        return "|".join((PASSES, version, cpu_compiler.processor(level), _features()))
    status = library.stat()
    return "|".join((PASSES, str(status.st_size), str(status.st_mtime_ns), features, level))


def compile_ir(text: str, names: Sequence[str]) -> list[int]:
    """Compile LLVM IR and return the addresses of the functions ``names``.

    A name stands for the same code as long as the process lives, and so does the code. Object code
    is kept on disk, and then LLVM is not even loaded. Safe to call from any thread.

    Raises:
        CompileError: the IR is refused; ``log`` has LLVM's text and ``source`` the IR.
    """
    with _LOCK:
        key = cpu_cache.key(toolchain(), text)
        if not all(_MADE.get(name) == key for name in names):
            code = _AHEAD.pop(key, None) or cpu_cache.load(key)
            if code is None:
                code = _object_code(text, names)
                cpu_cache.save(key, code)
            _link(code, names, key)
        return [_ADDRESSES[name] for name in names]


def compile_ahead(
    sources: Iterable[tuple[str, Callable[[], str]]],
    until: float = math.inf,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Compile, on every processor, what ``compile_ir`` will be asked for, where that pays.

    ``sources`` are names of functions, and what gives the text that has just that one. Nothing more
    is compiled ``until`` then. What cannot be compiled is found out by ``compile_ir``.
    """
    from crossdock.devices.cpu_compilers import compile_all

    def missing() -> Iterator[tuple[str, str]]:
        seen = set(_MADE)
        for name, source in sources:
            if name not in seen:
                seen.add(name)
                text = source()
                key = cpu_cache.key(toolchain(), text)
                if cpu_cache.load(key) is None:
                    yield key, text

    def made(key: str, code: bytes) -> None:
        _AHEAD[key] = code
        cpu_cache.save(key, code)

    compile_all(missing(), settings.cpu_level(), made, until, progress)


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
    try:
        return cpu_compiler.object_code(_target()[1], text)
    except RuntimeError as error:
        raise CompileError(
            f"cpu: LLVM refuses the code of {', '.join(names)}", log=str(error), source=text
        ) from error
