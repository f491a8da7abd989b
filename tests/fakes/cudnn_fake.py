"""cuDNN's Python frontend as the fake cupy's card has it: graphs that check how they are used.

Calls have the names and arguments of version 1.32 of the frontend. A graph computes with numpy,
through the strides that its tensors were given; it holds them against the memory behind their
addresses. Of the engines it offers, most lose bits, each as its numerical note says, and they are
ranked before the one that does not: one that should have been deselected shows in the result.
"""

from __future__ import annotations

import enum
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from crossdock.runtime.tensor import to_numpy
from tests.fakes.cuda_machine import Machine, Range, UsageError
from tests.fakes.cudnn_arithmetic import POINTWISE, attended, convolved, normalized
from tests.fakes.cupy_blas import cut_to_tf32

DataType = enum.Enum("DataType", ["FLOAT", "HALF", "BFLOAT16", "DOUBLE", "NOT_SET"])
HeurMode = enum.Enum("HeurMode", ["A", "B", "FALLBACK"])
NumericalNote = enum.Enum(
    "NumericalNote",
    ["TENSOR_CORE", "DOWN_CONVERT_INPUTS", "REDUCED_PRECISION_REDUCTION", "FFT",
     "NONDETERMINISTIC", "WINOGRAD", "STRICT_NAN_PROP"],
)  # fmt: skip
Phase = enum.Enum("Phase", ["TRAINING", "INFERENCE"])
Corner = enum.Enum("Corner", ["TOP_LEFT", "BOTTOM_RIGHT"])
ScalarType = enum.Enum("ScalarType", ["RUNTIME_PARAM", "COMPILE_TIME_CONST"])
DTYPES = {DataType.FLOAT: "float32", DataType.HALF: "float16", DataType.BFLOAT16: "bfloat16"}
NOTE = NumericalNote
ALIGNED = 16
"""Bytes that tensors of the frontend are aligned to, where nothing else is said."""
SMALL = 256
"""Bytes of workspace that an engine takes besides copies of operands."""


class NotSupportedError(Exception):
    """``cudnnGraphNotSupportedError``, which is no RuntimeError."""


def half(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float16).astype(np.float32)


def coarse(x: np.ndarray) -> np.ndarray:
    """What a fast algorithm may make of an operand."""
    return x.astype(to_numpy("bfloat16")).astype(np.float32)


@dataclass(frozen=True)
class Engine:
    """One that cuDNN may rank: its notes, and what becomes of operands in float32."""

    name: str
    notes: tuple[NumericalNote, ...]
    rounds: Callable[[np.ndarray], np.ndarray]


ENGINES = (
    Engine("winograd", (NOTE.WINOGRAD, NOTE.TENSOR_CORE), coarse),
    Engine("fft", (NOTE.FFT,), coarse),
    Engine("half", (NOTE.TENSOR_CORE, NOTE.DOWN_CONVERT_INPUTS), half),
    Engine("narrow", (NOTE.REDUCED_PRECISION_REDUCTION,), coarse),
    Engine("atomic", (NOTE.NONDETERMINISTIC,), coarse),
    Engine("tf32", (NOTE.TENSOR_CORE,), cut_to_tf32),
    Engine("plain", (), np.asarray),
)

POINTWISE_ENGINES = (Engine("pointwise", (NOTE.TENSOR_CORE,), np.asarray),)
"""Of graphs that have nothing else; 9.28 gives all of theirs this note."""
ROUNDED = {
    "conv": ("image", "weight"),
    "layernorm": ("x",),
    "instancenorm": ("x",),
    "sdpa": ("q", "k", "v"),
}
"""The operands that engines round, by node."""


@dataclass
class Handle:
    """``cudnn.Handle``."""

    device: int
    stream: int = 0
    alive: bool = True


