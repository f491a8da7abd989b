"""Products of float32 rows with a constant matrix, packed once a session, and what follows them.

The matrix is packed in panels of a few vectors of columns, each panel by the inner axis, as the
register tile of a few rows by a panel reads it. Rows are read where they lie: a tile reads one
value of each of its rows at a time, along the inner axis. An item is a group of rows, which
stays in the second-level cache with the panel, times one panel; while its first tiles are made, the
next panel is asked for, so that a product of few rows runs at the speed of memory. After K. Goto
and R. van de Geijn, Anatomy of High-Performance Matrix Multiplication (2008).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from crossdock.devices.base import DeviceInfo
from crossdock.devices.host_memory import aligned_empty
from crossdock.devices.program import Argument, In, Lowered, NativeCall, Out, Pack, Packed
from crossdock.kernels.cpu_conv_pack import tile_shape
from crossdock.kernels.cpu_dense_panel import WORDS, DenseWriter, Form
from crossdock.kernels.cpu_epilogue import epilogue_obstacle, epilogue_of
from crossdock.kernels.cpu_gemm_dots import MOST_ROWS, is_row
from crossdock.kernels.cpu_ir import compiled
from crossdock.kernels.cpu_rows import words
from crossdock.kernels.refusal import Cause, Refusal
from crossdock.kernels.spec import OpCall
from crossdock.kernels.table import kernel
from crossdock.runtime.tensor import Array, TensorSpec

GROUP_BYTES = 512 << 10
"""Of the left operand: a group of rows by a block of the inner axis."""
MOST_TAPS = 1024
"""Of a block of the inner axis."""
GRAIN_SECONDS = 10e-6
"""Work that is worth handing to another thread."""
RATES = (100e9, 10e9)
"""Operations and bytes a second, about: good enough to size chunks."""


@dataclass(frozen=True)
class Dense:
    """``out[m, n] = alpha * a[m, k] @ b[k, n] + bias[n]``; ``b`` is stored turned if so marked."""

    m: int
    n: int
    k: int
    turned: bool = False
    alpha: float = 1.0
    beta: float = 1.0


def dense_of(call: OpCall) -> Dense | str:
    """The product that an op is, or why it is none of this kind."""
    a, b, out = call.inputs[0], call.inputs[1], call.outputs[0]
    assert a is not None
    assert b is not None
    if call.op != "gemm":
        if math.prod(b.dims[:-2]) != 1:
            return "the right operand is a batch of matrices"
        return Dense(math.prod(out.dims[:-1]), out.dims[-1], a.dims[-1])
    attrs = call.attrs
    if attrs["a_transpose"]:
        return "the left operand is transposed"
    (m, n), k = out.dims, a.dims[1]
    return Dense(m, n, k, attrs["b_transpose"], attrs["alpha"], attrs["beta"])


def _fits(call: OpCall, device: DeviceInfo) -> str | None:  # noqa: ARG001 - a candidate's guard
    return obstacle_of(call)


def obstacle_of(call: OpCall) -> str | None:
    """Why a product cannot be done so, or None."""
    if call.outputs[0].dtype != "float32":
        return Refusal(f"{call.outputs[0].dtype}, not float32", Cause.DTYPE)
    if 1 not in call.constants:
        return "the right operand is no constant, so it cannot be packed before"
    if isinstance(found := dense_of(call), str):
        return found
    if found.turned and found.m <= MOST_ROWS:
        return Refusal("so few rows that turning the matrix would not pay", Cause.SIZE)
    if found.k == 0:
        return Refusal("there is nothing to add up", Cause.SIZE)
    bias = call.inputs[2] if len(call.inputs) > 2 else None
    if bias is not None and (2 not in call.constants or not is_row(bias, found.n)):
        return "the addend is no constant row of the result's length"
    return epilogue_obstacle(call)


@kernel("cpu.matmul.packed", "matmul", ("cpu",), when=_fits, rank=16)
@kernel("cpu.gemm.packed", "gemm", ("cpu",), when=_fits, rank=17)
@kernel("cpu.matmul.packed", "fused_matmul", ("cpu",), when=_fits, rank=16)
def lower_dense(call: OpCall, device: DeviceInfo) -> Lowered:
    """Lower a product with a constant to one native call."""
    found = dense_of(call)
    assert isinstance(found, Dense), found
    numbers = geometry(found, device.compute_units)
    tile = tile_shape()
    epilogue, residual = epilogue_of(call)
    form = Form(6 if found.m > tile.rows else 12, numbers["blocks"] > 1, epilogue)
    slots: dict[str, Argument] = {
        "out": Out(0), "a": In(0), "b": Packed(0), "bias": Packed(1), "residual": residual,
    }  # fmt: skip
    groups = -(-found.m // numbers["group_rows"])
    items = groups * numbers["panels"]
    seconds = 2.0 * found.m * found.n * found.k / RATES[0] + 4.0 * found.n * found.k / RATES[1]
    step = NativeCall(
        name="dense",
        address=compiled(
            f"dense {tile} {form}", lambda code: DenseWriter(code, tile, form).write()
        ),
        args=words(WORDS, slots, numbers),
        extent=items,
        grain=max(1, int(GRAIN_SECONDS * items / seconds)),
    )
    wide = numbers["vectors"] * tile.lanes
    packs = (
        Pack(lambda: pack(call, found, numbers), TensorSpec("float32", (found.k * wide,))),
        Pack(lambda: _bias(call, found, wide), TensorSpec("float32", (wide,))),
    )
    return Lowered((step,), (), packs, frozenset({1, 2}))


def geometry(found: Dense, threads: int) -> dict[str, int]:
    """The numbers among the kernel's words."""
    tile = tile_shape()
    vectors = -(-found.n // tile.lanes)
    blocks = -(-found.k // MOST_TAPS)
    block = -(-found.k // blocks)
    most = max(tile.rows, GROUP_BYTES // (4 * block) // tile.rows * tile.rows)
    groups = -(-found.m // most)
    panels = -(-vectors // tile.vectors)
    if panels * groups < threads:
        groups = min(-(-threads // panels), -(-found.m // tile.rows))
    group_rows = -(-found.m // groups // tile.rows) * tile.rows
    return {
        "m": found.m, "n": found.n, "k": found.k, "group_rows": group_rows, "panels": panels,
        "vectors": vectors, "block": block, "blocks": -(-found.k // block),
    }  # fmt: skip


def pack(call: OpCall, found: Dense, numbers: dict[str, int]) -> Array:
    """The constant matrix by panel, inner index and column; columns past the last one are 0."""
    tile, k, n = tile_shape(), found.k, found.n
    matrix = call.constants[1].reshape((n, k) if found.turned else (k, n))
    matrix = matrix.T if found.turned else matrix
    out = aligned_empty(k * numbers["vectors"] * tile.lanes, "float32")
    at = 0
    for panel in range(numbers["panels"]):
        low, high = (
            p * numbers["vectors"] // numbers["panels"] * tile.lanes for p in (panel, panel + 1)
        )
        part = out[at : at + k * (high - low)].reshape(k, high - low)
        inside = min(high, n) - low
        part[:, inside:] = 0.0
        np.multiply(matrix[:, low : low + inside], np.float32(found.alpha), out=part[:, :inside])
        at += k * (high - low)
    return out


def _bias(call: OpCall, found: Dense, wide: int) -> Array:
    """The addend as a row of whole vectors; zeros where there is none."""
    out = aligned_empty(wide, "float32")
    out[:] = 0.0
    if len(call.inputs) > 2 and call.inputs[2] is not None and found.beta != 0.0:
        out[: found.n] = call.constants[2].reshape(-1) * np.float32(found.beta)
    return out
