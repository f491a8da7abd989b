"""Many modules compiled at once, by processes of ``cpu_compiler``.

LLVM's binding lets one thread of a process compile at a time; so each processor gets a process,
which lives as long as there is something to compile. What they do not compile, for whatever reason,
is left to the caller, who finds out why.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from crossdock.devices import cpu_compiler, topology

WORTH = 1 << 19
"""Characters of IR that take longer to compile than processes take to start."""

Progress = Callable[[int, int], None]
"""Told how many of how many are done; from any thread, by one at a time."""


def compile_all(
    texts: Mapping[str, str],
    level: str,
    made: Callable[[str, bytes], None],
    progress: Progress | None = None,
) -> None:
    """Compile modules, by key, and hand object code to ``made``, by one thread at a time.

    ``level`` is the level of instruction sets, or empty. Modules that are compiled in less time
    than processes take to start are left out.
    """
    if sum(map(len, texts.values())) < WORTH or not _can_start():
        return
    work = _Work(texts, level, made, progress)
    count = min(topology.cpu_count(), len(texts))
    processes = [found for _ in range(count) if (found := _started()) is not None]
    threads = [threading.Thread(target=work.share, args=(p,), daemon=True) for p in processes]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        work.left.clear()
        for process in processes:
            process.kill()
        for thread in threads:
            thread.join()
        for process in processes:
            with suppress(OSError):  # what was still to be written has nobody to read it
                process.communicate()


class _Work:
    """Modules to compile, which threads share out among processes."""

    def __init__(
        self,
        texts: Mapping[str, str],
        level: str,
        made: Callable[[str, bytes], None],
        progress: Progress | None,
    ) -> None:
        self.texts, self.level, self.made, self.progress = texts, level, made, progress
        self.left = sorted(texts, key=lambda name: len(texts[name]))  # the longest is taken first
        self.done = 0
        self._lock = threading.Lock()

    def share(self, process: subprocess.Popen[bytes]) -> None:
        """Let a process compile until nothing is left."""
        asked, answers = process.stdin, process.stdout
        assert asked is not None
        assert answers is not None
        try:
            cpu_compiler.write_frame(asked, json.dumps([sys.path, self.level]).encode())
            while (name := self._next()) is not None:
                cpu_compiler.write_frame(asked, self.texts[name].encode())
                sound = answers.read(1) == b"\1"
                self._take(name, cpu_compiler.read_frame(answers), sound=sound)
        except (OSError, EOFError):  # it died; others go on, and so does who asked
            return

    def _next(self) -> str | None:
        with self._lock:
            return self.left.pop() if self.left else None

    def _take(self, name: str, answer: bytes, *, sound: bool) -> None:
        with self._lock:
            self.done += 1
            if self.progress is not None:
                self.progress(self.done, len(self.texts))
            if sound:
                self.made(name, answer)


def _can_start() -> bool:
    """Whether the program that runs is Python itself, which can be started on a file."""
    name = Path(sys.executable or "").name.lower()
    return name.startswith(("python", "pypy")) and not getattr(sys, "frozen", False)


def _started() -> subprocess.Popen[bytes] | None:
    command = [sys.executable, "-I", cpu_compiler.__file__]
    pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
    try:
        return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=nowhere)
    except OSError:  # no memory, no more processes
        return None
