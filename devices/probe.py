"""Finding every device, proving by computing that it works, and measuring it and its links.

A device that fails, computes wrongly or does not answer becomes a FAIL with its reason; it takes
no other device down. Known answers come first; then every quantity of every device is sampled in
turns, so that a slow spell of the machine hits all alike, and summarised by median and median
absolute deviation.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import numpy as np

from crossdock.devices import (
    probe_cache,
    probe_checks,
    probe_links,
    probe_rates,
    registry,
    topology,
)
from crossdock.devices.base import Cap, Device, DeviceInfo, Probe
from crossdock.devices.machine import Check, DeviceProfile, LinkProfile, Machine, Status
from crossdock.devices.probe_rates import FULL, QUICK, Effort
from crossdock.devices.probe_trials import Bench, Fault, Samples, Trial, begin, in_turns, outcome
from crossdock.runtime.errors import Unavailable

Progress = Callable[[str, float], None]
Open = Callable[[str], Device]


def probe(
    quick: bool = False,
    *,
    devices: Iterable[str] | None = None,
    threads: int | None = None,
    refresh: bool = False,
    progress: Progress | None = None,
) -> Machine:
    """Find, prove and measure the devices of this machine.

    The result is kept on disk, by the machine's fingerprint, and comes from there when it is
    asked for again. A quick probe is content with a kept full one, and never replaces it.

    Args:
        quick: few samples and sizes: a few seconds instead of up to a minute.
        devices: ids or kinds to look at (None: all). The processor is always there, because every
            transfer begins or ends in its memory.
        threads: cores that the processor, under whatever driver, is confined to.
        refresh: measure, whatever is kept.
        progress: called with what is going on and the fraction done, in this thread.

    Raises:
        Unavailable: a device in ``devices`` is not here; says why and what to install.
    """
    wanted = None if devices is None else tuple(devices)
    everything = registry.probe_all(registry.kinds_for(wanted or ()))
    found = _chosen(everything, wanted)
    infos = _infos(found)
    versions = _versions(infos)
    fingerprint = _fingerprint(infos, threads)
    if not refresh:
        kept = _kept(infos, _infos(everything), threads, quick)
        if kept is not None:
            return kept
    begun = time.perf_counter()
    survey = Survey(QUICK if quick else FULL, progress or (lambda _text, _fraction: None))
    survey.examine(infos, lambda device: registry.open_device(device, threads=threads))
    machine = Machine(
        fingerprint=fingerprint,
        cpu=topology.cpu_model(),
        cores=topology.cpu_count(),
        versions=versions,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        quick=quick,
        seconds=time.perf_counter() - begun,
        devices=(*survey.profiles.values(), *_absent(found)),
        links=survey.links,
    )
    probe_cache.store(machine)
    return machine


def _chosen(found: Sequence[Probe], wanted: Iterable[str] | None) -> list[Probe]:
    """The kinds with the wanted devices only; the processor stays."""
    if wanted is None:
        return list(found)
    names = set(wanted)
    for name in sorted(names):
        kind = next((p for p in found if p.kind == name.partition(":")[0]), None)
        known = () if kind is None else (kind.kind, *(info.id for info in kind.devices))
        if kind is None or not kind.devices or name not in known:
            why = "" if kind is None or not kind.reason else f": {kind.reason}; {kind.fix}"
            raise Unavailable(f"there is no device {name!r}{why}; `crossdock probe` lists them")
    names.add("cpu")
    return [
        replace(p, devices=tuple(i for i in p.devices if names & {p.kind, i.id})) for p in found
    ]


def _infos(found: Iterable[Probe]) -> list[DeviceInfo]:
    return [info for kind in found for info in kind.devices]


def _kept(
    wanted: Sequence[DeviceInfo], everything: Sequence[DeviceInfo], threads: int | None, quick: bool
) -> Machine | None:
    """The kept profile of the wanted devices, or their part of the whole machine's."""
    for infos in (wanted, everything):
        kept = probe_cache.load(_fingerprint(infos, threads), _versions(infos), quick=quick)
        if kept is not None:
            ids = {info.id for info in wanted}
            return replace(
                kept,
                fingerprint=_fingerprint(wanted, threads),
                versions=_versions(wanted),
                devices=tuple(d for d in kept.devices if d.info is None or d.id in ids),
                links=tuple(k for k in kept.links if {k.src, k.dst} <= ids),
            )
    return None


def _absent(found: Iterable[Probe]) -> Iterator[DeviceProfile]:
    for kind in found:
        if kind.reason and not kind.devices:
            yield DeviceProfile(kind.kind, kind.kind, Status.ABSENT, kind.reason, kind.fix)


