"""Products on a grid: the tile that was measured to be the fastest beside the rule's choice."""

from __future__ import annotations

from typing import Any

import pytest
import tiles

import crossdock as xd
from crossdock.devices import registry

ROUNDS = 25
GRIDS = [d.id for d in xd.devices() if d.kind in ("opencl", "cuda")]


@pytest.mark.parametrize("device", GRIDS)
@pytest.mark.parametrize("name", list(tiles.PRODUCTS))
@pytest.mark.benchmark(group="tiles")
def test_tile(name: str, device: str, benchmark: Any) -> None:
    """The note has the device's own times; what is timed is how long it takes to find them."""
    opened, call = registry.open_device(device), tiles.PRODUCTS[name]()
    found = benchmark.pedantic(lambda: tiles.duel(opened, call, ROUNDS), rounds=1)
    benchmark.extra_info["ratios"] = {"the rule's choice": found.ratio}
    benchmark.extra_info["note"] = (
        f"{found.tuned * 1e6:.0f} us, the rule's choice {found.rule * 1e6:.0f} us, ratio "
        f"{found.ratio:.2f}; {found.said}"
    )
