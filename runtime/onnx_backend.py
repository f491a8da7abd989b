"""crossdock as a backend in the sense of the package ``onnx``: ``onnx.backend.base.Backend``.

rep = crossdock.onnx_backend.prepare(model, "cpu:0")
(y,) = rep.run([x])
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from crossdock.devices import registry
from crossdock.runtime.compiling import compile  # noqa: A004
from crossdock.runtime.errors import FeedError, LoadError, PlanError, Unavailable
from crossdock.runtime.graph import Graph
from crossdock.runtime.loaders import load
from crossdock.runtime.loaders.onnx_parse import onnx_package
from crossdock.runtime.session import Session

try:
    from onnx.backend.base import Backend, BackendRep
except ImportError:
    onnx_package()  # says what to install
    raise

_TESTING = ("atol", "rtol")
"""Options of onnx.backend.test that say nothing to a backend."""

_OPTIONS = tuple(n for n in inspect.signature(compile).parameters if n not in ("graph", "devices"))
"""Options of ``compile`` that are not given otherwise."""

_MAX_OPSET = 2**31 - 1


class PreparedModel(BackendRep):
    """A model ready to run; thread-safe, as its ``session`` is."""

    def __init__(self, session: Session, names: Sequence[str]) -> None:
        self.session = session
        self._names = tuple(names)

    def run(self, inputs: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Run once.

        Args:
            inputs: values by name, or in the order of the model's inputs: a list of them, or the
                one of a model with one input. Arrays; lists for sequences, None for empty
                optionals.
            kwargs: ``timeout`` in seconds; nothing else.

        Returns:
            The outputs, in the model's order.

        Raises:
            FeedError: the inputs do not fit the model's.
            Error: as ``Session.run``.
        """
        timeout = kwargs.pop("timeout", None)
        if kwargs:
            raise FeedError(f"run takes no {', '.join(map(repr, kwargs))}; only 'timeout'")
        return tuple(self.session.run(self._feeds(inputs), timeout=timeout).values())

    def _feeds(self, inputs: Any) -> Mapping[str, Any]:
        if isinstance(inputs, Mapping):
            return inputs
        if not isinstance(inputs, list | tuple):
            inputs = [inputs]
        if len(inputs) != len(self._names):
            raise FeedError(
                f"{len(inputs)} inputs for a model of {len(self._names)} "
                f"({', '.join(self._names) or 'none'})"
            )
        return dict(zip(self._names, inputs, strict=True))


class onnx_backend(Backend):  # noqa: N801 - the public name, as the other backends have it
    """The backend: every operator on the device asked for, on the host what only it can run.

    A ``device`` is one of ours ("cpu:0", "opencl:0", "auto" for all of them) or of onnx's ("CPU",
    "CUDA", "CUDA:1"). Errors are crossdock's.
    """

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """True where the device is here."""
        try:
            name = device_id(device)
        except Unavailable:
            return False
        return name == "auto" or registry.is_there(name)

    @classmethod
    def prepare(cls, model: Any, device: str = "CPU", **kwargs: Any) -> PreparedModel:
        """Load and compile a model.

        Args:
            model: a ModelProto, its bytes or path.
            device: where it runs.
            kwargs: options of ``crossdock.compile``. ``measure`` is False here unless given: on
                one device there is no placement to find, and a first run is what most want.

        Raises:
            Error: as ``load`` and ``compile``.
        """
        options = {"measure": False, **kwargs}
        for name in _TESTING:
            options.pop(name, None)
        unknown = [name for name in options if name not in _OPTIONS]
        if unknown:
            raise PlanError(
                f"there is no option {', '.join(unknown)}; besides the device there are "
                f"{', '.join(_OPTIONS)}"
            )
        graph = load(model)
        session = compile(graph, device_id(device), **options)
        return PreparedModel(session, input_names(graph))

    @classmethod
    def run_model(cls, model: Any, inputs: Any, device: str = "CPU", **kwargs: Any) -> Any:
        """Load, compile and run a model once; see ``prepare`` and ``PreparedModel.run``."""
        rep = cls.prepare(model, device, **kwargs)
        with rep.session:
            return rep.run(inputs)

    @classmethod
    def run_node(
        cls,
        node: Any,
        inputs: Any,
        device: str = "CPU",
        outputs_info: Sequence[tuple[Any, tuple[int, ...]]] | None = None,
        **kwargs: Any,
    ) -> tuple[Any, ...]:
        """Run one node.

        Args:
            node: a NodeProto.
            inputs: its inputs, in order without those it leaves out, or by name.
            device: where it runs.
            outputs_info: dtype and shape of each output; not needed.
            kwargs: ``opset_version`` (the newest where it is not given), and as ``prepare``.

        Returns:
            The outputs, in the node's order without those it leaves out.

        Raises:
            LoadError: ``node``, ``opset_version`` or ``outputs_info`` is nothing of the kind.
            FeedError: the inputs do not fit the node.
            Error: as ``run_model``.
        """
        opset = kwargs.pop("opset_version", None)
        model, feeds = node_model(node, inputs, opset, outputs_info)
        result: tuple[Any, ...] = cls.run_model(model, feeds, device, **kwargs)
        return result