def _versions(infos: Iterable[DeviceInfo]) -> dict[str, str]:
    try:
        own = importlib.metadata.version("crossdock")
    except importlib.metadata.PackageNotFoundError:
        own = "unknown"
    drivers = {info.id: info.driver for info in infos}
    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "crossdock": own,
        **drivers,
    }


def _fingerprint(infos: Iterable[DeviceInfo], threads: int | None) -> str:
    parts = [topology.cpu_model(), str(topology.cpu_count()), f"threads {threads}"]
    parts += sorted(f"{info.id}={info.fingerprint}" for info in infos)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


@dataclass
class Survey:
    """One probe under way: the profiles and links found so far."""

    effort: Effort
    progress: Progress
    profiles: dict[str, DeviceProfile] = field(default_factory=dict)
    links: tuple[LinkProfile, ...] = ()

    def examine(self, infos: Sequence[DeviceInfo], open_device: Open) -> None:
        """Prove the devices, then measure those that passed and the links between them."""
        benches: list[Bench] = []
        for i, info in enumerate(infos):
            self.progress(f"proving {info.id}", 0.3 * i / len(infos))
            bench = self._prove(info, open_device)
            if bench is not None and Cap.VIRTUAL_TIME not in info.caps:
                benches.append(bench)
        try:
            self._measure(benches)
        finally:
            for bench in benches:
                self._release(bench)
        self.progress("done", 1.0)

    def _prove(self, info: DeviceInfo, open_device: Open) -> Bench | None:
        """Open a device and run the known-answer tests; None where it fails."""
        profile = DeviceProfile(info.id, info.kind, Status.PASS, info=info)
        checks: list[Check] = []
        bench = None
        try:
            opening = begin(_thread, lambda: open_device(info.id))
            bench = Bench(outcome(info.id, opening))
            profile = replace(profile, info=bench.device.info)
            checks.extend(probe_checks.check(bench))
        except Fault as fault:
            self.profiles[info.id] = _failed(profile, str(fault), checks)
            return None
        wrong = [f"{check.name}: {check.detail}" for check in checks if not check.passed]
        if wrong:
            self.profiles[info.id] = _failed(profile, f"wrong answer, {wrong[0]}", checks)
            self._release(bench)
            return None
        self.profiles[info.id] = replace(profile, checks=tuple(checks))
        return bench

    def _measure(self, benches: Sequence[Bench]) -> None:
        """Sample everything in turns, and fill in rates and links."""
        ready: list[Bench] = []
        trials: list[Trial] = []
        for i, bench in enumerate(benches):
            self.progress(f"preparing {bench.id}", 0.3 + 0.2 * i / len(benches))
            try:
                trials += list(probe_rates.trials(bench, self.effort))
                ready.append(bench)
            except Fault as fault:
                self._fail(fault)
        host = np.ones(max(self.effort.transfers), np.uint8)
        links = probe_links.links(ready)
        for link in links:
            try:
                trials += list(probe_links.trials(link, self.effort, host))
            except Fault as fault:
                self._fail(fault)
        samples = self._sample([t for t in trials if self._passed(*t.devices)])
        for bench in ready:
            if self._passed(bench.id):
                rates = probe_rates.rates(bench, samples)
                self.profiles[bench.id] = replace(self.profiles[bench.id], rates=rates)
        self.links = tuple(
            probe_links.profile(link, samples)
            for link in links
            if self._passed(link.src.id, link.dst.id)
        )

    def _sample(self, trials: Sequence[Trial]) -> Samples:
        return in_turns(
            trials,
            rounds=self.effort.rounds,
            least=self.effort.least,
            seconds=self.effort.seconds,
            failed=self._fail,
            progress=lambda text, done: self.progress(f"measuring {text}", 0.5 + 0.5 * done),
        )

    def _passed(self, *ids: str) -> bool:
        return all(self.profiles[name].status is Status.PASS for name in ids)

    def _fail(self, fault: Fault) -> None:
        profile = self.profiles[fault.device]
        self.profiles[fault.device] = _failed(profile, str(fault), profile.checks)

    def _release(self, bench: Bench) -> None:
        """Give a device's memory back; one that has failed is not called again."""
        try:
            if self._passed(bench.id):
                bench.release()
        except Fault as fault:
            self._fail(fault)
        bench.buffers.clear()


def _failed(profile: DeviceProfile, reason: str, checks: Iterable[Check]) -> DeviceProfile:
    driver = profile.info.driver if profile.info is not None else "its driver"
    return replace(
        profile,
        status=Status.FAIL,
        reason=reason,
        fix=f"update or remove the driver ({driver}), or leave the device out with "
        "CROSSDOCK_DEVICES",
        checks=tuple(checks),
        rates=None,
    )


def _thread(run: Callable[[], None]) -> None:
    threading.Thread(target=run, name="crossdock probe", daemon=True).start()
