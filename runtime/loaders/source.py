"""Where a model comes from: its bytes, its name for messages, and the folders it may read from."""

from __future__ import annotations

import hashlib
import os
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from crossdock.runtime.errors import LimitError, LoadError, MalformedModel
from crossdock.runtime.files import label_of, open_regular
from crossdock.runtime.limits import Limits, limits_of, require_free
from crossdock.runtime.tensor import Array

MAX_BYTES = (1 << 31) - 1
"""The largest model file read: what one protobuf or flatbuffer message may hold."""

_PIECE = 1 << 24
_HASHED = 1 << 20
"""Bytes read at a time where they are hashed: they stay in the cache."""

Sourced = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO


@dataclass(frozen=True)
class Source:
    """A model's bytes.

    ``label`` names it in messages. ``folder`` is where relative locations start from (None: the
    model came without a place); ``roots`` are the resolved folders that a file it names must lie
    under: the folder itself and, where the model is a link (a hub's cache), the real file's.
    ``limits`` are what loading it, and running what it becomes, may take. ``linked``: the file
    has a hard link. ``spans`` is what has been read of external data,
    ``taken`` how much of each file.
    """

    data: bytes
    label: str
    folder: Path | None = None
    roots: tuple[Path, ...] = ()
    limits: Limits = field(default_factory=Limits)
    linked: bool = False
    spans: dict[tuple[Path, int, int], Array] = field(default_factory=dict, repr=False)
    taken: Counter[Path] = field(default_factory=Counter, repr=False)


def read(source: Sourced, limits: Limits | None = None) -> Source:
    """Read a path, a buffer or a binary file object; ``limits``: default ones if None.

    Raises:
        LoadError: the file cannot be read, or the object is none of these.
        UnsafeModel: the path names something other than a file.
        LimitError: the file is too large.
    """
    limits = limits_of(limits)
    if isinstance(source, bytes | bytearray | memoryview):
        label = f"<{len(source)} bytes>"
        if len(source):
            _check_model(len(source), label, limits)
        return Source(bytes(source), label, limits=limits)
    if isinstance(source, str | os.PathLike):
        return ModelFile(Path(os.fspath(source)), limits).source()
    method = getattr(source, "read", None)
    if callable(method):
        return _from_file(source, method, limits)
    raise LoadError(f"cannot load a {type(source).__name__}; give a path, bytes or a binary file")


def _from_file(source: BinaryIO, method: Callable[[int], object], limits: Limits) -> Source:
    parts: list[bytes] = []
    name = getattr(source, "name", None)
    label = label_of(name) if isinstance(name, str) else "<file object>"
    size = 0
    while part := method(_PIECE):
        if not isinstance(part, bytes | bytearray):
            raise LoadError(f"{label}: the file object gives text; open it in binary mode ('rb')")
        parts.append(bytes(part))
        size += len(part)
        _check_model(size, label, limits)
    data = b"".join(parts)
    if isinstance(name, str) and os.path.isfile(name):
        return Source(data, label, *_folders(Path(name)), limits, _linked(Path(name)))
    return Source(data, label, limits=limits)


class ModelFile:
    """A model's file, held open: it can be read again whatever becomes of its name.

    ``digest`` is the SHA-256 of what it held when it was opened.
    """

    def __init__(self, path: Path, limits: Limits | None) -> None:
        """Raises what ``read`` does."""
        self.limits = limits_of(limits)
        self.label = label_of(path)
        self._descriptor = open_regular(path, self.label)
        weakref.finalize(self, os.close, self._descriptor).atexit = False
        self._facts = (*_folders(path), self.limits, _linked(path))
        self._size = os.fstat(self._descriptor).st_size
        _check_model(self._size, self.label, self.limits)
        h = hashlib.sha256()
        for piece in self._pieces(_HASHED):
            h.update(piece)
        self.digest = h.hexdigest()

    def _pieces(self, most: int) -> Iterator[bytes]:
        """The content; threads and forked processes may read it at once."""
        at = 0
        while piece := os.pread(self._descriptor, min(most, self._size - at), at):
            yield piece
            at += len(piece)

    def source(self) -> Source:
        """Its content; raises LoadError where that has changed."""
        pieces = list(self._pieces(self._size))  # one, but for the largest files
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        if hashlib.sha256(data).hexdigest() != self.digest:
            raise LoadError(
                f"{self.label}: the file has changed since it was loaded; load it again"
            )
        return Source(data, self.label, *self._facts)


def _linked(path: Path) -> bool:
    """Whether a file has a second name, as package installers make where they share files."""
    try:
        return path.stat().st_nlink > 1
    except OSError:
        return False


def _folders(path: Path) -> tuple[Path, tuple[Path, ...]]:
    here = path.absolute().parent
    roots = dict.fromkeys((here.resolve(), path.resolve().parent))
    return here, tuple(roots)


def _check_model(size: int, label: str, limits: Limits) -> None:
    if size > MAX_BYTES:
        raise LimitError(
            f"{label}: {size:,} bytes is more than a model file may have ({MAX_BYTES:,}); keep the "
            "weights as external data"
        )
    check_size(size, label, limits)


def check_size(size: int, label: str, limits: Limits) -> None:
    """Raise where a file is empty, over the limit, or more than the memory that is free."""
    if size > limits.file_bytes:
        raise LimitError(
            f"{label}: {size:,} bytes is more than a file may have ({limits.file_bytes:,}); raise "
            "Limits.file_bytes if that is right"
        )
    if size == 0:
        raise MalformedModel(f"{label}: the file is empty")
    require_free(size, label)
