"""Machine code kept on disk between processes.

What is read here is executed, so the folder is a trust boundary: it must be this user's own and
writable by nobody else, and so must each file, whose content and name are checked against its own
digest. Anything else is ignored, and the code is compiled anew; a folder that cannot be written is
done without. A key covers the code, the processor, the compiler's version and how it was run.

This guards against other users, against damage, and against files that were mixed up; not against
who may write as this user: they could as well change the program.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

from crossdock.runtime import settings

DIGEST = 32
LIMIT = 16 << 20
"""A larger file is no kernel of ours."""


def key(*parts: str) -> str:
    """The name of what was made from these."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def load(name: str) -> bytes | None:
    """The object code kept under a key, or None."""
    folder = _folder()
    if folder is None:
        return None
    try:
        descriptor = os.open(folder / name, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    except OSError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        if not _private(os.fstat(descriptor), stat.S_ISREG):
            return None
        content = file.read(LIMIT + 1)
    digest, code = content[:DIGEST], content[DIGEST:]
    return code if len(content) <= LIMIT and digest == _digest(name, code) else None


def _digest(name: str, code: bytes) -> bytes:
    """Of the code and its key: code kept for something else is no better than damaged code."""
    return hashlib.sha256(name.encode() + b"\0" + code).digest()


def save(name: str, code: bytes) -> None:
    """Keep object code under a key; never raises where it cannot."""
    folder = _folder()
    if folder is None:
        return
    try:
        descriptor, path = tempfile.mkstemp(dir=folder, prefix="new-")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(_digest(name, code) + code)
            os.replace(path, folder / name)
        except OSError:
            os.unlink(path)
    except OSError:
        return


def _folder() -> Path | None:
    """The private folder, made if need be; None where there is none to be had."""
    root = settings.cache_dir()
    if root is None:
        return None
    folder = root / "native"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        trusted = _private(os.lstat(folder), stat.S_ISDIR) and _private(os.stat(root), stat.S_ISDIR)
    except OSError:
        return None
    return folder if trusted else None


def _private(status: os.stat_result, kind: Callable[[int], bool]) -> bool:
    """Whether it is of the kind, this user's, and writable by nobody else."""
    own = not hasattr(os, "getuid") or status.st_uid == os.getuid()
    return kind(status.st_mode) and own and not status.st_mode & 0o022
