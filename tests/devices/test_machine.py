from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossdock.devices.base import Cap, DeviceInfo
from crossdock.devices.machine import (
    Check,
    DeviceProfile,
    LinkProfile,
    Machine,
    Measured,
    Rates,
    SizedRate,
    Status,
)
from crossdock.runtime.errors import LoadError

NUMBERS = st.floats(min_value=0.0, allow_nan=False, allow_infinity=False)
ABOVE_ZERO = st.floats(min_value=1e-12, max_value=1e18)
WHOLE = st.integers(min_value=0, max_value=2**53)
NAMES = st.text(max_size=12)
MEASURED = st.builds(
    Measured, median=ABOVE_ZERO, mad=NUMBERS, samples=st.integers(min_value=1, max_value=99)
)


@st.composite
def sized(draw: st.DrawFn) -> tuple[SizedRate, ...]:
    sizes = draw(st.sets(st.integers(1, 2**40), min_size=1, max_size=4))
    return tuple(SizedRate(n, draw(MEASURED)) for n in sorted(sizes))


RATES = st.builds(
    Rates,
    flops=st.dictionaries(NAMES, MEASURED, max_size=3),
    bandwidth=sized(),
    launch_s=st.dictionaries(NAMES, MEASURED, max_size=3),
    launch_alone_s=MEASURED,
    allocation_s=MEASURED,
)


def infos(name: str) -> st.SearchStrategy[DeviceInfo]:
    return st.builds(
        DeviceInfo,
        id=st.just(name),
        kind=st.just("opencl"),
        name=NAMES,
        vendor=NAMES,
        driver=NAMES,
        physical_id=NAMES,
        resource_group=NAMES,
        compute_units=WHOLE,
        memory_bytes=WHOLE,
        caps=st.frozensets(st.sampled_from(Cap)),
        fingerprint=NAMES,
        max_allocation=WHOLE,
        local_memory=WHOLE,
        max_work_group=WHOLE,
        alignment=WHOLE,
        details=st.dictionaries(NAMES, NAMES, max_size=2),
    )


def devices(name: str) -> st.SearchStrategy[DeviceProfile]:
    return st.builds(
        DeviceProfile,
        id=st.just(name),
        kind=st.just("opencl"),
        status=st.sampled_from([Status.PASS, Status.FAIL]),
        reason=NAMES,
        fix=NAMES,
        info=infos(name),
        checks=st.lists(st.builds(Check, NAMES, st.booleans(), NAMES), max_size=2).map(tuple),
        rates=st.none() | RATES,
    )


@st.composite
def machines(draw: st.DrawFn) -> Machine:
    ids = sorted(draw(st.sets(st.sampled_from(["cpu:0", "opencl:0", "opencl:1"]), max_size=3)))
    pairs = [(a, b) for a in ids for b in ids if a != b]
    links = [
        LinkProfile(
            a,
            b,
            draw(st.sampled_from([(a, b), (a, "host", b)])),
            draw(MEASURED),
            draw(sized()),
            draw(st.none() | MEASURED),
            draw(st.booleans()),
        )
        for a, b in (draw(st.lists(st.sampled_from(pairs), unique=True)) if pairs else [])
    ]
    return Machine(
        fingerprint=draw(NAMES),
        cpu=draw(NAMES),
        cores=draw(WHOLE),
        versions=draw(st.dictionaries(NAMES, NAMES, max_size=2)),
        created=draw(st.datetimes()).isoformat(timespec="seconds"),
        quick=draw(st.booleans()),
        seconds=draw(NUMBERS),
        devices=tuple(draw(devices(name)) for name in ids)
        + (DeviceProfile("cuda", "cuda", Status.ABSENT, "no driver", "install it"),),
        links=tuple(links),
    )


@settings(max_examples=40)
@given(machines())
def test_json_round_trip_keeps_everything(machine: Machine) -> None:
    text = json.dumps(machine.to_json(), allow_nan=False)
    assert Machine.from_json(json.loads(text)) == machine


def example() -> dict[str, Any]:
    speed = Measured(1e9, 1e6, 5)
    time = Measured(1e-5, 1e-7, 5)
    info = DeviceInfo(
        "cpu:0", "cpu", "a", "b", "c", "d", "e", 2, 1 << 30, frozenset({Cap.ARRAY}), "f"
    )
    other = DeviceInfo("opencl:0", "opencl", "a", "b", "c", "d", "e", 2, 9, frozenset(), "g")
    rates = Rates({"gemm:float32": speed}, (SizedRate(4096, speed),), {"array": time}, time, time)
    machine = Machine(
        fingerprint="abc",
        cpu="a",
        cores=2,
        versions={"python": "3.11"},
        created="2026-03-01T12:00:00+00:00",
        quick=True,
        seconds=2.5,
        devices=(
            DeviceProfile("cpu:0", "cpu", Status.PASS, info=info, rates=rates),
            DeviceProfile("opencl:0", "opencl", Status.PASS, info=other, rates=rates),
            DeviceProfile("cuda", "cuda", Status.ABSENT, "no driver", "install it"),
        ),
        links=(
            LinkProfile(
                "cpu:0",
                "opencl:0",
                ("cpu:0", "opencl:0"),
                time,
                (SizedRate(4096, speed), SizedRate(8192, speed)),
                None,
                True,
            ),
        ),
    )
    form: dict[str, Any] = json.loads(json.dumps(machine.to_json()))
    assert Machine.from_json(form) == machine
    return form


