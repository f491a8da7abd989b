"""Files kept on disk between processes, in folders that nobody else can write to.

What is read here is executed, or computed with, so a folder is a trust boundary: it must be this
user's own and writable by nobody else, and so must each file, which may be no link, and whose
content and name are checked against its own digest. What is damaged is deleted, which the log says
at its level DEBUG, and anything else that is none of ours is ignored: both are made anew. A folder
that cannot be had is done without, of which a process is told once.

This guards against other users, against damage, and against files that were mixed up; not against
who may write as this user: they could as well change the program.
"""

from __future__ import annotations

import hashlib
import os
import stat
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from crossdock.runtime import files, settings
from crossdock.runtime.errors import CacheWarning, LoadError

DIGEST = 32
_SEAL = b'{"sha256": "'
_SEALED = len(_SEAL) + 2 * DIGEST + len(b'", ')
_WARNED: set[str] = set()


def key(*parts: str) -> str:
    """The name of what was made from these."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


class Folder:
    """A private folder of files of at most ``limit`` bytes, by name; it is made when needed.

    ``root`` gives the folder that it is in.
    """

    def __init__(
        self, name: str, limit: int, root: Callable[[], Path | None] = settings.cache_dir
    ) -> None:
        self.name = name
        self.limit = limit
        self.root = root

    def load(self, name: str) -> bytes | None:
        """The content kept under a name, or None."""
        descriptor = self.open(name)
        if descriptor is None:
            return None
        with os.fdopen(descriptor, "rb") as file:
            found = file.read(self.limit + 1)
        digest, content = found[:DIGEST], found[DIGEST:]
        if len(found) <= self.limit and digest == digest_of(name, content):
            return content
        self.discard(name, "its digest is another")
        return None

    def discard(self, name: str, why: str) -> None:
        """Delete a damaged file."""
        folder = self.path()
        if folder is not None:
            discard(folder / name, why)

    def open(self, name: str) -> int | None:
        """The descriptor of a file that only this user can have written, or None."""
        folder = self.path()
        if folder is None:
            return None
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        try:
            descriptor = os.open(folder / name, flags | getattr(os, "O_CLOEXEC", 0))
        except OSError:
            return None
        if not _private(os.fstat(descriptor), stat.S_ISREG):
            os.close(descriptor)
            return None
        return descriptor

    def save(self, name: str, content: bytes) -> None:
        """Keep content under a name; never raises where it cannot."""
        self.write(name, lambda file: file(digest_of(name, content) + content))

    def write(self, name: str, fill: Callable[[Callable[[bytes], object]], object]) -> bool:
        """Put a file in its place when ``fill`` has written all of it; False where it cannot."""
        folder = self.path()
        return folder is not None and replace(folder / name, fill)

    def make_room(self, nbytes: int, most: int) -> bool:
        """Delete the files used least lately until ``nbytes`` more make at most ``most``.

        False where they cannot, and then nothing is deleted.
        """
        folder = self.path()
        if folder is None or nbytes > most:
            return False
        try:
            files = [(f.stat().st_mtime_ns, f.stat().st_size, f) for f in folder.iterdir()]
        except OSError:  # another process deletes, too
            return False
        total = sum(size for _, size, _ in files)
        for _, size, file in sorted(files):
            if total + nbytes <= most:
                break
            file.unlink(missing_ok=True)
            total -= size
        return True

    def path(self) -> Path | None:
        """The folder, made if need be; None where there is none to be had."""
        root = self.root()
        if root is None:
            if not settings.keeps_nothing():
                _warn(Path("the cache folder"), "cannot be made or written")
            return None
        folder = root / self.name
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            inside, outside = os.lstat(folder), os.stat(root)
        except OSError as error:
            _warn(folder, f"cannot be made ({error.strerror})")
            return None
        for place, status in ((root, outside), (folder, inside)):
            if not _private(status, stat.S_ISDIR):
                _warn(place, "is not this user's alone to write to")
                return None
        return folder


def replace(place: Path, fill: Callable[[Callable[[bytes], object]], object]) -> bool:
    """Put a file (mode 0600) in its place when ``fill`` has written all of it.

    The disk is not waited for: what a loss of power leaves half written has another digest.
    Returns False where that cannot be done, of which the process is told once.
    """
    import tempfile  # takes long to load, and most processes only read

    made: Path | None = None
    try:
        descriptor, name = tempfile.mkstemp(dir=place.parent, prefix="new-")
        made = Path(name)
        with os.fdopen(descriptor, "wb") as file:
            fill(file.write)
        made.replace(place)
    except OSError as error:
        _drop(made)
        _warn(place.parent, f"cannot be written ({error.strerror})")
        return False
    except BaseException:
        _drop(made)
        raise
    return True


def sealed(text: bytes) -> bytes:
    """A JSON object whose first entry is the digest of what follows it; ``text`` is without it."""
    rest = text[1:]
    return _SEAL + hashlib.sha256(rest).hexdigest().encode() + b'", ' + rest


def read_sealed(path: Path, what: str) -> dict[str, Any]:
    """The object that ``sealed`` made the content of a file of, without the digest.

    Raises:
        LoadError: it cannot be read, or its digest is another.
    """
    data = files.read_record(path, what)
    text = b"{" + data[_SEALED:]
    if data[:_SEALED] != sealed(text)[:_SEALED]:
        raise LoadError(f"{files.label_of(path)}: is no {what}, or a damaged one; delete it")
    found: dict[str, Any] = files.parse_json(text, files.label_of(path), what)
    return found


def discard(path: Path, why: str) -> None:
    """Delete a damaged file, so that it is made anew, and say so in the debug log."""
    import logging  # takes a while to load, and hardly any process needs it

    logging.getLogger("crossdock").debug(
        "%s is damaged, and made anew: %s", files.label_of(path), why
    )
    with suppress(OSError):
        path.unlink()


def _drop(made: Path | None) -> None:
    if made is not None:
        made.unlink(missing_ok=True)


def digest_of(name: str, content: bytes) -> bytes:
    """Of content and its name: what was kept for something else is no better than damaged."""
    return hashlib.sha256(name.encode() + b"\0" + content).digest()


def _warn(place: Path, why: str) -> None:
    """Tell once in a process that a cache folder cannot be had."""
    root = os.environ.get("CROSSDOCK_CACHE_DIR", "")
    if root in _WARNED:
        return
    _WARNED.add(root)
    warnings.warn(
        f"{place} {why}: kernels, costs and plans are made anew in every process; give a private "
        "folder in CROSSDOCK_CACHE_DIR (chmod 700), or 'off'",
        CacheWarning,
        stacklevel=2,
    )


def _private(status: os.stat_result, kind: Callable[[int], bool]) -> bool:
    """Whether it is of the kind, this user's, and writable by nobody else."""
    own = not hasattr(os, "getuid") or status.st_uid == os.getuid()
    return kind(status.st_mode) and own and not status.st_mode & 0o022
