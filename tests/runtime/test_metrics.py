"""Quality of predictions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossdock.runtime.metrics import Pair, metrics, spearman


def test_metrics_of_known_pairs() -> None:
    made = metrics(
        [
            Pair(1.0, 0.9, 1.1, 1.0),
            Pair(1.1, 1.0, 1.05, 1.0),
            Pair(1.2, 1.1, 1.3, 1.0),
            Pair(5.0, 0.0, 9.0, 0.0),
        ]
    )
    assert made is not None
    assert made.count == 3
    assert made.mape == pytest.approx(0.1)
    assert made.median_ape == pytest.approx(0.1)
    assert made.within_15 == pytest.approx(2 / 3)
    assert made.coverage == pytest.approx(2 / 3)
    assert made.rank is None  # measured times are all equal


def test_no_pairs_no_metrics() -> None:
    assert metrics([]) is None


def test_spearman_of_known_ranks() -> None:
    assert spearman([1, 2, 3, 4], [10, 20, 30, 40]) == pytest.approx(1.0)
    assert spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1.0)
    # Ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4.
    assert spearman([1, 2, 2, 4], [1, 2, 3, 4]) == pytest.approx(0.9486832980505138)
    assert spearman([1, 2], [1, 2]) is None


@given(st.lists(st.integers(-100, 100), min_size=3, unique=True))
def test_a_monotone_change_keeps_the_rank(values: list[int]) -> None:
    assert spearman(values, [v**3 for v in values]) == pytest.approx(1.0)
