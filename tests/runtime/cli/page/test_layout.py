"""Layered drawings: edges lead down, nothing overlaps, long graphs stay fast."""

from __future__ import annotations

import itertools
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossdock.runtime.cli.page.layout import GAP, draw


def test_an_empty_graph_takes_no_room() -> None:
    made = draw([], [])
    assert (made.nodes, made.edges, made.width, made.height) == ((), (), 0.0, 0.0)


def test_a_chain_is_a_straight_line() -> None:
    made = draw([40.0] * 4, [(0, 1), (1, 2), (2, 3)])
    assert {x for x, _ in made.nodes} == {20.0}
    assert made.width == 40.0


def test_a_diamond_is_symmetric() -> None:
    made = draw([40.0] * 4, [(0, 1), (0, 2), (1, 3), (2, 3)])
    top, left, right, bottom = made.nodes
    assert top[0] == bottom[0] == pytest.approx((left[0] + right[0]) / 2)
    assert left[1] == right[1]


def test_a_long_edge_passes_every_layer_without_touching_a_node() -> None:
    made = draw([60.0] * 4, [(0, 1), (1, 2), (2, 3), (0, 3)])
    long = made.edges[3]
    assert len(long) == 4
    for (bend_x, bend_y), (x, y) in zip(long[1:-1], made.nodes[1:3], strict=True):
        assert bend_y == y
        assert abs(bend_x - x) >= 30.0


def test_edges_that_could_cross_are_untangled() -> None:
    made = draw([20.0] * 4, [(0, 3), (1, 2)])
    assert (made.nodes[0][0] < made.nodes[1][0]) == (made.nodes[3][0] < made.nodes[2][0])


def test_a_cycle_is_refused() -> None:
    with pytest.raises(ValueError, match="cycle"):
        draw([1.0, 1.0], [(0, 1), (1, 0)])


def test_a_source_stands_right_above_its_first_reader() -> None:
    made = draw([20.0] * 4, [(0, 1), (1, 2), (3, 2)])
    assert made.nodes[3][1] == made.nodes[1][1]


def test_two_thousand_nodes_take_seconds_at_most() -> None:
    count = 2000
    edges = [(i, i + 1) for i in range(count - 1)] + [(i, i + 9) for i in range(0, count - 9, 3)]
    begin = time.perf_counter()
    draw([60.0] * count, edges)
    # Half a second on an idle core; the bound only catches a wrong order of growth.
    assert time.perf_counter() - begin < 20


@st.composite
def graphs(draw_: st.DrawFn) -> tuple[list[float], list[tuple[int, int]]]:
    widths = draw_(st.lists(st.floats(10.0, 200.0), min_size=1, max_size=20))
    pairs = [(a, b) for b in range(len(widths)) for a in range(b)]
    edges = draw_(st.lists(st.sampled_from(pairs), unique=True, max_size=30)) if pairs else []
    return widths, edges


@given(graphs())
def test_edges_lead_down_and_nodes_keep_apart(
    graph: tuple[list[float], list[tuple[int, int]]],
) -> None:
    widths, edges = graph
    made = draw(widths, edges)
    for (a, b), path in zip(edges, made.edges, strict=True):
        assert path[0] == made.nodes[a]
        assert path[-1] == made.nodes[b]
        heights = [y for _, y in path]
        assert heights == sorted(set(heights))
    rows: dict[float, list[tuple[float, float]]] = {}
    for (x, y), width in zip(made.nodes, widths, strict=True):
        assert x - width / 2 >= -1e-6
        assert x + width / 2 <= made.width + 1e-6
        assert 0 <= y <= made.height
        rows.setdefault(y, []).append((x - width / 2, x + width / 2))
    for row in rows.values():
        row.sort()
        for (_, end), (begin, _) in itertools.pairwise(row):
            assert begin - end >= GAP - 1e-6
