"""Reading files that nobody vouches for: regular ones, within a size."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from crossdock.runtime.errors import LimitError, LoadError, UnsafeModel

MAX_RECORD = 256 << 20
"""Bytes that a plan, a machine profile or kept costs may have."""


def label_of(path: str | os.PathLike[str]) -> str:
    """A path in a message: as it is where it can be printed, else quoted and escaped."""
    text = os.fspath(path)
    return text if text.isprintable() else repr(text)


def open_regular(path: str | Path, label: str, *, follow: bool = True) -> int:
    """Open a file for reading and return its descriptor; raises unless it is a regular file.

    Pipes and devices are refused before anything blocks. Without ``follow`` a link put in the
    file's place since it was resolved is an error.
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
        raise UnsafeModel(f"{label}: is {what}; give the file itself")
    return fd


def read_record(path: str | Path, what: str) -> bytes:
    """The bytes of a small file.

    Raises:
        LoadError: it cannot be read, is no regular file, or is larger than any ``what``.
    """
    fd = open_regular(path, label_of(path))
    with os.fdopen(fd, "rb") as file:
        size = os.fstat(fd).st_size
        if size > MAX_RECORD:
            raise LimitError(
                f"{label_of(path)}: is over {MAX_RECORD:,} bytes, and so is no {what}; make it anew"
            )
        return file.read(size)


def read_json(path: str | Path, what: str) -> Any:
    """Read a JSON file; raises LoadError naming the file and what it should hold."""
    return parse_json(read_record(path, what), label_of(path), what)


def parse_json(data: bytes, label: str, what: str) -> Any:
    """Parse a JSON file's content; raises LoadError naming the file and what it should hold."""
    try:
        return json.loads(data)
    except RecursionError as error:
        raise LoadError(f"{label}: is nested too deep to be a {what}; make it anew") from error
    except ValueError as error:
        raise LoadError(f"{label}: is no {what}: {error!s:.200}") from error
