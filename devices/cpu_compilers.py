"""Many modules compiled at once, by processes of ``cpu_compiler``.

LLVM's binding lets one thread of a process compile at a time; so each processor gets a process,
which lives as long as there is something to compile. What they do not compile, for whatever reason,
is left to the caller, who finds out why.
"""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue

from crossdock.devices import cpu_compiler, topology

WORTH = 1 << 19
"""Characters of IR that take longer to compile than processes take to start."""

Progress = Callable[[int, int], None]
"""Told how many of how many are done."""


def compile_all(
    texts: Iterable[tuple[str, str]],
    level: str,
    made: Callable[[str, bytes], None],
    until: float = math.inf,
    progress: Progress | None = None,
) -> None:
    """Compile modules, given with their keys, and hand object code to ``made`` as it comes.

    That is done in the calling thread, as is the making of texts, which goes on while others are
    compiled already; it ends at ``until`` on the clock of ``time.monotonic``. ``level`` is the
    level of instruction sets, or empty. Modules that are compiled in less time than processes take
    to start are left out.
    """
    if not _can_start():
        return
    left = iter(texts)
    first: list[tuple[str, str]] = []
    while not first or sum(len(text) for _, text in first) < WORTH:
        found = next(left, None)
        if found is None or time.monotonic() > until:
            return
        first.append(found)
    work = _Work(level)
    try:
        work.start()
        for found in itertools.chain(first, left):
            work.add(*found)
            if time.monotonic() > until:
                return
            work.hand_out(made, progress)
        work.end()
        work.hand_out(made, progress, until)
    finally:
        work.close()


class _Work:
    """Modules to compile, and the processes and threads that do it, a thread a process."""

    def __init__(self, level: str) -> None:
        self._level = level
        self._left: SimpleQueue[tuple[str, str] | None] = SimpleQueue()
        self._found: SimpleQueue[tuple[str, bytes | None] | None] = SimpleQueue()
        self._added = self._done = 0
        wanted = range(topology.cpu_count())
        self._processes = [p for _ in wanted if (p := _started()) is not None]
        self._at_work = len(self._processes)
        self._threads = [
            threading.Thread(target=self._share, args=(p,), daemon=True) for p in self._processes
        ]

    def start(self) -> None:
        """Begin to compile what comes."""
        for thread in self._threads:
            thread.start()

    def add(self, key: str, text: str) -> None:
        """One more module."""
        self._added += 1
        self._left.put((key, text))

    def end(self) -> None:
        """No more modules: processes end when the last is compiled."""
        for _ in self._threads:
            self._left.put(None)

    def hand_out(
        self,
        made: Callable[[str, bytes], None],
        progress: Progress | None,
        until: float | None = None,
    ) -> None:
        """Hand out what is compiled by now; with ``until`` all that is by then."""
        with suppress(Empty):
            while self._at_work:
                wait = 0.0 if until is None else max(0.0, until - time.monotonic())
                endless = wait == math.inf
                found = self._found.get(block=wait > 0, timeout=None if endless else wait)
                if found is None:
                    self._at_work -= 1
                    continue
                self._done += 1
                if progress is not None:
                    progress(self._done, self._added)
                key, code = found
                if code is not None:
                    made(key, code)

    def close(self) -> None:
        """End processes and threads, whatever they are at."""
        for process in self._processes:
            process.kill()
        self.end()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()
        for process in self._processes:
            with suppress(OSError):  # what was still to be written has nobody to read it
                process.communicate()

    def _share(self, process: subprocess.Popen[bytes]) -> None:
        """Let a process compile until nothing is left."""
        asked, answers = process.stdin, process.stdout
        assert asked is not None
        assert answers is not None
        try:
            path = [str(place) for place in sys.path]
            cpu_compiler.write_frame(asked, json.dumps([path, self._level]).encode())
            while (job := self._left.get()) is not None:
                key, text = job
                cpu_compiler.write_frame(asked, text.encode())
                sound = answers.read(1) == b"\1"
                answer = cpu_compiler.read_frame(answers)
                self._found.put((key, answer if sound else None))
        except (OSError, EOFError):  # it died; others go on, and so does who asked
            return
        finally:
            self._found.put(None)


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
