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
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue

from crossdock.devices import cpu_compiler, topology

WORTH = 1 << 19
"""Characters of IR that take longer to compile than processes take to start."""

Progress = Callable[[int, int], None]
"""Told how many of how many are done."""


def compile_all(
    texts: Mapping[str, str],
    level: str,
    made: Callable[[str, bytes], None],
    progress: Progress | None = None,
) -> None:
    """Compile modules, by key, and hand object code to ``made``, in the calling thread.

    ``level`` is the level of instruction sets, or empty. Modules that are compiled in less time
    than processes take to start are left out.
    """
    if sum(map(len, texts.values())) < WORTH or not _can_start():
        return
    work = _Work(texts, level)
    count = min(topology.cpu_count(), len(texts))
    processes = [found for _ in range(count) if (found := _started()) is not None]
    threads = [threading.Thread(target=work.share, args=(p,), daemon=True) for p in processes]
    try:
        for thread in threads:
            thread.start()
        for done, (name, code) in enumerate(work.results(len(threads)), 1):
            if progress is not None:
                progress(done, len(texts))
            if code is not None:
                made(name, code)
    finally:
        work.left.clear()
        for process in processes:
            process.kill()
        for thread in threads:
            if thread.ident is not None:
                thread.join()
        for process in processes:
            with suppress(OSError):  # what was still to be written has nobody to read it
                process.communicate()


class _Work:
    """Modules to compile, which threads share out among processes."""

    def __init__(self, texts: Mapping[str, str], level: str) -> None:
        self.texts, self.level = texts, level
        self.left = sorted(texts, key=lambda name: len(texts[name]))  # the longest is taken first
        self._found: SimpleQueue[tuple[str, bytes | None] | None] = SimpleQueue()

    def results(self, threads: int) -> Iterator[tuple[str, bytes | None]]:
        """Modules' object code as it comes, None where LLVM refuses; ends with the threads."""
        while threads:
            found = self._found.get()
            if found is None:
                threads -= 1
            else:
                yield found

    def share(self, process: subprocess.Popen[bytes]) -> None:
        """Let a process compile until nothing is left."""
        asked, answers = process.stdin, process.stdout
        assert asked is not None
        assert answers is not None
        try:
            path = [str(place) for place in sys.path]
            cpu_compiler.write_frame(asked, json.dumps([path, self.level]).encode())
            while (name := self._next()) is not None:
                cpu_compiler.write_frame(asked, self.texts[name].encode())
                sound = answers.read(1) == b"\1"
                answer = cpu_compiler.read_frame(answers)
                self._found.put((name, answer if sound else None))
        except (OSError, EOFError):  # it died; others go on, and so does who asked
            return
        finally:
            self._found.put(None)

    def _next(self) -> str | None:
        try:
            return self.left.pop()
        except IndexError:
            return None


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
