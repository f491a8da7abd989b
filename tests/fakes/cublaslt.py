"""cuBLASLt as a library that ctypes calls: real C functions with the arguments of cublasLt.h.

Descriptors are numbers; attributes have the sizes of the header, others are refused. A product goes
through the checks of the fake cuBLAS, and is a launch that a stream may capture. It has one
algorithm, or those that it is given; where the machine's clock is virtual, each takes its time.
"""

from __future__ import annotations

import ctypes
import itertools
import math
from collections.abc import Callable
from ctypes import c_float, c_int, c_int64, c_size_t, c_uint64, c_void_p
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pytest

from crossdock.devices import cuda_lt_library
from tests.fakes.cuda_machine import Range, UsageError
from tests.fakes.cupy_blas import HALVES, SUPPORTED, TYPES, Matrices

SUCCESS, INVALID_VALUE, EXECUTION_FAILED, NOT_SUPPORTED = 0, 7, 13, 15
SIZES = {
    "MatmulDesc": {2: 4, 3: 4, 4: 4, 7: 4, 8: 8, 26: 4},
    "MatrixLayout": {5: 4, 6: 8},
    "MatmulPreference": {1: 8, 3: 4, 5: 4, 6: 4, 7: 4, 8: 4},
}
"""Bytes of attributes, by kind of descriptor and number (cublasLt.h)."""
TRANSA, TRANSB, EPILOGUE, BIAS_POINTER = 3, 4, 7, 8
PLAIN, RELU, BIAS, GELU = 1, 2, 4, 32
EPILOGUES = (PLAIN, *(x | y for x in (RELU, GELU, 0) for y in (0, BIAS) if x | y))
NEEDS = 512
"""Bytes of workspace that the algorithm of this library takes, where it is given as many."""
MARK = 0x17A160
VERSION = 120903


@dataclass(frozen=True)
class Algo:
    """An algorithm: what it takes, in seconds and bytes, and what its products return.

    ``state`` is what the heuristic says of it, ``check`` what the library does when it is asked
    again.
    """

    number: int
    seconds: float = 0.0
    workspace: int = 0
    status: int = SUCCESS
    state: int = SUCCESS
    check: int = SUCCESS
    tile: int = 20
    parts: int = 1
    stages: int = 7


@dataclass
class Descriptor:
    kind: str
    facts: tuple[int, ...]
    attributes: dict[int, int] = field(default_factory=dict)

    def get(self, number: int, default: int = 0) -> int:
        return self.attributes.get(number, default)


