"""One target fuzzed in a process of its own: ``python -m tests.fuzz.worker TARGET --work DIR``.

With atheris (libFuzzer) the loaders are instrumented and inputs that reach new code are kept and
changed further; without it hypothesis draws what is changed, and nothing is kept. Findings go to
``DIR/findings``, the count of executions to ``DIR/status-TARGET``.
"""

from __future__ import annotations

import argparse
import importlib
import json
import mmap
import os
import pkgutil
import random
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

INSTRUMENTED = [
    "crossdock.devices.codec", "crossdock.devices.machine", "crossdock.runtime.builder",
    "crossdock.runtime.costing", "crossdock.runtime.cli.planning", "crossdock.runtime.files",
    "crossdock.runtime.given", "crossdock.runtime.graph", "crossdock.runtime.kept",
    "crossdock.runtime.limits", "crossdock.runtime.loaders", "crossdock.runtime.operators",
    "crossdock.runtime.plan", "crossdock.runtime.plan_data", "crossdock.runtime.plan_diff",
    "crossdock.runtime.plan_parts", "crossdock.runtime.profiles", "crossdock.runtime.record_file",
    "crossdock.runtime.records", "crossdock.runtime.split", "crossdock.runtime.tensor",
    "crossdock.scheduler.cost_json", "crossdock.scheduler.problem_json",
]  # fmt: skip
"""Modules whose branches count: what reads bytes. (What numba compiles must stay as it is.)"""

EXAMPLES = 3
"""Inputs kept of findings that look the same."""

Look = Callable[[bytes], None]


class Book:
    """Findings in a folder, and a count of executions that survives a crash."""

    def __init__(self, work: Path, target: str) -> None:
        self.folder = work / "findings"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.seen: Counter[str] = Counter()
        status = work / f"status-{target}"
        if not status.exists():
            status.write_bytes(bytes(8))
        with status.open("r+b") as file:
            self._count = mmap.mmap(file.fileno(), 8)

    def executed(self) -> None:
        """Count one."""
        count = int.from_bytes(self._count[:8], "little") + 1
        self._count[:8] = count.to_bytes(8, "little")

    def note(self, finding: Any, data: bytes) -> None:
        """Keep a finding and its input, unless there are some of its like."""
        self.seen[finding.mark] += 1
        if self.seen[finding.mark] > EXAMPLES:
            return
        index = len(list(self.folder.glob(f"{finding.mark}.*.bin")))
        if index >= EXAMPLES:
            return
        place = self.folder / f"{finding.mark}.{index}"
        place.with_name(place.name + ".bin").write_bytes(data)
        fields = ("target", "kind", "said", "at", "trace")
        told = {name: getattr(finding, name) for name in fields}
        place.with_name(place.name + ".json").write_text(json.dumps(told, indent=1))


def main() -> None:
    """Fuzz until so many executions are done."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.worker")
    parser.add_argument("target")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--execs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--plain", action="store_true", help="hypothesis, even with atheris there")
    parser.add_argument("--shrink", type=Path, help="an input of a finding to make small")
    given = parser.parse_args()
    os.environ |= {"CROSSDOCK_CACHE_DIR": "off", "CROSSDOCK_DEVICES": "cpu,sim"}
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    sys.dont_write_bytecode = True
    if given.shrink:
        _shrink(_ready(given)[0], given.shrink)
        return
    atheris = None if given.plain else _atheris()
    if atheris is None:
        target, book = _ready(given)
        _with_hypothesis(target, book, given.execs, given.seed)
        return
    with atheris.instrument_imports(include=INSTRUMENTED):
        _imported()
        target, book = _ready(given)
    _with_atheris(atheris, target, book, given)


def _atheris() -> Any:
    try:
        import atheris
    except ImportError:
        return None
    return atheris


def _imported() -> None:
    """Import what is instrumented, which would otherwise be imported at its first use."""
    for name in INSTRUMENTED:
        module = importlib.import_module(name)
        for found in pkgutil.iter_modules(getattr(module, "__path__", ())):
            importlib.import_module(f"{name}.{found.name}")


def _ready(given: argparse.Namespace) -> tuple[Any, Book]:
    from tests.fuzz.targets import TARGETS
    from tests.runtime.hostile.children import warm

    warm()
    target = TARGETS[given.target](given.work)
    target.seeds()
    target.setup()
    return target, Book(given.work, given.target)


def looked(target: Any, book: Book, data: bytes) -> None:
    """Run the target on bytes, and keep what comes of it that must not."""
    from tests.fuzz.watch import cap, look

    book.executed()
    cap()
    found = look(
        target.name, target.run, data, may_write=target.may_write, may_read=target.may_read
    )
    if found is not None:
        book.note(found, data)


def _shrink(target: Any, path: Path) -> None:
    """Write ``path`` made small beside it, as long as the same comes of it."""
    from tests.fuzz.shrink import shrunk
    from tests.fuzz.watch import look

    def mark(data: bytes) -> str:
        found = look(
            target.name, target.run, data, may_write=target.may_write, may_read=target.may_read
        )
        return "" if found is None else found.mark

    data = path.read_bytes()
    want = mark(data)
    if want:
        path.with_suffix(".small").write_bytes(shrunk(data, lambda d: mark(d) == want))


def _with_atheris(atheris: Any, target: Any, book: Book, given: argparse.Namespace) -> None:
    from tests.fuzz import seeds

    place = target.seeds()
    donors = seeds.read(place)
    corpus = given.work / "corpus" / target.name
    corpus.mkdir(parents=True, exist_ok=True)

    def mutated(data: bytes, most: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if rng.random() < 0.15:
            return bytes(atheris.Mutate(data, most))
        made = target.mutate(data, rng, donors)
        return made if 0 < len(made) <= most else bytes(atheris.Mutate(data, most))

    def crossed(data: bytes, other: bytes, most: int, seed: int) -> bytes:
        made = target.cross(data, other, random.Random(seed))
        return made if 0 < len(made) <= most else data

    flags = [
        f"-atheris_runs={given.execs}", f"-seed={given.seed}", f"-max_len={target.largest}",
        "-timeout=120", "-rss_limit_mb=0", "-malloc_limit_mb=0", "-len_control=0",
        f"-artifact_prefix={book.folder}/{target.name}-", "-print_final_stats=1", "-reload=0",
    ]  # fmt: skip
    atheris.Setup(
        ["fuzz", *flags, str(corpus), str(place)],
        lambda data: looked(target, book, data),
        custom_mutator=mutated,
        custom_crossover=crossed,
    )
    atheris.Fuzz()


def _with_hypothesis(target: Any, book: Book, execs: int, seed: int) -> None:
    import hypothesis
    from hypothesis import strategies as st

    from tests.fuzz import seeds

    donors = seeds.read(target.seeds())

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=execs, database=None, deadline=None, phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )  # fmt: skip
    @hypothesis.given(st.integers(0, 2**64 - 1), st.integers(0, len(donors) - 1), st.integers(0, 4))
    def fuzz(number: int, index: int, times: int) -> None:
        data, rng = donors[index], random.Random(number)
        for _ in range(times):
            data = target.mutate(data, rng, donors)
        looked(target, book, data[: target.largest])

    fuzz()


if __name__ == "__main__":
    main()
