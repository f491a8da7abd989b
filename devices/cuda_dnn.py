"""Convolutions by cuDNN's graph API, through its Python frontend (``nvidia-cudnn-frontend``).

A graph is built once for a shape, when its step is compiled; cuDNN's heuristics rank its engines
for the card, and the first that builds is taken. Tensors are described by sizes and strides, so
that neither an image nor a filter is moved for its layout. Numbers identify the tensors of a graph,
and its calls take addresses: cuDNN makes no copy and allocates nothing, the workspace is ours.

What is used was read in version 1.32 of the frontend.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from crossdock.devices.cuda_blas import BITS, LibraryCall, Prepared, load
from crossdock.devices.program import ArrayCall, In, Out, Scratch, Slot
from crossdock.runtime.errors import CompileError, Declined, DeviceError
from crossdock.runtime.tensor import TensorSpec

FRONTEND = "cudnn"
"""The module of nvidia-cudnn-frontend."""
FIX = "pip install 'crossdock[cudnn]' (with CUDA 13, 'crossdock[cudnn13]')"
OLDEST = (1, 32)
"""The frontend's version that was read; older ones do not take addresses as ours are given."""
TYPES = {"float32": "FLOAT", "float16": "HALF", "bfloat16": "BFLOAT16"}
X, W, Y, BIAS, BESIDE = 1, 2, 3, 4, 5
"""Numbers of a graph's tensors."""

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
class Convolution:
    """y = f(x * w + bias + beside), with a bias and an image that is added if there are any.

    ``image``, ``kernel`` and ``result`` are sizes in the order NCHW and OIHW, whatever ``layout``
    and ``filter_layout`` say of how elements lie; ``result`` and what is added lie as the image
    does. ``padding`` is top, bottom, left, right. There are as many groups as the image has
    channels for each of the filter's. f is max(x, 0) with ``relu``. Sums are float32; float32
    operands are rounded to the format ``rounds``, if it is not "". ``workspace`` is in bytes.
    """

    image: tuple[int, ...]
    kernel: tuple[int, ...]
    result: tuple[int, ...]
    padding: tuple[int, ...]
    steps: tuple[int, ...]
    dilations: tuple[int, ...]
    layout: str
    filter_layout: str
    dtype: str
    rounds: str = ""
    bias: bool = False
    beside: bool = False
    relu: bool = False
    workspace: int = 0

    def tensors(self) -> dict[int, tuple[str, tuple[int, ...], tuple[int, ...]]]:
        """Name, sizes, and strides in elements of every tensor, by number."""
        by_image = partial(strides, layout=self.layout)
        found = {
            X: ("x", self.image, by_image(self.image)),
            W: ("w", self.kernel, strides(self.kernel, self.filter_layout, "oihw")),
            Y: ("y", self.result, by_image(self.result)),
        }
        if self.bias:
            column = (1, self.result[1], 1, 1)
            found[BIAS] = ("bias", column, by_image(column))
        if self.beside:
            found[BESIDE] = ("beside", self.result, by_image(self.result))
        return found

    def step(
        self,
        bias: Slot | None = None,
        beside: Slot | None = None,
        y: Slot = Out(0),  # noqa: B008 - immutable
        workspace: Slot = Scratch(0),  # noqa: B008 - immutable
    ) -> ArrayCall:
        """The call as a step, over flat arrays."""
        slots: dict[int, Slot | None] = {X: In(0), W: In(1), BIAS: bias, BESIDE: beside}
        dtype = BITS.get(self.dtype, self.dtype)
        flat = {
            number: TensorSpec(dtype, (math.prod(sizes),))
            for number, (_, sizes, _) in self.tensors().items()
        }
        there = [number for number in slots if number in flat]
        outs: list[tuple[Slot, TensorSpec]] = [(y, flat[Y])]
        if self.workspace:
            outs.append((workspace, TensorSpec("uint8", (self.workspace,))))
        return ArrayCall(
            Conv(self),
            tuple(slots[number] for number in there),
            tuple(slot for slot, _ in outs),
            tuple(flat[number] for number in there),
            tuple(spec for _, spec in outs),
            self._form,
            captured=True,
        )

    def _form(self) -> tuple[str, str, Any]:
        """What another process makes the step's function of."""
        plain = [[k, list(v) if isinstance(v, tuple) else v] for k, v in asdict(self).items()]
        return __name__, remade.__name__, plain

    def __str__(self) -> str:
        n, c, h, w = self.image
        o, _, kh, kw = self.kernel
        return f"{kh}x{kw} convolution of {n}x{c}x{h}x{w} to {o} channels in {self.dtype}"


def remade(data: Sequence[Any]) -> Conv:
    """The function of a convolution's step, from its plain data."""
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data}
    return Conv(Convolution(**values))


