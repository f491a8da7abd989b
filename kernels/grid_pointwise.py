"""The texts of kernels that compute each element of a result from elements of operands.

Operands and result may lie anywhere in their buffers (an offset and strides), so that the same
texts broadcast, transpose, slice and join. On a processor
they are plain *loops* over rows. On a GPU they are chosen once dimensions are collapsed: *flat*
where everything is dense or one element; *rows* over a two-dimensional grid where the innermost
dimension is long, so that only a row's number is divided; *strided* for the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from crossdock.devices.base import DeviceInfo
from crossdock.devices.program import Argument, GridLaunch, Out, Slot
from crossdock.kernels.grid_common import (
    C_TYPES,
    COMPUTE,
    MAX_ROWS,
    Space,
    broadcast_strides,
    half_load,
    half_store,
    i32,
    launch,
    on_cpu,
    row_major,
    vector_width,
)
from crossdock.kernels.grid_emit import Body, Step, Value, emit
from crossdock.runtime.tensor import TensorSpec

LOOP = 4096
"""Elements of a work item on a processor, at least; in a long row at most four times as many."""

LONG_BODY = 8
"""From so many operations an element on, a processor had better work on several vectors at a time:
one waits longer for its own results than there is other work in sight."""

LONG_ROW = 16
"""From this length on, a row is a dimension of the grid."""


@dataclass(frozen=True)
class Operand:
    """A tensor that broadcasts to the result; or one read with ``strides`` from ``offset``."""

    slot: Slot
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None = None
    offset: int = 0


@dataclass(frozen=True)
class Target:
    """Where results go: dense, or with ``strides`` from ``offset`` on."""

    slot: Slot = Out(0)  # noqa: RUF009 - immutable
    strides: tuple[int, ...] | None = None
    offset: int = 0


def pointwise(
    steps: Sequence[Step],
    operands: Sequence[Operand],
    result: TensorSpec,
    device: DeviceInfo,
    *,
    scalars: Mapping[int, float] | None = None,
    target: Target | None = None,
) -> GridLaunch:
    """One launch that computes ``steps`` for each element of ``result``."""
    target = target or Target()
    dims = result.dims
    read = [broadcast_strides(o.shape, dims) if o.strides is None else o.strides for o in operands]
    written = row_major(dims) if target.strides is None else target.strides
    space = Space(dims, (written, *read)).collapsed()
    body = emit(
        steps,
        [Value(f"x{i}", COMPUTE[o.dtype]) for i, o in enumerate(operands)],
        cpu=on_cpu(device),
        scalars=scalars,
    )
    text = _Text(body, operands, target, result.dtype)
    rows = space.size // space.dims[-1]
    if on_cpu(device):
        return _loops(text, space, rows, device)
    if len(space.dims) == 1 and all(s[0] in (0, 1) for s in space.strides):
        return _flat_by_four(text, space) if text.vectorises(space.size) else _flat(text, space)
    if space.dims[-1] >= LONG_ROW and rows <= MAX_ROWS:
        return _rows(text, space, rows)
    return _strided(text, space)


@dataclass(frozen=True)
class _Text:
    """The parts of a kernel text that do not depend on how its tensors lie."""

    body: Body
    operands: Sequence[Operand]
    target: Target
    dtype: str

    def slots(self) -> tuple[Argument, ...]:
        return (*(o.slot for o in self.operands), self.target.slot)

    def offsets(self) -> list[int]:
        """Of the result, then of each operand."""
        return [self.target.offset, *(o.offset for o in self.operands)]

    def vectorises(self, count: int) -> bool:
        """Whether four elements at a time can be read and written."""
        types = {self.dtype, *(o.dtype for o in self.operands)}
        return types == {"float32"} and count % 4 == 0 and not any(self.offsets())

    def kernel(self, numbers: Sequence[str], lines: Sequence[str]) -> str:
        """The body as a function of its operands' values, then the kernel."""
        params = ", ".join(f"{COMPUTE[o.dtype]} x{i}" for i, o in enumerate(self.operands))
        steps = "\n    ".join((*self.body.lines, f"return {self.body.result.text};"))
        pointers = [
            f"CONSTANT {C_TYPES[o.dtype]} *RESTRICT p{i}" for i, o in enumerate(self.operands)
        ]
        pointers.append(f"GLOBAL {C_TYPES[self.dtype]} *RESTRICT y")
        arguments = ", ".join((*pointers, *(f"i32 {n}" for n in numbers)))
        inner = "\n    ".join(lines)
        return (
            f"{self.body.helpers}DEVICE {COMPUTE[self.dtype]} body({params}) {{\n    {steps}\n}}\n"
            f"KERNEL void pointwise({arguments}) {{\n    {inner}\n}}\n"
        )

    def launch(
        self,
        numbers: _Numbers,
        lines: Sequence[str],
        items: Sequence[int],
        block: Sequence[int],
    ) -> GridLaunch:
        """The launch of these lines."""
        args = (*self.slots(), *i32(*numbers.values))
        return launch(self.kernel(numbers.names, lines), "pointwise", args, items, block)

    def loop(self, length: int, device: DeviceInfo) -> str:
        """What goes before a loop of so many rounds: long chains of arithmetic are interleaved."""
        width = vector_width(device)
        if (len(self.body.lines) < LONG_BODY and not self.body.helpers) or length < 8 * width:
            return f"VECTORIZE({width})"
        return f"INTERLEAVE({width}, 4)"

    def apply(self, indices: Sequence[str]) -> str:
        """The statement that computes one element: indices of the result, then the operands."""
        loads = ", ".join(
            half_load(o.dtype, f"p{i}", index)
            for i, (o, index) in enumerate(zip(self.operands, indices[1:], strict=True))
        )
        return half_store(self.dtype, "y", indices[0], f"body({loads})") + ";"


