"""Judging one graph: every way to run it against the float64 reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from crossdock.runtime.differential.bound import Bounded, bounded, excess
from crossdock.runtime.differential.recipe import Recipe
from crossdock.runtime.differential.ways import Way
from crossdock.runtime.tensor import Array, to_numpy

MORE_SAMPLES = 48
"""Samples that a difference is looked at with again."""


@dataclass(frozen=True)
class Difference:
    """A graph that was not run as the reference has it.

    ``over`` is the largest error over the one allowed; None where the run failed. ``explained``
    says why the difference is no fault, where it is none.
    """

    way: str
    output: str
    over: float | None
    said: str
    explained: str = ""


def judge(recipe: Recipe, ways: Sequence[Way]) -> list[Difference]:
    """Run a recipe every way; the differences from the reference, explained ones included."""
    wanted = bounded(recipe)
    wider: dict[str, Bounded] = {}
    found = []
    for way in ways:
        difference = _run(recipe, way, wanted)
        if difference is not None and difference.over is not None:
            wider = wider or bounded(recipe, MORE_SAMPLES, seed=1)
            if _run(recipe, way, wider) is None:
                why = "within what more samples of the rounding errors spread to"
                difference = Difference(
                    way.name, difference.output, difference.over, difference.said, why
                )
        if difference is not None:
            found.append(difference)
    return found


def _run(recipe: Recipe, way: Way, wanted: Mapping[str, Bounded]) -> Difference | None:
    """The first difference of a way, or None."""
    try:
        runs = way.run(recipe)
    except Exception as failure:  # noqa: BLE001 - whatever it ends with instead is a difference
        said = f"{type(failure).__name__}: {failure}"
        why = "another runtime refuses the graph" if way.peer else ""
        return Difference(way.name, "", None, said, why)
    for outputs in runs:
        for i, value in enumerate(recipe.outputs):
            difference = _compared(way.name, value, np.asarray(outputs[f"y{i}"]), wanted)
            if difference is not None:
                return difference
    return None


def _compared(way: str, value: str, got: Array, wanted: Mapping[str, Bounded]) -> Difference | None:
    bound = wanted[value]
    dtype, shape = to_numpy(bound.dtype), bound.want.shape
    if got.shape != shape or got.dtype != dtype:
        said = f"{got.dtype}{list(got.shape)} for {dtype}{list(shape)}"
        return Difference(way, value, np.inf, said)
    over = excess(got, bound)
    if not over.size or over.max() <= 1.0:
        return None
    at = np.unravel_index(int(np.argmax(over)), shape)
    count = int((over > 1.0).sum())
    said = (
        f"{got[at]} for {bound.want[at]} at {[int(i) for i in at]}, {bound.allowed[at]:.3g} "
        f"allowed; {count} of {over.size} elements"
    )
    return Difference(way, value, float(over.max()), said)
