"""The ways in which a random graph is run: each device, threads, mixed placements, splits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from crossdock.devices import registry
from crossdock.kernels import table
from crossdock.runtime import passes
from crossdock.runtime.calls import is_alias, op_call
from crossdock.runtime.compiling import compile as compile_graph
from crossdock.runtime.device_array import DeviceArray
from crossdock.runtime.differential import to_onnx
from crossdock.runtime.differential.recipe import Recipe
from crossdock.runtime.emulation import candidates
from crossdock.runtime.graph import Graph, Node
from crossdock.runtime.knowledge import target_here
from crossdock.runtime.plan import HOST, Constraints
from crossdock.runtime.planner import Options, make_plan
from crossdock.runtime.pool import Deadline
from crossdock.runtime.ready import make_ready
from crossdock.runtime.split import SplitGraph, grow, rewrite
from crossdock.runtime.split_choice import Planned
from crossdock.runtime.tensor import Array

Outputs = Mapping[str, Array]
RUNS = 2
"""Runs of a session: what one leaves in the arena must not reach the next."""


@dataclass(frozen=True)
class Way:
    """One way to run a recipe: ``run`` gives the outputs y0, y1 ... of each of its runs.

    ``takes`` says whether it can run a recipe at all; a ``peer`` is another runtime, which may
    refuse what is defined here (a division of integers by zero).
    """

    name: str
    run: Callable[[Recipe], Sequence[Outputs]]
    takes: Callable[[Recipe], bool] = lambda recipe: True  # noqa: ARG005
    peer: bool = False


def ways(seed: int, devices: Sequence[str], *, onnx: bool = True) -> list[Way]:
    """What a graph is run by: each device by itself, several of them together, onnxruntime.

    ``seed`` decides which device the mixed placements pin an op to.
    """
    made = [Way(f"{HOST} threads={n}", partial(_alone, device=HOST, threads=n)) for n in (1, 2)]
    others = [name for name in devices if name != HOST]
    made += [Way(name, partial(_alone, device=name)) for name in others]
    if onnx and to_onnx.available():
        made.append(Way("onnxruntime", to_onnx.run, to_onnx.can_write, peer=True))
    if others:
        together = [HOST, *others]
        made.append(Way("pinned", lambda r: _pinned(r, together, seed)))
        made.append(Way("mixed", lambda r: _mixed(r, together, seed)))
        made.append(Way("split", lambda r: _split(r, together, seed)))
        made.append(Way("resident", lambda r: _resident(r, together, seed)))
    return made


def _alone(recipe: Recipe, device: str, threads: int | None = None) -> Sequence[Outputs]:
    graph, _ = recipe.build()
    given = compile_graph(graph, [device], threads=threads, measure=False)
    with given as session:
        return [session.run(recipe.feeds()) for _ in range(RUNS)]


def _pinned(recipe: Recipe, devices: Sequence[str], seed: int) -> Sequence[Outputs]:
    """Some ops pinned by name, which keeps passes from merging them; the plan's choice else."""
    graph, _ = recipe.build()
    rules = Constraints(pin=_pins(graph, devices, seed))
    with compile_graph(graph, list(devices), constraints=rules, measure=False) as session:
        return [session.run(recipe.feeds()) for _ in range(RUNS)]


def _resident(recipe: Recipe, devices: Sequence[str], seed: int) -> Sequence[Outputs]:
    """Inputs that lie on a device drawn for each, and outputs that stay where they are made.

    From run to run the inputs move, and those of the last run are given up for its outputs.
    """
    graph, _ = recipe.build()
    if graph.staged is not None:
        return []
    rng = np.random.default_rng(seed)
    first = {name: int(rng.integers(len(devices))) for name in graph.inputs}
    rules = Constraints(pin=_pins(graph, devices, seed))
    sites = {name: devices[at] for name, at in first.items()}
    with compile_graph(
        graph,
        list(devices),
        constraints=rules,
        measure=False,
        feeds_on=sites,
        outputs="device",
    ) as session:
        made: list[Outputs] = []
        for turn in range(RUNS):
            feeds = {
                name: DeviceArray.put(
                    session.devices[devices[(first[name] + turn) % len(devices)]], array
                )
                for name, array in recipe.feeds().items()
            }
            kept = session.run(feeds, donate=list(feeds) if turn == RUNS - 1 else [])
            made.append({name: array.numpy() for name, array in kept.items()})
        return made


def _pins(graph: Graph, devices: Sequence[str], seed: int) -> dict[str, str]:
    """Half of a graph's ops on devices drawn for them."""
    rng = np.random.default_rng(seed)
    return {
        node.name: device
        for node in graph.nodes
        if (device := devices[int(rng.integers(len(devices)))]) and rng.random() < 0.5
        and not is_alias(node) and _runs(graph, node, device)
    }  # fmt: skip


def _mixed(recipe: Recipe, devices: Sequence[str], seed: int) -> Sequence[Outputs]:
    """Every op of the graph after the passes on a device drawn for it."""
    graph = passes.run(recipe.build()[0])
    return _run(recipe, SplitGraph(graph), devices, _homes(graph, devices, seed), graph)


def _split(recipe: Recipe, devices: Sequence[str], seed: int) -> Sequence[Outputs]:
    """Regions cut in two unequal parts, each on a device; none where nothing can be cut."""
    graph = passes.run(recipe.build()[0])
    rng = np.random.default_rng(seed)
    split = SplitGraph(graph)
    homes = _homes(graph, devices, seed)
    for node in [graph.nodes[i] for i in rng.permutation(len(graph.nodes))[:3]]:
        if node not in split.graph.nodes or node.name in split.parts:
            continue
        rank = graph.specs[node.outputs[0]].rank
        for axis in rng.permutation(rank):
            region = grow(split.graph, node, int(axis), frozenset(split.parts))
            if region is not None:
                share = int(rng.integers(1, region.units))
                split = rewrite(split, region, [share, region.units - share])
                break
    if not split.parts:
        return []
    made = {**homes, **_homes(split.graph, devices, seed)}
    for name, part in split.parts.items():
        node = next((n for n in split.graph.nodes if n.name == name), None)
        device = devices[part % len(devices)]
        if node is not None and _runs(split.graph, node, device):
            made[name] = device
    return _run(recipe, split, devices, made, graph)


def _homes(graph: Graph, devices: Sequence[str], seed: int) -> dict[str, str]:
    rng = np.random.default_rng(seed)
    drawn = [(node, devices[int(rng.integers(len(devices)))]) for node in graph.nodes]
    return {n.name: d for n, d in drawn if not is_alias(n) and _runs(graph, n, d)}


def _runs(graph: Graph, node: Node, device: str) -> bool:
    """Whether a device has a kernel for a node."""
    info = registry.open_device(device).info
    return not table.op(node.op).host and bool(candidates(op_call(graph, node), info).fitting)


def _run(
    recipe: Recipe,
    split: SplitGraph,
    devices: Sequence[str],
    homes: Mapping[str, str],
    whole: Graph,
) -> Sequence[Outputs]:
    """Run a graph with the devices of its ops given."""
    opened = {name: registry.open_device(name) for name in devices}
    asked = frozenset(devices)
    target = target_here(opened, asked)
    names = {n.name for n in split.graph.nodes}
    options = Options(homes={n: d for n, d in homes.items() if n in names})
    plan = make_plan(split.graph, target, options)
    ready = make_ready(whole, Planned(split, plan), asked, opened, 1, target.capacity)
    return [ready.run(recipe.feeds(), Deadline(), profile=False).outputs for _ in range(RUNS)]
