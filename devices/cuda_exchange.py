"""Sharing a card's memory with other libraries: DLPack, and the CUDA array interface (version 3).

Whoever exports by DLPack is told a stream, which it makes wait for what writes the array. The CUDA
array interface names a stream instead, whose work so far an event waits for, and not the host.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from crossdock.devices import dlpack
from crossdock.devices.base import Borrowed, Buffer
from crossdock.devices.cuda_memory import CudaBuffer, CudaEvent, translated
from crossdock.runtime.tensor import TensorSpec

if TYPE_CHECKING:
    from crossdock.devices.cuda import CudaDevice

DLPACK_KINDS = frozenset({2, 13})
"""DLPack's device types of CUDA memory: a card's own, and managed."""


def holds(device: CudaDevice, value: object) -> bool:
    """Whether an array says that it lies on a card."""
    ask = getattr(value, "__dlpack_device__", None)
    if ask is not None:
        kind, index = ask()
        return int(kind) in DLPACK_KINDS and int(index) == device.index
    facts = getattr(value, "__cuda_array_interface__", None)
    if facts is None:
        return False
    pointer = facts["data"][0]
    if not pointer:  # nothing lies there: any card will do
        return True
    with translated(device):
        found = device.cp.cuda.runtime.pointerGetAttributes(pointer)
    return int(found.device) == device.index


def borrow(device: CudaDevice, value: Any) -> Borrowed:
    """The memory of an array on the card; raises BufferError for one with gaps."""
    cp, stream = device.cp, device.borrowing
    with translated(device):
        if hasattr(value, "__dlpack__"):
            capsule = _capsule(value, stream.ptr)
            bits = dlpack.as_bits(capsule)
            array = cp.from_dlpack(capsule)
        else:
            array, bits = _named(device, value)
        if not array.flags.c_contiguous:
            raise BufferError(
                f"strides {tuple(array.strides)} of shape {tuple(array.shape)} are not in C "
                "order; make it contiguous first"
            )
        ready = CudaEvent(device, stream.record(cp.cuda.Event(disable_timing=True)), value)
        buffer = CudaBuffer(device, array.data, int(array.nbytes), foreign=True)
        spec = TensorSpec("bfloat16", tuple(array.shape)) if bits else TensorSpec.of(array)
        return Borrowed(buffer, spec, ready)


def _capsule(value: Any, stream: int) -> Any:
    """What an array exports for a stream; its library's own stream stays the current one."""
    try:
        return value.__dlpack__(stream=stream, max_version=(1, 0))
    except TypeError:  # of before the protocol's version 1
        return value.__dlpack__(stream=stream)


def _named(device: CudaDevice, value: Any) -> tuple[Any, bool]:
    """An array by the CUDA array interface, and whether it holds bits of bfloat16.

    ``borrowing`` waits for the stream that it names.
    """
    cp, facts = device.cp, value.__cuda_array_interface__
    if facts.get("mask") is not None:
        raise BufferError("it has a mask")
    bits = facts["typestr"] in (dlpack.TYPESTR, "|V2")
    shape, dtype = tuple(facts["shape"]), np.dtype("uint16" if bits else facts["typestr"])
    strides = facts.get("strides")
    nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if strides is not None and nbytes and tuple(strides) != _dense(shape, dtype.itemsize):
        raise BufferError(
            f"strides {tuple(strides)} of shape {shape} are not in C order; make it contiguous "
            "first"
        )
    named = facts.get("stream")
    if named is not None:
        if int(named) == 0:
            raise BufferError("its stream is 0, which names none; 1 is the legacy default stream")
        other = cp.cuda.ExternalStream(int(named), device.index)
        device.borrowing.wait_event(other.record(cp.cuda.Event(disable_timing=True)))
    memory = cp.cuda.UnownedMemory(facts["data"][0], nbytes, value, device.index)
    return cp.ndarray(shape, dtype, memptr=cp.cuda.MemoryPointer(memory, 0)), bits


def _dense(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """Strides in bytes in C order."""
    return tuple(itemsize * int(np.prod(shape[i + 1 :], dtype=np.int64)) for i in range(len(shape)))


def lend(device: CudaDevice, buffer: Buffer, spec: TensorSpec) -> Any:
    """A cupy array in a buffer's memory; of bfloat16, what shares the same bits of cupy's."""
    assert isinstance(buffer, CudaBuffer)
    cp, bits = device.cp, spec.dtype == "bfloat16"
    with translated(device):
        pointer = buffer.pointer.ptr
        buffer.root.lent = True
        memory = cp.cuda.UnownedMemory(pointer, buffer.nbytes, buffer, device.index)
        pointed = cp.cuda.MemoryPointer(memory, 0)
        dtype = np.dtype("uint16" if bits else spec.dtype)
        made = cp.ndarray(spec.dims, dtype, memptr=pointed)
        return dlpack.Bfloat16(made) if bits else made
