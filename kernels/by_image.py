"""Ops that share a batch, run image by image: one op ``by_image`` whose body is a graph of one.

Op by op, a batch passes through memory between any two ops, since all its images together do not
fit a core's caches. Here a thread takes one image through all ops of the body, and then its next
one, in memory of its own that stays in its caches; and threads wait for each other once, at the
end, and not after each op. Which ops that pays for is decided above (``runtime.images``): a body
takes weights anew for every image.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from crossdock.devices.base import DeviceInfo
from crossdock.devices.program import (
    Argument,
    Function,
    In,
    Lowered,
    NativeCall,
    Out,
    Pack,
    Packed,
    Scalar,
    Scratch,
    Slot,
    Work,
)
from crossdock.kernels import table
from crossdock.kernels.cpu_ir import Code, compiled
from crossdock.kernels.refusal import Cause, Refusal
from crossdock.kernels.spec import REQUIRED, Attrs, Kernel, OpCall, OpSpec, Specs
from crossdock.kernels.table import kernel
from crossdock.runtime.graph import Graph
from crossdock.runtime.tensor import TensorSpec

HEAD, ROW, ARGUMENT = 3, 3, 4
"""Words before the first row, of a row before its arguments, and of an argument; see ``_write``."""
MOST_ARGUMENTS = 64
LINE = 64


@dataclass(frozen=True)
class ImageStep:
    """One op of a body: as kernels see it, its kernel, and the values it reads and makes.

    Values that share their bytes go by the name of the first of them.
    """

    call: OpCall
    kernel: str
    inputs: tuple[str | None, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class ImageProgram:
    """How a body is run: its steps in order, and where values lie in ``nbytes`` of a thread."""

    steps: tuple[ImageStep, ...]
    offsets: Mapping[str, int]
    nbytes: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @functools.cached_property
    def _digest(self) -> str:
        told = [(s.call.key(), s.kernel, s.inputs, s.outputs) for s in self.steps]
        text = repr((told, sorted(self.offsets.items()), self.nbytes))
        return hashlib.sha256(text.encode()).hexdigest()

    def digest(self) -> str:
        """SHA-256 of steps and places."""
        return self._digest

    def __str__(self) -> str:
        return self._digest


def _of_batch(spec: TensorSpec, images: int) -> TensorSpec:
    return spec.with_shape((spec.dims[0] * images, *spec.dims[1:]))


def _infer(specs: Specs, attrs: Attrs) -> tuple[TensorSpec, ...]:  # noqa: ARG001 - an op's rule
    body: Graph = attrs["body"]
    return tuple(_of_batch(spec, attrs["images"]) for spec in body.output_specs.values())


def _work(specs: Specs, outs: Sequence[TensorSpec], attrs: Attrs) -> Work:
    from crossdock.kernels.reference import graph_work  # it needs the ops, of which this is one

    flops = graph_work(attrs["body"]).flops * attrs["images"]
    read = sum(s.nbytes for s in specs if s is not None)
    read += sum(a.nbytes for a in attrs["body"].constants.values())
    return Work(flops, float(read), float(sum(s.nbytes for s in outs)))


def _run(xp: Any, *arrays: Any, body: Graph, images: int, program: ImageProgram) -> Any:  # noqa: ARG001
    from crossdock.kernels.reference import evaluate

    made = []
    for i in range(images):
        feeds = {
            name: array[i * spec.dims[0] : (i + 1) * spec.dims[0]]
            for (name, spec), array in zip(body.inputs.items(), arrays, strict=True)
        }
        made.append(tuple(evaluate(body, feeds, xp).values()))
    return tuple(xp.concatenate(parts) for parts in zip(*made, strict=True))


table.define(
    OpSpec(
        name="by_image",
        operands=("inputs*",),
        infer=_infer,
        run=_run,
        work=_work,
        attrs={"body": REQUIRED, "images": REQUIRED, "program": REQUIRED},
        extension=True,
    )
)


def alone(device: DeviceInfo) -> DeviceInfo:
    """The processor as a thread that has an image for itself sees it."""
    return replace(device, compute_units=1)


def lowered_alone(call: OpCall, name: str, device: DeviceInfo) -> Lowered | None:
    """An op by a kernel for one thread; None where it is no compiled code, or calls BLAS."""
    found = next((k for k in _kernels(call, device) if k.name == name), None)
    made = None if found is None else found.lowered(call, alone(device))
    native = made is not None and all(
        isinstance(s, NativeCall) and not s.blas and len(s.args) <= MOST_ARGUMENTS
        for s in made.steps
    )
    return made if native else None


def _kernels(call: OpCall, device: DeviceInfo) -> tuple[Kernel, ...]:
    return table.candidates(call, alone(device)).fitting


def _fits(call: OpCall, device: DeviceInfo) -> str | None:
    program: ImageProgram = call.attrs["program"]
    for step in program.steps:
        if lowered_alone(step.call, step.kernel, device) is None:
            return Refusal(f"{step.call.op} has no compiled kernel {step.kernel}", Cause.FORM)
    return None


@kernel("cpu.by_image", "by_image", ("cpu",), when=_fits, rank=20)
def lower_by_image(call: OpCall, device: DeviceInfo) -> Lowered:
    """Lower a body to one native call, of an item a thread."""
    return _Lowering(call, device).made()


class _Lowering:
    """Collects the words of all steps, and the constants that they read."""

    def __init__(self, call: OpCall, device: DeviceInfo) -> None:
        self.call, self.device = call, device
        self.program: ImageProgram = call.attrs["program"]
        self.body: Graph = call.attrs["body"]
        self.images: int = call.attrs["images"]
        self.packs: list[Pack] = []
        self.constants: dict[str, int] = {}
        self.scratch = -(-self.program.nbytes // LINE) * LINE
        self.room = 0
        self.inputs = {v: i for i, v in enumerate(self.program.inputs)}
        self.outputs = {v: i for i, v in enumerate(self.program.outputs)}

    def made(self) -> Lowered:
        lowered = []
        for step in self.program.steps:
            found = lowered_alone(step.call, step.kernel, self.device)
            assert found is not None, step.kernel
            lowered.append(found)
            self.room = max(self.room, sum(_rounded(n) for n in found.scratch))
        lane = self.scratch + self.room + LINE
        rows: list[Argument] = []
        count = 0
        for step, found in zip(self.program.steps, lowered, strict=True):
            first = len(self.packs)
            self.packs += found.packs
            for part in found.steps:
                assert isinstance(part, NativeCall)
                rows += self._row(part, step, found, first, lane)
                count += 1
        lanes = max(1, min(self.device.compute_units, self.images))
        head = [Scalar(np.int64(n)) for n in (count, self.images, lanes)]
        native = NativeCall(
            name="by image",
            address=compiled("by image", _write),
            args=(*head, *rows),
            extent=lanes,
        )
        return Lowered((native,), (lanes * lane,), tuple(self.packs))

    def _row(
        self, part: NativeCall, step: ImageStep, found: Lowered, first: int, lane: int
    ) -> list[Argument]:
        address = part.address
        assert isinstance(address, Function)
        row: list[Argument] = [address, *_numbers(part.extent, len(part.args))]
        starts = np.cumsum([0, *(_rounded(n) for n in found.scratch)])
        for arg in part.args:
            if isinstance(arg, Scratch):
                offset = self.scratch + int(starts[arg.index])
                row += [Scratch(0), *_numbers(offset, 0, lane)]
            elif isinstance(arg, Packed):
                row += [Packed(first + arg.index), *_numbers(0, 0, 0)]
            elif isinstance(arg, In):
                value = step.inputs[arg.index]
                assert value is not None
                row += self._place(value, lane)
            elif isinstance(arg, Out):
                row += self._place(step.outputs[arg.index], lane)
            else:
                row += [arg, *_numbers(0, 0, 0)]
        return row

    def _place(self, value: str, lane: int) -> list[Argument]:
        """Where a value lies: in the op's operands and results, a constant, or the thread's own."""
        slot: Slot
        if value in self.inputs or value in self.outputs:
            slot = In(self.inputs[value]) if value in self.inputs else Out(self.outputs[value])
            return [slot, *_numbers(0, self.body.specs[value].nbytes, 0)]
        if value in self.body.constants:
            if value not in self.constants:
                self.constants[value] = len(self.packs)
                array = self.body.constants[value]
                self.packs.append(Pack(lambda: np.array(array), TensorSpec.of(array)))
            return [Packed(self.constants[value]), *_numbers(0, 0, 0)]
        return [Scratch(0), *_numbers(self.program.offsets[value], 0, lane)]


def _rounded(nbytes: int) -> int:
    return -(-nbytes // LINE) * LINE


def _numbers(*values: int) -> list[Argument]:
    return [Scalar(np.int64(value)) for value in values]


def _write(code: Code) -> None:
    """The kernel: for each thread's item, for each of its images, for each row its function.

    Words: rows, images, items. A row: function, extent, arguments; an argument: its word, and what
    is added to it, for each image, and for each item.
    """
    rows, images, lanes = (code.word(i) for i in range(HEAD))
    given = code.stack("i64", MOST_ARGUMENTS)
    start = code.at("%args", "i64", HEAD)
    with code.loop("%begin", "%end") as items:
        first = code.div(code.mul(items.index, images), lanes)
        last = code.div(code.mul(code.add(items.index, 1), images), lanes)
        with code.loop(first, last) as each, code.loop(0, rows, 1, [("ptr", start)]) as row:
            at = row.values[0]
            fn = code.let(f"inttoptr i64 {code.load('i64', at)} to ptr")
            extent = code.load("i64", code.at(at, "i64", 1))
            count = code.load("i64", code.at(at, "i64", 2))
            words = code.at(at, "i64", ROW)
            with code.loop(0, count) as args:
                arg = code.at(words, "i64", code.mul(args.index, ARGUMENT))
                base, offset, image, lane = (
                    code.load("i64", code.at(arg, "i64", i)) for i in range(ARGUMENT)
                )
                word = code.add(base, offset)
                word = code.add(word, code.mul(image, each.index))
                word = code.add(word, code.mul(lane, items.index))
                code.store("i64", word, code.at(given, "i64", args.index))
            code.do(f"call void {fn}(ptr {given}, i64 0, i64 {extent})")
            row.next = [code.at(words, "i64", code.mul(count, ARGUMENT))]