@dataclass
class _Numbers:
    """Integer arguments of a kernel, by name."""

    names: list[str] = field(default_factory=list)
    values: list[int] = field(default_factory=list)

    def add(self, name: str, value: int) -> str:
        self.names.append(name)
        self.values.append(value)
        return name

    def index(self, tag: str, strides: Sequence[int], offset: int, last: str) -> str:
        """The C expression of a position; ``last`` is the innermost index's name."""
        terms = [self.add(f"o{tag}", offset)] if offset else []
        for k, stride in enumerate(strides):
            at = last if k == len(strides) - 1 else f"i{k}"
            if stride == 1 and at == last:
                terms.append(at)
            elif stride:
                terms.append(f"{at} * {self.add(f's{tag}_{k}', stride)}")
        return " + ".join(terms) or "0"


def _flat(text: _Text, space: Space) -> GridLaunch:
    numbers = _Numbers()
    count = numbers.add("n", space.size)
    places = [
        numbers.index(str(t), strides, offset, "i")
        for t, (strides, offset) in enumerate(zip(space.strides, text.offsets(), strict=True))
    ]
    lines = ["const i32 i = GLOBAL_ID(0);", f"if (i < {count}) {{ {text.apply(places)} }}"]
    return text.launch(numbers, lines, (space.size,), (256 if space.size >= 4096 else 64,))


def _flat_by_four(text: _Text, space: Space) -> GridLaunch:
    dense = [s[0] != 0 for s in space.strides[1:]]
    loads = [
        f"const f32x4 w{i} = {f'VLOAD4(p{i} + 4 * i)' if d else f'SPLAT4(p{i}[0])'};"
        for i, d in enumerate(dense)
    ]
    lanes = [
        f"r.s{lane} = body({', '.join(f'w{i}.s{lane}' for i in range(len(dense)))});"
        for lane in range(4)
    ]
    inner = "\n        ".join((*loads, "f32x4 r;", *lanes, "VSTORE4(y + 4 * i, r);"))
    lines = ["const i32 i = GLOBAL_ID(0);", f"if (i < n) {{\n        {inner}\n    }}"]
    count = space.size // 4
    return launch(
        text.kernel(["n"], lines), "pointwise", (*text.slots(), *i32(count)), (count,), (256,)
    )


