"""Reductions, arg_min and arg_max.

``axes`` is canonical: sorted, None for all. An empty list reduces nothing: the op's function is
then applied to each element. Half precision is accumulated in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from crossdock.kernels import ops_math
from crossdock.kernels.ops_rules import (
    ANY,
    FLOAT,
    SUMMABLE,
    Shape,
    axes_of,
    axis_of,
    choice,
    entry,
    flag,
    of,
    some,
)
from crossdock.kernels.ops_work import TRANSCENDENTAL, per_input
from crossdock.kernels.spec import REQUIRED, Attrs, Canon, Specs
from crossdock.runtime.tensor import TensorSpec, to_numpy

Axes = tuple[int, ...]


def _canon(name: str) -> Canon:
    def canon(specs: Specs, attrs: dict[str, Any]) -> dict[str, Any]:
        axes = axes_of(name, attrs["axes"], some(specs[0]).rank)
        keep = flag(name, "keep_dimensions", attrs["keep_dimensions"])
        return {"axes": tuple(sorted(axes)), "keep_dimensions": keep}

    return canon


def reduced(shape: Shape, axes: Axes, keep: bool) -> Shape:
    """The shape after reducing ``axes``."""
    if keep:
        return tuple(1 if i in axes else d for i, d in enumerate(shape))
    return tuple(d for i, d in enumerate(shape) if i not in axes)


def _infer(specs: Specs, attrs: Attrs) -> tuple[TensorSpec, ...]:
    spec = some(specs[0])
    return (spec.with_shape(reduced(spec.shape, attrs["axes"], attrs["keep_dimensions"])),)


def _sum(xp: Any, x: Any, axes: Axes, keep: bool) -> Any:
    return xp.sum(x, axis=axes, keepdims=keep, dtype=x.dtype) if axes else x


def _product(xp: Any, x: Any, axes: Axes, keep: bool) -> Any:
    return xp.prod(x, axis=axes, keepdims=keep, dtype=x.dtype) if axes else x


def _max(xp: Any, x: Any, axes: Axes, keep: bool) -> Any:
    return xp.max(x, axis=axes, keepdims=keep) if axes else x


def _min(xp: Any, x: Any, axes: Axes, keep: bool) -> Any:
    return xp.min(x, axis=axes, keepdims=keep) if axes else x


def _mean(xp: Any, x: Any, axes: Axes, keep: bool) -> Any:
    return xp.mean(x, axis=axes, keepdims=keep) if axes else x


def _log_sum_exp(xp: Any, x: Any, axes: Axes, keep: bool) -> Any:
    """Shifted by the maximum, so that nothing overflows; infinite maxima are not shifted."""
    if not axes:
        return x
    peak = xp.max(x, axis=axes, keepdims=True)
    peak = xp.where(xp.isfinite(peak), peak, xp.zeros_like(peak))
    total = xp.sum(xp.exp(x - peak), axis=axes, keepdims=True)
    out = xp.log(total) + peak
    return out if keep else xp.squeeze(out, axis=axes)


def _l2(xp: Any, x: Any, axes: Axes, keep: bool) -> Any:
    return xp.sqrt(_sum(xp, x * x, axes, keep))


def _l1_steps(b: Any, x: Any, **attrs: Any) -> Any:
    return b.reduce_sum(x if x.dtype.startswith("uint") else b.abs(x), **attrs)


def _log_sum_steps(b: Any, x: Any, **attrs: Any) -> Any:
    return b.log(b.reduce_sum(x, **attrs))


def _log_sum_exp_steps(b: Any, x: Any, *, axes: Axes, keep_dimensions: bool) -> Any:
    peak = b.reduce_max(x, axes=axes, keep_dimensions=True)
    total = b.reduce_sum(b.exp(b.sub(x, peak)), axes=axes, keep_dimensions=keep_dimensions)
    return b.add(b.log(total), b.reduce_max(x, axes=axes, keep_dimensions=keep_dimensions))


def _sum_square_steps(b: Any, x: Any, **attrs: Any) -> Any:
    return b.reduce_sum(b.mul(x, x), **attrs)


def _l2_steps(b: Any, x: Any, **attrs: Any) -> Any:
    return b.sqrt(b.reduce_sum(b.mul(x, x), **attrs))


def _reduction(
    name: str,
    fn: Callable[[Any, Any, Axes, bool], Any],
    dtypes: frozenset[str],
    flops: float = 1.0,
    decompose: Callable[..., Any] | None = None,
) -> None:
    def run(xp: Any, x: Any, *, axes: Axes, keep_dimensions: bool) -> Any:
        return fn(xp, x, axes, keep_dimensions)

    entry(
        name,
        {"input": of(dtypes)},
        attrs={"axes": None, "keep_dimensions": False},
        canon=_canon(name),
        infer=_infer,
        run=ops_math.widened(run),
        work=per_input(flops),
        decompose=decompose,
    )


_reduction("reduce_l1", lambda xp, x, a, k: _sum(xp, abs(x), a, k), SUMMABLE, 2.0, _l1_steps)
_reduction("reduce_l2", _l2, FLOAT, 2.0, _l2_steps)
_reduction(
    "reduce_log_sum",
    lambda xp, x, a, k: xp.log(_sum(xp, x, a, k)),
    FLOAT,
    decompose=_log_sum_steps,
)
_reduction(
    "reduce_log_sum_exp", _log_sum_exp, FLOAT, TRANSCENDENTAL + 2, decompose=_log_sum_exp_steps
)
_reduction("reduce_max", _max, ANY)
_reduction("reduce_mean", _mean, FLOAT)
_reduction("reduce_min", _min, ANY)
_reduction("reduce_product", _product, SUMMABLE)
_reduction("reduce_sum", _sum, SUMMABLE)
_reduction(
    "reduce_sum_square",
    lambda xp, x, a, k: _sum(xp, x * x, a, k),
    SUMMABLE,
    2.0,
    _sum_square_steps,
)

# --- arg_min, arg_max -----------------------------------------------------------------------------


def _arg(name: str, function: str) -> None:
    def canon(specs: Specs, attrs: dict[str, Any]) -> dict[str, Any]:
        return {
            "axis": axis_of(name, attrs["axis"], some(specs[0]).rank),
            "keep_dimensions": flag(name, "keep_dimensions", attrs["keep_dimensions"]),
            "output_data_type": choice(
                name, "output_data_type", attrs["output_data_type"], ("int32", "int64")
            ),
        }

    def infer(specs: Specs, attrs: Attrs) -> tuple[TensorSpec, ...]:
        spec = some(specs[0])
        shape = reduced(spec.shape, (attrs["axis"],), attrs["keep_dimensions"])
        return (TensorSpec(attrs["output_data_type"], shape),)

    def run(xp: Any, x: Any, *, axis: int, keep_dimensions: bool, output_data_type: str) -> Any:
        found = getattr(xp, function)(x, axis=axis, keepdims=keep_dimensions)
        return found.astype(to_numpy(output_data_type))

    entry(
        name,
        {"input": of(ANY, 1)},
        params=("axis",),
        attrs={"axis": REQUIRED, "keep_dimensions": False, "output_data_type": "int32"},
        canon=canon,
        infer=infer,
        run=run,
        work=per_input(),
    )


_arg("arg_min", "argmin")
_arg("arg_max", "argmax")
