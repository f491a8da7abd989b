"""Batch, instance and layer normalisation, softmax. Half precision is computed in float32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from crossdock.kernels import ops_math
from crossdock.kernels.ops_rules import (
    FLOAT,
    axes_of,
    axis_of,
    choice,
    entry,
    like,
    must_be,
    number,
    of,
    same_as_first,
    some,
)
from crossdock.kernels.ops_window import LAYOUTS
from crossdock.kernels.ops_work import TRANSCENDENTAL, per_input
from crossdock.kernels.spec import REQUIRED, Attrs, Specs
from crossdock.runtime.tensor import TensorSpec


def _optional(specs: Specs, index: int) -> TensorSpec | None:
    return specs[index] if index < len(specs) else None


def _along(array: Any, axis: int, rank: int) -> Any:
    """A vector shaped to broadcast along one axis."""
    shape = [1] * rank
    shape[axis] = -1
    return array.reshape(shape)


def _affine(y: Any, scale: Any, bias: Any) -> Any:
    y = y if scale is None else y * scale
    return y if bias is None else y + bias


def _vector_steps(b: Any, x: Any, vector: Any, axis: int) -> Any:
    shape = [1] * len(x.shape)
    shape[axis] = x.shape[axis]
    return None if vector is None else b.reshape(vector, shape)


def _standard_steps(b: Any, x: Any, operands: Sequence[Any], epsilon: float) -> Any:
    """(x - mean) / sqrt(variance + epsilon) * scale + bias, from operands that broadcast."""
    mean, variance, scale, bias = operands
    spread = b.sqrt(b.add(variance, b.constant(epsilon, x.dtype)))
    y = b.div(b.sub(x, mean), spread)
    y = y if scale is None else b.mul(y, scale)
    return y if bias is None else b.add(y, bias)


# --- batch normalisation --------------------------------------------------------------------------


def _batch_canon(specs: Specs, attrs: dict[str, Any]) -> dict[str, Any]:
    op = "batch_normalization"
    return {
        "axis": axis_of(op, attrs["axis"], some(specs[0]).rank),
        "epsilon": number(op, "epsilon", attrs["epsilon"]),
    }


def _batch_infer(specs: Specs, attrs: Attrs) -> tuple[TensorSpec, ...]:
    spec = some(specs[0])
    channels = spec.shape[attrs["axis"]]
    for i, name in enumerate(("mean", "variance", "scale", "bias"), 1):
        must_be("batch_normalization", name, _optional(specs, i), (channels,))
    return (spec,)


def _batch(
    xp: Any,
    x: Any,
    mean: Any,
    variance: Any,
    scale: Any,
    bias: Any,
    *,
    axis: int,
    epsilon: float,
) -> Any:
    factor = 1 / xp.sqrt(variance + epsilon)
    factor = factor if scale is None else factor * scale
    y = (x - _along(mean, axis, x.ndim)) * _along(factor, axis, x.ndim)
    return y if bias is None else y + _along(bias, axis, x.ndim)


def _batch_steps(
    b: Any,
    x: Any,
    mean: Any,
    variance: Any,
    scale: Any,
    bias: Any,
    *,
    axis: int,
    epsilon: float,
) -> Any:
    parts = [_vector_steps(b, x, v, axis) for v in (mean, variance, scale, bias)]
    return _standard_steps(b, x, parts, epsilon)


entry(
    "batch_normalization",
    {
        "input": of(FLOAT, 1),
        "mean": like("input", 1, 1),
        "variance": like("input", 1, 1),
        "scale?": like("input", 1, 1),
        "bias?": like("input", 1, 1),
    },
    attrs={"axis": 1, "epsilon": 1e-5},
    canon=_batch_canon,
    infer=_batch_infer,
    run=ops_math.widened(_batch),
    work=per_input(3.0),
    decompose=_batch_steps,
)

# --- instance normalisation -----------------------------------------------------------------------


def _instance_canon(specs: Specs, attrs: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG001 - Canon
    op = "instance_normalization"
    return {
        "epsilon": number(op, "epsilon", attrs["epsilon"]),
        "layout": choice(op, "layout", attrs["layout"], LAYOUTS),
    }


def _channel_axis(layout: str) -> int:
    return 1 if layout == "nchw" else 3


def _instance_infer(specs: Specs, attrs: Attrs) -> tuple[TensorSpec, ...]:
    spec = some(specs[0])
    channels = spec.shape[_channel_axis(attrs["layout"])]
    for i, name in enumerate(("scale", "bias"), 1):
        must_be("instance_normalization", name, _optional(specs, i), (channels,))
    return (spec,)


def _instance(xp: Any, x: Any, scale: Any, bias: Any, *, epsilon: float, layout: str) -> Any:
    axes = (2, 3) if layout == "nchw" else (1, 2)
    vectors = (v if v is None else _along(v, _channel_axis(layout), x.ndim) for v in (scale, bias))
    return _affine(_centred(xp, x, axes, epsilon), *vectors)


def _centred(xp: Any, x: Any, axes: tuple[int, ...], epsilon: float) -> Any:
    """(x - mean) / sqrt(variance + epsilon) over ``axes``; over none, the mean is x itself."""
    if not axes:
        return x - x
    away = x - xp.mean(x, axis=axes, keepdims=True)
    return away / xp.sqrt(xp.mean(away * away, axis=axes, keepdims=True) + epsilon)


def _moments_steps(b: Any, x: Any, axes: tuple[int, ...]) -> tuple[Any, Any]:
    mean = b.reduce_mean(x, axes=list(axes), keep_dimensions=True)
    away = b.sub(x, mean)
    return mean, b.reduce_mean(b.mul(away, away), axes=list(axes), keep_dimensions=True)


def _instance_steps(b: Any, x: Any, scale: Any, bias: Any, *, epsilon: float, layout: str) -> Any:
    axes = (2, 3) if layout == "nchw" else (1, 2)
    vectors = (_vector_steps(b, x, v, _channel_axis(layout)) for v in (scale, bias))
    return _standard_steps(b, x, [*_moments_steps(b, x, axes), *vectors], epsilon)


entry(
    "instance_normalization",
    {
        "input": of(FLOAT, 4, 4),
        "scale?": like("input", 1, 1),
        "bias?": like("input", 1, 1),
    },
    attrs={"epsilon": 1e-5, "layout": "nchw"},
    canon=_instance_canon,
    infer=_instance_infer,
    run=ops_math.widened(_instance),
    work=per_input(7.0),
    decompose=_instance_steps,
)

# --- layer normalisation --------------------------------------------------------------------------


def _layer_canon(specs: Specs, attrs: dict[str, Any]) -> dict[str, Any]:
    op, rank = "layer_normalization", some(specs[0]).rank
    given = attrs["axes"]
    axes = tuple(range(1, rank)) if given is None else axes_of(op, given, rank)
    return {"axes": axes, "epsilon": number(op, "epsilon", attrs["epsilon"])}


def _layer_infer(specs: Specs, attrs: Attrs) -> tuple[TensorSpec, ...]:
    spec = some(specs[0])
    shape = tuple(spec.shape[axis] for axis in attrs["axes"])
    for i, name in enumerate(("scale", "bias"), 1):
        must_be("layer_normalization", name, _optional(specs, i), shape)
    return (spec,)


def _spread(shape: tuple[Any, ...], axes: tuple[int, ...]) -> tuple[list[int], list[Any]]:
    """How to lay an operand, whose dimensions follow ``axes``, along an input's axes."""
    order = sorted(range(len(axes)), key=lambda i: axes[i])
    return order, [size if axis in axes else 1 for axis, size in enumerate(shape)]


