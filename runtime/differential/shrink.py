"""Shrinking a recipe that fails: fewer outputs, fewer ops, smaller dimensions, while it fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from crossdock.kernels.reference import evaluate
from crossdock.runtime.differential.draw import SIZED, renamed
from crossdock.runtime.differential.recipe import Leaf, Op, Recipe
from crossdock.runtime.errors import Error
from crossdock.runtime.tensor import Array

ROUNDS = 200
"""Graphs that are tried at most."""

Fails = Callable[[Recipe], bool]


def shrunk(recipe: Recipe, fails: Fails, rounds: int = ROUNDS) -> Recipe:
    """The smallest recipe found for which ``fails`` still holds; ``recipe`` where none does."""
    left = rounds
    smaller = True
    while smaller:
        smaller = False
        for candidate in _candidates(recipe):
            if left == 0:
                return recipe
            left -= 1
            if _holds(candidate, fails):
                recipe, smaller = candidate, True
                break
    return recipe


def _holds(candidate: Recipe, fails: Fails) -> bool:
    try:
        return fails(candidate)
    except (Error, ValueError, ArithmeticError, LookupError):
        return False  # cut so, it is no valid graph


def _candidates(recipe: Recipe) -> Iterator[Recipe]:
    """Smaller recipes, the much smaller ones first."""
    if len(recipe.outputs) > 1:
        yield from (replace(recipe, outputs=(out,)).pruned() for out in recipe.outputs)
    # Of a chain, what is kept may begin anywhere: the later the better.
    for op in reversed(recipe.ops):
        if not set(op.makes()) & set(recipe.outputs):
            yield _cut(recipe, op)
    for op in recipe.ops:
        ends = [value for value in op.makes() if value not in recipe.outputs]
        if ends:
            yield replace(recipe, outputs=(ends[0],)).pruned()
    yield from _resized(recipe)


def _cut(recipe: Recipe, op: Op) -> Recipe:
    """With inputs in place of an op's results, holding what it makes of the feeds."""
    values = op.makes()
    probe = replace(recipe, outputs=tuple(values)).pruned()
    graph, _ = probe.build()
    made = evaluate(graph, probe.feeds())
    arrays = [np.asarray(made[f"y{i}"]) for i in range(len(values))]
    names = {value: f"c{value.replace('.', '_')}" for value in values}
    leaves = tuple(Leaf(names[v], a) for v, a in zip(values, arrays, strict=True))
    ops = tuple(_reading(o, names) for o in recipe.ops if o is not op)
    return replace(recipe, leaves=(*recipe.leaves, *leaves), ops=ops).pruned()


def _reading(op: Op, names: Mapping[str, str]) -> Op:
    return replace(
        op,
        operands={
            key: names.get(given, given)
            if isinstance(given, str)
            else [names.get(v, v) for v in given]
            for key, given in op.operands.items()
        },
    )


def _resized(recipe: Recipe) -> Iterator[Recipe]:
    """With one size made smaller wherever it stands."""
    sizes = {dim for leaf in recipe.leaves for dim in leaf.array.shape if dim > 1}
    for size in sorted(sizes, reverse=True):
        for smaller in dict.fromkeys((1, 2, size // 2, size - 1)):
            if 0 < smaller < size:
                yield _with_size(recipe, {size: smaller})


def _with_size(recipe: Recipe, sizes: Mapping[int, int]) -> Recipe:
    def attrs(op: Op) -> dict[str, Any]:
        return {k: renamed(v, sizes) if k in SIZED else v for k, v in op.attrs.items()}

    leaves = tuple(replace(leaf, array=_sliced(leaf.array, sizes)) for leaf in recipe.leaves)
    return replace(recipe, leaves=leaves, ops=tuple(replace(o, attrs=attrs(o)) for o in recipe.ops))


def _sliced(array: Array, sizes: Mapping[int, int]) -> Array:
    part = array[tuple(slice(sizes.get(d, d)) for d in array.shape)]
    return np.ascontiguousarray(part).reshape(part.shape)
