"""One execution watched: what may come of bytes that nobody vouches for.

That is a typed error of one line, or a result that the target finds right; within ``SECONDS`` of a
processor and ``MEMORY`` bytes beyond what is mapped before; and no warning, no print, no file
written, no process, no connection, and no file read where none may be.
"""

from __future__ import annotations

import io
import os
import resource
import sys
import time
import traceback
import unicodedata
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SECONDS = 10.0
MEMORY = 1 << 30
LONGEST = 1_000
"""Characters that a message may have."""

ROOT = Path(__file__).parents[2]

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_NEVER = frozenset({
    "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.system", "os.startfile", "os.remove",
    "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod",
    "os.chown", "os.kill", "pickle.find_class", "shutil.rmtree", "socket.__new__", "socket.connect",
    "socket.bind", "socket.getaddrinfo", "subprocess.Popen", "urllib.Request", "webbrowser.open",
})  # fmt: skip
"""Events of ``sys.audit`` that no reading of a file may cause."""


class Wrong(Exception):
    """A target's result is not right."""


@dataclass(frozen=True)
class Finding:
    """What came out that must not.

    ``kind`` is the exception's class, or what was broken in a word; ``at`` the innermost line of
    this project on the way there. Findings of one ``mark`` are taken for the same fault.
    """

    target: str
    kind: str
    said: str
    at: str = ""
    trace: str = ""

    @property
    def mark(self) -> str:
        """What findings of one fault have in common."""
        return f"{self.target}-{self.kind}-{self.at}".replace("/", ".").replace(":", "-")


class _Eyes:
    """Notes forbidden events while it is open; an audit hook stays for the life of a process."""

    def __init__(self) -> None:
        self.open = False
        self.seen: list[str] = []
        self.may_write: tuple[str, ...] = ()
        self.may_read: tuple[str, ...] | None = None
        self.hooked = False

    def hook(self) -> None:
        if not self.hooked:
            sys.addaudithook(self._note)
            self.hooked = True

    def _note(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.open:
            return
        if event == "open":
            self._opened(*args)
        elif event in _NEVER and not (args and self._inside(args[0], self.may_write)):
            self.seen.append(f"{event} {args!r:.200}")

    def _opened(self, path: Any, mode: Any, flags: Any) -> None:
        writes = bool(flags & _WRITES) if isinstance(flags, int) else False
        writes |= isinstance(mode, str) and not set(mode).isdisjoint("wax+")
        if isinstance(path, int) or (writes and self._inside(path, self.may_write)):
            return
        if writes:
            self.seen.append(f"writes {path!r:.200}")
        elif self.may_read is not None and not self._inside(path, self.may_read):
            self.seen.append(f"reads {path!r:.200}")

    def _inside(self, path: Any, roots: tuple[str, ...]) -> bool:
        if not isinstance(path, str | bytes | os.PathLike):
            return False
        text = os.path.abspath(os.fsdecode(path))
        return any(text == root or text.startswith(root + os.sep) for root in roots)


EYES = _Eyes()

LIBRARIES = tuple(
    dict.fromkeys(
        [
            str(ROOT),
            sys.prefix,
            sys.base_prefix,
            "/proc",
            "/sys",
            "/usr",
            "/lib",
            "/etc/ld.so.cache",
        ]
        + [os.path.realpath(p) for p in sys.path if p]
    )
)
"""Where the interpreter and packages read from, whatever a file says."""


def look(
    target: str,
    run: Callable[[bytes], None],
    data: bytes,
    *,
    may_write: tuple[str, ...] = (),
    may_read: tuple[str, ...] | None = None,
) -> Finding | None:
    """Run a target on bytes; what came of it that must not, or None.

    Args:
        target: its name.
        run: the target; raises Wrong where its result is not right.
        data: the bytes.
        may_write: folders in which files may be written.
        may_read: folders in which files may be read, beside the interpreter's; None for anywhere.
    """
    EYES.hook()
    EYES.seen, EYES.may_write = [], may_write
    EYES.may_read = None if may_read is None else (*may_read, *LIBRARIES)
    out, own = io.StringIO(), (sys.stdout, sys.stderr)
    began = time.process_time()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        sys.stdout = sys.stderr = out
        EYES.open = True
        try:
            found = _attempt(target, run, data)
        finally:
            EYES.open = False
            sys.stdout, sys.stderr = own
    spent = time.process_time() - began
    if found is not None:
        return found
    if spent > SECONDS:
        return Finding(target, "slow", f"{spent:.1f} s of a processor")
    if warned:
        first = warned[0]
        return Finding(target, first.category.__name__, str(first.message),
                       f"{_short(first.filename)}:{first.lineno}")  # fmt: skip
    if EYES.seen:
        return Finding(target, "touched", EYES.seen[0], EYES.seen[0].partition(" ")[0])
    if out.getvalue():
        return Finding(target, "printed", out.getvalue()[:200])
    return None


def _attempt(target: str, run: Callable[[bytes], None], data: bytes) -> Finding | None:
    from crossdock.runtime.errors import Error

    try:
        run(data)
    except Wrong as error:
        where, _, said = str(error).partition(": ")
        return Finding(target, "wrong", said or where, where if said else "")
    except Error as error:
        if isinstance(error.__cause__, MemoryError):
            return _finding(target, error.__cause__, "memory")
        if not one_line(str(error)):
            return _finding(target, error, "message")
        return None
    except BaseException as error:  # noqa: BLE001 - whatever it is, it must not have come
        return _finding(target, error, type(error).__name__)
    return None


def _finding(target: str, error: BaseException, kind: str) -> Finding:
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if str(ROOT) in f.filename and "/tests/" not in f.filename
           and "site-packages" not in f.filename]  # fmt: skip
    at = f"{_short(own[-1].filename)}:{own[-1].lineno}" if own else ""
    said = f"{type(error).__name__}: {error}"[:400]
    return Finding(target, kind, said, at, "".join(traceback.format_list(frames[-12:])))


def _short(filename: str) -> str:
    return filename.removeprefix(str(ROOT)).removeprefix("/.editable/crossdock").lstrip("/")


def one_line(text: str) -> bool:
    """One line of bounded length without control or direction marks."""
    odd = any(unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp") for c in text)
    return bool(text) and len(text) <= LONGEST and not odd


def cap() -> None:
    """Limit this process's address space to what is mapped now and ``MEMORY`` more."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, hard))