DELETE = object()


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (("schema",), 99, "machine.schema"),
        (("created",), "yesterday", "machine.created"),
        (("cores",), -1, "machine.cores"),
        (("cores",), 2.5, "machine.cores"),
        (("cores",), True, "machine.cores"),
        (("quick",), 1, "machine.quick"),
        (("seconds",), float("nan"), "machine.seconds"),
        (("seconds",), 10**400, "machine.seconds"),
        (("versions", "python"), 3, "machine.versions['python']"),
        (("devices",), {}, "machine.devices"),
        (("devices", 0), None, "machine.devices[0]"),
        (("devices", 0, "status"), "OK", "machine.devices[0].status"),
        (("devices", 0, "rates", "launch_s", "array", "median"), 0, "launch_s['array'].median"),
        (("devices", 0, "rates", "launch_s"), DELETE, "rates.launch_s"),
        (("devices", 0, "rates", "flops", "gemm:float32", "samples"), 0, "samples"),
        (("devices", 0, "rates", "bandwidth"), [], "rates.bandwidth"),
        (("devices", 0, "info"), None, "machine.devices[0].info"),
        (("devices", 0, "info", "id"), "cpu:1", "machine.devices[0].info.id"),
        (("devices", 0, "info", "caps"), ["teleport"], "info.caps[0]"),
        (("devices", 0, "info", "speed"), 3, "has no field 'speed'"),
        (("devices", 1, "id"), "cpu:0", "machine.devices[1].id"),
        (("links", 0, "dst"), "cuda:0", "machine.links[0].dst"),
        (("links", 0, "dst"), "cuda", "machine.links[0].dst"),
        (("links", 0, "route"), ["cpu:0", "cpu:0"], "machine.links[0].route"),
        (("links", 0, "points", 1, "nbytes"), 4096, "machine.links[0].points"),
    ],
)
def test_a_wrong_field_is_named(path: tuple[str | int, ...], value: Any, named: str) -> None:
    form: Any = example()
    at = form
    for step in path[:-1]:
        at = at[step]
    if value is DELETE:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    with pytest.raises(LoadError) as caught:
        Machine.from_json(form)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form", [None, [], "profile", 3, {}])
def test_what_is_no_profile_is_refused(form: Any) -> None:
    with pytest.raises(LoadError, match="machine"):
        Machine.from_json(form)


def test_a_link_twice_is_refused() -> None:
    form = example()
    form["links"].append(copy.deepcopy(form["links"][0]))
    with pytest.raises(LoadError, match="only link"):
        Machine.from_json(form)


def test_measured_is_median_and_mad() -> None:
    assert Measured.of([1.0, 9.0, 2.0, 3.0, 2.0]) == Measured(2.0, 1.0, 5)


def test_look_ups() -> None:
    machine = Machine.from_json(example())
    assert [d.id for d in machine.passed] == ["cpu:0", "opencl:0"]
    cpu = machine.device("cpu:0")
    assert cpu is not None
    assert cpu.rates is not None
    assert cpu.rates.flops_by_class() == {"gemm:float32": 1e9}
    assert cpu.rates.launch() == 1e-5
    assert machine.device("cuda:7") is None
    assert machine.link("opencl:0", "cpu:0") is None


def test_bandwidth_is_that_of_the_size_in_motion() -> None:
    time = Measured(1e-6, 0.0, 1)
    points = tuple(SizedRate(n, Measured(rate, 0.0, 1)) for n, rate in ((1000, 9e9), (4000, 3e9)))
    rates = Rates({}, points, {"grid": time}, time, time)
    assert rates.bandwidth_at(10) == 9e9
    assert rates.bandwidth_at(2000) == 9e9
    assert rates.bandwidth_at(2001) == 3e9
    assert rates.bandwidth_at(1e12) == 3e9


@given(st.floats(0, 1e9), st.floats(0, 1e9))
def test_link_seconds_grow_with_the_size(a: float, b: float) -> None:
    form = example()
    link = Machine.from_json(form).links[0]
    low, high = sorted((link.seconds(a), link.seconds(b)))
    assert (link.seconds(min(a, b)), link.seconds(max(a, b))) == (low, high)
    assert link.seconds(0) == link.latency_s.median
    assert link.seconds(8192) == pytest.approx(max(8192 / 1e9, 1e-5))
