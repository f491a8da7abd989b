"""``RawModule`` of the fake cupy: the kernel text built and run by PoCL.

The CUDA header is taken off and the OpenCL one put on, so that what runs is the same kernel text.
Arguments are checked against the kernel's own signature.
"""

from __future__ import annotations

import functools
import math
import warnings
from typing import Any

import numpy as np

from crossdock.devices.dialect import CUDA_HEADER, OPENCL_HEADER
from tests.fakes.cuda_machine import Machine, Range

MAX_GRID = (2**31 - 1, 65535, 65535)
C_TYPES = {
    "char": "int8", "uchar": "uint8", "short": "int16", "ushort": "uint16", "int": "int32",
    "uint": "uint32", "long": "int64", "ulong": "uint64", "float": "float32", "double": "float64",
    "i8": "int8", "u8": "uint8", "i16": "int16", "u16": "uint16", "i32": "int32",
    "u32": "uint32", "i64": "int64", "u64": "uint64", "f32": "float32", "f64": "float64",
}  # fmt: skip


class Pocl:
    """A PoCL device, a context and a queue."""

    def __init__(self) -> None:
        from crossdock.devices import opencl_platforms

        self.cl = opencl_platforms.load()
        found = [f for f in opencl_platforms.found_devices() if f.info.name.startswith("pthread")]
        self.handle = found[0].handle
        self.context = self.cl.Context([self.handle])
        self.queue = self.cl.CommandQueue(self.context)


@functools.cache
def pocl() -> Pocl:
    """The one that every fake runs its kernels on."""
    return Pocl()


class Function:
    """A loaded kernel."""

    def __init__(self, cupy: Any, kernel: Any) -> None:
        self._cupy = cupy
        self._machine: Machine = cupy.machine
        self._kernel = kernel
        ask = pocl().cl.kernel_arg_info
        self._params = [
            (
                kernel.get_arg_info(i, ask.TYPE_NAME).replace(" ", ""),
                bool(kernel.get_arg_info(i, ask.TYPE_QUALIFIER) & 1),
            )
            for i in range(kernel.num_args)
        ]

    def __call__(self, grid: Any, block: Any, args: Any, shared_mem: int = 0) -> None:
        name = self._kernel.function_name
        self._check_shape(name, grid, block)
        if len(args) != len(self._params):
            raise self._machine.problem(f"{name} takes {len(self._params)} arguments")
        arrays, scalars = [], []
        for i, (arg, (kind, const)) in enumerate(zip(args, self._params, strict=True)):
            if kind.endswith("*"):
                if not isinstance(arg, self._cupy.ndarray):
                    raise self._machine.problem(f"{name}: argument {i} has to be a device array")
                arrays.append((i, arg, const))
            elif isinstance(arg, np.generic) and arg.dtype == C_TYPES[kind]:
                scalars.append((i, arg))
            else:
                raise self._machine.problem(
                    f"{name}: argument {i} is a {kind}, not a {type(arg).__name__}"
                )
        launch = functools.partial(self._launch, name, grid, block, arrays, scalars)
        captured = self._machine.capture_of(self._cupy.cuda.current())
        if captured is None:
            launch()
        else:
            captured.append(launch)

    def _check_shape(self, name: str, grid: Any, block: Any) -> None:
        if any(g > most for g, most in zip(grid, MAX_GRID, strict=False)):
            raise self._cupy.cuda.driver.CUDADriverError(1)
        if math.prod(block) > 1024 or 0 in (*grid, *block):
            raise self._machine.problem(f"{name}: {grid} blocks of {block} cannot be launched")

    def _launch(self, name: str, grid: Any, block: Any, arrays: Any, scalars: Any) -> None:
        cl, context, queue = pocl().cl, pocl().context, pocl().queue
        flags = cl.mem_flags.READ_WRITE | cl.mem_flags.USE_HOST_PTR
        spans = [(i, Range(a._a.ctypes.data, a.nbytes), const) for i, a, const in arrays]
        reads, writes = [s for _, s, _ in spans], [s for _, s, const in spans if not const]
        self._machine.submit(self._cupy.cuda.current(), reads, writes, f"kernel {name}")
        for i, value in scalars:
            self._kernel.set_arg(i, value)
        whole: dict[int, Any] = {}
        parts = []
        for i, span, _ in spans:
            home = self._machine.need(span, name)
            if home.address not in whole:
                whole[home.address] = cl.Buffer(context, flags, hostbuf=home.memory)
            at = span.address - home.address
            parts.append(whole[home.address].get_sub_region(at, max(span.nbytes, 1)))
            self._kernel.set_arg(i, parts[-1])
        sizes = tuple(g * b for g, b in zip(grid, block, strict=True))
        cl.enqueue_nd_range_kernel(queue, self._kernel, sizes, tuple(block))
        queue.finish()


class RawKernel:
    """A kernel of a module, loaded when ``kernel`` is asked for."""

    max_threads_per_block = 1024

    def __init__(self, cupy: Any, program: Any, name: str) -> None:
        self._cupy = cupy
        self._program = program
        self._name = name

    @functools.cached_property
    def kernel(self) -> Function:
        try:
            return Function(self._cupy, pocl().cl.Kernel(self._program, self._name))
        except pocl().cl.Error as error:
            raise self._cupy.cuda.driver.CUDADriverError(500) from error


class RawModule:
    """A text, built when its first kernel is asked for."""

    cupy: Any

    def __init__(self, *, code: str, options: tuple[str, ...] = (), backend: str = "nvrtc") -> None:
        if not code.startswith(CUDA_HEADER):
            raise self.cupy.machine.problem("the text does not begin with CUDA_HEADER")
        self._text = OPENCL_HEADER + code.removeprefix(CUDA_HEADER)
        self._program: Any = None

    def get_function(self, name: str) -> RawKernel:
        if self._program is None:
            cl = pocl().cl
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    program = cl.Program(pocl().context, self._text)
                    self._program = program.build(["-cl-kernel-arg-info"])
            except cl.Error as error:
                raise self.cupy.cuda.compiler.CompileException(str(error)) from error
        return RawKernel(self.cupy, self._program, name)