@dataclass(eq=False)
class Tensor:
    """A graph's tensor; the setters return it, as the frontend's do."""

    uid: int
    name: str
    dim: list[int]
    stride: list[int]
    data_type: DataType
    virtual: bool = False
    made: tuple[str, dict[str, Any]] | None = None
    value: float | None = None
    """Of a constant that is in the graph itself."""

    def set_output(self, value: bool) -> Tensor:
        self.virtual = not value
        return self

    def set_dim(self, dim: list[int]) -> Tensor:
        self.dim = list(dim)
        return self

    def set_stride(self, stride: list[int]) -> Tensor:
        self.stride = list(stride)
        return self

    def set_uid(self, uid: int) -> Tensor:
        self.uid = uid
        return self

    def set_data_type(self, dtype: DataType) -> Tensor:
        self.data_type = dtype
        return self

    @property
    def dtype(self) -> np.dtype[Any]:
        return to_numpy(DTYPES[self.data_type])

    def span(self, address: int) -> Range:
        """Every byte from the first to the last element."""
        last = sum((d - 1) * s for d, s in zip(self.dim, self.stride, strict=True))
        return Range(address, (last + 1) * self.dtype.itemsize)

    def view(self, machine: Machine, address: int) -> np.ndarray:
        found = machine.need(self.span(address), f"cuDNN: {self.name}")
        size = self.dtype.itemsize
        strides = tuple(s * size for s in self.stride)
        return np.ndarray(
            tuple(self.dim), self.dtype, found.memory, address - found.address, strides
        )


