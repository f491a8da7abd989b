"""Layered drawing of a directed acyclic graph: layers, order within layers, coordinates.

The steps of Sugiyama, Tagawa and Toda, "Methods for Visual Understanding of Hierarchical System
Structures" (1981): layers by longest path, points where edges cross layers, order by barycentre.
Coordinates are the least-squares ones that keep the order and the spacing, found exactly by pooling
adjacent violators (Ayer et al. 1955).
"""

from __future__ import annotations

import itertools
from bisect import bisect_right, insort
from collections.abc import Sequence
from dataclasses import dataclass, field

LAYER_HEIGHT = 64.0
GAP = 18.0
BEND_WIDTH = 8.0
MAX_BENDS = 40_000
"""Points at which long edges may cross layers; beyond it they are drawn straight through."""
ORDER_SWEEPS = 8
PLACE_SWEEPS = 6


@dataclass(frozen=True)
class Drawing:
    """Centres of the nodes, and for each edge the points it passes; all in one unit.

    The drawing begins at (0, 0) and is ``width`` by ``height`` large.
    """

    nodes: tuple[tuple[float, float], ...]
    edges: tuple[tuple[tuple[float, float], ...], ...]
    width: float
    height: float


def draw(widths: Sequence[float], edges: Sequence[tuple[int, int]]) -> Drawing:
    """Lay a graph out from top to bottom.

    Args:
        widths: of the nodes, by number.
        edges: (from, to) pairs of node numbers, without a cycle.

    Raises:
        ValueError: the edges form a cycle.
    """
    if not widths:
        return Drawing((), (), 0.0, 0.0)
    net = _Net(list(widths), edges)
    _order(net)
    x = _place(net)
    left = min(x[v] - net.width[v] / 2 for v in range(len(net.width)))
    at = [
        (x[v] - left, net.layer[v] * LAYER_HEIGHT + LAYER_HEIGHT / 2) for v in range(len(net.width))
    ]
    return Drawing(
        tuple(at[: len(widths)]),
        tuple(tuple(at[v] for v in path) for path in net.paths),
        max(x[v] + net.width[v] / 2 for v in range(len(net.width))) - left,
        (max(net.layer) + 1) * LAYER_HEIGHT,
    )


