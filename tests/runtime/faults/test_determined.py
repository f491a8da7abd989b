"""``deterministic=True`` with ``strict``: the same bits though devices fail on the way."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import crossdock as xd
from crossdock.devices.faults import Fault
from crossdock.devices.sim import SimDevice, SimSpec
from crossdock.runtime.differential.draw import draw
from tests.runtime.faults.machine import A, B, FaultyMachine

pytestmark = pytest.mark.usefixtures("no_hang")
GIVEN: dict[str, Any] = {"deterministic": True, "strict": True, "measure": False}


def fast(name: str) -> SimDevice:
    """A device that everything is placed on that may run there."""
    return SimDevice(
        SimSpec(name, 1e18, 1e18, launch_s=1e-12, link_bandwidth=1e18, link_latency=1e-12)
    )


@pytest.mark.parametrize("kind", ["lost", "launch", "oom"])
def test_a_run_that_lost_a_device_has_the_bits_of_one_that_did_not(
    faulty: FaultyMachine, kind: str
) -> None:
    recovered = 0
    for seed in range(40, 50):
        recipe = draw(seed)
        graph, _ = recipe.build()
        feeds = recipe.feeds()
        with xd.compile(graph, "cpu:0", **GIVEN) as session:
            want = session.run(feeds)
        faulty.add("a", Fault(kind, seed % 3), inner=fast("a"))
        faulty.add("b", Fault(kind, seed % 2), inner=fast("b"))
        with xd.compile(graph, [A, B, "cpu:0"], **GIVEN) as session:
            for _ in range(2):
                got = session.run(feeds, timeout=60)
                recovered += bool(session.receipt.recoveries)
                assert bits(got) == bits(want), seed
        faulty.end()
    assert recovered > 4


def bits(made: dict[str, Any]) -> dict[str, bytes]:
    return {name: np.ascontiguousarray(array).tobytes() for name, array in made.items()}