class Graph:
    """``cudnn.pygraph``."""

    ORDER = ("validate", "build_operation_graph", "create_execution_plans", "check_support",
             "build_plans")  # fmt: skip

    def __init__(
        self,
        module: Cudnn,
        *,
        io_data_type: DataType,
        intermediate_data_type: DataType,
        compute_data_type: DataType,
        handle: Handle,
    ) -> None:
        self._module, self._machine = module, module.machine
        self._io, self._between = io_data_type, intermediate_data_type
        self._compute, self._handle = compute_data_type, handle
        self._tensors: list[Tensor] = []
        self._stage = 0
        self._barred: set[NumericalNote] = set()
        self._limit = math.inf
        self.engine: Engine | None = None

    # --- building --------------------------------------------------------------------------------

    def tensor(
        self, dim: list[int], stride: list[int], data_type: DataType, name: str, uid: int
    ) -> Tensor:
        made = Tensor(uid, name, list(dim), list(stride), data_type)
        self._tensors.append(made)
        return made

    def _derived(self, op: str, dim: Sequence[int], **given: Any) -> Tensor:
        dense = [math.prod(dim[i + 1 :]) for i in range(len(dim))]
        made = Tensor(
            100 + len(self._tensors), op, list(dim), dense, self._between, True, (op, given)
        )
        self._tensors.append(made)
        return made

    def tensor_scalar(self, value: float, scalar_type: ScalarType) -> Tensor:
        assert isinstance(scalar_type, ScalarType)
        dtype = DataType.FLOAT if isinstance(value, np.float32) else DataType.DOUBLE
        made = self.tensor([1], [1], dtype, "scalar", 100 + len(self._tensors))
        made.virtual, made.value = True, value
        return made

    def conv_fprop(
        self, image: Tensor, weight: Tensor, pre_padding: list[int], post_padding: list[int],
        stride: list[int], dilation: list[int],
    ) -> Tensor:  # fmt: skip
        sizes = [
            (image.dim[2 + i] + pre_padding[i] + post_padding[i]
             - (weight.dim[2 + i] - 1) * dilation[i] - 1) // stride[i] + 1
            for i in range(2)
        ]  # fmt: skip
        pads = list(zip(pre_padding, post_padding, strict=True))
        return self._derived(
            "conv", [image.dim[0], weight.dim[0], *sizes], image=image, weight=weight, pads=pads,
            steps=stride, dilation=dilation,
        )  # fmt: skip

    def bias(self, input: Tensor, bias: Tensor) -> Tensor:  # noqa: A002 - the frontend's name
        return self._derived("add", input.dim, a=input, b=bias)

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        return self._derived("add", a.dim, a=a, b=b)

    def sub(self, a: Tensor, b: Tensor) -> Tensor:
        return self._derived("sub", a.dim, a=a, b=b)

    def mul(self, a: Tensor, b: Tensor) -> Tensor:
        return self._derived("mul", a.dim, a=a, b=b)

    def relu(self, input: Tensor) -> Tensor:  # noqa: A002 - the frontend's name
        return self._derived("relu", input.dim, x=input)

    def rsqrt(self, input: Tensor) -> Tensor:  # noqa: A002 - the frontend's name
        return self._derived("rsqrt", input.dim, x=input)

    def layernorm(self, **given: Any) -> tuple[Tensor, None, None]:
        if given["scale"] is None and given["bias"] is not None:
            raise ValueError("Layernorm with a bias requires a scale (pass a scale of ones).")
        return self._norm("layernorm", **given)

    def instancenorm(self, **given: Any) -> tuple[Tensor, None, None]:
        if given["scale"] is None or given["bias"] is None:
            raise TypeError("instancenorm(): incompatible function arguments")
        return self._norm("instancenorm", **given)

    def _norm(
        self, op: str, *, norm_forward_phase: Phase, input: Tensor,  # noqa: A002 - the frontend's
        scale: Tensor | None, bias: Tensor | None, epsilon: Tensor,
    ) -> tuple[Tensor, None, None]:  # fmt: skip
        assert norm_forward_phase is Phase.INFERENCE
        made = self._derived(op, input.dim, x=input, scale=scale, bias=bias, epsilon=epsilon)
        return made, None, None

    def sdpa(
        self, q: Tensor, k: Tensor, v: Tensor, *, generate_stats: bool, attn_scale: float,
        bias: Tensor | None = None, diagonal_alignment: Corner = Corner.TOP_LEFT,
        diagonal_band_right_bound: int | None = None,
    ) -> tuple[Tensor, None]:  # fmt: skip
        assert not generate_stats
        made = self._derived(
            "sdpa", [*q.dim[:3], v.dim[3]], q=q, k=k, v=v, scale=attn_scale, bias=bias,
            from_end=diagonal_alignment is Corner.BOTTOM_RIGHT, bound=diagonal_band_right_bound,
        )  # fmt: skip
        return made, None

    # --- planning --------------------------------------------------------------------------------

    def _reach(self, stage: str) -> None:
        if self._stage != self.ORDER.index(stage):
            raise self._machine.problem(f"cuDNN: {stage} out of order")
        self._stage += 1

    def validate(self) -> None:
        self._reach("validate")
        numbers = [t.uid for t in self._tensors]
        if len(set(numbers)) < len(numbers):
            raise ValueError("a uid is used twice")
        for tensor in self._tensors:
            if tensor.made is not None:
                check = {"conv": self._check_conv, "sdpa": self._check_sdpa}.get(tensor.made[0])
                (check or self._check_shapes)(tensor, tensor.made[1])
        if self._compute is not DataType.FLOAT:
            raise NotSupportedError("sums of another type than FLOAT")

    def _check_conv(self, made: Tensor, given: dict[str, Any]) -> None:
        image, weight = given["image"], given["weight"]
        if image.dim[1] % weight.dim[1] or weight.dim[0] % (image.dim[1] // weight.dim[1]):
            raise ValueError("the channels and the filter's do not go together")
        if image.data_type is not weight.data_type:
            raise ValueError("the image and the filter have different types")
        if min(made.dim) < 1:
            raise ValueError("the window is larger than the padded image")

    def _check_sdpa(self, made: Tensor, given: dict[str, Any]) -> None:
        """What version 9.28 refused as it planned for described cards, in its words."""
        q, k, v, bias = (given[name] for name in ("q", "k", "v", "bias"))
        batch, heads, rows, width = q.dim
        keys = k.dim[2]
        if q.data_type not in (DataType.HALF, DataType.BFLOAT16):
            raise NotSupportedError("SDPA of another type than HALF and BFLOAT16")
        if width % 8 or v.dim[3] % 8:
            raise NotSupportedError("hidden_dim should be multiple of 8")
        if k.dim != [batch, k.dim[1], keys, width] or v.dim[:3] != k.dim[:3] or heads % k.dim[1]:
            raise ValueError("query, key and value do not go together")
        if any(t.stride[3] != 1 for t in (q, k, v, made)):
            raise NotSupportedError("The stride for the last dimension should be 1")
        whole = (batch, heads, rows, keys)
        if bias is not None and any(n not in (1, w) for n, w in zip(bias.dim, whole, strict=True)):
            raise ValueError("the bias does not broadcast")
        bound = given["bound"]
        if bound is not None and bound < 0:
            raise ValueError("Right bound needs to be larger than or equal to zero")
        if given["from_end"] and bound is not None and rows > keys:
            raise NotSupportedError("Bottom right causal mask does not support max_s_q > max_s_kv")

    def _check_shapes(self, made: Tensor, given: dict[str, Any]) -> None:
        """Operands of pointwise nodes and normalisations broadcast to the result."""
        for one in given.values():
            if isinstance(one, Tensor) and one.data_type is DataType.DOUBLE:
                raise NotSupportedError("runtime kernel compilation failure")
            if isinstance(one, Tensor) and one.value is None and one.dim != made.dim:
                pairs = zip(one.dim, made.dim, strict=True)
                if any(n not in (1, m) for n, m in pairs):
                    raise ValueError(f"{one.name} does not broadcast to {made.name}")

    def build_operation_graph(self) -> None:
        self._reach("build_operation_graph")
        if not isinstance(self._handle, Handle) or self._handle.device != self._machine.device:
            raise self._machine.problem("cuDNN: a handle of another device, or none")

    def create_execution_plans(self, heuristics: list[HeurMode]) -> None:
        self._reach("create_execution_plans")
        assert all(isinstance(mode, HeurMode) for mode in heuristics)

    def deselect_numeric_notes(self, notes: list[NumericalNote]) -> Graph:
        self._barred.update(notes)
        return self

    def deselect_workspace_greater_than(self, limit: int) -> Graph:
        self._limit = limit
        return self

    def check_support(self) -> None:
        self._reach("check_support")
        if self._module.refuse:
            raise NotSupportedError(self._module.refuse)

    def build_plans(self) -> None:
        self._reach("build_plans")
        plain = all(t.made is None or t.made[0] in POINTWISE for t in self._tensors)
        there = POINTWISE_ENGINES if plain else ENGINES
        left = [e for e in there if not self._barred.intersection(e.notes)]
        if (
            self._io is not DataType.FLOAT and not plain
        ):  # halves have no other products than tensor units'
            left = [e for e in ENGINES if e.name == "tf32"]
        if not left or self._needs() > self._limit:
            raise NotSupportedError("No valid engine configs")
        self.engine = left[0]

    def _needs(self) -> int:
        """Copies of what does not lie by channels last, which is how engines want it."""
        there = [t for t in self._tensors if t.made is None and t.value is None]
        copied = [t for t in there[:2] if t.stride[1] != 1]
        return SMALL + sum(math.prod(t.dim) * t.dtype.itemsize for t in copied)

    def get_workspace_size(self) -> int:
        self._need_engine()
        return self._needs()

    def _need_engine(self) -> Engine:
        if self.engine is None:
            raise self._machine.problem("cuDNN: a graph that is not built")
        return self.engine

    # --- running ---------------------------------------------------------------------------------

    def execute(self, given: dict[int, int], workspace: int | None, handle: Handle) -> None:
        """Check the call and run it, or keep it for a capture."""
        self._need_engine()
        machine = self._machine
        self._module.cuda.runtime.check()
        if not isinstance(handle, Handle) or handle.device != machine.device or not handle.alive:
            raise machine.problem("cuDNN: a handle of another device, or none")
        stream = self._module.cuda.current()
        if handle.stream != stream:
            raise machine.problem("cuDNN: the handle's stream is not the current one")
        wanted = {t.uid for t in self._tensors if not t.virtual}
        if set(given) != wanted:
            raise ValueError(f"the variant pack has {sorted(given)}, and {sorted(wanted)} is asked")
        space = Range(workspace or 0, self._needs())
        launch = partial(self._launch, dict(given), space, stream)
        captured = machine.capture_of(stream)
        if said := self._module.failing or (self._module.capturing if captured is not None else ""):
            raise RuntimeError(said)
        if captured is None:
            launch()
        else:
            captured.append(launch)

    def _launch(self, given: dict[int, int], space: Range, stream: int) -> None:
        machine = self._machine
        there = [t for t in self._tensors if not t.virtual]
        outs = [t for t in there if t.made is not None]
        reads = [t.span(given[t.uid]) for t in there if t.made is None]
        writes = [space, *(t.span(given[t.uid]) for t in outs)]
        for i, one in enumerate(writes):
            if any(one.meets(other) for other in [*writes[:i], *reads]):
                raise machine.problem("cuDNN: what is written overlaps other memory")
        for tensor in there:
            if given[tensor.uid] % ALIGNED:
                raise machine.problem(f"cuDNN: {tensor.name} is misaligned")
        machine.submit(stream, reads, writes, "a graph of cuDNN")
        scratch = machine.need(space, "cuDNN: the workspace")
        scratch.memory[space.address - scratch.address :][: space.nbytes] = 0xA7
        with np.errstate(all="ignore"):
            for tensor in outs:
                made = self._value(tensor, given)
                tensor.view(machine, given[tensor.uid])[...] = made.astype(tensor.dtype)

    def _value(self, tensor: Tensor, given: dict[int, int]) -> Any:
        if tensor.value is not None:
            return np.float32(tensor.value)
        if tensor.made is None:
            return tensor.view(self._machine, given[tensor.uid]).astype(np.float32)
        op, operands = tensor.made
        values = {
            k: self._value(v, given) if isinstance(v, Tensor) else v for k, v in operands.items()
        }
        for name in ROUNDED.get(op, ()):
            values[name] = self._need_engine().rounds(values[name])
        if op in POINTWISE:
            return np.asarray(POINTWISE[op](*values.values()), np.float32)
        if op in ("layernorm", "instancenorm"):
            axes = [i for i in range(1, len(tensor.dim)) if op == "layernorm" or i > 1]
            return normalized(**values, axes=tuple(axes))
        if op == "sdpa":
            return attended(**values, shares=tensor.dtype)
        return convolved(**values)


class Cudnn(ModuleType):
    """The module ``cudnn``."""

    __version__ = "1.32.0"
    data_type, heur_mode, numerical_note = DataType, HeurMode, NumericalNote
    norm_forward_phase, diagonal_alignment, scalar_type = Phase, Corner, ScalarType
    cudnnGraphNotSupportedError = NotSupportedError  # noqa: N815 - the frontend's name

    def __init__(self, cuda: Any) -> None:
        super().__init__("cudnn")
        self.cuda = cuda
        self.machine: Machine = cuda.machine
        self.refuse = ""
        """What graphs are refused with, in place of an engine."""
        self.missing = ""
        """Why cuDNN itself is not loaded."""
        self.failing = self.capturing = ""
        """What runs fail with; ``capturing``: those in a capture alone."""
        self.graphs: list[Graph] = []

    def backend_version(self) -> int:
        if self.missing:
            raise RuntimeError(self.missing)
        return 92800

    def backend_version_string(self) -> str:
        return "9.28.0"

    def create_handle(self) -> Handle:
        for stream in self.cuda.streams():
            self.machine.refuse_capture("a handle of cuDNN is made", int(stream.ptr))
        return Handle(self.machine.device)

    def set_stream(self, handle: Handle, stream: int) -> None:
        handle.stream = stream

    def pygraph(self, **given: Any) -> Graph:
        self.graphs.append(Graph(self, **given))
        return self.graphs[-1]


def install(monkeypatch: pytest.MonkeyPatch, cupy: Any) -> Cudnn:
    """Put the module beside a fake cupy, before its cards are looked for."""
    made = Cudnn(cupy.cuda)
    monkeypatch.setitem(sys.modules, "cudnn", made)
    return made


__all__ = ["Cudnn", "Engine", "Graph", "Handle", "NotSupportedError", "UsageError", "install"]
