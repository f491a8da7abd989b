"""Where a model comes from: its bytes, its name for messages, and the folders it may read from."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from crossdock.runtime.errors import LoadError, MalformedModel, UnsafeModel

MAX_BYTES = (1 << 31) - 1
"""The largest model file read: what one protobuf or flatbuffer message may hold."""

Sourced = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO


@dataclass(frozen=True)
class Source:
    """A model's bytes.

    ``label`` names it in messages. ``folder`` is where relative locations start from (None: the
    model came without a place); ``roots`` are the resolved folders that a file it names must lie
    under: the folder itself and, where the model is a link (a hub's cache), the real file's.
    """

    data: bytes
    label: str
    folder: Path | None = None
    roots: tuple[Path, ...] = ()


def read(source: Sourced) -> Source:
    """Read a path, a buffer or a binary file object.

    Raises:
        LoadError: the file cannot be read, or the object is none of these.
        UnsafeModel: the path names something other than a file, or the file is too large.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        return Source(bytes(source), f"<{len(source)} bytes>")
    if isinstance(source, str | os.PathLike):
        return _from_path(Path(os.fspath(source)))
    method = getattr(source, "read", None)
    if callable(method):
        return _from_file(source, method)
    raise LoadError(f"cannot load a {type(source).__name__}; give a path, bytes or a binary file")


def _from_file(source: BinaryIO, method: Callable[[int], object]) -> Source:
    data = method(MAX_BYTES + 1)
    name = getattr(source, "name", None)
    label = name if isinstance(name, str) else "<file object>"
    if not isinstance(data, bytes | bytearray):
        raise LoadError(f"{label}: the file object gives text; open it in binary mode ('rb')")
    _check_size(len(data), label)
    if isinstance(name, str) and os.path.isfile(name):
        return Source(bytes(data), label, *_folders(Path(name)))
    return Source(bytes(data), label)


def _from_path(path: Path) -> Source:
    label = str(path)
    return Source(read_regular(path, label), label, *_folders(path))


def _folders(path: Path) -> tuple[Path, tuple[Path, ...]]:
    here = path.absolute().parent
    roots = dict.fromkeys((here.resolve(), path.resolve().parent))
    return here, tuple(roots)


def read_regular(path: Path, label: str, limit: int = MAX_BYTES) -> bytes:
    """Read a regular file, refusing pipes, devices and folders before anything blocks."""
    fd = open_regular(path, label)
    with os.fdopen(fd, "rb") as file:
        _check_size(os.fstat(fd).st_size, label, limit)
        return file.read()


def open_regular(path: Path, label: str, *, follow: bool = True) -> int:
    """Open a file for reading and return its descriptor; raises unless it is a regular file.

    Without ``follow`` a link put in the file's place since it was resolved is an error.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
    flags |= 0 if follow else getattr(os, "O_NOFOLLOW", 0)
    try:
        fd = os.open(path, flags | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise LoadError(f"{label}: cannot be read: {reason}") from error
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode):
        os.close(fd)
        what = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
        raise UnsafeModel(f"{label}: is {what}; give the model file itself")
    return fd


def _check_size(size: int, label: str, limit: int = MAX_BYTES) -> None:
    if size > limit:
        raise UnsafeModel(
            f"{label}: {size:,} bytes is more than a model file may have ({limit:,}); keep the "
            "weights as external data"
        )
    if size == 0:
        raise MalformedModel(f"{label}: the file is empty")
