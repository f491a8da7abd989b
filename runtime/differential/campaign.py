"""Many random graphs in a row: counts, differences, and failures kept as files."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from crossdock.runtime.differential.draw import draw
from crossdock.runtime.differential.judge import Difference, judge
from crossdock.runtime.differential.recipe import Recipe
from crossdock.runtime.differential.shrink import shrunk
from crossdock.runtime.differential.ways import Way, ways

Tick = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Found:
    """A difference on the graph of a seed; ``file`` holds the shrunk graph, where it was kept."""

    seed: int
    difference: Difference
    ops: tuple[str, ...]
    file: str = ""


@dataclass
class Tally:
    """What a campaign saw: graphs, runs a way, ops drawn, differences; seconds it took."""

    graphs: int = 0
    runs: Counter[str] = field(default_factory=Counter)
    ops: Counter[str] = field(default_factory=Counter)
    found: list[Found] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def unexplained(self) -> list[Found]:
        """The differences that are faults."""
        return [f for f in self.found if not f.difference.explained]


def campaign(
    seeds: Sequence[int],
    devices: Sequence[str],
    *,
    every: int = 1,
    keep: Path | None = None,
    onnx: bool = True,
    tick: Tick | None = None,
) -> Tally:
    """Judge the graphs of the seeds.

    Args:
        seeds: one a graph.
        devices: ids; the first is the host.
        every: of how many graphs one runs on the devices other than the host, too.
        keep: the folder that shrunk failures are written to; None keeps none.
        onnx: run what can be written as ONNX by onnxruntime as well, where that is installed.
        tick: called with (what, done, total).
    """
    tally = Tally()
    began = time.monotonic()
    for done, seed in enumerate(seeds):
        if tick is not None:
            tick(f"graph {seed}", done, len(seeds))
        tally.graphs += 1
        try:
            recipe = draw(seed)
        except Exception as failure:  # noqa: BLE001 - one graph must not end the others
            said = f"{type(failure).__name__}: {failure}"
            tally.found.append(Found(seed, Difference("reference", "", None, said), ()))
            continue
        tally.ops.update(op.op for op in recipe.ops)
        chosen = ways(seed, devices if done % every == 0 else devices[:1], onnx=onnx)
        chosen = [way for way in chosen if way.takes(recipe)]
        tally.runs.update(way.name for way in chosen)
        for difference in judge(recipe, chosen):
            tally.found.append(_kept(recipe, seed, difference, chosen, keep))
    tally.seconds = time.monotonic() - began
    return tally


def _kept(
    recipe: Recipe, seed: int, difference: Difference, chosen: Sequence[Way], keep: Path | None
) -> Found:
    """A difference, its graph shrunk and written where it is a fault."""
    ops = tuple(op.op for op in recipe.ops)
    if difference.explained or keep is None:
        return Found(seed, difference, ops)
    way = next(w for w in chosen if w.name == difference.way)
    small = shrunk(recipe, lambda r: fails(r, way, ran=difference.over is not None))
    keep.mkdir(parents=True, exist_ok=True)
    path = keep / f"{recipe.name}-{way.name.replace(':', '').replace(' ', '-')}.json"
    small.save(path, seed=seed, way=way.name, said=difference.said)
    return Found(seed, difference, tuple(op.op for op in small.ops), str(path))


def fails(recipe: Recipe, way: Way, *, ran: bool) -> bool:
    """Whether a way runs a recipe otherwise than the reference has it, without an explanation.

    ``ran`` says whether it is to run to its end, with wrong results, or to fail.
    """
    found = judge(recipe, [way]) if way.takes(recipe) else []
    return any(not d.explained and (d.over is not None) == ran for d in found)
