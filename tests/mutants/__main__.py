"""``python -m tests.mutants [--only NAME] [--json FILE]``: remove each guard, and run its tests.

Nothing of the checkout is changed: a copy of it is, in a temporary folder, one mutant at a time.
First all tests that are named must pass in the copy as it is. Exit status 1 where a mutant survives.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import SimpleQueue

from tests.mutants.kit import ROOT, ROWS, Mutant, mutants, named

ADDRESS_SPACE = 12 << 30
"""Bytes that the tests of a mutant may map: most of it is reserved by libraries, never used."""
AT_ONCE = 8
"""Times as many for all tests in one process, whose devices and libraries stay."""
PACKAGES = ("devices", "kernels", "runtime", "scheduler")
NOT_PASSED = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.MULTILINE)
PASSED, FAILED = 0, 1
"""What pytest ends with; anything else is a mistake in what is declared."""
OPTIONS = ("-x", "-q", "--tb=no", "-rfE", "-p", "no:cacheprovider", "-p", "no:xdist")

CAUGHT, SURVIVED, BROKEN, HUNG = "caught", "SURVIVED", "BROKEN", "hung"


@dataclass(frozen=True)
class Ended:
    """What became of a mutant: ``how`` is what failed first, or that it hung."""

    row: str
    name: str
    file: str
    end: str
    how: str
    seconds: float


class Copy:
    """A copy of the checkout, with links to what is not changed."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "copy"
        skip = shutil.ignore_patterns("__pycache__", "*.pyc")
        for name in (*PACKAGES, "tests", "bench", "examples"):
            shutil.copytree(ROOT / name, self.root / name, ignore=skip)
        for path in ROOT.iterdir():
            if path.is_file():
                shutil.copy(path, self.root / path.name)
        if (ROOT / ".models").exists():
            (self.root / ".models").symlink_to((ROOT / ".models").resolve())
        package = self.root / ".editable" / "crossdock"
        package.mkdir(parents=True)
        for name in (*PACKAGES, "__init__.py", "__main__.py", "py.typed"):
            (package / name).symlink_to(f"../../{name}")
        # By content: a change within the second, of the same size, must not be missed.
        compiling = ["compileall", "-q", "--invalidation-mode", "checked-hash", "."]
        subprocess.run([sys.executable, "-m", *compiling], cwd=self.root, check=True)
        self.env = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(
                [str(package.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
            ),
            "XDG_CACHE_HOME": str(folder / "cache"),
            "TMPDIR": str(folder / "tmp"),
            "OPENBLAS_NUM_THREADS": "1",
            "OPENCL_VENDOR_PATH": str(folder),  # Intel's runtime answers traps of the processor
        }
        for name in ("cache", "tmp"):
            (folder / name).mkdir(mode=0o700)

    def run(
        self, tests: Sequence[str], seconds: float, *, slow: bool, most: int = ADDRESS_SPACE
    ) -> tuple[str, str]:
        """Run tests until one fails; how that ended, and the first that failed.

        The process may map ``most`` bytes.
        """
        command = ["-m", "pytest", *OPTIONS, *(() if slow else ("-m", "not slow")), *tests]
        with subprocess.Popen(
            [sys.executable, "-c", LIMITED, str(most), *command],
            cwd=self.root,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        ) as child:
            try:
                said, _ = child.communicate(timeout=seconds)
            except subprocess.TimeoutExpired:
                said = ""
            finally:
                _end(child.pid)
        if not said:
            return HUNG, f"not done after {seconds:.0f} s"
        if child.returncode < 0:
            return CAUGHT, f"ended by {signal.Signals(-child.returncode).name}"
        if child.returncode == PASSED:
            return SURVIVED, ""
        found = NOT_PASSED.search(said)
        if child.returncode != FAILED or found is None:
            return BROKEN, said[-2000:]
        return CAUGHT, found.group(1)


LIMITED = (
    "import os, resource, sys; most = int(sys.argv[1]); "
    "resource.setrlimit(resource.RLIMIT_AS, (most, most)); "
    "os.execv(sys.executable, [sys.executable, *sys.argv[2:]])"
)


def _end(group: int) -> None:
    """End whatever is left of a child's processes."""
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return


def tried(mutant: Mutant, copy: Copy, patience: float = 1.0) -> Ended:
    """Apply a mutant to a copy, run its tests, and put the copy right again.

    One whose tests hang is caught, if they pass within the same time without it.
    """
    seconds = mutant.seconds * patience
    began, path = time.monotonic(), copy.root / mutant.file
    sound = path.read_text(encoding="utf-8")
    path.write_text(mutant.changed(sound), encoding="utf-8")
    try:
        end, how = copy.run(mutant.tests, seconds, slow=mutant.slow)
    finally:
        path.write_text(sound, encoding="utf-8")
    if end == HUNG:
        passed, _ = copy.run(mutant.tests, seconds, slow=mutant.slow)
        end = CAUGHT if passed == SURVIVED else BROKEN
        how += "" if end == CAUGHT else ", nor without the change; see --patience"
    took = round(time.monotonic() - began, 1)
    return Ended(mutant.row, mutant.name, mutant.file, end, how, took)


def run(made: Sequence[Mutant], at_once: int, patience: float) -> list[Ended]:
    """Try mutants in as many copies as are wanted."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as name:
        copies: SimpleQueue[Copy] = SimpleQueue()
        for i in range(at_once):
            (Path(name) / str(i)).mkdir()
            copies.put(Copy(Path(name) / str(i)))
        copy = copies.get()
        for slow in (False, True):
            tests = named([m for m in made if m.slow == slow])
            end, how = SURVIVED, ""
            if tests:
                end, how = copy.run(tests, 3600, slow=slow, most=AT_ONCE * ADDRESS_SPACE)
            if end != SURVIVED:
                sys.exit(f"the tests fail without any change: {how}")
        copies.put(copy)

        def one(mutant: Mutant) -> Ended:
            copy = copies.get()
            try:
                ended = tried(mutant, copy, patience)
            finally:
                copies.put(copy)
            print(_line(ended), flush=True)  # noqa: T201 - what the command shows
            return ended

        with ThreadPoolExecutor(at_once) as pool:
            return list(pool.map(one, made))


def _line(ended: Ended) -> str:
    how = ended.how.rsplit("/", 1)[-1] if ended.end == CAUGHT else ended.how
    return f"{ended.end:9}{ended.row:10}{ended.name:58}{ended.seconds:6.1f} s  {how}"


def summary(ended: Sequence[Ended]) -> str:
    """Counts by row."""
    lines = [f"{'caught':>8}{'of':>5}  row"]
    for row, title in ROWS.items():
        counts = Counter(e.end for e in ended if e.row == row)
        if counts:
            lines.append(f"{counts[CAUGHT]:8}{counts.total():5}  {title}")
    total = sum(e.end == CAUGHT for e in ended)
    lines.append(f"{total:8}{len(ended):5}  in all")
    return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("--only", default="", help="mutants whose row/name has this in it")
    parser.add_argument("--jobs", type=int, default=1, help="mutants at once, in a copy each")
    parser.add_argument(
        "--patience", type=float, default=1.0, help="times as long as usual, on a busy machine"
    )
    parser.add_argument("--json", type=Path, help="write what became of each to this file")
    given = parser.parse_args(argv)
    made = [m for m in mutants() if given.only in m.id]
    if not made:
        parser.error(f"no mutant has {given.only!r} in its row/name; rows are {', '.join(ROWS)}")
    ended = run(made, min(given.jobs, len(made)), given.patience)
    print(summary(ended))  # noqa: T201 - what the command shows
    if given.json is not None:
        given.json.write_text(json.dumps([asdict(e) for e in ended], indent=1) + "\n")
    return int(any(e.end != CAUGHT for e in ended))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
