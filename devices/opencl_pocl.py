"""What PoCL compiles, kept between processes without letting it read a damaged file.

PoCL keeps programs and kernels in a folder that it shares with every process, and a file there that
is cut off or damaged ends the process. So here it gets a folder of this process alone, which lives
as long as the process does. Before a program is built, what is kept of it comes in, if its digest
is right (``runtime.kept``); what PoCL has compiled is kept afterwards. Folders of processes that
were killed are removed by the next one: it can lock them.

A user's ``POCL_CACHE_DIR`` is left as it is, and so is what PoCL makes of it.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from crossdock.runtime import settings
from crossdock.runtime.kept import Folder

VARIABLE = "POCL_CACHE_DIR"
LIVE = "pocl-live-"
"""How the folders of processes begin; a child does not take its parent's for the user's."""
NEW = "pocl-new-"
LARGEST = 64 << 20
MOST = 1 << 30
"""Bytes of all that is kept."""
ROOM = 1 << 20
"""Bytes that a file must be able to have: as many as the largest that PoCL writes."""
_PROGRAM, _USED = "program.bc", "last_accessed"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_EXECUTABLE = ".so"


def _root() -> Path | None:
    """Where it is kept: beside PoCL's usual folder, or where this project keeps its own."""
    if settings.keeps_nothing():
        return None
    root = settings.usual_cache_dir()
    with suppress(OSError):
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        if os.access(root, os.W_OK):
            return root
    return settings.cache_dir()


FOLDER = Folder("pocl", LARGEST, _root)


class Compiled:
    """The folder of this process, and the programs that were built through it, by kept name."""

    def __init__(self, place: Path, lock: int) -> None:
        self.place = place
        self._lock = lock
        self._pid = os.getpid()
        self._homes: dict[str, str] = {}  # a program's folder, relative to ``place``
        self._kept: dict[str, frozenset[str]] = {}  # the files of it that are kept
        self._open: set[str] = set()  # programs without a kernel so far
        self._seen: set[str] = set()  # folders of programs that were there before
        self._mutex = threading.RLock()

    @contextmanager
    def building(self, name: str) -> Iterator[None]:
        """While a program is built: what is kept of it is there, and what is made of it is kept."""
        with self._mutex:
            self._bring(name)
            try:
                yield
            finally:
                if not self._taken(name):
                    there = self._programs()
                    new, self._seen = there - self._seen, there
                    if len(new) == 1:
                        self._homes[name] = new.pop()
                        self._open.add(name)
            for each in list(self._open):
                self._keep(each)

    def end(self) -> None:
        """Keep what has come since, and remove the folder."""
        if os.getpid() != self._pid:
            return
        with self._mutex:
            for name in self._homes:
                self._keep(name)
        shutil.rmtree(self.place, ignore_errors=True)
        os.close(self._lock)

    def _taken(self, name: str) -> bool:
        """Whether PoCL has built from what was brought, or built before, and so left its mark."""
        home = self._homes.get(name)
        return home is not None and (self.place / home / _USED).exists()

    def _programs(self) -> set[str]:
        found: set[str] = set()
        with suppress(OSError):
            for first in os.scandir(self.place):
                if first.is_dir():
                    found |= {f"{first.name}/{second}" for second in os.listdir(first.path)}
        return found

    def _files(self, home: str) -> dict[str, Path]:
        """The files of a program that are worth keeping, by their place within its folder."""
        top = self.place / home
        found = {}
        for folder, _, names in os.walk(top):
            for name in names:
                if name == _PROGRAM or name.endswith(_EXECUTABLE):
                    path = Path(folder, name)
                    found[path.relative_to(top).as_posix()] = path
        return found

    def _keep(self, name: str) -> None:
        home = self._homes.get(name)
        if home is None:
            return
        files = self._files(home)
        if frozenset(files) == self._kept.get(name) or not files:
            return
        try:
            content = _packed(home, files)
        except OSError:  # PoCL is at it: next time
            return
        if FOLDER.make_room(len(content), MOST):
            FOLDER.save(name, content)
        self._kept[name] = frozenset(files)
        if any(file.endswith(_EXECUTABLE) for file in files):
            self._open.discard(name)

    def _bring(self, name: str) -> None:
        if name in self._homes:
            return
        content = FOLDER.load(name)
        if content is None:
            return
        with suppress(OSError, ValueError, KeyError, TypeError):
            home, files = _unpacked(content)
            for place, data in files.items():
                target = self.place / home / place
                target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                target.write_bytes(data)
                target.chmod(0o700 if place.endswith(_EXECUTABLE) else 0o600)
            self._homes[name] = home
            self._seen.add(home)
            self._kept[name] = frozenset(files)
            if not any(file.endswith(_EXECUTABLE) for file in files):
                self._open.add(name)


def _packed(home: str, files: dict[str, Path]) -> bytes:
    """A program's files as one content: a line that lists them, then their bytes."""
    contents = {place: path.read_bytes() for place, path in sorted(files.items())}
    listed = [[place, len(data)] for place, data in contents.items()]
    head = json.dumps([home, listed], separators=(",", ":")).encode()
    return b"".join((head, b"\n", *contents.values()))


def _unpacked(content: bytes) -> tuple[str, dict[str, bytes]]:
    """The program's folder and its files; raises ValueError where a name is none of PoCL's."""
    head, _, rest = content.partition(b"\n")
    home, listed = json.loads(head)
    files, at = {}, 0
    for place, size in listed:
        if not all(_NAME.fullmatch(part) for part in (*home.split("/"), *place.split("/"))):
            raise ValueError(place)
        files[place] = rest[at : at + size]
        at += size
    return home, files


# --- the folder -----------------------------------------------------------------------------------


@functools.cache
def compiled() -> Compiled | None:
    """This process's folder, made and named to PoCL; None where PoCL has the user's, or its own.

    To be called before PoCL is loaded.
    """
    given = os.environ.get(VARIABLE)
    if os.name != "posix" or (given is not None and not Path(given).name.startswith(LIVE)):
        return None
    for root in (_root(), Path(tempfile.gettempdir())):
        made = None if root is None else _made(root)
        if made is not None:
            os.environ[VARIABLE] = str(made.place)
            atexit.register(made.end)
            return made
    os.environ.pop(VARIABLE, None)
    return None


def _made(root: Path) -> Compiled | None:
    """A folder for this process, where files can be written.

    It is locked before it has the name by which other processes would remove it.
    """
    try:
        _remove_left(root)
        made = Path(tempfile.mkdtemp(prefix=NEW, dir=root))
    except OSError:
        return None
    lock = _locked(made)
    if lock is None or not _has_room(made):
        shutil.rmtree(made, ignore_errors=True)
        return None
    return Compiled(made.rename(root / made.name.replace(NEW, LIVE, 1)), lock)


def _remove_left(root: Path) -> None:
    """Remove the folders of processes that are no more."""
    for place in root.glob(f"{LIVE}*"):
        lock = _locked(place)
        if lock is not None:
            shutil.rmtree(place, ignore_errors=True)
            os.close(lock)


def _locked(place: Path) -> int | None:
    """The descriptor of a folder that this process has locked; None where another one has it."""
    import fcntl  # POSIX alone has it

    try:
        descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _has_room(place: Path) -> bool:
    try:
        (place / "room").write_bytes(bytes(ROOM))
        (place / "room").unlink()
    except OSError:
        return False
    return True
