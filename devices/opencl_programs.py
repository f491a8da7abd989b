"""Building OpenCL programs: once a text in memory, and on disk where the driver keeps nothing.

A cached binary is a file named by the hash of everything that it depends on. The file begins with
the hash of the rest: a damaged one is dropped and built again. Files appear whole (written aside,
then renamed), so that many processes can share the folder without locks.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import re
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from crossdock.devices.dialect import OPENCL_HEADER, assemble
from crossdock.devices.program import GridLaunch
from crossdock.runtime import settings
from crossdock.runtime.errors import CompileError

OPTIONS = ("-cl-std=CL1.2",)

_PYOPENCL = threading.Lock()
"""Held while pyopencl builds a program, since warnings are filtered meanwhile for all threads, and
while it makes a kernel object."""

_DRIVER_CACHES = ("Portable Computing Language", "NVIDIA CUDA")
"""Platforms that keep what they built on disk themselves."""


_INVOKERS: dict[tuple[object, ...], Any] = {}


@contextmanager
def _shared_invokers() -> Iterator[None]:
    """Let kernel objects of one name and number of arguments share what pyopencl generates.

    It makes Python source for each object's ``__call__``, which takes up to 2 ms and is kept for
    good; here kernels are only enqueued. Sharing brings an object down to 0.04 ms.
    """
    module = importlib.import_module("pyopencl.invoker")
    make = getattr(module, "generate_enqueue_and_set_args", None)
    if make is None:
        yield
        return

    def shared(name: str, *args: Any, **kwargs: Any) -> Any:
        key = (name, *args)
        if key not in _INVOKERS:
            _INVOKERS[key] = make(name, *args, **kwargs)
        return _INVOKERS[key]

    module.generate_enqueue_and_set_args = shared  # type: ignore[attr-defined]
    try:
        yield
    finally:
        module.generate_enqueue_and_set_args = make  # type: ignore[attr-defined]


class Programs:
    """The programs and kernel objects of one device. A failed build is kept too, and raised again.

    A kernel object holds its arguments, so that it belongs to one borrower at a time; those given
    back are lent again.
    """

    def __init__(self, cl: Any, context: Any, handle: Any, where: str) -> None:
        self._cl = cl
        self._context = context
        self._handle = handle
        self._where = where
        self._lock = threading.Lock()
        self._built: dict[tuple[object, ...], Any] = {}
        self._spare: dict[tuple[object, ...], list[Any]] = {}

    def borrow(self, step: GridLaunch) -> Any:
        """A kernel object for a step; raises CompileError with the compiler's log."""
        spare = self._spare.setdefault((step.source, step.defines, step.entry), [])
        try:
            return spare.pop()
        except IndexError:
            program = self._program(step)
        try:
            with _PYOPENCL, _shared_invokers():
                return self._cl.Kernel(program, step.entry)
        except self._cl.Error as error:
            raise CompileError(
                f"{self._where}: the text has no kernel {step.entry}", source=step.source
            ) from error

    def give_back(self, step: GridLaunch, kernel: Any) -> None:
        """Take a kernel object back; finalizers may call this, so that it takes no lock."""
        self._spare.setdefault((step.source, step.defines, step.entry), []).append(kernel)

    def _program(self, step: GridLaunch) -> Any:
        key = (step.source, step.defines)
        with self._lock:
            found = self._built.get(key)
            if found is None:
                found = self._build(step)
                self._built[key] = found
        if isinstance(found, CompileError):
            raise CompileError(str(found), log=found.log, source=found.source)
        return found

    def clear(self) -> None:
        """Forget every program and kernel object."""
        with self._lock:
            self._built.clear()
            self._spare.clear()

    def _build(self, step: GridLaunch) -> Any:
        cl = self._cl
        text = assemble(OPENCL_HEADER, step.defines, step.source)
        path = None
        if self._handle.platform.name not in _DRIVER_CACHES:
            path = _path(text, self._handle)
        with _PYOPENCL, warnings.catch_warnings():
            warnings.simplefilter("ignore", cl.CompilerWarning)
            if path is not None and (binary := load(path)) is not None:
                try:
                    return cl.Program(self._context, [self._handle], [binary]).build()
                except cl.Error:
                    path.unlink(missing_ok=True)
            try:
                program = cl.Program(self._context, text).build(list(OPTIONS))
            except cl.Error as error:
                log = str(error)
                return CompileError(
                    f"{self._where}: kernel {step.entry} does not build: {_first_error(log)}",
                    log=log,
                    source=text,
                )
        if path is not None:
            store(path, bytes(program.get_info(cl.program_info.BINARIES)[0]))
        return program


def _first_error(log: str) -> str:
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return next((line for line in lines if re.search(r"\berror\b:", line)), lines[0])


def _path(text: str, handle: Any) -> Path | None:
    folder = settings.cache_dir()
    if folder is None:
        return None
    about = (handle.platform.name, handle.platform.version, handle.name, handle.driver_version)
    parts = "\0".join((*about, str(handle.max_compute_units), *OPTIONS, text))
    return folder / "opencl" / f"{hashlib.sha256(parts.encode()).hexdigest()}.bin"


def load(path: Path) -> bytes | None:
    """A cached binary, or None where there is none that is whole."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    if len(data) > 32 and hashlib.sha256(data[32:]).digest() == data[:32]:
        return data[32:]
    path.unlink(missing_ok=True)
    return None


def store(path: Path, binary: bytes) -> None:
    """Keep a binary; a full disk or a folder that cannot be written only costs the next build."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(hashlib.sha256(binary).digest() + binary)
        Path(name).replace(path)
    except OSError:
        return
