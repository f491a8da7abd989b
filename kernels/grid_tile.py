"""What the texts of the tiled product have in common: tiles, their choice, and parts to fill in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from crossdock.devices.base import DeviceInfo


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


def choose(tiles: Sequence[Tile], m: int, n: int, batch: int, device: DeviceInfo) -> Tile:
    """The tile that ends first, by rounds of work-groups over the device's units."""

    def seconds(tile: Tile) -> float:
        groups = -(-m // tile.tm) * -(-n // tile.tn) * batch
        rounds = -(-groups // max(1, device.compute_units))
        tall, wide = tile.tm, tile.tn
        if tile.cut:
            tall = min(tall, -(-m // tile.rm) * tile.rm)
            wide = min(wide, -(-n // tile.rn) * tile.rn)
        return rounds * tall * wide / tile.pace

    return min(tiles, key=seconds)


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
