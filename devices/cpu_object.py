"""Loads object code into memory without LLVM: 64-bit ELF for x86-64, as the LLVM engine emits it.

Sections that a process needs are laid into one block of memory, addresses are written where the
code refers to symbols, and the block is made executable and read-only. LLVM emits the large code
model for code that is loaded where it happens to fit, so that references are whole addresses
(System V ABI, AMD64 supplement, 4.4.1). What is not understood is left to LLVM's own loader.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import platform
import struct
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_MACHINES = {"x86_64": 62, "amd64": 62}
_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_RELOCATION = struct.Struct("<QQq")
_RELOCATABLE, _SYMBOLS, _RELOCATIONS, _ZEROS, _ALLOCATED = 1, 2, 4, 8, 2
_UNWINDING = 0x70000001
_UNDEFINED, _ABSOLUTE = 0, 0xFFF1
_WHOLE, _RELATIVE, _CALL = 1, 2, 4  # R_X86_64_64, R_X86_64_PC32, R_X86_64_PLT32
_READ_EXECUTE = 1 | 4

_KEPT: list[mmap.mmap] = []
"""Code lives until the process ends."""


class Unsupported(Exception):
    """Object code of a kind that is left to LLVM's loader; says why."""


@dataclass(frozen=True)
class _Section:
    name: int
    kind: int
    flags: int
    offset: int
    size: int
    link: int
    info: int
    align: int


def link(code: bytes) -> Mapping[str, int]:
    """Load object code for good; the addresses of its functions by name.

    Raises:
        Unsupported: it is not of this machine's kind, or has parts that are not understood.
    """
    try:
        return _Linker(code).link()
    except (struct.error, IndexError, ValueError, UnicodeDecodeError) as error:
        raise Unsupported(f"the object code is damaged: {error}") from error


class _Linker:
    def __init__(self, code: bytes) -> None:
        self.code = code
        self.sections = _sections(code)
        self.places: dict[int, int] = {}

    def link(self) -> dict[str, int]:
        """Lay out, fill in and protect."""
        size = self._lay_out()
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        for index, place in self.places.items():
            found = self.sections[index]
            if found.kind != _ZEROS:
                memory[place : place + found.size] = self._bytes(found)
        for found in self.sections:
            if found.kind == _RELOCATIONS and found.info in self.places:
                self._relocate(memory, found)
        if _protect()(self.base, size, _READ_EXECUTE):
            raise Unsupported("the system lets no memory be made executable")
        _KEPT.append(memory)
        return {
            name: self.base + self.places[part] + value
            for found in self.sections
            if found.kind == _SYMBOLS
            for name, part, value in self._symbols(found)
            if name and part in self.places
        }

    def _lay_out(self) -> int:
        at = 0
        for i, found in enumerate(self.sections):
            if found.flags & _ALLOCATED and found.kind != _UNWINDING:
                at = -(-at // max(found.align, 1)) * max(found.align, 1)
                self.places[i] = at
                at += found.size
        if not at:
            raise Unsupported("the object code is empty")
        return at

    def _bytes(self, found: _Section) -> bytes:
        data = self.code[found.offset : found.offset + found.size]
        if len(data) != found.size:
            raise ValueError("a section is cut off")
        return data

    def _symbols(self, found: _Section) -> Iterator[tuple[str, int, int]]:
        names = self._bytes(self.sections[found.link])
        for name, _, _, part, value, _ in _SYMBOL.iter_unpack(self._bytes(found)):
            yield names[name : names.index(b"\0", name)].decode(), part, value

    def _relocate(self, memory: mmap.mmap, found: _Section) -> None:
        symbols = list(self._symbols(self.sections[found.link]))
        into, size = self.places[found.info], self.sections[found.info].size
        for offset, info, more in _RELOCATION.iter_unpack(self._bytes(found)):
            if offset + 4 > size:
                raise ValueError("a reference lies outside of its section")
            at, value = into + offset, self._value(*symbols[info >> 32]) + more
            kind = info & 0xFFFFFFFF
            if kind == _WHOLE:
                memory[at : at + 8] = value.to_bytes(8, "little")
                continue
            distance = value - (self.base + at)
            if kind not in (_RELATIVE, _CALL) or not -(1 << 31) <= distance < 1 << 31:
                raise Unsupported(f"a reference of kind {kind}")
            memory[at : at + 4] = distance.to_bytes(4, "little", signed=True)

    def _value(self, name: str, part: int, value: int) -> int:
        if part == _UNDEFINED:
            return _outside(name)
        if part == _ABSOLUTE:
            return value
        if part not in self.places:
            raise Unsupported(f"a reference to section {part}")
        return self.base + self.places[part] + value


def _sections(code: bytes) -> list[_Section]:
    mark, kind, machine, *_, table = _HEADER.unpack_from(code)[:7]
    wide_and_little = mark[:6] == b"\x7fELF\x02\x01"
    if not wide_and_little or kind != _RELOCATABLE or machine != _machine():
        raise Unsupported("no relocatable code for this machine")
    width, count = _HEADER.unpack_from(code)[11:13]
    if width != _SECTION.size:
        raise Unsupported(f"sections are described in {width} bytes")
    rows = (_SECTION.unpack_from(code, table + i * width) for i in range(count))
    return [
        _Section(name, kind, flags, offset, size, link, info, align)
        for name, kind, flags, _, offset, size, link, info, align, _ in rows
    ]


def _machine() -> int:
    if sys.platform != "linux":
        raise Unsupported(f"a process of {sys.platform}")
    found = _MACHINES.get(platform.machine().lower())
    if found is None:
        raise Unsupported(f"a processor of kind {platform.machine()}")
    return found


def _outside(name: str) -> int:
    """The address of a function of the C library."""
    try:
        found = ctypes.cast(getattr(_process(), name), ctypes.c_void_p).value
    except AttributeError as error:
        raise Unsupported(f"nothing here is called {name!r}") from error
    assert found
    return found


@functools.cache
def _process() -> ctypes.CDLL:
    return ctypes.CDLL(None)


@functools.cache
def _protect() -> Any:
    protect = _process().mprotect
    protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return protect