class Found(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t."""

    _fields_ = (
        ("data", c_uint64 * 8), ("workspaceSize", c_size_t), ("state", c_int),
        ("wavesCount", c_float), ("reserved", c_int * 4),
    )  # fmt: skip


class Lt:
    """The library; attributes are C functions."""

    def __init__(self, cuda: Any) -> None:
        self._cuda = cuda
        self._numbers = itertools.count(0x1000)
        self._there: dict[int, Descriptor] = {}
        self._handles: dict[int, int] = {}
        self.refuse = SUCCESS
        """What products return, where it is a failure; ``capturing``: those in a capture alone."""
        self.capturing = False
        self.algorithms: tuple[Algo, ...] = ()
        """By its own estimate, the fastest first; none: one that takes no time."""
        self.asked: list[int] = []
        """How many algorithms it was asked for, each time."""
        self.ran: list[int] = []
        """The numbers of the algorithms that products ran by."""
        p, i, size = c_void_p, c_int, c_size_t
        self.cublasLtGetVersion = ctypes.CFUNCTYPE(c_size_t)(lambda: VERSION)
        self.cublasLtMatmulAlgoCheck = self._function(self._check, p, p, p, p, p, p, p, p)
        self.cublasLtMatmulAlgoConfigGetAttribute = self._function(self._config, p, i, p, size, p)
        self.cublasLtCreate = self._function(self._create_handle, p)
        for kind, types in (
            ("MatmulDesc", (i, i)), ("MatrixLayout", (i, c_uint64, c_uint64, c_int64)),
            ("MatmulPreference", ()),
        ):  # fmt: skip
            functions = {
                "Create": self._function(partial(self._create, kind), p, *types),
                "SetAttribute": self._function(partial(self._set, kind), p, i, p, size),
                "Destroy": self._function(partial(self._destroy, kind), p),
            }
            vars(self).update({f"cublasLt{kind}{n}": f for n, f in functions.items()})
        self.cublasLtMatmulAlgoGetHeuristic = self._function(
            self._heuristic, p, p, p, p, p, p, p, i, p, p
        )
        self.cublasLtMatmul = self._function(
            self._matmul, p, p, p, p, p, p, p, p, p, p, p, p, p, p, size, p
        )

    @property
    def live(self) -> int:
        """Descriptors that are not destroyed."""
        return len(self._there)

    def _function(self, body: Callable[..., int], *arguments: Any) -> Any:
        """A C function; what goes wrong within is the machine's error, and a status."""

        def called(*args: Any) -> int:
            try:
                return body(*args)
            except UsageError:
                return EXECUTION_FAILED
            except Exception as error:  # noqa: BLE001 - ctypes would only print it
                self._cuda.machine.problem(f"cuBLASLt: {type(error).__name__}: {error}")
                return EXECUTION_FAILED

        return ctypes.CFUNCTYPE(c_int, *arguments)(called)

    def _create_handle(self, place: int) -> int:
        if self._cuda.machine.capture_of(self._stream()) is not None:
            raise self._cuda.machine.problem("a handle of cuBLASLt is made while a stream captures")
        number = next(self._numbers)
        self._handles[number] = self._cuda.machine.device
        c_void_p.from_address(place).value = number
        return SUCCESS

    def _stream(self) -> int:
        stack = self._cuda.streams()
        return int(stack[-1].ptr) if stack else 0

    def _create(self, kind: str, place: int, *facts: int) -> int:
        number = next(self._numbers)
        self._there[number] = Descriptor(kind, facts)
        c_void_p.from_address(place).value = number
        return SUCCESS

    def _destroy(self, kind: str, number: int) -> int:
        self._of(kind, number)
        del self._there[number]
        return SUCCESS

    def _of(self, kind: str, number: int) -> Descriptor:
        found = self._there.get(number)
        if found is None or found.kind != kind:
            raise self._cuda.machine.problem(f"{number:#x} is no {kind} of cuBLASLt")
        return found

    def _set(self, kind: str, number: int, attribute: int, value: int, size: int) -> int:
        if SIZES[kind].get(attribute) != size:
            return INVALID_VALUE
        data = ctypes.string_at(value, size)
        self._of(kind, number).attributes[attribute] = int.from_bytes(data, "little", signed=True)
        return SUCCESS

    # --- products --------------------------------------------------------------------------------

    def _heuristic(
        self, handle: int, desc: int, a: int, b: int, c: int, d: int, wish: int, count: int,
        results: int, returned: int,
    ) -> int:  # fmt: skip
        self._check_handle(handle)
        wanted, layouts = self._of("MatmulDesc", desc), self._layouts(a, b, c, d)
        preference = self._of("MatmulPreference", wish)
        status = self._unsupported(wanted, layouts)
        if status or count < 1:
            return status or INVALID_VALUE
        self.asked.append(count)
        plain = Algo(0, workspace=NEEDS if preference.get(1) >= NEEDS else 0)
        able = [x for x in self.algorithms or (plain,) if x.workspace <= preference.get(1)]
        for place, algo in enumerate(able[:count]):
            found = Found.from_address(results + place * ctypes.sizeof(Found))
            found.data[0] = MARK
            found.data[1] = int(preference.get(3, 7) & 5 != 0)  # adds parts up in D's type
            found.data[2] = wanted.get(EPILOGUE, PLAIN)
            for at, number in enumerate((5, 6, 8), start=3):
                found.data[at] = preference.get(number, 256)
            found.data[6] = algo.number
            found.workspaceSize, found.state = algo.workspace, algo.state
        c_int.from_address(returned).value = min(len(able), count)
        return SUCCESS if able else NOT_SUPPORTED

    def _algo(self, found: Found) -> Algo:
        """What an algorithm is of."""
        if found.data[0] != MARK:
            raise self._cuda.machine.problem("cuBLASLt: that is no algorithm")
        there = {x.number: x for x in self.algorithms}
        return there.get(found.data[6], Algo(found.data[6], workspace=int(found.workspaceSize)))

    def _check(
        self, handle: int, desc: int, a: int, b: int, c: int, d: int, algorithm: int, result: int
    ) -> int:
        self._check_handle(handle)
        wanted, layouts = self._of("MatmulDesc", desc), self._layouts(a, b, c, d)
        found, made = Found.from_address(algorithm), Found.from_address(result)
        algo = self._algo(found)
        made.state, made.workspaceSize = algo.check, algo.workspace
        sound = found.data[2] == wanted.get(EPILOGUE, PLAIN)
        return self._unsupported(wanted, layouts) or (algo.check if sound else INVALID_VALUE)

    def _config(self, algorithm: int, number: int, value: int, size: int, written: int) -> int:
        algo = self._algo(Found.from_address(algorithm))
        told = {0: algo.number, 1: algo.tile, 2: algo.parts, 6: algo.stages}
        if number not in told or size != 4:
            return INVALID_VALUE
        c_int.from_address(value).value = told[number]
        c_size_t.from_address(written).value = size
        return SUCCESS

    def _check_handle(self, handle: int) -> None:
        machine = self._cuda.machine
        self._cuda.runtime.check()
        if self._handles.get(handle) != machine.device:
            raise machine.problem("a handle of cuBLASLt of another device, or none")

    def _layouts(self, *numbers: int) -> list[Descriptor]:
        return [self._of("MatrixLayout", number) for number in numbers]

    def _unsupported(self, wanted: Descriptor, layouts: list[Descriptor]) -> int:
        """The status for sizes or types that do not go together; 0 where they do."""
        compute, scale = wanted.facts
        a, b, c, d = (TYPES.get(x.facts[0]) for x in layouts)
        if a != b or c != d or (a, d) not in SUPPORTED.get(compute, ()) or scale != 0:
            return NOT_SUPPORTED
        if wanted.get(EPILOGUE, PLAIN) not in EPILOGUES:
            return NOT_SUPPORTED
        (m, k), (k2, n) = (
            x.facts[2:0:-1] if wanted.get(turned) else x.facts[1:3]
            for x, turned in zip(layouts, (TRANSA, TRANSB), strict=False)
        )
        sound = k == k2 and all(x.facts[1:3] == (m, n) for x in layouts[2:])
        sound = sound and all(x.facts[3] >= x.facts[1] for x in layouts)
        return SUCCESS if sound and len({x.get(5, 1) for x in layouts}) == 1 else INVALID_VALUE

    def _matmul(
        self, handle: int, desc: int, alpha: int, a: int, a_at: int, b: int, b_at: int, beta: int,
        c: int, c_at: int, d: int, d_at: int, algorithm: int, workspace: int, size: int,
        stream: int,
    ) -> int:  # fmt: skip
        self._check_handle(handle)
        machine, wanted = self._cuda.machine, self._of("MatmulDesc", desc)
        layouts = self._layouts(a_at, b_at, c_at, d_at)
        captured = machine.capture_of(stream)
        refuse = self.refuse if captured is not None or not self.capturing else SUCCESS
        if status := refuse or self._unsupported(wanted, layouts):
            return status
        found = Found.from_address(algorithm) if algorithm else None
        if found is None or found.data[0] != MARK or found.data[2] != wanted.get(EPILOGUE, PLAIN):
            raise machine.problem("cuBLASLt: the algorithm is of another product")
        algo = self._algo(found)
        if size < algo.workspace:
            return INVALID_VALUE
        if algo.status:
            return algo.status
        if stream != self._stream():
            raise machine.problem("cuBLASLt: the stream is not the current one")
        pointers = (a, b, c, d)
        batch = [
            Matrices(name, at or 0, str(TYPES[x.facts[0]]), x.facts[1], x.facts[2], x.facts[3],
                     x.get(6), x.get(5, 1))
            for name, at, x in zip("ABCD", pointers, layouts, strict=True)
        ]  # fmt: skip
        scales = c_float.from_address(alpha).value, c_float.from_address(beta).value
        space = Range(workspace or 0, algo.workspace)
        launch = partial(
            self._launch, batch, dict(wanted.attributes), wanted.facts[0], scales, space, algo,
            narrow=bool(found.data[1]), aligned=tuple(found.data[3:6]),
        )  # fmt: skip
        if captured is None:
            launch()
        else:
            captured.append(launch)
        return SUCCESS

    def _launch(
        self,
        batch: list[Matrices],
        attributes: dict[int, int],
        compute: int,
        scales: tuple[float, float],
        space: Range,
        algo: Algo,
        *,
        narrow: bool,
        aligned: tuple[int, ...],
    ) -> None:
        a, b, c, d = batch
        machine, blas = self._cuda.machine, self._cuda.cublas
        self.ran.append(algo.number)
        if machine.seconds is not None:
            machine.seconds += algo.seconds
        epilogue = attributes.get(EPILOGUE, PLAIN)
        vector = Matrices("bias", attributes.get(BIAS_POINTER, 0), d.dtype, d.rows, 1, d.rows, 0, 1)
        reads = [] if scales[1] == 0 else c.spans()
        reads += vector.spans() if epilogue & BIAS else []
        if any(x.meets(y) for x in d.spans() for y in vector.spans() if epilogue & BIAS):
            raise machine.problem("cuBLASLt: D overlaps the bias")
        if c.address != d.address and any(x.meets(y) for x in d.spans() for y in c.spans()):
            raise machine.problem("cuBLASLt: D overlaps C")
        turned = attributes.get(TRANSA, 0), attributes.get(TRANSB, 0)
        blas.check(a, b, d, (a.rows if turned[0] else a.columns), compute, reads, [space], aligned)
        made = blas.product(a, b, turned, compute, narrow=narrow and d.dtype in HALVES)
        made = made * np.float32(scales[0])
        if scales[1]:
            made = made + np.float32(scales[1]) * c.on(machine).astype(made.dtype)
        out = d.on(machine)
        if epilogue & BIAS:
            made = made + vector.on(machine)[:, :, :1].astype(made.dtype)
        with np.errstate(all="ignore"):
            out[...] = _ended(made, epilogue).astype(out.dtype)


def _ended(x: np.ndarray, epilogue: int) -> np.ndarray:
    """Its ReLU makes zeros of what is no number, and its GELU is the approximation by tanh."""
    if epilogue & RELU:
        return np.asarray(np.fmax(x, 0))
    if epilogue & GELU:
        inner = x.dtype.type(math.sqrt(2 / math.pi)) * (x + x.dtype.type(0.044715) * x * x * x)
        return np.asarray(x / 2 * (1 + np.tanh(inner)))
    return x


def install(monkeypatch: pytest.MonkeyPatch, cupy: Any) -> Lt:
    """Let the library be found, for a fake cupy."""
    made = Lt(cupy.cuda)
    monkeypatch.setattr(cuda_lt_library, "open_functions", lambda _name: made)
    return made
