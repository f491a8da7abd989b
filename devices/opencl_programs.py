"""Building OpenCL programs: once a text in memory, and on disk where the driver keeps nothing.

A cached binary is a file of a private folder of ``runtime.kept``, named by the hash of everything
that it depends on: a damaged one is built again.
"""

from __future__ import annotations

import importlib
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any

from crossdock.devices import opencl_pocl
from crossdock.devices.dialect import assemble
from crossdock.devices.program import GridLaunch
from crossdock.runtime.errors import CompileError
from crossdock.runtime.kept import Folder, key

OPTIONS = ("-cl-std=CL1.2",)

_PYOPENCL = threading.Lock()
"""Held while pyopencl builds a program, since warnings are filtered meanwhile for all threads, and
while it makes a kernel object."""

_POCL = "Portable Computing Language"
_DRIVER_CACHES = (_POCL, "NVIDIA CUDA")
"""Platforms that keep what they built on disk themselves."""


FOLDER = Folder("opencl", 64 << 20)
"""Of binaries; a larger one is none of ours."""

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

    def __init__(self, cl: Any, context: Any, handle: Any, where: str, header: str) -> None:
        self._cl = cl
        self._context = context
        self._handle = handle
        self._where = where
        self._header = header
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
        text = (step.source, step.defines)
        with self._lock:
            found = self._built.get(text)
            if found is None:
                found = self._build(step)
                self._built[text] = found
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
        text = assemble(self._header, step.defines, step.source)
        name = None
        if self._handle.platform.name not in _DRIVER_CACHES:
            name = _name(text, self._handle)
        with _PYOPENCL, warnings.catch_warnings():
            warnings.simplefilter("ignore", cl.CompilerWarning)
            if name is not None and (binary := FOLDER.load(name)) is not None:
                with suppress(cl.Error):  # the driver takes it no more: it is built again
                    return cl.Program(self._context, [self._handle], [binary]).build()
            try:
                with self._kept_by_us(text):
                    program = cl.Program(self._context, text).build(list(OPTIONS))
            except cl.Error as error:
                log = str(error)
                return CompileError(
                    f"{self._where}: kernel {step.entry} does not build: {_first_error(log)}",
                    log=log,
                    source=text,
                )
        if name is not None:
            FOLDER.save(name, bytes(program.get_info(cl.program_info.BINARIES)[0]))
        return program

    def _kept_by_us(self, text: str) -> AbstractContextManager[None]:
        """What PoCL makes of a text is kept by us, not in a folder that it shares."""
        platform = self._handle.platform
        pocl = opencl_pocl.compiled() if platform.name == _POCL else None
        about = (platform.version, self._handle.name, self._handle.driver_version)
        return nullcontext() if pocl is None else pocl.building(key(*about, *OPTIONS, text))


def _first_error(log: str) -> str:
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return next((line for line in lines if re.search(r"\berror\b:", line)), lines[0])


def _name(text: str, handle: Any) -> str:
    about = (handle.platform.name, handle.platform.version, handle.name, handle.driver_version)
    return f"{key(*about, str(handle.max_compute_units), *OPTIONS, text)}.bin"
