"""Graphs of cuDNN as steps, through its Python frontend (``nvidia-cudnn-frontend``).

A graph is built once for a shape, when its step is compiled; cuDNN's heuristics rank its engines
for the card, and the first that builds is taken. Tensors are described by sizes and strides, so
that nothing is moved for its layout. Numbers identify the tensors of a graph, and its calls take
addresses: cuDNN makes no copy and allocates nothing, the workspace is ours.

What is used was read in version 1.32 of the frontend.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, ClassVar

from crossdock.devices.cuda_blas import BITS, LibraryCall, Prepared, load
from crossdock.devices.program import ArrayCall, Slot
from crossdock.runtime.errors import CompileError, Declined, DeviceError
from crossdock.runtime.tensor import TensorSpec

FRONTEND = "cudnn"
"""The module of nvidia-cudnn-frontend."""
FIX = "pip install 'crossdock[cudnn]' (with CUDA 13, 'crossdock[cudnn13]')"
OLDEST = (1, 32)
"""The frontend's version that was read; older ones do not take addresses as ours are given."""
TYPES = {"float32": "FLOAT", "float16": "HALF", "bfloat16": "BFLOAT16"}
Y = 3
"""The number of a graph's result."""

LOSSY = ("DOWN_CONVERT_INPUTS", "REDUCED_PRECISION_REDUCTION", "WINOGRAD", "FFT")
"""Engines that lose bits which the plain sum of products keeps."""
UNSTEADY = "NONDETERMINISTIC"
TENSOR_UNITS = "TENSOR_CORE"
"""On float32, engines that round operands to TF32."""


def problem() -> str:
    """Why there is no cuDNN to ask, with the fix; nothing where there is one.

    It imports the frontend, which looks for cuDNN, and costs little where that is not installed.
    """
    try:
        version = _frontend().backend_version()
    except CompileError as error:
        return str(error)
    except RuntimeError as error:
        return f"cuDNN cannot be loaded ({_first(error)}); {FIX}"
    return "" if version >= 90000 else f"cuDNN {version} is older than 9; {FIX}"


def facts() -> dict[str, str]:
    """For a device's details: ``cudnn``, its version, or ``no cudnn``, why there is none."""
    with _LOADING:
        _load_runtime()
        if why := problem():
            return {"no cudnn": why}
        return {"cudnn": str(_frontend().backend_version_string())}


def told(found: Mapping[str, str]) -> str:
    """What of these facts belongs to a device's fingerprint: kernels are timed with a version."""
    return f"|cuDNN {found['cudnn']}" if "cudnn" in found else ""


def _frontend() -> Any:
    """The frontend's module; raises CompileError where it cannot be imported."""
    if FRONTEND not in sys.modules and importlib.util.find_spec(FRONTEND) is None:
        raise CompileError(f"nvidia-cudnn-frontend is not installed; {FIX}")
    try:
        module = importlib.import_module(FRONTEND)
    except (ImportError, OSError, RuntimeError) as error:
        raise CompileError(
            f"cuDNN's frontend cannot be imported ({_first(error)}); {FIX}"
        ) from error
    found = str(getattr(module, "__version__", "0"))
    numbers = tuple(int(part) for part in found.split(".")[:2] if part.isdigit())
    if numbers < OLDEST:
        raise CompileError(
            f"nvidia-cudnn-frontend {found} is older than {'.'.join(map(str, OLDEST))}; {FIX}"
        )
    return module


