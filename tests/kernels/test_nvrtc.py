"""NVRTC compiles every kernel text that the op table lowers to for a card; none is needed.

Registers, spills and shared memory are held against the file of an earlier compilation.
"""

from __future__ import annotations

import pytest

from tests import nvrtc, nvrtc_usage

pytestmark = pytest.mark.skipif(nvrtc.library() is None, reason=nvrtc.ABSENT)

SHARED = 48 << 10
"""Bytes of shared memory that every card gives a block."""


def test_there_are_texts() -> None:
    assert len(nvrtc_usage.named()) > 100


EXTREMES = ("sm_70", "sm_100")
"""What compiles for these does for those between, nearly always; each takes 20 seconds."""


@pytest.mark.parametrize(
    "arch",
    [pytest.param(a, marks=() if a in EXTREMES else pytest.mark.slow) for a in nvrtc_usage.ARCHS],
)
def test_every_text_compiles_and_uses_no_more_than_before(arch: str) -> None:
    compiler, kept = nvrtc_usage.kept()
    now = nvrtc_usage.measured(arch)
    assert [name for name, (_, _, shared) in now.items() if shared > SHARED] == []
    if nvrtc.version() != compiler:
        pytest.skip(f"the file is of NVRTC {compiler}, here is {nvrtc.version()}: not comparable")
    assert nvrtc_usage.worse(kept[arch], now) == []


KEPT = {"k": [100, 8, 1024]}


@pytest.mark.parametrize(
    ("now", "said"),
    [
        ((100, 9, 1024), "k: spills 9 bytes, before 8"),
        ((107, 8, 1024), "k: 107 registers, before 100"),
        ((100, 8, 1025), "k: 1025 bytes of shared memory, before 1024"),
    ],
)
def test_growth_is_found(now: nvrtc_usage.Usage, said: str) -> None:
    assert nvrtc_usage.worse(KEPT, {"k": now}) == [said]


def test_a_little_growth_of_registers_passes() -> None:
    assert nvrtc_usage.worse(KEPT, {"k": (106, 0, 0)}) == []


def test_texts_that_one_side_lacks_are_found() -> None:
    found = nvrtc_usage.worse(KEPT, {"new": (1, 0, 0)})
    assert [line.partition(":")[0] for line in found] == ["k", "new"]
