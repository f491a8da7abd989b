from __future__ import annotations

import errno
import json
import math
import socket
import stat
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from crossdock.devices import cpu, probe_trials, registry, sim
from crossdock.devices import probe as subject
from crossdock.devices.base import Cap, CommandBuffer, Device, Event, Executable, Probe, Span
from crossdock.devices.machine import Machine, Measured, Status
from crossdock.devices.probe import probe
from crossdock.devices.probe_rates import Effort
from crossdock.devices.probe_source import SOURCE
from crossdock.devices.program import ArrayCall, Step
from crossdock.runtime import kept
from crossdock.runtime.errors import (
    CacheWarning,
    CompileError,
    DeviceLost,
    OutOfMemory,
    Unavailable,
)
from tests import nvrtc
from tests.fakes import cupy_fake

BRIEF = Effort(
    rounds=2,
    least=1,
    seconds=0.05,
    span_s=1e-4,
    sizes=(1 << 16,),
    transfers=(1 << 12, 1 << 16),
    dtypes=("float32",),
    batch=5,
)


class Broken(cpu.CpuDevice):
    """A processor that runs array calls and has one thing wrong with it."""

    def __init__(self, info: Any, fault: str) -> None:
        super().__init__(info)
        self.fault = fault
        self.left = 40 if fault == "later" else 10**9
        queue = self.queues["compute"]
        plain: Callable[..., Event | None] = queue.execute

        def execute(
            commands: CommandBuffer, waits: Any = (), spans: list[Span] | None = None
        ) -> Event | None:
            self.left -= 1
            if self.left < 0:
                raise DeviceLost(f"{info.id}: it fell off the bus")
            if self.fault == "hang":
                threading.Event().wait(5)
            if self.fault == "strange":
                raise KeyError("strange")
            return plain(commands, waits, spans)

        queue.execute = execute  # type: ignore[method-assign]

    def allocate(self, nbytes: int, label: str = "") -> Any:
        if self.fault == "memory":
            raise OutOfMemory(f"{self.info.id}: nothing free")
        return super().allocate(nbytes, label)

    def compile(self, step: Step) -> Executable:
        assert isinstance(step, ArrayCall)
        if self.fault == "compile":
            raise CompileError(f"{self.info.id}: kernel does not build: line 3")
        return super().compile(wrong(step) if self.fault == "wrong" else step)