def _first(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


@dataclass(frozen=True)
class Placed:
    """A tensor of a graph: its sizes, strides in elements, and where it begins in its memory."""

    name: str
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str
    begin: int = 0

    @property
    def extent(self) -> int:
        """Elements of memory from its start to behind the last one."""
        steps = zip(self.sizes, self.strides, strict=True)
        return self.begin + 1 + sum((n - 1) * step for n, step in steps)


@dataclass(frozen=True)
class Asked(ABC):
    """What is asked of cuDNN: one graph with one result, as plain data.

    Elements of the result are ``dtype``, and sums float32; float32 operands of products are rounded
    to the format ``rounds``, if it is not "". ``workspace`` is in bytes.
    """

    dtype: str
    rounds: str
    workspace: int

    multiplies: ClassVar[bool] = True
    """Whether there are products, or sums as products, whose operands tensor units round."""

    @abstractmethod
    def tensors(self) -> dict[int, Placed]:
        """The result and the operands that are there, by number."""

    @abstractmethod
    def nodes(self, dnn: Any, graph: Any, made: Mapping[int, Any]) -> Any:
        """Add the nodes over the tensors ``made`` of the operands; return the result's."""

    def barred(self) -> list[str]:
        """Notes of engines that do not compute as they may."""
        plain = self.dtype == "float32" and not self.rounds and self.multiplies
        return [UNSTEADY, *LOSSY, *([TENSOR_UNITS] if plain else [])]

    def call(self, slots: Mapping[int, Slot], y: Slot, workspace: Slot) -> ArrayCall:
        """The call as a step, over flat arrays; ``slots`` are the operands' by number."""
        flat = {
            number: TensorSpec(BITS.get(one.dtype, one.dtype), (one.extent,))
            for number, one in self.tensors().items()
        }
        numbers = operands(self)
        outs: list[tuple[Slot, TensorSpec]] = [(y, flat[Y])]
        if self.workspace:
            outs.append((workspace, TensorSpec("uint8", (self.workspace,))))
        return ArrayCall(
            GraphCall(self),
            tuple(slots[number] for number in numbers),
            tuple(slot for slot, _ in outs),
            tuple(flat[number] for number in numbers),
            tuple(spec for _, spec in outs),
            self._form,
            captured=True,
        )

    def _form(self) -> tuple[str, str, Any]:
        """What another process makes the step's function of."""
        values = [[field.name, getattr(self, field.name)] for field in fields(self)]
        return (
            __name__,
            remade.__name__,
            [type(self).__module__, type(self).__name__, _plain(values)],
        )


def operands(asked: Asked) -> list[int]:
    """Numbers of what a graph reads, in the order that its calls take it."""
    return [number for number in asked.tensors() if number != Y]


def _plain(value: Any) -> Any:
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


def _tuples(value: Any) -> Any:
    return tuple(_tuples(one) for one in value) if isinstance(value, list) else value


def remade(data: Sequence[Any]) -> GraphCall:
    """The function of a step, from its plain data."""
    module, name, values = data
    assert module.startswith(__name__), module
    kind = getattr(importlib.import_module(module), name)
    return GraphCall(kind(**{key: _tuples(value) for key, value in values}))


def graph_of(dnn: Any, asked: Asked, **where: Any) -> Any:
    """The graph, not validated; ``where`` says what card it is for."""
    wide = dnn.data_type.FLOAT
    tensors = asked.tensors()
    types = {number: getattr(dnn.data_type, TYPES[one.dtype]) for number, one in tensors.items()}
    graph = dnn.pygraph(
        io_data_type=types[Y], intermediate_data_type=wide, compute_data_type=wide, **where
    )
    made = {
        number: graph.tensor(
            dim=list(tensors[number].sizes),
            stride=list(tensors[number].strides),
            data_type=types[number],
            name=tensors[number].name,
            uid=number,
        )
        for number in operands(asked)
    }
    y, result = asked.nodes(dnn, graph, made), tensors[Y]
    y.set_output(True).set_dim(list(result.sizes)).set_stride(list(result.strides))
    y.set_uid(Y).set_data_type(types[Y])
    return graph


FAILURES = (RuntimeError, ValueError, TypeError, NotImplementedError, ImportError)
"""What the frontend raises besides its own error, which is no RuntimeError."""


class Refused(Exception):
    """cuDNN has no engine for a graph."""


def settle(dnn: Any, graph: Any, asked: Asked) -> int:
    """Let cuDNN choose an engine that computes as it may; return the workspace it takes.

    Raises:
        Refused: it has none, in its own words.
    """
    try:
        graph.validate()
        graph.build_operation_graph()
        graph.create_execution_plans([dnn.heur_mode.A, dnn.heur_mode.FALLBACK])
        graph.deselect_numeric_notes([getattr(dnn.numerical_note, n) for n in asked.barred()])
        graph.deselect_workspace_greater_than(asked.workspace)
        graph.check_support()
        graph.build_plans()
        taken = int(graph.get_workspace_size())
    except (dnn.cudnnGraphNotSupportedError, *FAILURES) as error:
        raise Refused(str(error)) from error
    if taken > asked.workspace:
        raise Refused(f"it takes a workspace of {taken} bytes and may have {asked.workspace}")
    return taken


class GraphCall(LibraryCall):
    """A graph of cuDNN over arrays."""

    def __init__(self, asked: Asked) -> None:
        self.asked = asked

    def prepare(self, cp: Any) -> Prepared:
        """Load cuDNN and let it choose an engine; CompileError where it has none."""
        load(cp)  # cuDNN needs cuBLASLt, which comes with it
        return _Graph(cp, library(), self.asked)


class Library:
    """cuDNN, loaded, with two handles a card: one to build with, one to run with.

    Several threads may use a handle in turn; a graph that one built, the other runs.
    """

    def __init__(self, dnn: Any) -> None:
        self.dnn = dnn
        self.building, self.running = threading.Lock(), threading.Lock()
        self._handles: dict[tuple[int, str], Any] = {}

    def handle(self, device: int, role: str) -> Any:
        """The handle of the current card, by its index; under the role's lock."""
        if (device, role) not in self._handles:
            self._handles[device, role] = self.dnn.create_handle()
        return self._handles[device, role]


_LIBRARIES: dict[int, Library] = {}
_LOADING = threading.Lock()


def library() -> Library:
    """cuDNN; raises CompileError where it cannot be loaded."""
    with _LOADING:
        _load_runtime()
        if why := problem():
            raise CompileError(why)
        dnn = _frontend()
        return _LIBRARIES.setdefault(id(dnn), Library(dnn))


def _load_runtime() -> None:
    """Load CUDA's runtime, which the frontend asks the loader for by its name alone."""
    with suppress(ImportError, RuntimeError, OSError):  # the loader may know it without help
        pathfinder = importlib.import_module("cuda.pathfinder")
        pathfinder.load_nvidia_dynamic_lib("cudart")


class _Graph(Prepared):
    def __init__(self, cp: Any, lib: Library, asked: Asked) -> None:
        self.cp, self.lib, self.asked = cp, lib, asked
        device = cp.cuda.Device().id
        with lib.building:
            try:
                self.graph = graph_of(lib.dnn, asked, handle=lib.handle(device, "build"))
                settle(lib.dnn, self.graph, asked)
            except (Refused, *FAILURES) as error:
                said = f"cuDNN has no {asked}: {_first(error)}"
                raise Declined(said, log=f"{asked!r}: {error}") from error
            with lib.running:
                self.handle = lib.handle(device, "run")

    def bound(self, ins: list[Any], outs: list[Any]) -> Callable[[], None]:
        """The call with its memory in place."""
        tensors = self.asked.tensors()
        arrays = {**dict(zip(operands(self.asked), ins, strict=True)), Y: outs[0]}
        addresses = {
            number: int(array.data.ptr) + tensors[number].begin * array.itemsize
            for number, array in arrays.items()
        }
        workspace = int(outs[1].data.ptr) if len(outs) > 1 else None
        return partial(self._run, addresses, workspace, (ins, outs))

    def _run(self, addresses: dict[int, int], workspace: int | None, kept: Any) -> None:
        del kept
        cuda, dnn = self.cp.cuda, self.lib.dnn
        try:
            with self.lib.running:
                dnn.set_stream(self.handle, cuda.get_current_stream().ptr)
                self.graph.execute(addresses, workspace, handle=self.handle)
        except (dnn.cudnnGraphNotSupportedError, *FAILURES) as error:
            where = f"cuda:{cuda.Device().id}: cuDNN, {self.asked}"
            raise DeviceError(f"{where}: {_first(error)}") from error
