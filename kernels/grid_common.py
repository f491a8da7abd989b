"""What the grid kernels share: element types, scalar arguments, launches, collapsed dimensions.

Kernel texts are written in the dialect of ``devices.dialect`` and serve OpenCL and CUDA alike.
Sizes and strides are arguments where that costs nothing, so that few programs are built: building
one takes a processor's OpenCL driver a quarter of a second.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from crossdock.devices.base import Cap, DeviceInfo
from crossdock.devices.program import Argument, GridLaunch, Scalar
from crossdock.kernels.refusal import Cause, Refusal
from crossdock.kernels.spec import OpCall
from crossdock.runtime.tensor import TensorSpec, to_numpy

KINDS = ("opencl", "cuda")
MAX_RANK = 12
"""Dimensions, joined where that can be, that kernels take strides of: arguments of every launch."""
MAX_ROWS = 65535
"""CUDA's limit on the second and third dimension of a grid."""

Defines = tuple[tuple[str, str], ...]
Args = tuple[Argument, ...]

C_TYPES = {
    "float32": "f32", "float16": "f16", "bfloat16": "bf16", "float64": "f64",
    "int8": "i8", "uint8": "u8", "int16": "i16", "uint16": "u16", "int32": "i32",
    "uint32": "u32", "int64": "i64", "uint64": "u64", "bool": "b8",
}  # fmt: skip
"""Storage type of each element type."""

COMPUTE = {
    "float32": "f32", "float16": "f32", "bfloat16": "f32", "float64": "f64",
    "int8": "i32", "uint8": "i32", "int16": "i32", "uint16": "i32", "int32": "i32",
    "uint32": "u32", "int64": "i64", "uint64": "u64", "bool": "i32",
}  # fmt: skip
"""Type that each element type is computed in."""

WRAPPING = {"i32": "u32", "i64": "u64"}
"""Types that C lets nothing overflow in, and those that wrap in their place, as numpy's do."""

RAW = {1: "u8", 2: "u16", 4: "u32", 8: "u64"}
"""Type that moves an element of so many bytes."""


def on_cpu(device: DeviceInfo) -> bool:
    """True where the work items run on a processor's cores, its vector lanes among them."""
    return device.details.get("type") == "cpu"


def vector_width(device: DeviceInfo) -> int:
    """Floats of a vector of a processor's device: 4, 8 or 16."""
    return min(16, max(4, int(device.details.get("vector", "8"))))


def vectors(width: int) -> Defines:
    """Defines for texts on vectors of one width: VW, VEC, VSPLAT, VFMA, VLOAD, VSTORE.

    Texts for processors, which OpenCL alone runs, have its vector integers, too: VINT, AS_VINT and
    AS_VEC.
    """
    names = ("SPLAT", "FMA", "LOAD", "STORE")
    return (
        ("VW", str(width)),
        ("VEC", f"f32x{width}"),
        ("VINT", f"int{width}"),
        ("AS_VINT", f"as_int{width}"),
        ("AS_VEC", f"as_float{width}"),
        *((f"V{n}", f"{n if n in ('SPLAT', 'FMA') else f'V{n}'}{width}") for n in names),
    )


def half_load(dtype: str, pointer: str, index: str) -> str:
    """The C expression that reads an element as its compute type."""
    if dtype == "float16":
        return f"LOAD_HALF({pointer}, {index})"
    if dtype == "bfloat16":
        return f"LOAD_BF16({pointer}, {index})"
    return f"({pointer})[{index}]"


def half_store(dtype: str, pointer: str, index: str, value: str) -> str:
    """The C expression that writes a value of the compute type (converted by C's rules)."""
    if dtype == "float16":
        return f"STORE_HALF({pointer}, {index}, {value})"
    if dtype == "bfloat16":
        return f"STORE_BF16({pointer}, {index}, {value})"
    if dtype == "bool":
        return f"({pointer})[{index}] = ({value}) != 0"
    return f"({pointer})[{index}] = ({C_TYPES[dtype]})({value})"


def wrapped(x: str, op: str, y: str, kind: str) -> str:
    """The C expression of a sum, difference or product that wraps where ``kind`` is an integer."""
    if kind not in WRAPPING:
        return f"{x} {op} {y}"
    unsigned = WRAPPING[kind]
    return f"({kind})(({unsigned}){x} {op} ({unsigned}){y})"


