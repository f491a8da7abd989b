"""A card that is not here, for what is emitted or compiled for one."""

from __future__ import annotations

from dataclasses import replace

from crossdock.devices.base import Cap, DeviceInfo

CARD = DeviceInfo(
    id="cuda:0",
    kind="cuda",
    name="a card that is not here",
    vendor="NVIDIA",
    driver="",
    physical_id="pci-0000:01:00.0",
    resource_group="pci-0000:01:00.0",
    compute_units=108,
    memory_bytes=40 << 30,
    caps=frozenset({Cap.GRID, Cap.ARRAY, Cap.FLOAT16, Cap.FLOAT64}),
    fingerprint="sm_80",
    max_allocation=40 << 30,
    local_memory=48 << 10,
    max_work_group=1024,
    alignment=256,
    subgroup=32,
    details={"compute_capability": "8.0"},
)

WITH_CUDNN = replace(CARD, details={**CARD.details, "cudnn": "9.28.0"})
