"""A real device behind a slower link: same answers, copies no faster than the link."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import pytest

import crossdock as xd
from crossdock.devices import registry, sim, throttle
from crossdock.devices.base import Device
from crossdock.devices.sim import SimSpec
from crossdock.devices.throttle import ThrottledDevice
from crossdock.runtime import measure
from crossdock.runtime.errors import DeviceError, Unavailable
from crossdock.scheduler import CostModel

SLOW = 20e6
"""Bytes a second: a mebibyte takes 52 ms."""
MIB = 1 << 20


@pytest.fixture
def slow() -> Iterator[ThrottledDevice]:
    """The processor's device behind a slow link."""
    made = throttle.register("slow", registry.open_device("cpu:0"), SLOW)
    yield made
    sim.unregister("slow")
    for key in [k for k in registry._OPEN if k[0] == "sim:slow"]:
        del registry._OPEN[key]


def test_it_is_the_device_with_another_id_and_fingerprint(slow: ThrottledDevice) -> None:
    real = registry.open_device("cpu:0").info
    assert slow.info.id == "sim:slow"
    assert slow.info.kind == real.kind
    assert slow.info.physical_id == real.physical_id
    assert slow.info.fingerprint == f"{real.fingerprint}|link of 2e+07 B/s"
    assert registry.open_device("sim:slow") is slow
    assert slow.info in registry.devices()
    sim.unregister("slow")
    with pytest.raises(Unavailable, match="sim:other"):
        registry.open_device("sim:other")


def test_copies_take_as_long_as_their_bytes(slow: ThrottledDevice) -> None:
    buffer = slow.allocate(MIB, "test")
    source = np.arange(MIB, dtype=np.uint8)
    back = np.empty_like(source)
    for copy in (
        lambda: slow.call("upload", lambda q: q.write(buffer, source)),
        lambda: slow.call("download", lambda q: q.read(buffer, back)),
    ):
        began = time.perf_counter()
        copy()
        assert time.perf_counter() - began >= MIB / SLOW
    np.testing.assert_array_equal(back, source)


def test_the_measured_link_is_the_slow_one(
    slow: ThrottledDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = CostModel()
    host: Device = registry.open_device("cpu:0")
    monkeypatch.setattr(measure, "LINK_SIZES", (4 << 10, 64 << 10))
    measure.measure_link(host, slow, model)
    link = model.link(host.info.fingerprint, slow.info.fingerprint)
    assert link is not None
    assert link.seconds(64 << 10) >= (64 << 10) / SLOW


def test_a_session_runs_on_it(slow: ThrottledDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROSSDOCK_CACHE_DIR", "off")
    b = xd.GraphBuilder("sum")
    x = b.input("x", (256, 256))
    graph = b.build({"y": b.add(b.relu(x), x)})
    given = np.linspace(-1, 1, 256 * 256, dtype=np.float32).reshape(256, 256)
    with xd.compile(graph, ["sim:slow"], measure=False) as session:
        assert {s.device for s in session.plan.launches()} == {slow.info.id}
        began = time.perf_counter()
        got = session.run({"x": given})["y"]
        took = time.perf_counter() - began
    np.testing.assert_allclose(got, np.maximum(given, 0) + given, rtol=1e-6)
    assert took >= 2 * given.nbytes / SLOW


@pytest.mark.parametrize("bandwidth", [0.0, -1.0, float("inf"), float("nan")])
def test_a_bandwidth_is_positive_and_finite(bandwidth: float) -> None:
    with pytest.raises(DeviceError, match="bandwidth greater than 0"):
        throttle.register("slow", registry.open_device("cpu:0"), bandwidth)


def test_simulated_devices_have_a_link_of_their_own() -> None:
    sim.register(SimSpec("fast"))
    try:
        with pytest.raises(DeviceError, match="link_bandwidth instead"):
            throttle.register("slow", sim.open_device("sim:fast"), SLOW)
    finally:
        sim.unregister("fast")
