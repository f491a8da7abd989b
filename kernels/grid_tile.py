"""What the texts of the tiled product have in common: tiles, their choice, and parts to fill in."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from crossdock.devices.base import DeviceInfo
from crossdock.devices.program import GridLaunch


@dataclass(frozen=True)
class Tile:
    """A work-group makes TM x TN results, TK deep at a time, in blocks of RM x RN.

    ``pace`` is the relative speed of a tile that is full. Where ``cut``, rows and columns beyond
    the result cost nothing but the rest of a block.
    """

    tm: int
    tn: int
    tk: int
    rm: int
    rn: int
    pace: float
    cut: bool = False

    @property
    def name(self) -> str:
        """What it is called where somebody is told of it."""
        return f"tile {self.tm}x{self.tn}x{self.tk}"


MOST = 3
"""Tiles that are timed for a product, at most."""
NEAR = 1.75
"""How many times the time that is reckoned for the best tile another may take, to be timed."""
WORTH_TIMING = 1 << 20
"""Multiplications of a product from which on its tile matters: less takes as long as a launch."""


def choose(tiles: Sequence[Tile], m: int, n: int, batch: int, device: DeviceInfo) -> Tile:
    """The tile that ends first, by rounds of work-groups over the device's units."""
    return ranked(tiles, m, n, batch, device)[0]


def ranked(
    tiles: Sequence[Tile], m: int, n: int, batch: int, device: DeviceInfo
) -> tuple[Tile, ...]:
    """The tiles that end first, by rounds of work-groups over the device's units; the best first.

    At most ``MOST``, which are ``NEAR`` the best.
    """

    def seconds(tile: Tile) -> float:
        groups = -(-m // tile.tm) * -(-n // tile.tn) * batch
        rounds = -(-groups // max(1, device.compute_units))
        tall, wide = tile.tm, tile.tn
        if tile.cut:
            tall = min(tall, -(-m // tile.rm) * tile.rm)
            wide = min(wide, -(-n // tile.rn) * tile.rn)
        return rounds * tall * wide / tile.pace

    found = sorted(tiles, key=seconds)
    return tuple(t for t in found[:MOST] if seconds(t) <= NEAR * seconds(found[0]))


def launched(
    tiles: Sequence[Tile],
    sizes: tuple[int, int, int],
    depth: int,
    device: DeviceInfo,
    make: Callable[[Tile], GridLaunch],
) -> GridLaunch:
    """The launch of a product of ``sizes`` (rows, columns, batch), ``depth`` long sums each.

    It has the tile that ends first by ``ranked``; the others there are its variants. They make the
    same bits: whatever the tile, an element's sum is added up in the order of its factors.
    """
    first, *others = ranked(tiles, *sizes, device)
    if not others or math.prod(sizes) * depth < WORTH_TIMING:
        return make(first)
    variants = tuple(replace(make(tile), variant=tile.name) for tile in others)
    return replace(make(first), variant=first.name, others=variants)


@dataclass(frozen=True)
class Parts:
    """What an op fills in: the kernel's parameters, pointers, how tiles are read, and the end."""

    params: str
    setup: str
    fill_a: str
    fill_b: str
    store: str

    def into(self, text: str) -> str:
        """The text with the parts in their places."""
        for name, part in (
            ("PARAMS", self.params),
            ("SETUP", self.setup),
            ("FILL_A", self.fill_a),
            ("FILL_B", self.fill_b),
            ("STORE", self.store),
        ):
            text = text.replace(f"@{name}@", part)
        return text
