"""``crossdock verify --graphs``: random graphs, every way to run them, against the reference."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from crossdock.runtime.cli.output import Output, add_row, make_table
from crossdock.runtime.differential.campaign import Found, Tally, campaign
from crossdock.runtime.differential.draw import OPS_DRAWN
from crossdock.runtime.plan import HOST

SHOWN = 20
"""Differences listed on the screen; the JSON holds all."""
NOTE = "an explained difference lies within what more samples of the ops' rounding errors spread to"


def verify_graphs(
    output: Output, seeds: Sequence[int], devices: Sequence[str], *, every: int, keep: Path | None
) -> int:
    """Run the graphs of the seeds, say what came of it; the exit status."""
    ids = [HOST, *(name for name in devices if name != HOST)]
    with output.progress("verifying") as tick:
        tally = campaign(seeds, ids, every=every, keep=keep, tick=tick)
    table = make_table("Random graphs", ("way", ">graphs", ">explained", ">failed"))
    for way, count in tally.runs.items():
        mine = [f for f in tally.found if f.difference.way == way]
        failed = sum(not f.difference.explained for f in mine)
        shown = (str(failed), "bold red" if failed else "")
        add_row(table, ((way, "bold"), str(count), str(len(mine) - failed), shown))
    output.table(table, NOTE)
    for found in tally.unexplained[:SHOWN]:
        said = found.difference.said
        output.line(
            ("FAILED ", "bold red"),
            f"seed {found.seed}, {found.difference.way}: {said} {found.file}",
        )
    failed = len(tally.unexplained)
    output.line(
        (
            f"{failed} of {sum(tally.runs.values())} runs differ",
            "bold red" if failed else "bold green",
        ),
        f": {tally.graphs} graphs, {sum(tally.ops.values())} ops, {len(tally.ops)} of "
        f"{len(OPS_DRAWN)} kinds, {tally.seconds:.0f} s",
    )
    output.json(_data(tally, seeds, ids, every))
    return 1 if failed else 0


def _data(tally: Tally, seeds: Sequence[int], devices: Sequence[str], every: int) -> dict[str, Any]:
    return {
        "schema": "crossdock-graphs/1",
        "seeds": [seeds[0], seeds[-1]],
        "devices": list(devices),
        "every": every,
        "graphs": tally.graphs,
        "runs": dict(tally.runs),
        "ops": dict(sorted(tally.ops.items())),
        "undrawn": sorted(OPS_DRAWN - set(tally.ops)),
        "explained": len(tally.found) - len(tally.unexplained),
        "failed": len(tally.unexplained),
        "found": [_found(f) for f in tally.found],
        "seconds": tally.seconds,
    }


def _found(found: Found) -> dict[str, Any]:
    data = dataclasses.asdict(found)
    over = found.difference.over
    if over is not None and not math.isfinite(over):
        data["difference"]["over"] = None  # JSON has no infinity
    return data