def strides(sizes: Sequence[int], layout: str, order: str = "nchw") -> tuple[int, ...]:
    """Strides of sizes given in ``order`` whose elements lie without gaps in ``layout``."""
    found, step = {}, 1
    for axis in reversed(layout):
        found[axis] = step
        step *= sizes[order.index(axis)]
    return tuple(found[axis] for axis in order)


def graph_of(dnn: Any, wanted: Convolution, **where: Any) -> Any:
    """The graph of a convolution, not validated; ``where`` says what card it is for."""
    wide = dnn.data_type.FLOAT
    io = getattr(dnn.data_type, TYPES[wanted.dtype])
    graph = dnn.pygraph(
        io_data_type=io, intermediate_data_type=wide, compute_data_type=wide, **where
    )
    tensors = wanted.tensors()
    _, sizes, steps = tensors.pop(Y)
    made = {
        number: graph.tensor(
            dim=list(dims), stride=list(lying), data_type=io, name=name, uid=number
        )
        for number, (name, dims, lying) in tensors.items()
    }
    top, bottom, left, right = wanted.padding
    y = graph.conv_fprop(
        image=made[X],
        weight=made[W],
        pre_padding=[top, left],
        post_padding=[bottom, right],
        stride=list(wanted.steps),
        dilation=list(wanted.dilations),
    )
    if wanted.beside:  # before the bias: the other way round cuDNN has few engines, or none
        y = graph.add(a=y, b=made[BESIDE])
    if wanted.bias:
        y = graph.bias(input=y, bias=made[BIAS])
    if wanted.relu:
        y = graph.relu(input=y)
    y.set_output(True).set_dim(list(sizes)).set_stride(list(steps)).set_uid(Y).set_data_type(io)
    return graph


FAILURES = (RuntimeError, ValueError, TypeError, NotImplementedError, ImportError)
"""What the frontend raises besides its own error, which is no RuntimeError."""


class Refused(Exception):
    """cuDNN has no engine for a graph."""


def settle(dnn: Any, graph: Any, wanted: Convolution) -> int:
    """Let cuDNN choose an engine that computes as it may; return the workspace it takes.

    Raises:
        Refused: it has none, in its own words.
    """
    notes = [UNSTEADY, *LOSSY]
    if wanted.dtype == "float32" and not wanted.rounds:
        notes.append(TENSOR_UNITS)
    try:
        graph.validate()
        graph.build_operation_graph()
        graph.create_execution_plans([dnn.heur_mode.A, dnn.heur_mode.FALLBACK])
        graph.deselect_numeric_notes([getattr(dnn.numerical_note, note) for note in notes])
        graph.deselect_workspace_greater_than(wanted.workspace)
        graph.check_support()
        graph.build_plans()
        taken = int(graph.get_workspace_size())
    except (dnn.cudnnGraphNotSupportedError, *FAILURES) as error:
        raise Refused(str(error)) from error
    if taken > wanted.workspace:
        raise Refused(f"it takes a workspace of {taken} bytes and may have {wanted.workspace}")
    return taken


class Conv(LibraryCall):
    """A convolution by cuDNN."""

    def __init__(self, wanted: Convolution) -> None:
        self.wanted = wanted

    def prepare(self, cp: Any) -> Prepared:
        """Load cuDNN and let it choose an engine; CompileError where it has none."""
        load(cp)  # cuDNN needs cuBLASLt, which comes with it
        return _Conv(cp, library(), self.wanted)


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


class _Conv(Prepared):
    def __init__(self, cp: Any, lib: Library, wanted: Convolution) -> None:
        self.cp, self.lib, self.wanted = cp, lib, wanted
        device = cp.cuda.Device().id
        with lib.building:
            try:
                self.graph = graph_of(lib.dnn, wanted, handle=lib.handle(device, "build"))
                settle(lib.dnn, self.graph, wanted)
            except (Refused, *FAILURES) as error:
                said = f"cuDNN has no {wanted}: {_first(error)}"
                raise Declined(said, log=f"{wanted!r}: {error}") from error
            with lib.running:
                self.handle = lib.handle(device, "run")

    def bound(self, ins: list[Any], outs: list[Any]) -> Callable[[], None]:
        """The call with its memory in place."""
        numbers = [n for n in (X, W, BIAS, BESIDE) if n in self.wanted.tensors()]
        addresses = {n: int(x.data.ptr) for n, x in zip(numbers, ins, strict=True)}
        addresses[Y] = int(outs[0].data.ptr)
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
            where = f"cuda:{cuda.Device().id}: cuDNN, {self.wanted}"
            raise DeviceError(f"{where}: {_first(error)}") from error