@dataclass
class _Net:
    """Nodes and bends in layers. ``up`` and ``down`` hold (neighbour, weight) one layer away."""

    width: list[float]
    edges: Sequence[tuple[int, int]]
    layer: list[int] = field(init=False)
    rows: list[list[int]] = field(init=False)
    up: list[list[tuple[int, float]]] = field(init=False)
    down: list[list[tuple[int, float]]] = field(init=False)
    paths: list[list[int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.layer = _layers(len(self.width), self.edges)
        real = len(self.width)
        spans = sum(self.layer[b] - self.layer[a] - 1 for a, b in self.edges)
        for a, b in self.edges:
            path = [a]
            if spans <= MAX_BENDS:
                for layer in range(self.layer[a] + 1, self.layer[b]):
                    path.append(len(self.width))
                    self.width.append(BEND_WIDTH)
                    self.layer.append(layer)
            self.paths.append([*path, b])
        self.up = [[] for _ in self.width]
        self.down = [[] for _ in self.width]
        for path in self.paths:
            for a, b in itertools.pairwise(path):
                if self.layer[b] - self.layer[a] == 1:
                    # Long edges are to be straight: Gansner et al. 1993, section 4.
                    weight = 1.0 + 2.0 * (a >= real) + 2.0 * (b >= real)
                    self.down[a].append((b, weight))
                    self.up[b].append((a, weight))
        self.rows = [[] for _ in range(max(self.layer) + 1)]
        for v in range(len(self.width)):
            self.rows[self.layer[v]].append(v)


def _layers(count: int, edges: Sequence[tuple[int, int]]) -> list[int]:
    """Longest path from a source; sources then move down to their first reader."""
    after: list[list[int]] = [[] for _ in range(count)]
    missing = [0] * count
    for a, b in edges:
        after[a].append(b)
        missing[b] += 1
    sources = [v for v in range(count) if missing[v] == 0]
    layer = [0] * count
    todo = list(sources)
    for v in todo:
        for w in after[v]:
            layer[w] = max(layer[w], layer[v] + 1)
            missing[w] -= 1
            if missing[w] == 0:
                todo.append(w)
    if len(todo) < count:
        raise ValueError("the edges form a cycle")
    for v in sources:
        layer[v] = min((layer[w] for w in after[v]), default=1) - 1
    return layer


def _order(net: _Net) -> None:
    """Order each row by barycentre, down and up in turns; the order with least crossings stays."""
    best, fewest = [list(row) for row in net.rows], _crossings(net)
    for sweep in range(ORDER_SWEEPS):
        if fewest == 0:
            break
        downward = sweep % 2 == 0
        rows = net.rows if downward else net.rows[::-1]
        near = net.up if downward else net.down
        position = _positions(net)
        for row in rows:
            centre = {v: _mean(near[v], position, position[v]) for v in row}
            row.sort(key=lambda v: centre[v])
            position.update((v, float(i)) for i, v in enumerate(row))
        crossings = _crossings(net)
        if crossings < fewest:
            best, fewest = [list(row) for row in net.rows], crossings
    net.rows = best


def _positions(net: _Net) -> dict[int, float]:
    return {v: float(i) for row in net.rows for i, v in enumerate(row)}


def _mean(near: Sequence[tuple[int, float]], at: dict[int, float], otherwise: float) -> float:
    total = sum(weight for _, weight in near)
    return sum(at[v] * weight for v, weight in near) / total if total else otherwise


def _crossings(net: _Net) -> int:
    """Pairs of edges between neighbouring rows that cross."""
    position = _positions(net)
    total = 0
    for row in net.rows:
        ends: list[float] = []
        for v in row:
            targets = sorted(position[w] for w, _ in net.down[v])
            total += sum(len(ends) - bisect_right(ends, t) for t in targets)
            for t in targets:
                insort(ends, t)
    return total


def _place(net: _Net) -> list[float]:
    """Centres along the rows: each row as near to its neighbours as order and spacing allow."""
    x = [0.0] * len(net.width)
    for row in net.rows:
        for v, centre in zip(row, _spaced(net, row), strict=True):
            x[v] = centre
    for sweep in range(PLACE_SWEEPS):
        downward = sweep % 2 == 0
        last = sweep >= PLACE_SWEEPS - 2
        for row in net.rows if downward else net.rows[::-1]:
            _settle(net, row, x, _neighbours(net, row, downward, both=last))
    return x


def _spaced(net: _Net, row: Sequence[int]) -> list[float]:
    """Centres of a row packed tightly around 0."""
    centres, at = [], 0.0
    for v in row:
        centres.append(at + net.width[v] / 2)
        at += net.width[v] + GAP
    return [c - (at - GAP) / 2 for c in centres]


def _neighbours(
    net: _Net, row: Sequence[int], downward: bool, *, both: bool
) -> list[list[tuple[int, float]]]:
    if both:
        return [net.up[v] + net.down[v] for v in row]
    return [net.up[v] if downward else net.down[v] for v in row]


def _settle(
    net: _Net, row: Sequence[int], x: list[float], near: Sequence[list[tuple[int, float]]]
) -> None:
    """Move a row to the weighted least-squares fit of where its nodes want to be."""
    packed = _spaced(net, row)
    blocks: list[tuple[float, float, int]] = []  # offset wanted, weight, members
    for v, base, others in zip(row, packed, near, strict=True):
        weight = sum(w for _, w in others) or 0.01
        wanted = sum(x[o] * w for o, w in others) / weight if others else x[v]
        block = (wanted - base, weight, 1)
        while blocks and blocks[-1][0] >= block[0]:
            offset, heavy, members = blocks.pop()
            total = heavy + block[1]
            mean = (offset * heavy + block[0] * block[1]) / total
            block = (mean, total, members + block[2])
        blocks.append(block)
    offsets = [offset for offset, _, members in blocks for _ in range(members)]
    for v, base, offset in zip(row, packed, offsets, strict=True):
        x[v] = base + offset