def wrong(step: ArrayCall) -> ArrayCall:
    """The step, with one element of the result changed where it is large."""

    def run(xp: Any, ins: list[Any], outs: list[Any]) -> None:
        step.fn(xp, ins, outs)
        if outs[0].size > 100 and outs[0].dtype != "uint8":
            outs[0].reshape(-1)[17] += 1

    return replace(step, fn=run)


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Probes take next to no time, and keep their results in a folder of this test."""
    monkeypatch.setattr(subject, "QUICK", BRIEF)
    monkeypatch.setattr(subject, "FULL", BRIEF)
    monkeypatch.setenv("CROSSDOCK_CACHE_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch, brief: Path) -> list[str]:
    """Ids of the devices opened so far; there are a processor and kinds that are absent."""
    return machine_of(monkeypatch, {})


def machine_of(monkeypatch: pytest.MonkeyPatch, broken: Mapping[str, Any]) -> list[str]:
    """Let the registry know cpu:0, a missing kind, and devices with faults by id."""
    host = cpu.probe().devices[0]
    infos = {
        name: replace(
            host,
            id=name,
            kind="odd",
            caps=frozenset({Cap.ARRAY}),
            fingerprint=f"{name} {fault}",
            memory_bytes=1 << 28,
        )
        for name, fault in broken.items()
    }
    kinds = [
        cpu.probe(),
        Probe("odd", tuple(infos.values())),
        Probe("cuda", (), "there is no driver", "install it"),
    ]
    seen: list[str] = []

    def open_device(device_id: str, threads: int | None = None) -> Device:
        seen.append(device_id)
        if device_id == "cpu:0":
            return cpu.open_device(device_id, threads=threads)
        if broken[device_id] == "open":
            raise Unavailable(f"{device_id} cannot be opened: no permission")
        return Broken(infos[device_id], broken[device_id])

    monkeypatch.setattr(registry, "probe_all", lambda _kinds: kinds)
    monkeypatch.setattr(registry, "open_device", open_device)
    return seen


def numbers(machine: Machine) -> Iterator[Measured]:
    for device in machine.passed:
        rates = device.rates
        if rates is not None:
            yield from rates.flops.values()
            yield from (point.bytes_per_s for point in rates.bandwidth)
            yield from rates.launch_s.values()
            yield from (rates.launch_alone_s, rates.allocation_s)
    for link in machine.links:
        yield link.latency_s
        yield from (point.bytes_per_s for point in link.points)
        if link.duplex is not None:
            yield link.duplex


def check_whole(machine: Machine) -> None:
    """Every device that passed has rates of each class, every pair of them a link."""
    for device in machine.passed:
        assert device.rates is not None, device.id
        assert {key.partition(":")[0] for key in device.rates.flops} >= {"fma", "gemm"}
        assert device.rates.bandwidth
        assert device.checks
        assert all(check.passed for check in device.checks)
    ids = [device.id for device in machine.passed]
    assert {(k.src, k.dst) for k in machine.links} == {(a, b) for a in ids for b in ids if a != b}
    found = list(numbers(machine))
    assert all(m.median > 0 and math.isfinite(m.median) and m.samples > 0 for m in found)
    assert all(m.mad >= 0 and math.isfinite(m.mad) for m in found)


# --- real devices ----------------------------------------------------------------------------


def test_a_quick_probe_proves_and_measures_every_device_here() -> None:
    told: list[tuple[str, float]] = []
    machine = probe(quick=True, refresh=True, progress=lambda *news: told.append(news))
    assert [d.reason for d in machine.devices if d.status is Status.FAIL] == []
    cpu_profile = machine.device("cpu:0")
    assert cpu_profile is not None
    assert cpu_profile.status is Status.PASS
    check_whole(machine)
    assert machine.quick
    fractions = [done for _, done in told]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    form = json.loads(json.dumps(machine.to_json(), allow_nan=False))
    assert Machine.from_json(form) == machine
    assert json.dumps(socket.gethostname()) not in json.dumps(form)


def test_links_between_devices_are_staged_through_the_host() -> None:
    machine = probe(quick=True)
    others = [d.id for d in machine.passed if d.id != "cpu:0"]
    if not others:
        pytest.skip("there is only the processor here")
    for link in machine.links:
        ends = {link.src, link.dst}
        through = ("cpu:0",) if "cpu:0" not in ends else ()
        assert link.route == (link.src, *through, link.dst)
        assert (link.duplex is None) == bool(through)
        assert link.points[-1].bytes_per_s.median > link.points[0].bytes_per_s.median


def test_the_cuda_kind_is_probed_through_its_driver(
    monkeypatch: pytest.MonkeyPatch, brief: Path
) -> None:
    if not registry.probe_all(["opencl"])[0].devices:
        pytest.skip("the fake cupy runs kernels on PoCL, which is absent")
    cupy_fake.install(monkeypatch)
    import cupy

    try:
        machine = probe(quick=True, devices=["cuda:0"], refresh=True)
        card = machine.device("cuda:0")
        assert card is not None
        assert card.status is Status.PASS, card.reason
        check_whole(machine)
        assert cupy.machine.errors == []
    finally:
        registry.close_all()


@pytest.mark.parametrize("arch", ["sm_70", "sm_80", "sm_90", "sm_100"])
def test_nvrtc_builds_the_kernels(arch: str) -> None:
    if nvrtc.library() is None:
        pytest.skip(nvrtc.ABSENT)
    from crossdock.devices.dialect import CUDA_HEADER, assemble

    assert nvrtc.compile_text(assemble(CUDA_HEADER, (), SOURCE), arch)


def test_a_virtual_clock_is_proved_but_not_timed(brief: Path) -> None:
    sim.register(sim.SimSpec("probed"))
    try:
        machine = probe(quick=True, devices=["sim:probed"])
    finally:
        sim.unregister("probed")
    profile = machine.device("sim:probed")
    assert profile is not None
    assert profile.status is Status.PASS, profile.reason
    assert profile.checks
    assert profile.rates is None
    assert machine.links == ()


# --- devices that fail -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("wrong", "1 of 1003 elements are wrong, the first at 17"),
        ("open", "no permission"),
        ("memory", "nothing free"),
        ("compile", "line 3"),
        ("strange", "KeyError: 'strange'"),
        ("later", "it fell off the bus"),
        ("hang", "did not answer"),
    ],
)
def test_a_failing_device_takes_no_other_down(
    fault: str, reason: str, monkeypatch: pytest.MonkeyPatch, brief: Path
) -> None:
    if fault == "hang":
        monkeypatch.setattr(probe_trials, "PATIENCE_S", 0.5)
    machine_of(monkeypatch, {"odd:0": fault, "odd:1": "none"})
    machine = probe(quick=True)
    failed = machine.device("odd:0")
    assert failed is not None
    assert failed.status is Status.FAIL
    assert reason in failed.reason
    assert "\n" not in failed.reason
    assert failed.fix
    assert failed.rates is None
    assert [d.id for d in machine.passed] == ["cpu:0", "odd:1"]
    check_whole(machine)
    assert Machine.from_json(machine.to_json()) == machine
    assert not list(brief.glob("machine-*")), "a failure must be looked at again"


def test_an_absent_kind_keeps_reason_and_fix(opened: list[str]) -> None:
    machine = probe(quick=True)
    absent = machine.device("cuda")
    assert absent is not None
    assert (absent.status, absent.info) == (Status.ABSENT, None)
    assert (absent.reason, absent.fix) == ("there is no driver", "install it")


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cpu:7", "abacus:0"])
def test_asking_for_a_device_that_is_not_here_says_why(opened: list[str], name: str) -> None:
    with pytest.raises(Unavailable, match=name) as caught:
        probe(quick=True, devices=[name])
    assert opened == []
    if name.startswith("cuda"):
        assert "there is no driver; install it" in str(caught.value)


def test_only_the_wanted_devices_and_the_processor_are_opened(
    monkeypatch: pytest.MonkeyPatch, brief: Path
) -> None:
    opened = machine_of(monkeypatch, {"odd:0": "none", "odd:1": "none"})
    probe(quick=True, devices=["odd:1"])
    assert opened == ["cpu:0", "odd:1"]
    opened.clear()
    probe(quick=True, devices=["odd"])
    assert opened == ["cpu:0", "odd:0", "odd:1"]


# --- the cache -------------------------------------------------------------------------------


def test_a_profile_is_kept_and_private(opened: list[str], brief: Path) -> None:
    first = probe(quick=True)
    assert opened == ["cpu:0"]
    assert probe(quick=True) == first
    assert opened == ["cpu:0"]
    (kept,) = brief.glob("*.json")
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert [path for path in brief.iterdir() if path.is_file()] == [kept]
    probe(quick=True, refresh=True)
    assert opened == ["cpu:0", "cpu:0"]


def test_threads_make_another_profile(opened: list[str], brief: Path) -> None:
    one = probe(quick=True, threads=1)
    probe(quick=True)
    assert len(list(brief.glob("*.json"))) == 2
    assert probe(quick=True, threads=1) == one
    info = one.devices[0].info
    assert info is not None
    assert info.compute_units == 1


def test_a_kept_profile_of_all_devices_serves_for_some(
    monkeypatch: pytest.MonkeyPatch, brief: Path
) -> None:
    opened = machine_of(monkeypatch, {"odd:0": "none", "odd:1": "none"})
    whole = probe(quick=True)
    opened.clear()
    part = probe(quick=True, devices=["odd:1"])
    assert opened == []
    assert [d.id for d in part.devices] == ["cpu:0", "odd:1", "cuda"]
    assert {(k.src, k.dst) for k in part.links} == {("cpu:0", "odd:1"), ("odd:1", "cpu:0")}
    assert part.fingerprint != whole.fingerprint
    assert Machine.from_json(part.to_json()) == part


def test_a_quick_profile_never_replaces_a_full_one(opened: list[str]) -> None:
    probe(quick=True)
    full = probe()
    assert not full.quick, "a quick profile must not pass for a full one"
    assert probe(quick=True) == full
    assert probe(quick=True, refresh=True).quick
    assert probe() == full
    assert len(opened) == 3


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "cut": lambda data: data[: len(data) // 2],
    "noise": lambda _: bytes(range(256)),
    "deep": lambda _: b"[" * 100_000,
    "another form": lambda _: b'{"a": 1}',
    "another number": lambda data: data.replace(b'"median": ', b'"median": 1'),
    "another schema": lambda data: resealed(data, b'"schema": 1', b'"schema": 2'),
    "negative": lambda data: resealed(data, b'"median": ', b'"median": -'),
    "other drivers": lambda data: resealed(data, b'"numpy": "', b'"numpy": "1.'),
    "another machine": lambda data: resealed(data, b'"fingerprint": "', b'"fingerprint": "0'),
}


def resealed(data: bytes, old: bytes, new: bytes) -> bytes:
    """Changed, with the digest that goes with it."""
    text = json.loads(data)
    del text["sha256"]
    return kept.sealed(json.dumps(text).encode().replace(old, new))


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_or_stale_profile_is_measured_anew(
    damage: str, opened: list[str], brief: Path, caplog: pytest.LogCaptureFixture
) -> None:
    probe(quick=True)
    (file,) = brief.glob("*.json")
    before = file.read_bytes()
    after = DAMAGE[damage](before)
    assert after != before
    file.write_bytes(after)
    caplog.set_level("DEBUG", "crossdock")
    again = probe(quick=True)
    stale = damage in ("other drivers", "another machine")
    assert [r.levelname for r in caplog.records] == ([] if stale else ["DEBUG"])
    assert len(opened) == 2
    assert probe(quick=True) == again, "the file must be whole again"
    assert len(opened) == 2


def test_no_place_to_keep_it_is_no_error(
    opened: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_text("in the way")
    for place in ("off", str(file)):
        monkeypatch.setenv("CROSSDOCK_CACHE_DIR", place)
        probe(quick=True)
    assert len(opened) == 2


def test_a_full_disk_leaves_no_trace(
    opened: list[str], monkeypatch: pytest.MonkeyPatch, brief: Path
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(Path, "replace", full)
    monkeypatch.setattr(kept, "_WARNED", set())
    with pytest.warns(CacheWarning, match="cannot be written .no space left"):
        probe(quick=True)
    assert not list(brief.iterdir())