def device_id(device: str) -> str:
    """Our id of a device by onnx's name or ours; raises Unavailable for what is neither."""
    kind, _, number = str(device).partition(":")
    known = {"CPU": "cpu", "CUDA": "cuda"}.get(kind, kind)
    if known == "auto" and not number:
        return known
    if known in ("cpu", "cuda", "opencl") and (not number or number.isdecimal()):
        return f"{known}:{number or 0}"
    if known == "sim" and number:
        return str(device)
    raise Unavailable(
        f"no device is called {device!r}; use CPU, CUDA, CUDA:1, auto or an id such as "
        f"{', '.join(info.id for info in registry.devices())}"
    )


def input_names(graph: Graph) -> tuple[str, ...]:
    """Names of a graph's inputs, in order."""
    return tuple(graph.fed)


def node_model(
    node: Any,
    inputs: Any,
    opset: int | None,
    outputs_info: Sequence[tuple[Any, tuple[int, ...]]] | None = None,
) -> tuple[Any, dict[str, Any]]:
    """A model of one node, and its inputs by name; raises as ``onnx_backend.run_node``."""
    helper, package = onnx_package().helper, onnx_package()
    if not isinstance(node, package.NodeProto):
        kind = type(node).__name__
        raise LoadError(f"run_node takes an onnx.NodeProto, not {kind}; run_model takes models")
    names = list(dict.fromkeys(name for name in node.input if name))
    if not isinstance(inputs, Mapping):
        values = list(inputs) if isinstance(inputs, list | tuple) else [inputs]
        if len(values) != len(names):
            raise FeedError(f"{len(values)} inputs for a node of {len(names)}")
        inputs = dict(zip(names, values, strict=True))
    feeds = dict(inputs)
    infos = [_info(name, feeds.get(name)) for name in names]
    ends = _ends([name for name in node.output if name], outputs_info)
    imports = [helper.make_opsetid("", _opset(opset))]
    if node.domain not in ("", "ai.onnx"):
        imports.append(helper.make_opsetid(node.domain, _newest(node)))
    graph = helper.make_graph([node], node.op_type or "node", infos, ends)
    return helper.make_model(graph, opset_imports=imports), feeds


def _opset(given: object) -> int:
    newest = int(onnx_package().defs.onnx_opset_version())
    if given is None:
        return newest
    if not isinstance(given, int | np.integer) or not 1 <= given <= _MAX_OPSET:
        raise LoadError(f"opset_version={given!r}: give a whole number from 1 to {newest}")
    return int(given)


def _ends(names: Sequence[str], outputs_info: Any) -> list[Any]:
    """ValueInfoProtos for a node's outputs."""
    package = onnx_package()
    helper = package.helper
    ends = [package.ValueInfoProto(name=name) for name in names]
    try:
        for end, (dtype, shape) in zip(ends, outputs_info or (), strict=False):
            number = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
            end.CopyFrom(helper.make_tensor_value_info(end.name, number, list(shape)))
    except (TypeError, ValueError) as error:
        raise LoadError(
            f"outputs_info takes a dtype and a shape for each output: {error}"
        ) from error
    return ends


def _newest(node: Any) -> int:
    """The newest opset of a node's domain at which its operator's meaning changed."""
    defs = onnx_package().defs
    try:
        return int(defs.get_schema(node.op_type, domain=node.domain).since_version)
    except defs.SchemaError:
        return 1


def _info(name: str, value: Any) -> Any:
    """A ValueInfoProto for a value; of no type for what is not a tensor."""
    package = onnx_package()
    if value is None or isinstance(value, list | tuple):
        return package.ValueInfoProto(name=name)
    array = np.asarray(value)
    dtype = np.dtype(object) if array.dtype.kind in "US" else array.dtype
    try:
        number = package.helper.np_dtype_to_tensor_dtype(dtype)
    except ValueError as error:
        raise FeedError(f"input {name!r}: ONNX has no tensors of {array.dtype}") from error
    return package.helper.make_tensor_value_info(name, number, array.shape)