def accessors(dtype: str, tag: str = "T") -> Defines:
    """Defines for texts on one element type.

    ``T`` is the storage type, ``T_C`` the compute type, ``T_LOAD(p, i)`` and ``T_STORE(p, i, x)``
    convert between them; ``tag`` takes the place of T.
    """
    return (
        (tag, C_TYPES[dtype]),
        (f"{tag}_C", COMPUTE[dtype]),
        (f"{tag}_LOAD(p, i)", half_load(dtype, "p", "i")),
        (f"{tag}_STORE(p, i, x)", f"({half_store(dtype, 'p', 'i', 'x')})"),
    )


def define(**values: int | str) -> Defines:
    """Defines by name."""
    return tuple((name, str(value)) for name, value in values.items())


def i32(*values: int) -> tuple[Scalar, ...]:
    """``int`` kernel arguments."""
    return tuple(Scalar(np.int32(v)) for v in values)


def f32(*values: float) -> tuple[Scalar, ...]:
    """``float`` kernel arguments."""
    return tuple(Scalar(np.float32(v)) for v in values)


def launch(
    source: str,
    entry: str,
    args: Sequence[Argument],
    items: Sequence[int],
    block: Sequence[int],
    defines: Defines = (),
) -> GridLaunch:
    """A launch over at least ``items`` work items, rounded up to whole blocks."""
    grid = tuple(-(-n // b) * b for n, b in zip(items, block, strict=True))
    return GridLaunch(source, entry, tuple(args), grid, tuple(block), defines)


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least ``n``."""
    return 1 << max(0, n - 1).bit_length()


# --- shapes ---------------------------------------------------------------------------------------


def row_major(dims: Sequence[int]) -> tuple[int, ...]:
    """Strides of a densely packed tensor, in elements."""
    return tuple(math.prod(dims[i + 1 :]) for i in range(len(dims)))


def broadcast_strides(shape: Sequence[int], target: Sequence[int]) -> tuple[int, ...]:
    """Strides to read a dense tensor of ``shape`` as if it had the shape ``target``."""
    shape = (1,) * (len(target) - len(shape)) + tuple(shape)
    dense = row_major(shape)
    return tuple(0 if n == 1 else s for n, s in zip(shape, dense, strict=True))


@dataclass(frozen=True)
class Space:
    """An iteration space with the strides that several tensors take through it."""

    dims: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]

    @property
    def size(self) -> int:
        """Number of points."""
        return math.prod(self.dims)

    def collapsed(self) -> Space:
        """The same points in the same order with as few dimensions as can be (at least one)."""
        dims: list[int] = []
        strides: list[list[int]] = [[] for _ in self.strides]
        for axis, n in enumerate(self.dims):
            if n == 1:
                continue
            step = [s[axis] for s in self.strides]
            if dims and all(s[-1] == n * here for s, here in zip(strides, step, strict=True)):
                dims[-1] *= n
                for s, here in zip(strides, step, strict=True):
                    s[-1] = here
                continue
            dims.append(n)
            for s, here in zip(strides, step, strict=True):
                s.append(here)
        if not dims:
            return Space((1,), tuple((0,) for _ in self.strides))
        return Space(tuple(dims), tuple(tuple(s) for s in strides))


# --- reasons --------------------------------------------------------------------------------------


def obstacle(call: OpCall, device: DeviceInfo) -> str | None:
    """What rules out every grid kernel: too many elements, none, or a type the device lacks."""
    specs = [s for s in (*call.inputs, *call.outputs) if s is not None]
    if Cap.GRID not in device.caps:
        return Refusal("the device runs no grid kernels", Cause.LACKS)
    if any(s.dtype == "float64" for s in specs) and Cap.FLOAT64 not in device.caps:
        return Refusal("the device has no float64", Cause.DTYPE)
    if any(s.size == 0 for s in specs):
        return Refusal("an operand is empty", Cause.SIZE)
    if any(s.size >= 2**31 for s in specs):
        return Refusal("more than 2^31 elements", Cause.SIZE)
    return None


def not_among(dtypes: Iterable[str], call: OpCall, at: int = 0) -> str | None:
    """The reason where operand ``at`` has another element type."""
    dtype = operand(call, at).dtype
    return None if dtype in dtypes else Refusal(f"no {dtype} kernel", Cause.DTYPE)


def operand(call: OpCall, at: int) -> TensorSpec:
    """The spec of an operand that is there."""
    spec = call.inputs[at]
    assert spec is not None, (call.op, at)
    return spec


def has(call: OpCall, at: int) -> bool:
    """True where the optional operand ``at`` is given."""
    return at < len(call.inputs) and call.inputs[at] is not None


def item_size(dtype: str) -> int:
    """Bytes of an element."""
    return to_numpy(dtype).itemsize
