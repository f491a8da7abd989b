"""CUDA devices through cupy: a compute stream and one copy stream a direction.

Kernels are the shared texts built by NVRTC; array calls run cupy on the compute stream. All
memory, temporaries of array calls included, comes from one pool a device, whose limit is the
budget. Host memory that is not pinned is staged through two pinned buffers a copy stream.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from crossdock.devices import (
    cuda_dnn,
    cuda_exchange,
    cuda_lt_library,
    cuda_peer,
    cuda_versions,
    topology,
)
from crossdock.devices.base import (
    Borrowed,
    Bound,
    Buffer,
    Cap,
    CommandBuffer,
    Device,
    DeviceInfo,
    Executable,
    Probe,
)
from crossdock.devices.choice import Timing
from crossdock.devices.cuda_blas import LibraryCall
from crossdock.devices.cuda_memory import CudaBuffer, translated
from crossdock.devices.cuda_queue import CudaCommands, CudaExecutable, CudaQueue
from crossdock.devices.dialect import CUDA_HEADER, assemble, misfit
from crossdock.devices.program import ArrayCall, GridLaunch, Scalar, Step
from crossdock.devices.share import Share
from crossdock.devices.variants import Built
from crossdock.devices.worker import JOBS, no_more
from crossdock.runtime.errors import CompileError, DeviceError, Unavailable
from crossdock.runtime.tensor import Array, TensorSpec, to_numpy

KIND = "cuda"
FIX = "pip install 'crossdock[cuda]'"
ALIGNMENT = 256
WARP = 32
"""Threads of a warp on every card; the kernel dialect counts on it, too."""
MAX_GRID = (2**31 - 1, 65535, 65535)

MOST_RETURNED, RETURNED_PART = 32, 16
"""Arrays that others were lent and gave back, and their part of the budget, that are left lying
before the host waits for the whole card to have their memory again.
"""

_CAPS = frozenset(
    {
        Cap.GRID,
        Cap.ARRAY,
        Cap.EVENTS,
        Cap.PROFILING,
        Cap.COPY_QUEUES,
        Cap.REPLAY,
        Cap.REBIND,
        Cap.FLOAT16,
        Cap.FLOAT64,
    }
)


def probe() -> Probe:
    """Every card that cupy sees and NVRTC compiles for, or why there is none."""
    if "cupy" not in sys.modules:
        if importlib.util.find_spec("cupy") is None:
            return Probe(KIND, (), "cupy is not installed", FIX)
        if problem := cuda_versions.driver_problem():
            return Probe(KIND, (), *problem)
    try:
        import cupy as cp
    except ImportError as error:
        return Probe(KIND, (), f"cupy cannot be imported ({str(error).strip()})", FIX)
    try:
        return _cards(cp)
    except cp.cuda.runtime.CUDARuntimeError as error:
        return Probe(KIND, (), *cuda_versions.runtime_problem(cp, error))


def _cards(cp: Any) -> Probe:
    runtime = cp.cuda.runtime
    count = runtime.getDeviceCount()
    if count and (problem := cuda_versions.compiler_problem(cp)):
        return Probe(KIND, (), *problem)
    problems = [
        cuda_versions.card_problem(cp, runtime.getDeviceProperties(index)) for index in range(count)
    ]
    found = tuple(_describe(cp, index) for index, why in enumerate(problems) if why is None)
    why = next((problem for problem in problems if problem), ("", ""))
    return Probe(KIND, found, *why)


def _describe(cp: Any, index: int) -> DeviceInfo:
    runtime = cp.cuda.runtime
    facts = runtime.getDeviceProperties(index)
    with cp.cuda.Device(index) as device:
        total = runtime.memGetInfo()[1]
        pci = device.pci_bus_id
    name = facts["name"].decode()
    driver = cuda_versions.driver(cp)
    uuid = _uuid(facts)
    dnn = cuda_dnn.facts()
    physical = topology.physical_id(pci, uuid, f"{KIND}:{index}")
    missing = cuda_versions.blas_missing(cp)
    blas = "|no cublas" if missing else cuda_lt_library.told(cp)
    libraries = blas + cuda_dnn.told(dnn)
    return DeviceInfo(
        id=f"{KIND}:{index}",
        kind=KIND,
        name=name,
        vendor="NVIDIA",
        driver=driver,
        physical_id=physical,
        resource_group=physical,
        compute_units=facts["multiProcessorCount"],
        memory_bytes=total,
        caps=_CAPS,
        fingerprint=cuda_versions.fingerprint(cp, facts) + libraries,
        max_allocation=total,
        local_memory=facts["sharedMemPerBlock"],
        max_work_group=facts["maxThreadsPerBlock"],
        alignment=ALIGNMENT,
        subgroup=WARP,
        details={
            "compute_capability": f"{facts['major']}.{facts['minor']}",
            "nvrtc": cuda_versions.compiler(cp),
            **({"no cublas": missing} if missing else {}),
            **dnn,
            **({"uuid": uuid.hex()} if uuid else {}),
        },
    )


def _uuid(facts: Mapping[str, Any]) -> bytes:
    """The UUID among a card's properties, or nothing.

    cupy makes bytes of the driver's array as of a C string: one with a zero in it arrives cut, and
    what follows the array may come after one without.
    """
    told = bytes(facts.get("uuid", b""))
    return told[:16] if len(told) >= 16 else b""


def open_device(
    device_id: str, *, threads: int | None = None, limit: int | None = None
) -> CudaDevice:
    """Open a card; ``limit`` is its budget in bytes. Cards are not cut: ``threads`` is unused."""
    del threads
    found = probe()
    info = next((info for info in found.devices if info.id == device_id), None)
    if info is None:
        raise Unavailable(f"no device {device_id!r}: {found.reason or 'no such card'}; {found.fix}")
    import cupy as cp

    return CudaDevice(cp, info, limit)


class CudaDevice(Device):
    """One card."""

    def __init__(self, cp: Any, info: DeviceInfo, limit: int | None = None) -> None:
        self.cp = cp
        self.info = info
        self.index = int(info.id.partition(":")[2])
        self.budget = info.memory_bytes if limit is None else min(limit, info.memory_bytes)
        self.lost = ""
        self.pool = cp.cuda.MemoryPool()
        self.dropped: deque[Any] = deque()
        self.returned: deque[tuple[Any, int]] = deque()  # that others had been lent, and its bytes
        self._share = Share(info.id, self.budget, info.memory_bytes, info.physical_id)
        self._share.reclaim = weakref.WeakMethod(self._give_back)
        self.gauge = self._share.gauge
        self._modules: dict[tuple[object, ...], Any] = {}
        self._lock = threading.Lock()
        self._closed = False
        self._readers: tuple[weakref.ref[CudaQueue], ...] = ()
        self._unreachable: dict[int, str] = {}  # why, by the other card's index
        with cp.cuda.Device(self.index):
            self.pool.set_limit(size=self.budget)
            self.queues: Mapping[str, CudaQueue] = {
                role: CudaQueue(self, role) for role in ("compute", "upload", "download")
            }
            self.borrowing = cp.cuda.Stream(non_blocking=True)
            """Only waits for streams of other libraries."""

    @property
    def users(self) -> list[CudaQueue]:
        """The queues that may be using this card's memory: its own, and those that copy from it."""
        found = [queue for queue in (ref() for ref in self._readers) if queue is not None]
        others = [q for q in found if not q.device.lost and not q.device.closed]
        return [*self.queues.values(), *others]

    @property
    def closed(self) -> bool:
        """Whether nothing of it is used any more."""
        return self._closed

    def read_by(self, queue: CudaQueue) -> None:
        """From now on memory of this card may be in use by a queue of another."""
        with self._lock:
            if all(ref() is not queue for ref in self._readers):
                self._readers = (*self._readers, weakref.ref(queue))

    def copies_from(self, other: Device) -> str:
        """By peer access, or staged in pinned memory; nothing for what is no other card."""
        if not isinstance(other, CudaDevice) or other.index == self.index:
            return ""
        why = self.unreachable(other)
        return f"staged in pinned memory: {why}" if why else "peer access"

    def unreachable(self, other: CudaDevice) -> str:
        """Why copies of this card cannot reach another's memory; access is enabled here, once."""
        if other.index not in self._unreachable:
            self._unreachable[other.index] = cuda_peer.enable(self, other)
        return self._unreachable[other.index]

    def drain(self) -> None:
        """Wait for every stream, so that memory can change hands; does nothing on a lost card."""
        if not self.lost and not self._closed:
            with translated(self):
                for queue in self.users:
                    queue.stream.synchronize()

    def _reclaim(self, wanted: int) -> None:
        """Free what was dropped, waiting for it only where memory is short; any thread."""
        if self.lost or self._closed:
            return
        with translated(self):
            self._count()
            short = wanted > self._share.free
            if short or (self.dropped and not any(q.busy() for q in self.users)):
                self.drain()
                for queue in self.users:
                    queue.forget()
                self.dropped.clear()
                self._count()
            if short or self._much_returned():
                self._settle()
                self._count()

    def _much_returned(self) -> bool:
        held = [nbytes for _, nbytes in list(self.returned)]
        return len(held) >= MOST_RETURNED or sum(held) > self.budget // RETURNED_PART

    def _settle(self) -> None:
        """Free what others had been lent: streams of theirs may still use it."""
        found = []
        with suppress(IndexError):  # another thread may take some
            while self.returned:
                found.append(self.returned.popleft())
        if found:
            self.cp.cuda.Device(self.index).synchronize()

    def _give_back(self, wanted: int) -> None:
        """Let the card's other devices have what the pool keeps; any thread."""
        with suppress(DeviceError):  # a card that fails says so where it is used
            self._reclaim(wanted)
            if not self.lost and not self._closed:
                with translated(self):
                    self.pool.free_all_blocks()
                    self._count()

    def _count(self) -> None:
        """Take the pool's word for what is used: it has the temporaries of array calls in it."""
        with self._share.lock:
            used = int(self.pool.used_bytes())
            self.gauge.show(used)
            self._share.cached = int(self.pool.total_bytes()) - used

    def host_array(self, spec: TensorSpec) -> Array:
        """A host array in pinned memory: copies to and from it are not staged."""
        dtype, count = to_numpy(spec.dtype), max(spec.size, 1)
        with translated(self):
            memory = self.cp.cuda.alloc_pinned_memory(count * dtype.itemsize)
        return np.frombuffer(memory, dtype, count)[: spec.size].reshape(spec.dims)

    def pinned(self, array: Array) -> Array:
        """A copy in pinned memory: uploads of it are not staged."""
        made = self.host_array(TensorSpec("uint8", array.shape))
        np.copyto(made, array)
        made.flags.writeable = False
        return made

    def allocate(self, nbytes: int, label: str = "") -> CudaBuffer:
        """Allocate from the pool, within the budget."""
        with translated(self):
            self._reclaim(nbytes)
            self._share.make_room(nbytes)
            with self._share.lock:
                self._share.check(nbytes, label)
                made = CudaBuffer(self, self.pool.malloc(max(nbytes, 1)), nbytes)
                self._count()
            return made

    def holds(self, value: object) -> bool:
        """Whether an array of another library lies on this card."""
        return cuda_exchange.holds(self, value)

    def borrow(self, value: object) -> Borrowed:
        """Its memory, ready when the streams that write it are; raises BufferError."""
        return cuda_exchange.borrow(self, value)

    def lend(self, buffer: Buffer, spec: TensorSpec) -> Any:
        """A cupy array in a buffer's memory, or one of bfloat16 over such."""
        return cuda_exchange.lend(self, buffer, spec)

    def compile(self, step: Step) -> CudaExecutable:
        """Build a kernel with NVRTC; an array call only needs types that cupy has."""
        if isinstance(step, ArrayCall):
            for spec in (*step.in_specs, *step.out_specs):
                if spec is not None and spec.dtype == "bfloat16":
                    raise CompileError(f"{self.info.id}: cupy has no bfloat16 arrays")
            if isinstance(step.fn, LibraryCall):
                with translated(self):
                    return CudaExecutable(step, step.fn.prepare(self.cp))
            return CudaExecutable(step)
        if not isinstance(step, GridLaunch):
            raise CompileError(
                f"{self.info.id}: runs grid kernels and array calls, not {type(step).__name__}"
            )
        with translated(self):
            return CudaExecutable(Built(step, self.info.fingerprint, self._kernel))

    def _kernel(self, step: GridLaunch) -> Any:
        cp, where = self.cp, f"{self.info.id}: kernel {step.entry}"
        text = assemble(CUDA_HEADER, step.defines, step.source)
        try:
            with self._lock:
                module = self._modules.get((step.source, step.defines))
                if module is None:
                    module = cp.RawModule(code=text, backend="nvrtc")
                    self._modules[step.source, step.defines] = module
                raw = module.get_function(step.entry)
                function, most = raw.kernel, raw.max_threads_per_block
        except cp.cuda.compiler.CompileException as error:
            log = error.get_message()
            first = next((line for line in log.splitlines() if "error" in line), log[:200])
            raise CompileError(f"{where} does not build: {first}", log=log, source=text) from error
        except cp.cuda.driver.CUDADriverError as error:
            said = f"{where} cannot be loaded: {error}{cuda_versions.mismatch(cp)}"
            raise CompileError(said, source=text) from error
        if why := _misfit(step, most):
            raise CompileError(f"{where}: {why}", source=text)
        return function

    def algorithms(self, executable: Executable) -> int:
        """Those of a library whose call the step is, or variants of a launch."""
        with translated(self):
            return super().algorithms(executable)

    def take_algorithm(self, executable: Executable, index: int) -> None:
        """Record the step by another of them; raises CompileError where NVRTC refuses it."""
        with translated(self):
            super().take_algorithm(executable, index)

    def keep_algorithm(self, executable: Executable, index: int, timings: Sequence[Timing]) -> None:
        """Keep what was chosen, for this card and version of the library."""
        with translated(self):
            super().keep_algorithm(executable, index, timings)

    def record(self, bound: Sequence[Bound]) -> CudaCommands:
        """Make every call with its arrays and arguments in place."""
        with translated(self):
            return CudaCommands([self._call(item) for item in bound], bound)

    def rebind(self, commands: CommandBuffer, changed: Mapping[int, Bound]) -> CudaCommands:
        """Make some calls anew; they keep no memory alive."""
        assert isinstance(commands, CudaCommands)
        with translated(self):
            calls = {at: self._call(commands.unowned(item)) for at, item in changed.items()}
            return commands.rebound(calls)

    def _call(self, item: Bound) -> Callable[[], Any]:
        if JOBS.ending:
            raise no_more(f"recording for {self.info.id}")
        executable = item.executable
        assert isinstance(executable, CudaExecutable)
        if isinstance(executable.made, ArrayCall):
            step = executable.made
            ins = [
                None if slot is None or spec is None else _array(item, slot, spec)
                for slot, spec in zip(step.ins, step.in_specs, strict=True)
            ]
            outs = [
                _array(item, slot, spec)
                for slot, spec in zip(step.outs, step.out_specs, strict=True)
            ]
            if executable.library is not None:
                return executable.library.bound(ins, outs)
            return functools.partial(step.fn, self.cp, ins, outs)
        launch = executable.made.step
        args = tuple(
            arg.value
            if isinstance(arg, Scalar)
            else _array(item, arg, TensorSpec("uint8", (item.buffers[arg].nbytes,)))
            for arg in launch.args
        )
        blocks = tuple(g // b for g, b in zip(launch.grid, launch.block, strict=True))
        if not all(blocks):
            return _nothing
        return functools.partial(executable.kernel, blocks, launch.block, args)

    def close(self) -> None:
        """Wait for the streams, end their threads, and give memory back."""
        self.drain()
        for queue in self.queues.values():
            if not self.lost:
                queue.finish()
            queue.forget()
            if queue.feeder is not None:
                queue.feeder.stop()
        self.drain()
        self._closed = True
        self._modules.clear()
        for queue in self.users:
            queue.forget()
        self.dropped.clear()
        if not self.lost:
            with translated(self):
                self._settle()
                self.pool.free_all_blocks()
        self.returned.clear()


def _nothing() -> None:
    """The launch of an empty grid."""


def _array(item: Bound, slot: Any, spec: TensorSpec) -> Any:
    buffer = item.buffers[slot]
    assert isinstance(buffer, CudaBuffer)
    return buffer.on_device(spec)


def _misfit(step: GridLaunch, most: int) -> str:
    """Why a launch cannot be made, or nothing."""
    if why := misfit(step.grid, step.block, most):
        return why
    blocks = [g // b for g, b in zip(step.grid, step.block, strict=True)]
    if any(count > top for count, top in zip(blocks, MAX_GRID, strict=False)):
        return f"{blocks} blocks are over the limit of {MAX_GRID}"
    return ""
