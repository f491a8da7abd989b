"""What a node of a replayed plan costs: a chain of adds in which nothing is fused."""

from __future__ import annotations

from functools import partial

import numpy as np

import crossdock as xd
from bench.gpu_check.place import Place
from bench.gpu_check.report import Report
from bench.timing import median_seconds
from crossdock.devices.registry import open_device
from crossdock.runtime.device_array import DeviceArray

NODES, SMALL = 1000, 50
FEW = 10


def chain(nodes: int) -> xd.Graph:
    """X + 1 + 1 + ... of 16 numbers."""
    b = xd.GraphBuilder("adds")
    x = b.input("x", (16,))
    one = b.constant(np.ones(16, np.float32))
    for _ in range(nodes):
        x = b.add(x, one)
    return b.build({"y": x})


def run(place: Place, report: Report) -> None:
    """Microseconds a node, from runs of a long chain and of a short one."""
    nodes = place.size(NODES, SMALL)
    feed = {"x": np.zeros(16, np.float32)}
    seconds = {}
    for count in (FEW, nodes):
        graph = chain(count)
        with xd.compile(graph, place.device, skip_passes=["fuse-elementwise"]) as session:
            right = np.array_equal(session.run(feed)["y"], np.full(16, count))
            report.check(f"a chain of {count} adds is right", right)
            seconds[count] = median_seconds(partial(session.run, feed), place.size(200, 5))
            notes = session.receipt.notes
            report.figure(
                f"a run of {count} adds", seconds[count] * 1e6, "us", note="; ".join(notes)
            )
        resident(place, report, count, graph)
    each = seconds[nodes] / nodes
    report.figure("a node of a replayed plan, all told", each * 1e6, "us", "<= 2")


def resident(place: Place, report: Report, count: int, graph: xd.Graph) -> None:
    """The same over arrays that lie on the device, which come and go, or one that stays."""
    device = open_device(place.device)
    with xd.compile(
        graph,
        place.device,
        skip_passes=["fuse-elementwise"],
        feeds_on=place.device,
        outputs="device",
    ) as session:
        held = [DeviceArray.put(device, np.full(16, i, np.float32)) for i in range(3)]
        made = [session.run({"x": held[i % 3]})["y"] for i in range(9)]
        right = all(
            np.array_equal(y.numpy(), np.full(16, i % 3 + count)) for i, y in enumerate(made)
        )
        report.check(f"a chain of {count} adds over arrays of the device is right", right)
        del made
        feed = {"x": held[0]}
        seconds = median_seconds(partial(session.run, feed), place.size(200, 5))
        report.figure(f"a run of {count} adds from and to the device", seconds * 1e6, "us")
