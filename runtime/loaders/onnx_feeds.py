"""What a staged ONNX graph is fed and gives: tensors, strings, sequences and optionals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from crossdock.runtime.errors import Error, FeedError
from crossdock.runtime.loaders.onnx_host import EMPTY, HostValue
from crossdock.runtime.loaders.onnx_model import OnnxModel, OnnxValue
from crossdock.runtime.loaders.onnx_stage import array_type, kind_of
from crossdock.runtime.tensor import Array, Dim, TensorSpec, to_numpy


def checked(
    model: OnnxModel, specs: Mapping[str, TensorSpec], feeds: Mapping[str, Any]
) -> dict[str, HostValue]:
    """The feeds of a model as host values, in the order of its inputs.

    Args:
        model: the model.
        specs: what inputs were bound to, by name.
        feeds: an array for a tensor (of str or objects for strings), a list or tuple for a
            sequence, None for an empty optional.

    Raises:
        FeedError: an input is missing, unknown, or of another type or shape.
    """
    inputs = {v.name: v for v in model.graph.free_inputs}
    if not isinstance(feeds, Mapping):
        raise FeedError(f"feeds maps input names to values, not {type(feeds).__name__}")
    wrong = [f"no input is named {name!r}" for name in feeds if name not in inputs]
    wrong += [f"input {name!r} is not fed" for name in inputs if name not in feeds]
    if wrong:
        declared = ", ".join(f"{name}: {specs.get(name) or v.what}" for name, v in inputs.items())
        raise FeedError(f"{'; '.join(wrong)}; the inputs are {declared}")
    sizes: dict[str, int] = {}
    made: dict[str, HostValue] = {}
    for name, value in inputs.items():
        made[name] = _value(name, value, feeds[name])
        spec = specs.get(name)
        dims = value.shape if spec is None else spec.shape
        array = made[name]
        if dims is not None and isinstance(array, np.ndarray):
            _fit(name, value, array, dims, sizes)
    return made


def _value(name: str, declared: OnnxValue, value: Any) -> HostValue:
    if declared.kind == "optional":
        if value is None or value is EMPTY:
            return EMPTY
        return value if declared.element is None else _value(name, declared.element, value)
    if declared.kind == "sequence":
        if not isinstance(value, list | tuple):
            raise FeedError(
                f"input {name!r} wants {declared.what}, a list, not {type(value).__name__}"
            )
        element = declared.element
        return [item if element is None else _value(name, element, item) for item in value]
    if declared.kind == "tensor":
        return _tensor(name, declared, value)
    if declared.kind:
        raise FeedError(f"input {name!r} is a {declared.what}, which nothing can be fed to")
    return value if isinstance(value, list) else _plain(name, declared.what, value)


def _tensor(name: str, declared: OnnxValue, value: Any) -> Array:
    array = _plain(name, declared.what, value)
    if declared.dtype is not None and array.dtype != to_numpy(declared.dtype):
        raise FeedError(
            f"input {name!r} wants {declared.what}, got {kind_of(array)}; convert it with "
            f".astype({declared.dtype!r})"
        )
    if declared.dtype is None and declared.what != f"tensor({_declared_type(array)})":
        raise FeedError(f"input {name!r} wants {declared.what}, got {kind_of(array)}")
    return array


def _declared_type(array: Array) -> str:
    """An array's element type as declarations have it: float8e4m3fn, not float8_e4m3fn."""
    name = array_type(array).replace("_", "")
    return name.removesuffix("fn") if name.startswith("float4") else name.replace("e8m0fnu", "e8m0")


def _plain(name: str, what: str, value: Any) -> Array:
    if value is None or value is EMPTY:
        raise FeedError(f"input {name!r} wants {what}, got None")
    try:
        array: Array = np.asarray(value)
    except (Error, TypeError, ValueError) as error:
        raise FeedError(f"input {name!r} wants {what}: {error}") from error
    if array.dtype.kind in "US":
        array = array.astype(str).astype(object)
    return array


def _fit(
    name: str,
    declared: OnnxValue,
    array: Array,
    dims: tuple[Dim | None, ...],
    sizes: dict[str, int],
) -> None:
    """Raise FeedError unless a shape is what is declared, symbols alike everywhere."""
    fits = array.ndim == len(dims)
    for have, want in zip(array.shape, dims, strict=False):
        known = sizes.setdefault(want, have) if isinstance(want, str) else want
        fits = fits and known in (None, have)
    if not fits:
        want = ",".join("?" if d is None else str(d) for d in dims)
        raise FeedError(
            f"input {name!r} wants {declared.what} of shape [{want}], got {list(array.shape)}"
        )


def outward(value: HostValue | None) -> Any:
    """A value as a caller gets it: an empty optional is None."""
    if value is EMPTY:
        return None
    return list(value) if isinstance(value, list) else value
