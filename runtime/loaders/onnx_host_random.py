"""ONNX operators that draw at random: new numbers every run, or those that a seed decides."""

from __future__ import annotations

from typing import Any

import numpy as np

from crossdock.runtime.loaders.onnx_host import HostCall, HostValue, host_op
from crossdock.runtime.loaders.onnx_host_tools import (
    host_dtype,
    is_float,
    is_small,
    is_string,
    number,
    sized,
    wants,
)
from crossdock.runtime.tensor import Array

_FLOAT, _INT32 = 1, 6
"""TensorProto.DataType."""


def _generator(call: HostCall) -> np.random.Generator:
    """A generator whose state the attribute ``seed``, a float, decides bit by bit."""
    if "seed" not in call.node.attrs:
        return np.random.default_rng()
    return np.random.default_rng(int(np.float32(call.node.get_float("seed")).view(np.uint32)))


def _float_dtype(call: HostCall, given: np.dtype[Any]) -> np.dtype[Any]:
    """The type that ``dtype`` names, or a given one."""
    code = call.node.get_int("dtype")
    dtype = host_dtype(call, code) if code else given
    if not is_float(dtype) or is_small(dtype):
        raise call.malformed(f"numbers of {dtype} cannot be drawn")
    return dtype


def _shape(call: HostCall) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """The shape and type to draw: of attributes, or like the input."""
    if call.node.op.endswith("Like"):
        x = call.array()
        return x.shape, _float_dtype(call, x.dtype)
    call.node.require("shape")
    dtype = _float_dtype(call, host_dtype(call, _FLOAT))
    return sized(call, call.node.get_ints("shape") or (), np.dtype(np.float64)), dtype


@host_op("RandomNormal", "RandomNormalLike", draws=True)
def normal(call: HostCall) -> HostValue:
    """Numbers of a normal distribution."""
    shape, dtype = _shape(call)
    scale = call.node.get_float("scale", 1.0)
    if scale < 0:
        raise call.malformed(f"a standard deviation of {scale}")
    drawn = _generator(call).normal(call.node.get_float("mean", 0.0), scale, shape)
    return np.asarray(drawn).astype(dtype)


@host_op("RandomUniform", "RandomUniformLike", draws=True)
def uniform(call: HostCall) -> HostValue:
    """Numbers from ``low`` to ``high``."""
    shape, dtype = _shape(call)
    low, high = call.node.get_float("low", 0.0), call.node.get_float("high", 1.0)
    return np.asarray(low + (high - low) * _generator(call).random(shape)).astype(dtype)


@host_op("Bernoulli", since=15, draws=True)
def bernoulli(call: HostCall) -> HostValue:
    """One with the probability that each element says, else zero."""
    p = call.array()
    if not is_float(p.dtype):
        raise call.malformed(f"probabilities of {p.dtype}")
    code = call.node.get_int("dtype")
    dtype = host_dtype(call, code) if code else p.dtype
    if dtype.kind in "Oc":
        raise call.malformed(f"numbers of {dtype} cannot be drawn")
    return np.asarray(_generator(call).random(p.shape) < p.astype(np.float64)).astype(dtype)


@host_op("Multinomial", since=7, draws=True)
def multinomial(call: HostCall) -> HostValue:
    """Outcomes [batch, samples] by unnormalised log-probabilities [batch, classes]."""
    x = call.array()
    if x.ndim != 2 or not is_float(x.dtype):
        raise call.malformed(f"log-probabilities of {x.dtype}{list(x.shape)}")
    dtype = host_dtype(call, call.node.get_int("dtype", _INT32))
    if dtype not in (np.dtype(np.int32), np.dtype(np.int64)):
        raise call.malformed(f"outcomes of {dtype}")
    shape = sized(call, [len(x), call.node.get_int("sample_size", 1)], np.dtype(np.float64))
    drawn = _generator(call).random(shape)
    rows = [_outcomes(call, row, u) for row, u in zip(x.astype(np.float64), drawn, strict=True)]
    return np.array(rows, np.int64).reshape(shape).astype(dtype)


def _outcomes(call: HostCall, logs: Array, drawn: Array) -> Array:
    """Outcomes of one distribution, by its inverse cumulated probabilities."""
    top = np.max(logs, initial=-np.inf)
    if not np.isfinite(top):
        raise call.malformed("no class has a probability")
    total = np.cumsum(np.exp(logs - top))
    found: Array = np.searchsorted(total, drawn * total[-1], side="right")
    # Rounding may lift a draw close to one onto the end itself.
    return np.minimum(found, len(logs) - 1)


@host_op("Dropout", since=12, when="refused", draws=True)
def dropout(call: HostCall) -> tuple[HostValue, ...]:
    """In training, zero with a probability, the rest scaled up to the same mean; and the mask.

    A seed gives the draws of ONNX's reference implementation: a Mersenne twister's.
    """
    x = call.array()
    if is_string(x) or not is_float(x.dtype):
        raise call.malformed(f"data of {x.dtype}")
    ratio = float(number(call, 1, "a ratio")) if call.opt(1) is not None else 0.5
    training = bool(number(call, 2, "training_mode")) if call.opt(2) is not None else False
    mask = np.ones(x.shape, np.bool_)
    if training and ratio:
        if not 0 <= ratio < 1:
            raise call.malformed(f"a ratio of {ratio}, not from 0 to below 1")
        seed = call.node.get_int("seed") % (1 << 32) if "seed" in call.node.attrs else None
        mask = np.asarray(np.random.RandomState(seed).uniform(0, 1, x.shape) >= ratio)
        wide = x.astype(np.float64)
        x = np.asarray(np.where(mask, wide, 0 * wide) / (1 - ratio)).astype(x.dtype)
    return (x, mask) if wants(call, 1) else (x,)
