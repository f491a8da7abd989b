"""NVRTC compiles every kernel text that the op table lowers to for a card; none is needed.

Registers, spills and shared memory are held against the file of an earlier compilation.
"""

from __future__ import annotations

from collections.abc import Collection

import pytest

from tests import nvrtc, nvrtc_usage

pytestmark = pytest.mark.skipif(nvrtc.library() is None, reason=nvrtc.ABSENT)

TUNED = ("grid.matmul.tiled of matmul-square-", "grid.conv2d.implicit of conv2d-3x3-float32")
"""Cases whose tiles are all compiled each time; a large tile takes half a second."""
SHARED = 48 << 10
"""Bytes of shared memory that every card gives a block."""


def test_there_are_texts() -> None:
    assert len(nvrtc_usage.named()) > 100


def judge(arch: str, names: Collection[str]) -> None:
    compiler, kept = nvrtc_usage.kept()
    now = nvrtc_usage.measured(arch, names)
    assert [name for name, (_, _, shared) in now.items() if shared > SHARED] == []
    if nvrtc.version() != compiler:
        pytest.skip(f"the file is of NVRTC {compiler}, here is {nvrtc.version()}: not comparable")
    before = {name: row for name, row in kept[arch].items() if name in names}
    assert nvrtc_usage.worse(before, now) == []


def test_the_file_is_of_these_texts() -> None:
    _, kept = nvrtc_usage.kept()
    texts = nvrtc_usage.named().keys()
    assert all(rows.keys() == texts for rows in kept.values()), nvrtc_usage.REWRITE


@pytest.mark.parametrize(("arch", "turn"), [("sm_70", 0), ("sm_100", 1)])
def test_every_text_compiles_and_uses_no_more_than_before(arch: str, turn: int) -> None:
    """Texts in turn for the oldest and the newest: what compiles for these two does for those
    between, nearly always, and what an op's texts have in common is compiled for both. All of them
    take 20 seconds for each. Of the tiles that products may be tuned to, those of few cases.
    """
    names = [n for n in nvrtc_usage.named() if ", tile " not in n or n.startswith(TUNED)]
    judge(arch, names[turn::2])


@pytest.mark.slow
@pytest.mark.parametrize("arch", nvrtc_usage.ARCHS)
def test_every_text_on_every_architecture(arch: str) -> None:
    judge(arch, nvrtc_usage.named().keys())


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
