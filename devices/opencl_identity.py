"""Which card an OpenCL device is: its PCI address and UUID, from whichever extension tells them."""

from __future__ import annotations

import ctypes
import functools
import struct
from typing import Any

from crossdock.devices import topology

UUID = 0x106A
"""CL_DEVICE_UUID_KHR of cl_khr_device_uuid: 16 bytes, the same as the Vulkan driver tells."""
PCI_BUS_INFO = 0x410F
"""CL_DEVICE_PCI_BUS_INFO_KHR of cl_khr_pci_bus_info: domain, bus, device and function, uint32."""


def physical_id(cl: Any, handle: Any) -> str:
    """The identity of the card, or of the processor, that an OpenCL device is."""
    if handle.type & cl.device_type.CPU:
        return topology.HOST_CPU
    named = f"opencl {handle.platform.name} {handle.name.strip()}"
    return topology.physical_id(_address(cl, handle), device_uuid(cl, handle), named)


def device_uuid(cl: Any, handle: Any) -> bytes:
    """The UUID of a device; nothing where its driver has none."""
    if "cl_khr_device_uuid" not in handle.extensions.split():
        return b""
    return told(cl, handle, UUID, 16)


def _address(cl: Any, handle: Any) -> str:
    extensions = handle.extensions.split()
    if "cl_khr_pci_bus_info" in extensions and (said := told(cl, handle, PCI_BUS_INFO, 16)):
        domain, bus, slot, function = struct.unpack("=4I", said)
        return f"{domain:x}:{bus:x}:{slot:x}.{function}"
    if "cl_nv_device_attribute_query" in extensions:
        slot = handle.pci_slot_id_nv
        return f"{handle.pci_domain_id_nv:x}:{handle.pci_bus_id_nv:x}:{slot >> 3:x}.{slot & 7}"
    if "cl_amd_device_attribute_query" in extensions:
        at = handle.topology_amd
        return f"{at.bus & 255:x}:{at.device & 255:x}.{at.function & 7}"
    return ""


def told(cl: Any, handle: Any, name: int, nbytes: int) -> bytes:
    """What clGetDeviceInfo says under a number that pyopencl does not know; nothing if it fails."""
    said = told_most(cl, handle, name, nbytes)
    return said if len(said) == nbytes else b""


def told_most(cl: Any, handle: Any, name: int, most: int) -> bytes:
    """``told`` of what may be shorter."""
    ask = _get_device_info(cl)
    if ask is None:
        return b""
    found = ctypes.create_string_buffer(most)
    size = ctypes.c_size_t()
    status = ask(handle.int_ptr, name, most, found, ctypes.byref(size))
    return found.raw[: size.value] if status == 0 else b""


@functools.cache
def _get_device_info(cl: Any) -> Any:
    """The function of the loader that pyopencl is linked to; None where it cannot be found."""
    try:
        function = ctypes.CDLL(cl._cl.__file__).clGetDeviceInfo  # noqa: SLF001 - the extension module
    except (OSError, AttributeError):
        return None
    function.argtypes = [
        ctypes.c_void_p,
        ctypes.c_uint32,
        ctypes.c_size_t,
        ctypes.c_void_p,
        ctypes.POINTER(ctypes.c_size_t),
    ]
    function.restype = ctypes.c_int32
    return function
