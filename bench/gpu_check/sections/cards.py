"""A card through two drivers, and copies between two cards: identity, budget and rates."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

import crossdock as xd
from bench.gpu_check.place import HOST, Place
from bench.gpu_check.report import Report
from bench.timing import interleaved
from crossdock.devices import registry
from crossdock.devices.base import Buffer, Device, DeviceInfo
from crossdock.kernels.reference import evaluate
from crossdock.runtime.errors import OutOfMemory

SIZE, SMALL = 256 << 20, 1 << 20
ABSENT = "no OpenCL driver shows a card of NVIDIA's"


def run(place: Place, report: Report) -> None:
    """What hangs on there being more than one way, or more than one card."""
    device = place.open()
    _two_ways(device, report)
    kind = device.info.id.partition(":")[0]
    others = [i.id for i in registry.devices() if i.kind == kind and i.id != device.info.id]
    if not others:
        report.not_run("copies between cards", "there is one card")
    for name in others[:1]:
        _between(device, registry.open_device(name), place, report)
        _plan(device.info.id, name, report)


def _two_ways(device: Device, report: Report) -> None:
    """The card through OpenCL has the card's identity, group and memory."""
    shown = [i for i in registry.devices() if i.kind == "opencl" and "nvidia" in i.vendor.lower()]
    ways = [i for i in shown if i.physical_id == device.info.physical_id]
    if not shown:
        report.not_run("one card through CUDA and OpenCL", ABSENT)
        return
    said = ", ".join(f"{i.id} {i.physical_id}" for i in shown)
    note = f"{device.info.id} {device.info.physical_id}; {said}"
    report.check("one card through CUDA and OpenCL", bool(ways), note)
    for way in ways[:1]:
        report.check("one group", way.resource_group == device.info.resource_group)
        report.check("one budget", *_one_budget(device, way))


def _one_budget(device: Device, way: DeviceInfo) -> tuple[bool, str]:
    """Whether memory taken by CUDA is not there for OpenCL, and what is said of it."""
    kept = device.allocate(device.info.memory_bytes // 4, "the check")
    try:
        registry.open_device(way.id).allocate(way.memory_bytes - kept.nbytes + (1 << 20))
    except OutOfMemory as error:
        return device.info.id in str(error) and way.id in str(error), str(error)
    finally:
        kept.release()
    return False, f"{way.id} promised what {device.info.id} holds"


def _between(one: Device, other: Device, place: Place, report: Report) -> None:
    """Rates of copies between two cards each way, beside those through the host."""
    size = place.size(SIZE, SMALL)
    data = np.random.default_rng(0).integers(0, 256, size, np.uint8)
    host = np.empty(size, np.uint8)
    for src, dst in itertools.permutations((one, other)):
        ends = f"{src.info.id} to {dst.info.id}"
        how = dst.copies_from(src)
        report.check(f"{ends}: copies by itself", bool(how), how)
        source, target = src.upload(data), dst.allocate(size)
        runs = {
            "direct": _direct(dst, target, source),
            "host": _hops(dst, target, src, source, host),
        }
        rounds = place.size(20, 2)
        found = interleaved(runs, rounds, seconds=place.seconds / 8)
        rate = size / found["direct"] / 1e9
        report.figure(f"{ends}: rate", rate, "GB/s", note=how)
        gain = found["host"] / found["direct"]
        report.figure(f"{ends}: over the rate through the host", gain, "x", ">= 1")
        target.release()
        target = dst.allocate(size)
        _direct(dst, target, source)()
        _read(dst, target, host)
        report.check(f"{ends}: what was copied is right", np.array_equal(host, data))


def _direct(dst: Device, target: Buffer, source: Buffer) -> Callable[[], Any]:
    return lambda: dst.call("upload", lambda queue: _wait(queue.copy(target, source)))


def _hops(
    dst: Device, target: Buffer, src: Device, source: Buffer, host: np.ndarray
) -> Callable[[], Any]:
    def run() -> None:
        _read(src, source, host)
        dst.call("upload", lambda queue: _wait(queue.write(target, host)))

    return run


def _read(device: Device, source: Buffer, host: np.ndarray) -> None:
    device.call("download", lambda queue: _wait(queue.read(source, host)))


def _wait(event: Any) -> None:
    if event is not None:
        event.wait()


def _plan(one: str, other: str, report: Report) -> None:
    """A plan over two cards: the value between them passes the host by, and the answer is right."""
    b = xd.GraphBuilder()
    x = b.input("x", (64, 64))
    graph = b.build({"y": b.add(b.softmax(x, axis=1, label="first"), x, label="second")})
    feeds = {"x": np.random.default_rng(1).random((64, 64)).astype(np.float32)}
    rules = xd.Constraints(pin={"first": one, "second": other})
    with xd.compile(graph, [one, other], constraints=rules, measure=False) as session:
        close = np.allclose(session.run(feeds)["y"], evaluate(graph, feeds)["y"], rtol=1e-5)
        links = session.receipt.links
    report.check("a plan over two cards is right", close)
    direct = f"{one}->{other}" in links and f"{one}->{HOST}" not in links
    report.check("its value passes the host by", direct, ", ".join(links))
