"""pyopencl itself, and what each device of each platform is."""

from __future__ import annotations

import functools
import hashlib
import os
import struct
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossdock.devices import opencl_cores, opencl_identity, opencl_pocl, topology
from crossdock.devices.base import Cap, DeviceInfo
from crossdock.runtime import kept, settings

KIND = "opencl"

SHUFFLES = {"cl_khr_subgroup_shuffle", "cl_intel_subgroups", "cl_intel_required_subgroup_size"}
SUB_GROUP_SIZES = 0x4108
"""CL_DEVICE_SUB_GROUP_SIZES_INTEL of cl_intel_required_subgroup_size: some size_t."""
SIZES = (16, 32)
"""Sizes of sub-groups that kernels ask for, the best one first."""


@functools.cache
def load() -> Any:
    """pyopencl, with its own disk caches off: it reads them with pickle."""
    switch = "PYOPENCL_NO_CACHE"
    mine = switch not in os.environ
    if mine:
        os.environ[switch] = "1"
    opencl_pocl.compiled()  # PoCL shows no device where it has no folder that it can write to
    opencl_cores.give_threads_cores()
    _show_intels_runtime()
    try:
        import pyopencl

        return pyopencl
    finally:
        if mine:
            del os.environ[switch]


def _show_intels_runtime() -> None:
    """Intel's runtime from a wheel is not where loaders look: name it, and the system's drivers."""
    library = Path(sys.prefix) / "lib" / "libintelocl.so"
    ours = settings.cache_dir()
    given = {"OCL_ICD_VENDORS", "OPENCL_VENDOR_PATH"} & os.environ.keys()
    if given or ours is None or not library.exists():
        return
    vendors = ours / f"vendors-{hashlib.sha256(str(library).encode()).hexdigest()[:8]}"
    try:
        vendors.mkdir(mode=0o700, exist_ok=True)
        named, path = vendors / "intel.icd", os.fsencode(library)
        if not named.exists() or named.read_bytes() != path:
            # In one step: another process may be reading it, which would see no such runtime.
            kept.replace(named, lambda write: write(path))
        for entry in Path("/etc/OpenCL/vendors").glob("*.icd"):
            if not (vendors / entry.name).exists():
                (vendors / entry.name).symlink_to(entry)
    except OSError:  # another process may be at it; without Intel's runtime all else still works
        return
    os.environ["OCL_ICD_VENDORS"] = str(vendors)


@dataclass(frozen=True)
class Found:
    """A device and pyopencl's handle of it."""

    info: DeviceInfo
    handle: Any


@functools.cache
def found_devices() -> tuple[Found, ...]:
    """All devices, platforms by name; the numbers stay as long as the drivers do."""
    cl = load()
    platforms = sorted(cl.get_platforms(), key=lambda p: (p.name, p.version))
    handles = [d for p in platforms for d in _handles(p) if d.available and d.compiler_available]
    handles = list({d.int_ptr: d for d in handles}.values())  # a driver may be listed twice
    return tuple(Found(_describe(cl, f"{KIND}:{i}", d), d) for i, d in enumerate(handles))


def _handles(platform: Any) -> list[Any]:
    try:
        return list(platform.get_devices())
    except load().Error:  # a platform without devices says so with an error
        return []


def _denormals(cl: Any, handle: Any) -> str:
    """What float32 arithmetic does with denormal numbers, as the driver says."""
    return "kept" if handle.single_fp_config & cl.device_fp_config.DENORM else "flushed"


def subgroup(cl: Any, handle: Any) -> int:
    """Work items of the sub-groups that kernels ask for; 1 where there is no size or no shuffle."""
    if not set(handle.extensions.split()) >= SHUFFLES:
        return 1
    said = opencl_identity.told_most(cl, handle, SUB_GROUP_SIZES, 16 * struct.calcsize("N"))
    offered = [n for (n,) in struct.iter_unpack("@N", said)]
    return next((size for size in SIZES if size in offered), 1)


def _describe(cl: Any, device_id: str, handle: Any) -> DeviceInfo:
    on_cpu = bool(handle.type & cl.device_type.CPU)
    physical = opencl_identity.physical_id(cl, handle)
    uuid = opencl_identity.device_uuid(cl, handle)
    extensions = frozenset(handle.extensions.split())
    caps = {Cap.GRID, Cap.EVENTS, Cap.PROFILING, Cap.COPY_QUEUES, Cap.REBIND}
    caps |= {Cap.MAP} if handle.host_unified_memory else set()
    caps |= {Cap.FLOAT16} if "cl_khr_fp16" in extensions else set()
    caps |= {Cap.FLOAT64} if "cl_khr_fp64" in extensions else set()
    name = handle.name.strip()
    driver = f"{handle.platform.name} {handle.driver_version}"
    model = f"{name}|{topology.cpu_model()}" if on_cpu else name
    return DeviceInfo(
        id=device_id,
        kind=KIND,
        name=name,
        vendor=handle.vendor,
        driver=driver,
        physical_id=physical,
        resource_group=physical,
        compute_units=handle.max_compute_units,
        memory_bytes=handle.global_mem_size,
        caps=frozenset(caps),
        fingerprint=f"{model}|{driver}|{handle.max_clock_frequency} MHz",
        max_allocation=handle.max_mem_alloc_size,
        local_memory=handle.local_mem_size,
        max_work_group=handle.max_work_group_size,
        alignment=max(64, handle.mem_base_addr_align // 8),
        subgroup=subgroup(cl, handle),
        details={
            "platform": handle.platform.name,
            "version": handle.version,
            "denormals": _denormals(cl, handle),
            "vector": str(handle.native_vector_width_float),
            "type": "cpu" if on_cpu else "gpu" if handle.type & cl.device_type.GPU else "other",
            **({"uuid": uuid.hex()} if uuid else {}),
        },
    )