def decode(source: str, rank: int) -> list[str]:
    """Statements that split a number into indices i0, i1 ... of the sizes d1, d2 ... (ints)."""
    lines = []
    for k in range(rank - 1, 0, -1):
        lines.append(f"const i32 i{k} = {source} % d{k}, q{k} = {source} / d{k};")
        source = f"q{k}"
    if rank:
        lines.append(f"const i32 i0 = {source};")
    return lines


def _loops(text: _Text, space: Space, rows: int, device: DeviceInfo) -> GridLaunch:
    """For processors: an item does some rows, or a part of a long one, with a plain loop."""
    columns = space.dims[-1]
    chunk = min(columns, max(LOOP, min(4 * LOOP, columns // (8 * max(1, device.compute_units)))))
    per = max(1, min(LOOP // chunk, rows // (4 * max(1, device.compute_units))))
    numbers = _Numbers()
    for name, value in (("columns", columns), ("rows", rows), ("chunk", chunk), ("per", per)):
        numbers.add(name, value)
    places = _places(text, space, numbers, "c")
    lines = [
        "const i32 first = GROUP_ID(0) * per, begin = GROUP_ID(1) * chunk;",
        "const i32 last = first + per < rows ? first + per : rows;",
        "const i32 end = begin + chunk < columns ? begin + chunk : columns;",
        "for (i32 r = first; r < last; ++r) {",
        *decode("r", len(space.dims) - 1),
        text.loop(chunk, device),
        f"for (i32 c = begin; c < end; ++c) {{ {text.apply(places)} }}",
        "}",
    ]
    items = (-(-rows // per), -(-columns // chunk))
    return text.launch(numbers, lines, items, (1, 1))


def _places(text: _Text, space: Space, numbers: _Numbers, last: str) -> list[str]:
    """Sizes of the dimensions but the first and last, then where each tensor's element lies."""
    rank = len(space.dims)
    for k in range(1, rank - 1 if last == "c" else rank):
        numbers.add(f"d{k}", space.dims[k])
    return [
        numbers.index(str(t), strides, offset, last)
        for t, (strides, offset) in enumerate(zip(space.strides, text.offsets(), strict=True))
    ]


def _rows(text: _Text, space: Space, rows: int) -> GridLaunch:
    """Columns are the first grid dimension, rows the second; outer indices come by division."""
    outer = len(space.dims) - 1
    numbers = _Numbers()
    numbers.add("columns", space.dims[-1])
    numbers.add("rows", rows)
    places = _places(text, space, numbers, "c")
    inner = "\n        ".join([*decode("r", outer), text.apply(places)])
    lines = [
        "const i32 c = GLOBAL_ID(0), r = GLOBAL_ID(1);",
        f"if (c < columns && r < rows) {{\n        {inner}\n    }}",
    ]
    items, block = row_blocks(space.dims[-1], rows)
    return text.launch(numbers, lines, items, block)


def row_blocks(columns: int, rows: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Work items and block of a grid of rows; few distinct blocks, as each is built anew."""
    wide = next((w for w in (16, 64) if columns <= w), 256)
    return (columns, rows), (wide, 256 // wide)


def _strided(text: _Text, space: Space) -> GridLaunch:
    rank = len(space.dims)
    numbers = _Numbers()
    numbers.add("n", space.size)
    places = _places(text, space, numbers, f"i{rank - 1}")
    inner = "\n        ".join([*decode("i", rank), text.apply(places)])
    lines = ["const i32 i = GLOBAL_ID(0);", f"if (i < n) {{\n        {inner}\n    }}"]
    return text.launch(numbers, lines, (space.size,), (256 if space.size >= 4096 else 64,))
