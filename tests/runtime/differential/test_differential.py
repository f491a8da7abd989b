"""Random graphs: what is drawn, what a bound lets through and what not, shrinking, regressions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from crossdock.devices import registry
from crossdock.runtime.differential.bound import bounded, excess
from crossdock.runtime.differential.campaign import campaign
from crossdock.runtime.differential.draw import OPS_DRAWN, draw
from crossdock.runtime.differential.judge import judge
from crossdock.runtime.differential.recipe import Leaf, Op, Recipe
from crossdock.runtime.differential.shrink import shrunk
from crossdock.runtime.differential.ways import Way, ways
from crossdock.runtime.errors import FeedError

REGRESSIONS = sorted((Path(__file__).parent / "regressions").glob("*.json"))


def devices() -> list[str]:
    return [info.id for info in registry.devices()]


def test_a_seed_always_draws_the_same_graph() -> None:
    for seed in range(5):
        one, other = draw(seed), draw(seed)
        assert one.build()[0].digest() == other.build()[0].digest()
        assert all(
            a.array.tobytes() == b.array.tobytes()
            for a, b in zip(one.leaves, other.leaves, strict=True)
        )


def test_every_op_is_drawn_and_values_are_shared() -> None:
    seen: set[str] = set()
    shared = 0
    for seed in range(150):
        recipe = draw(seed)
        seen.update(op.op for op in recipe.ops)
        read = [value for op in recipe.ops for value in set(op.reads())]
        shared += len(read) - len(set(read))
    assert len(OPS_DRAWN - seen) <= 6
    assert shared > 100


def test_random_graphs_run_as_the_reference_has_them() -> None:
    tally = campaign(range(25), devices(), every=25)
    assert tally.graphs == 25
    assert {"cpu:0 threads=1", "cpu:0 threads=2"} <= set(tally.runs)
    assert not tally.unexplained, [(f.seed, f.difference) for f in tally.unexplained]


@pytest.mark.parametrize("path", REGRESSIONS, ids=lambda p: p.stem)
def test_a_graph_that_once_failed_runs_right(path: Path) -> None:
    found = judge(Recipe.load(path), ways(0, devices(), onnx=False))
    assert all(difference.explained for difference in found), found


def doubled(x: np.ndarray) -> Recipe:
    leaf = Leaf("x", x)
    first = Op("n0", "add", {"a": "x", "b": "x"})
    second = Op("n1", "relu", {"input": "n0.0"})
    third = Op("n2", "exp", {"input": "n1.0"})
    return Recipe((leaf,), (first, second, third), ("n1.0", "n2.0"))


def test_the_bound_takes_rounding_and_nothing_beyond_it() -> None:
    recipe = doubled(np.linspace(-3, 3, 8, dtype=np.float32).reshape(2, 4))
    bound = bounded(recipe)["n2.0"]
    near = bound.want.astype(np.float32)
    assert excess(near, bound).max() <= 1.0
    assert excess(near * np.float32(1 + 1e-4), bound).max() > 1.0
    spoiled = near.copy()
    spoiled[1, 2] = np.nan
    assert np.isinf(excess(spoiled, bound)[1, 2])


def test_errors_grow_along_a_graph() -> None:
    """A difference of nearly equal numbers is off by what they are off by, not by its own size."""
    x = Leaf("x", np.full(16, 1.5, np.float32))
    ops = (
        Op("n0", "exp", {"input": "x"}),
        Op("n1", "tanh", {"input": "x"}),
        Op("n2", "div", {"a": "n0.0", "b": "n1.0"}),
        Op("n3", "mul", {"a": "n2.0", "b": "n1.0"}),
        Op("n4", "sub", {"a": "n3.0", "b": "n0.0"}),
    )
    bound = bounded(Recipe((x,), ops, ("n4.0",)))["n4.0"]
    assert (bound.allowed > 1e-7).all()
    assert (bound.allowed < 1e-4).all()


def broken(recipe: Recipe) -> list[dict[str, np.ndarray]]:
    """A device whose relu is wrong at the first element."""
    wrong = []
    for i, value in enumerate(recipe.outputs):
        made = bounded(recipe)[value].want.astype(np.float32)
        if value == "n1.0" or any(op.op == "relu" for op in recipe.ops):
            made = made + np.float32(0.5)
        wrong.append((f"y{i}", made))
    return [dict(wrong)]


def test_a_difference_is_found_and_its_graph_shrunk_to_the_op_at_fault() -> None:
    way = Way("broken", broken)
    recipe = doubled(np.linspace(0.5, 3, 8, dtype=np.float32).reshape(2, 4))
    assert [d.way for d in judge(recipe, [way])] == ["broken"]
    small = shrunk(recipe, lambda r: bool(judge(r, [way])))
    assert [op.op for op in small.ops] == ["relu"]
    assert small.feeds()[small.leaves[0].name].size == 1


def test_a_run_that_raises_is_a_difference() -> None:
    def fail(recipe: Recipe) -> list[dict[str, np.ndarray]]:
        raise FeedError("no")

    (found,) = judge(doubled(np.ones(3, np.float32)), [Way("failing", fail)])
    assert found.over is None
    assert "FeedError: no" in found.said


def test_a_recipe_comes_back_from_its_file(tmp_path: Path) -> None:
    for seed in (3, 48):
        recipe = draw(seed)
        recipe.save(tmp_path / "r.json", said="why")
        again = Recipe.load(tmp_path / "r.json")
        assert again.build()[0].digest() == recipe.build()[0].digest()
        assert replace(again, leaves=()).outputs == recipe.outputs
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(FeedError, match="no recipe"):
        Recipe.load(tmp_path / "other.json")


def test_whatever_a_way_or_the_reference_ends_with_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other runtimes' errors have bases of their own, and one graph does not end the others."""

    class Foreign(Exception):
        pass

    def broken(_: object) -> object:
        raise Foreign("no reason")

    x = np.ones((2, 4), np.float32)
    ours, other = (Way("w", broken, peer=peer) for peer in (False, True))  # type: ignore[arg-type]
    (found,) = judge(doubled(x), [ours])
    assert (found.said, found.explained) == ("Foreign: no reason", "")
    (found,) = judge(doubled(x), [other])
    assert found.explained

    drawn = {0: broken, 1: lambda _: doubled(x)}
    monkeypatch.setattr(
        "crossdock.runtime.differential.campaign.draw", lambda seed: drawn[seed](seed)
    )
    tally = campaign([0, 1], ["cpu:0"], onnx=False)
    assert [(f.seed, f.difference.said) for f in tally.unexplained] == [(0, "Foreign: no reason")]
    assert tally.graphs == 2
    assert tally.runs
