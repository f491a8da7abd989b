"""NVRTC through ctypes: compiles CUDA texts for a card that is not here, down to machine code."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
from pathlib import Path

ABSENT = "no NVRTC: pip install nvidia-cuda-nvrtc-cu12"


class BuildError(Exception):
    """NVRTC refused the text; the message is its log."""


@functools.cache
def library() -> ctypes.CDLL | None:
    """The library of the wheel, or None where it is not installed."""
    try:
        spec = importlib.util.find_spec("nvidia.cuda_nvrtc")
    except ModuleNotFoundError:
        return None
    if spec is None or not spec.submodule_search_locations:
        return None
    found = sorted(Path(spec.submodule_search_locations[0], "lib").glob("libnvrtc.so.*"))
    if not found:
        return None
    lib = ctypes.CDLL(str(found[-1]))
    lib.nvrtcGetErrorString.restype = ctypes.c_char_p
    return lib


def _check(lib: ctypes.CDLL, status: int) -> None:
    if status:
        raise BuildError(lib.nvrtcGetErrorString(status).decode())


def _fetch(lib: ctypes.CDLL, program: ctypes.c_void_p, what: str) -> bytes:
    size = ctypes.c_size_t()
    _check(lib, getattr(lib, f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
    text = ctypes.create_string_buffer(size.value)
    _check(lib, getattr(lib, f"nvrtcGet{what}")(program, text))
    return text.raw


def version() -> str:
    """The compiler's version, such as ``12.9``."""
    lib = library()
    assert lib is not None, ABSENT
    major, minor = ctypes.c_int(), ctypes.c_int()
    _check(lib, lib.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
    return f"{major.value}.{minor.value}"


def compile_text(text: str, arch: str, options: tuple[str, ...] = ()) -> bytes:
    """Machine code of a text for an architecture such as ``sm_80``; no include path is given."""
    return _compiled(text, arch, options)[0]


def compile_log(text: str, arch: str, options: tuple[str, ...] = ()) -> str:
    """The log of a compilation that succeeds."""
    return _compiled(text, arch, options)[1]


def _compiled(text: str, arch: str, options: tuple[str, ...]) -> tuple[bytes, str]:
    lib = library()
    assert lib is not None, ABSENT
    program = ctypes.c_void_p()
    source, name = text.encode(), b"kernel.cu"
    _check(lib, lib.nvrtcCreateProgram(ctypes.byref(program), source, name, 0, None, None))
    try:
        flags = [f"--gpu-architecture={arch}".encode(), *(o.encode() for o in options)]
        status = lib.nvrtcCompileProgram(
            program, len(flags), (ctypes.c_char_p * len(flags))(*flags)
        )
        log = _fetch(lib, program, "ProgramLog").rstrip(b"\0").decode()
        if status:
            raise BuildError(f"{lib.nvrtcGetErrorString(status).decode()}\n{log}")
        return _fetch(lib, program, "CUBIN"), log
    finally:
        lib.nvrtcDestroyProgram(ctypes.byref(program))
