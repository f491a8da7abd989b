"""``python -m tests.soak [--only NAME] [--share X] [--json FILE]``: the long forms, and a summary.

Exit status 1 where a figure is over its bar. ``--share 0.01`` runs a hundredth of each.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.soak import (
    caches,
    callers,
    cancels,
    disk,
    endings,
    faults,
    figures,
    graphs,
    kills,
    steady,
)

Found = list[figures.Figure]


def _parts(share: float) -> dict[str, Callable[[], Found]]:
    def of(count: int) -> int:
        return max(1, int(count * share))

    opencl = graphs.opencl()
    made: dict[str, Callable[[], Found]] = {
        "runs": lambda: steady.runs(of(100_000)),
        "loads": lambda: steady.loads(of(1_000)),
        "threads": lambda: callers.threads(of(5_000)),
        "sharing": lambda: callers.sharing(max(2.0, 60 * share)),
        "beside": lambda: callers.beside(max(0.3, 5 * share)),
        "asyncio": lambda: callers.asynchronous(of(1_000)),
        "cancels": lambda: cancels.cancels(of(1_000)),
        "exits": lambda: endings.exits(of(100)),
        "interrupts": lambda: endings.interrupts(of(100)),
        "disk": disk.disk,
        "caches": lambda: caches.shared(of(1_600)),
        "faults": lambda: faults.faults(of(10_000)),
        "kills": lambda: kills.kills(of(2_000)),
    }
    for device in opencl:
        made[f"exits-{device}"] = lambda d=device: endings.exits(of(20), d)  # type: ignore[misc]
        made[f"interrupts-{device}"] = lambda d=device: endings.interrupts(  # type: ignore[misc]
            of(20), d
        )
    return made


def main() -> int:
    """Run them."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--only", help="parts whose name has this in it")
    parser.add_argument("--share", type=float, default=1.0, help="of the runs (default: all)")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    given = parser.parse_args()
    if not 0 < given.share <= 1:
        parser.error(f"--share is {given.share:g}; give a share of the runs above 0, up to 1")
    parts = _parts(given.share)
    chosen = {name: part for name, part in parts.items() if (given.only or "") in name}
    if not chosen:
        parser.error(f"no part has {given.only!r} in its name; there are {', '.join(parts)}")
    found: Found = []
    for name, part in chosen.items():
        began = time.monotonic()
        made = part()
        found += made
        print(f"{name}: {time.monotonic() - began:.0f} s")  # noqa: T201 - the summary
        for figure in made:
            print(" ", figure.line(), flush=True)  # noqa: T201 - the summary
    if given.json:
        figures.save(found, given.json)
    failed = [f for f in found if not f.passed]
    print(f"{len(found) - len(failed)} of {len(found)} figures within their bars")  # noqa: T201
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
