"""Where a device physically is: identities, resource groups, and the host's own facts.

One card seen through two drivers must get one physical identity, so every kind makes its
identities here. Devices that compute on the same silicon share a resource group: an OpenCL
platform that runs on the processor is in the processor's group.
"""

from __future__ import annotations

import functools
import os
import platform
import re
from pathlib import Path

HOST_CPU = "host-cpu"
"""Physical identity and resource group of the processor, whatever driver shows it."""

_PCI = re.compile(
    r"(?:([0-9a-f]{1,8}):)?([0-9a-f]{1,2}):([0-9a-f]{1,2})(?:\.([0-7]))?", re.IGNORECASE
)


def pci_id(address: str) -> str | None:
    """Normalise a PCI address: ``00000000:01:00.0``, ``0000:01:00`` and ``1:0.0`` are one.

    Returns None where the text is no PCI address.
    """
    found = _PCI.fullmatch(address.strip())
    if found is None:
        return None
    domain, bus, slot, function = (int(part or "0", 16) for part in found.groups())
    return f"pci-{domain:04x}:{bus:02x}:{slot:02x}.{function}"


def uuid_id(uuid: bytes) -> str | None:
    """Identity from a 16-byte device UUID; None where it is empty."""
    return f"uuid-{uuid.hex()}" if any(uuid) else None


_CARDS: dict[str, str] = {}
"""The identity of each card by every name that a driver told of it."""


def physical_id(pci: str | None, uuid: bytes = b"", otherwise: str = "") -> str:
    """The identity of a card: its PCI address, else its UUID, else what the driver calls it.

    A card that one driver names by both is the same one to a driver that tells the UUID alone: the
    identity that was given first to a name stays.
    """
    told = (pci_id(pci) if pci else None, uuid_id(uuid))
    names = [name for name in told if name is not None]
    if not names:
        return otherwise
    found = next((_CARDS[name] for name in names if name in _CARDS), names[0])
    for name in names:
        _CARDS.setdefault(name, found)
    return found


@functools.cache
def cpu_model() -> str:
    """The processor's model name, or its architecture where the system does not tell."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine() or "cpu"


@functools.cache
def cpu_features() -> str:
    """The processor's maker, model and instruction sets, as the system names them.

    Empty where the system does not tell them.
    """
    try:
        text = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
    except OSError:
        return ""
    told = dict(line.partition(":")[::2] for line in text.splitlines())
    found = {name.strip(): value.strip() for name, value in told.items()}
    if not found.get("flags"):
        return ""
    names = ("vendor_id", "cpu family", "model", "stepping", "flags")
    return "|".join(found.get(name, "") for name in names)


@functools.cache
def processors() -> frozenset[int]:
    """Numbers of the processors in the affinity mask when this was first asked.

    A thread that pins itself later, so that devices get cores of their own, takes none away.
    """
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def cpu_count() -> int:
    """Processors this process may use: its affinity mask, cut by a container's quota."""
    allowed = len(processors())
    quota = _cpu_quota()
    return allowed if quota is None else max(1, min(allowed, int(quota + 0.5)))


def memory_bytes() -> int:
    """Main memory this process may use: the machine's, cut by a container's limit."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        total = 4 << 30  # Windows has no sysconf; a small machine is the safe guess
    limits = [int(text) for text in _cgroup("memory.max", "memory/memory.limit_in_bytes")
              if text.isdigit()]  # fmt: skip
    return min([total, *limits])


def _cpu_quota() -> float | None:
    """The tightest quota of the control groups above this process, in processors."""
    found = []
    for text in _cgroup("cpu.max", ""):
        quota, _, period = text.partition(" ")
        if quota.isdigit() and period.isdigit() and int(period) > 0:
            found.append(int(quota) / int(period))
    quota1 = _cgroup("", "cpu/cpu.cfs_quota_us")
    period1 = _cgroup("", "cpu/cpu.cfs_period_us")
    if quota1 and period1 and int(quota1[0]) > 0 and int(period1[0]) > 0:
        found.append(int(quota1[0]) / int(period1[0]))
    return min(found) if found else None


def _cgroup(unified: str, legacy: str) -> list[str]:
    """Contents of a control-group file, from this process's group up to the root."""
    root = Path("/sys/fs/cgroup")
    paths = [root / legacy] if legacy else []
    if unified:
        try:
            own = Path("/proc/self/cgroup").read_text().rpartition("::")[2].strip().lstrip("/")
        except OSError:
            own = ""
        group = root / own
        paths += [folder / unified for folder in (group, *group.parents)
                  if folder.is_relative_to(root)]  # fmt: skip
    return [text for path in paths if (text := _read(path))]


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
