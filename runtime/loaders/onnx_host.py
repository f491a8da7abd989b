"""The table of ONNX operators that the host runs: their results hang on values, or are no tensors.

A host function is registered with the first opset whose meaning it implements::

    @host_op("NonZero", since=9)
    def non_zero(call: HostCall) -> HostValue: ...

It is used where no converter can write the node into the IR: the operator has none, a value is of
a type that the IR lacks (strings, sequences, optionals, small floats), or the shape of a result is
known only once values are.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from crossdock.runtime.errors import (
    Error,
    ExecutionError,
    LimitError,
    MalformedModel,
    UnsupportedModel,
)
from crossdock.runtime.limits import Budget, Limits
from crossdock.runtime.loaders.onnx_model import OnnxGraph, OnnxNode
from crossdock.runtime.tensor import Array

FAMILIES = (
    "onnx_host_control",
    "onnx_host_structure",
    "onnx_host_sequence",
    "onnx_host_select",
    "onnx_host_cast",
    "onnx_host_quantize",
    "onnx_host_strings",
    "onnx_host_tfidf",
    "onnx_host_ml",
    "onnx_host_trees",
    "onnx_host_random",
    "onnx_host_image",
)
"""Modules of this package that register host functions."""


@dataclass(frozen=True, slots=True)
class Empty:
    """An optional without an element."""


EMPTY = Empty()

HostValue = Array | list[Any] | Empty
"""A tensor (strings: dtype object; small floats and ints: dtypes of ``ml_dtypes``), a sequence (a
list of tensors), or an empty optional. An optional with an element is that element."""


def _default_budget() -> Budget:
    return Budget(Limits())


def _nothing() -> None:
    """No deadline to look at."""


RunBody = Callable[[OnnxGraph, Sequence[HostValue]], list[HostValue]]


@dataclass(frozen=True, slots=True)
class HostCall:
    """One node to run on the host: its values, and ``body`` to run one of its subgraphs.

    What may take long calls ``check`` now and then, which raises to end the run. What its values
    ask for is held against ``budget`` before it is made.
    """

    node: OnnxNode
    opset: int
    inputs: tuple[HostValue | None, ...]
    body: RunBody
    check: Callable[[], None] = _nothing
    budget: Budget = field(default_factory=_default_budget)

    @property
    def nbytes(self) -> int:
        """Bytes of the inputs."""
        return sum(v.nbytes for v in self.inputs if isinstance(v, np.ndarray))

    def make_room(self, nbytes: int) -> None:
        """Raise LimitError unless a tensor of ``nbytes`` may be made here."""
        self.budget.tensor(nbytes, str(self.node), self.nbytes)

    def __len__(self) -> int:
        return len(self.inputs)

    def opt(self, index: int) -> HostValue | None:
        """Input ``index``, or None where it is absent."""
        return self.inputs[index] if index < len(self.inputs) else None

    def x(self, index: int = 0) -> HostValue:
        """Input ``index``, which must be there."""
        value = self.opt(index)
        if value is None:
            raise self.malformed(f"input {index} is missing")
        return value

    def array(self, index: int = 0) -> Array:
        """Input ``index``, which must be a tensor."""
        value = self.x(index)
        if not isinstance(value, np.ndarray):
            raise self.malformed(f"input {index} is no tensor")
        return value

    def sequence(self, index: int = 0) -> list[Any]:
        """Input ``index``, which must be a sequence."""
        value = self.x(index)
        if not isinstance(value, list):
            raise self.malformed(f"input {index} is no sequence")
        return value

    def unsupported(self, what: str) -> UnsupportedModel:
        """The error for a legal use that crossdock lacks."""
        return UnsupportedModel(f"{self.node}: {what} is not supported")

    def malformed(self, what: str) -> MalformedModel:
        """The error for a use that ONNX does not allow."""
        return MalformedModel(f"{self.node}: {what}")


HostFunction = Callable[[HostCall], HostValue | Sequence[HostValue | None]]
"""One value where the node has one output, else a tuple of them in order (never a bare list: that
is a sequence)."""


When = Literal["asked", "refused", "foreign"]
"""When the host is preferred to a device: where a converter asks for values that are not known
yet; only where it refuses them, too; or only for inputs of types that the IR lacks."""


@dataclass(frozen=True, slots=True)
class HostEntry:
    """A host function and the first opset it is for.

    ``draws``: without an attribute "seed" its results are new every time.
    """

    op: str
    domain: str
    since: int
    run: HostFunction
    when: When = "asked"
    draws: bool = False

    def suits(self, foreign: bool, demand: bool) -> bool:
        """True where the host is to run a node that no converter took.

        Args:
            foreign: one of its inputs has a type that the IR lacks.
            demand: a converter takes it once it knows values that it asks for.
        """
        if foreign or self.when == "asked":
            return True
        return self.when == "refused" and not demand


_TABLE: dict[tuple[str, str], list[HostEntry]] = {}


def host_op(
    *names: str, since: int = 1, domain: str = "", when: When = "asked", draws: bool = False
) -> Callable[[HostFunction], HostFunction]:
    """Decorator: register a host function for operators from opset ``since`` on."""

    def register(run: HostFunction) -> HostFunction:
        for name in names:
            entries = _TABLE.setdefault((domain, name), [])
            entries.append(HostEntry(name, domain, since, run, when, draws))
            entries.sort(key=lambda e: -e.since)
        return run

    return register


@functools.cache
def load_hosts() -> None:
    """Import every family of host functions once."""
    for name in FAMILIES:
        importlib.import_module(f"crossdock.runtime.loaders.{name}")


def find_host(node: OnnxNode, opset: int) -> HostEntry | None:
    """The host function for a node's operator at an opset, or None."""
    load_hosts()
    for entry in _TABLE.get((node.domain, node.op), ()):
        if entry.since <= opset:
            return entry
    return None


def run_entry(entry: HostEntry, call: HostCall) -> list[HostValue | None]:
    """Run a host function; its results, one an output.

    Raises:
        Error: what the function raised, if it is ours.
        ExecutionError: for anything else, naming the node.
    """
    try:
        with np.errstate(all="ignore"):
            result = entry.run(call)
    except Error as error:
        if str(call.node) in str(error):
            raise
        raise type(error)(f"{call.node}: {error}") from error
    except MemoryError as error:
        raise LimitError(f"{call.node}: there is not enough memory for its results") from error
    except Exception as error:
        raise ExecutionError(
            f"{call.node} failed on the host: {type(error).__name__}: {error}"
        ) from error
    results: list[Any] = list(result) if isinstance(result, tuple) else [result]
    return [np.asarray(r) if isinstance(r, np.generic) else r for r in results]


def no_body(_graph: OnnxGraph, _inputs: Sequence[HostValue]) -> list[HostValue]:
    """The body runner of calls that must have none."""
    raise AssertionError("a node with a subgraph is never folded")
