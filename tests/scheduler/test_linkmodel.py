"""Link models: piecewise bandwidth, and fitting it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossdock.scheduler import LinkModel


def test_bandwidth_is_interpolated_over_log_size_and_constant_outside() -> None:
    link = LinkModel(1e-5, ((1e3, 1e8), (1e5, 3e8)))
    assert link.bandwidth(10.0) == 1e8
    assert link.bandwidth(1e4) == pytest.approx(2e8)
    assert link.bandwidth(1e9) == 3e8
    assert link.seconds(0.0) == 1e-5
    assert link.affine(1e5) == (1e-5, 3e8)


@pytest.mark.parametrize(
    ("latency", "points"),
    [(0.0, ()), (-1.0, ((1.0, 1.0),)), (0.0, ((2.0, 1.0), (1.0, 1.0))), (0.0, ((1.0, 0.0),))],
)
def test_impossible_models_are_refused(
    latency: float, points: tuple[tuple[float, float], ...]
) -> None:
    with pytest.raises(ValueError, match="link model"):
        LinkModel(latency, points)


@given(st.floats(1e-6, 1e-3), st.floats(1e8, 1e11))
def test_a_fit_finds_the_affine_link_that_made_the_samples(latency: float, rate: float) -> None:
    sizes = [2.0**k for k in range(4, 27, 2)]
    link = LinkModel.fit([(size, latency + size / rate) for size in sizes])
    for size in (100.0, 1e4, 3e6):
        assert link.seconds(size) == pytest.approx(latency + size / rate, rel=0.05)


def test_a_fit_uses_the_median_of_each_size() -> None:
    samples = [(1e6, 1e-3), (1e6, 1.1e-3), (1e6, 0.5), (1e3, 1e-5), (1e3, 1e-5), (1e3, 0.5)]
    assert LinkModel.fit(samples).seconds(1e6) == pytest.approx(1.1e-3, rel=0.01)


def test_a_fit_needs_samples() -> None:
    with pytest.raises(ValueError, match="needs samples"):
        LinkModel.fit([(0.0, 1e-6)])
