"""Numbers with three digits in a unit that fits; names that cannot act on the terminal."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossdock.runtime.cli import text


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "-"),
        (math.inf, "-"),
        (0.0, "0"),
        (1.5, "1.50 s"),
        (0.0123, "12.3 ms"),
        (4.56e-6, "4.56 us"),
        (7e-9, "7.00 ns"),
        (123.4, "123 s"),
    ],
)
def test_seconds(value: float | None, shown: str) -> None:
    assert text.seconds(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.00 KiB"), (3 << 20, "3.00 MiB"), (None, "-")],
)
def test_size(value: float | None, shown: str) -> None:
    assert text.size(value) == shown


def test_rate_and_percent() -> None:
    assert text.rate(1.5e9, "B") == "1.50 GB/s"
    assert text.rate(2.5e12, "FLOP") == "2.50 TFLOP/s"
    assert text.rate(12.0, "B") == "12.0 B/s"
    assert text.rate(None, "B") == "-"
    assert text.percent(0.125) == "12%"
    assert text.percent(None) == "-"
    assert text.millis(0.00123) == "1.23 ms"


@given(st.text())
def test_clean_text_is_one_printable_line(name: str) -> None:
    shown = text.clean(name)
    assert all(c.isprintable() for c in shown)


@given(st.text(), st.integers(3, 40))
def test_short_text_keeps_both_ends(name: str, limit: int) -> None:
    whole, cut = text.clean(name), text.short(name, limit)
    assert len(cut) == min(limit, len(whole))
    if len(whole) > limit:
        assert whole.startswith(cut.split("\N{HORIZONTAL ELLIPSIS}")[0])