def _layer(xp: Any, x: Any, scale: Any, bias: Any, *, axes: tuple[int, ...], epsilon: float) -> Any:
    order, shape = _spread(x.shape, axes)
    vectors = (v if v is None else xp.transpose(v, order).reshape(shape) for v in (scale, bias))
    return _affine(_centred(xp, x, axes, epsilon), *vectors)


def _layer_steps(
    b: Any, x: Any, scale: Any, bias: Any, *, axes: tuple[int, ...], epsilon: float
) -> Any:
    order, shape = _spread(x.shape, axes)
    vectors = (
        v if v is None else b.reshape(b.transpose(v, permutation=order), shape)
        for v in (scale, bias)
    )
    return _standard_steps(b, x, [*_moments_steps(b, x, axes), *vectors], epsilon)


entry(
    "layer_normalization",
    {"input": of(FLOAT), "scale?": like("input"), "bias?": like("input")},
    attrs={"axes": None, "epsilon": 1e-5},
    canon=_layer_canon,
    infer=_layer_infer,
    run=ops_math.widened(_layer),
    work=per_input(7.0),
    decompose=_layer_steps,
)

# --- softmax --------------------------------------------------------------------------------------


def _softmax_canon(specs: Specs, attrs: dict[str, Any]) -> dict[str, Any]:
    return {"axis": axis_of("softmax", attrs["axis"], some(specs[0]).rank)}


def _softmax(xp: Any, x: Any, *, axis: int) -> Any:
    raised = xp.exp(x - xp.max(x, axis=axis, keepdims=True))
    return raised / xp.sum(raised, axis=axis, keepdims=True)


def _softmax_steps(b: Any, x: Any, *, axis: int) -> Any:
    raised = b.exp(b.sub(x, b.reduce_max(x, axes=[axis], keep_dimensions=True)))
    return b.div(raised, b.reduce_sum(raised, axes=[axis], keep_dimensions=True))


entry(
    "softmax",
    {"input": of(FLOAT, 1)},
    params=("axis",),
    attrs={"axis": REQUIRED},
    canon=_softmax_canon,
    infer=same_as_first,
    run=ops_math.widened(_softmax),
    work=per_input(TRANSCENDENTAL + 4),
    decompose=_softmax_steps,
)
