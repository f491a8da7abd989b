"""Operators beyond WebNN that model formats need: mod, lrn, resize, if_."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from crossdock.devices.program import Work
from crossdock.kernels import ops_math, reference
from crossdock.kernels.ops_elementwise import broadcast_pair
from crossdock.kernels.ops_resample import Taps, resample
from crossdock.kernels.ops_resize import MODES, NEAREST, POSITIONS, resize_taps
from crossdock.kernels.ops_rules import (
    ANY,
    FLOAT,
    NUMERIC,
    SAMPLED,
    TRUTH,
    choice,
    entry,
    fail,
    flag,
    integer,
    integers,
    like,
    number,
    of,
    reads,
    same_as_first,
    same_dims,
    show,
    size_of,
    some,
)
from crossdock.kernels.ops_work import TRANSCENDENTAL, per_input, pointwise, traffic
from crossdock.kernels.spec import REQUIRED, Attrs, Specs
from crossdock.runtime.errors import FeedError
from crossdock.runtime.graph import Graph
from crossdock.runtime.tensor import TensorSpec, to_numpy

# --- mod ------------------------------------------------------------------------------------------

_MAGNITUDE = "mod(abs({0}), abs({1}))"


def _mod(xp: Any, a: Any, b: Any, *, fmod: bool) -> Any:
    return xp.fmod(a, b) if fmod else xp.mod(a, b)


entry(
    "mod",
    {"a": of(NUMERIC), "b": like("a")},
    attrs={"fmod": False},
    canon=reads("mod", fmod=flag),
    infer=broadcast_pair("mod"),
    run=_mod,
    work=pointwise(4.0),
    expr=lambda attrs: (
        f"{{0}} < 0 ? -{_MAGNITUDE} : {_MAGNITUDE}" if attrs["fmod"] else "mod({0}, {1})"
    ),
    extension=True,
)

# --- local response normalisation -----------------------------------------------------------------


def _lrn(xp: Any, x: Any, *, size: int, alpha: float, beta: float, bias: float) -> Any:
    channels = x.shape[1]
    before = (size - 1) // 2
    padded = xp.zeros((x.shape[0], channels + size - 1, *x.shape[2:]), dtype=x.dtype)
    padded[:, before : before + channels] = x * x
    total = padded[:, :channels]
    for k in range(1, size):
        total = total + padded[:, k : k + channels]
    return x / (bias + (alpha / size) * total) ** beta


def _lrn_steps(b: Any, x: Any, *, size: int, alpha: float, beta: float, bias: float) -> Any:
    """The sum over channels as an average pool down the channel axis, its padding counted."""
    n, channels, *rest = x.shape
    before = (size - 1) // 2
    mean = b.average_pool2d(
        b.reshape(b.mul(x, x), [n, 1, channels, math.prod(rest)]),
        window_dimensions=[size, 1],
        padding=[before, size - 1 - before, 0, 0],
        count_include_pad=True,
    )
    scaled = b.mul(b.reshape(mean, x.shape), b.constant(alpha, x.dtype))
    return b.div(x, b.pow(b.add(scaled, b.constant(bias, x.dtype)), b.constant(beta, x.dtype)))


def _lrn_work(specs: Specs, outs: Sequence[TensorSpec], attrs: Attrs) -> Work:
    return per_input(attrs["size"] + 2 * TRANSCENDENTAL + 4.0)(specs, outs, attrs)


entry(
    "lrn",
    {"input": of(FLOAT, 2)},
    params=("size",),
    attrs={"size": REQUIRED, "alpha": 1e-4, "beta": 0.75, "bias": 1.0},
    canon=reads(
        "lrn", size=lambda o, n, v: integer(o, n, v, 1), alpha=number, beta=number, bias=number
    ),
    infer=same_as_first,
    run=ops_math.widened(_lrn),
    work=_lrn_work,
    decompose=_lrn_steps,
    extension=True,
)

# --- resize ---------------------------------------------------------------------------------------

_RESIZE = {
    "sizes": None,
    "scales": None,
    "axes": None,
    "mode": "nearest",
    "coordinate_transformation_mode": "half_pixel",
    "nearest_mode": "round_prefer_floor",
    "cubic_coeff_a": -0.75,
    "exclude_outside": False,
    "extrapolation_value": 0.0,
    "roi": None,
    "antialias": False,
}


def _resize_canon(specs: Specs, attrs: dict[str, Any]) -> dict[str, Any]:
    op, spec = "resize", some(specs[0])
    given = attrs["axes"]
    axes = tuple(range(spec.rank)) if given is None else integers(op, "axes", given)
    if len(set(axes)) != len(axes) or any(a >= spec.rank for a in axes):
        raise fail(op, f"axes must be distinct axes of input {spec}; it is {list(axes)}")
    positions = choice(
        op,
        "coordinate_transformation_mode",
        attrs["coordinate_transformation_mode"],
        tuple(POSITIONS),
    )
    roi = _floats(op, "roi", attrs["roi"], 2 * len(axes))
    if positions == "tf_crop_and_resize" and roi is None:
        raise fail(op, "tf_crop_and_resize needs roi")
    sizes, scales = _resize_targets(op, spec, axes, attrs, roi)
    return {
        "sizes": sizes,
        "scales": scales,
        "axes": axes,
        "mode": choice(op, "mode", attrs["mode"], MODES),
        "coordinate_transformation_mode": positions,
        "nearest_mode": choice(op, "nearest_mode", attrs["nearest_mode"], tuple(NEAREST)),
        "cubic_coeff_a": number(op, "cubic_coeff_a", attrs["cubic_coeff_a"]),
        "exclude_outside": flag(op, "exclude_outside", attrs["exclude_outside"]),
        "extrapolation_value": number(op, "extrapolation_value", attrs["extrapolation_value"]),
        "roi": roi or (0.0,) * len(axes) + (1.0,) * len(axes),
        "antialias": flag(op, "antialias", attrs["antialias"]),
    }


def _floats(op: str, name: str, value: Any, count: int) -> tuple[float, ...] | None:
    if value is None:
        return None
    found = tuple(number(op, name, v) for v in value)
    if len(found) != count:
        raise fail(op, f"{name} must have {count} values; it is {list(found)}")
    return found


def _resize_targets(
    op: str,
    spec: TensorSpec,
    axes: tuple[int, ...],
    attrs: dict[str, Any],
    roi: tuple[float, ...] | None,
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Output sizes and scales on ``axes``: sizes win; scales alone round down."""
    inputs = [size_of(op, "input", spec, axis) for axis in axes]
    scales = _floats(op, "scales", attrs["scales"], len(axes))
    if attrs["sizes"] is not None:
        sizes = integers(op, "sizes", attrs["sizes"], count=len(axes))
        if scales is None:
            scales = tuple(o / max(s, 1) for o, s in zip(sizes, inputs, strict=True))
        return sizes, scales
    if scales is None:
        raise fail(op, "needs sizes or scales")
    if min(scales, default=1.0) <= 0:
        raise fail(op, f"scales must be positive; it is {list(scales)}")
    crop = attrs["coordinate_transformation_mode"] == "tf_crop_and_resize" and roi is not None
    spans = [roi[len(axes) + i] - roi[i] if crop and roi else 1.0 for i in range(len(axes))]
    return tuple(
        int(n * span * s + 1e-6) for n, span, s in zip(inputs, spans, scales, strict=True)
    ), scales


def _resize_infer(specs: Specs, attrs: Attrs) -> tuple[TensorSpec, ...]:
    spec = some(specs[0])
    shape = list(spec.shape)
    for axis, size in zip(attrs["axes"], attrs["sizes"], strict=True):
        shape[axis] = size
    return (spec.with_shape(shape),)


def _resize(xp: Any, x: Any, **attrs: Any) -> Any:
    taps = {}
    outside = []
    for i, axis in enumerate(attrs["axes"]):
        tap, away = resize_taps(x.shape[axis], i, attrs)
        if x.shape[axis] != attrs["sizes"][i] or not tap.is_identity(x.shape[axis]):
            taps[axis] = tap
        if away.any():
            outside.append((axis, away))
    out = resample(xp, x, taps)
    for axis, away in outside:
        shape = [1] * x.ndim
        shape[axis] = -1
        value = xp.asarray(attrs["extrapolation_value"], dtype=x.dtype)
        out = xp.where(xp.asarray(away).reshape(shape), value, out)
    return out


def _resize_steps(b: Any, x: Any, **attrs: Any) -> Any:
    """Along each axis a product with the matrix of its taps; places outside are blanked after."""
    wide = "float64" if x.dtype == "float64" else "float32"
    plain = wide == x.dtype or attrs["mode"] == "nearest"
    out = x if plain else b.cast(x, wide)
    outside = []
    for i, axis in enumerate(attrs["axes"]):
        tap, away = resize_taps(x.shape[axis], i, attrs)
        if x.shape[axis] != attrs["sizes"][i] or not tap.is_identity(x.shape[axis]):
            out = _resized(b, out, axis, tap)
        if away.any():
            outside.append((axis, away))
    if not plain and x.dtype not in FLOAT:
        limits = np.iinfo(x.dtype)
        out = b.clamp(b.round_even(out), min_value=limits.min, max_value=limits.max)
    out = out if plain else b.cast(out, x.dtype)
    for axis, away in outside:
        shape = [away.size if i == axis else 1 for i in range(len(x.shape))]
        value = b.constant(np.array(attrs["extrapolation_value"]).astype(to_numpy(x.dtype)))
        out = b.where(b.constant(away.astype(np.uint8).reshape(shape)), value, out)
    return out


def _resized(b: Any, x: Any, axis: int, tap: Taps) -> Any:
    """One axis: cells picked where each result is one, else the product with the taps' matrix."""
    if tap.is_copy:
        return b.gather(x, b.constant(tap.cells[:, 0].astype(np.int64)), axis=axis)
    size, out = x.shape[axis], tap.cells.shape[0]
    matrix = np.zeros((size, out))
    np.add.at(matrix, (tap.cells, np.arange(out)[:, None]), tap.weights)
    rest = [i for i in range(len(x.shape)) if i != axis]
    lines = b.transpose(x, permutation=[*rest, axis])
    lines = b.matmul(
        b.reshape(lines, [math.prod(x.shape[i] for i in rest), size]), b.constant(matrix, x.dtype)
    )
    lines = b.reshape(lines, [*(x.shape[i] for i in rest), out])
    order = [*rest, axis]
    return b.transpose(lines, permutation=[order.index(i) for i in range(len(order))])


def _resize_work(specs: Specs, outs: Sequence[TensorSpec], attrs: Attrs) -> Work:
    taps = {"nearest": 0.0, "linear": 8.0, "cubic": 32.0}[attrs["mode"]]
    return traffic(specs, outs, taps * outs[0].size)


entry(
    "resize",
    {"input": of(SAMPLED | ANY)},
    attrs=_RESIZE,
    canon=_resize_canon,
    infer=_resize_infer,
    run=_resize,
    work=_resize_work,
    decompose=_resize_steps,
    extension=True,
)

# --- if_ ------------------------------------------------------------------------------------------


def _branches(attrs: Attrs) -> list[Graph]:
    """The branches that are graphs: a branch may be a text instead, the reason it cannot run."""
    return [b for b in (attrs["then_branch"], attrs["else_branch"]) if isinstance(b, Graph)]


def _if_canon(specs: Specs, attrs: dict[str, Any]) -> dict[str, Any]:
    for name in ("then_branch", "else_branch"):
        graph = attrs[name]
        if isinstance(graph, str) and _branches(attrs):
            continue
        if not isinstance(graph, Graph):
            raise fail("if_", f"{name} must be a Graph; it is {type(graph).__name__}")
        wanted = list(graph.inputs.values())
        given = [some(s) for s in specs[1:]]
        if len(wanted) != len(given) or any(
            w.dtype != g.dtype or not same_dims(w.shape, g.shape)
            for w, g in zip(wanted, given, strict=False)
        ):
            raise fail(
                "if_",
                f"{name} wants inputs {show(wanted)}; the captured operands are {show(given)}",
            )
    return attrs


def _if_infer(specs: Specs, attrs: Attrs) -> tuple[TensorSpec, ...]:
    condition = some(specs[0])
    if condition.is_static and condition.size != 1:
        raise fail("if_", f"condition must hold one element; it is {condition}")
    first, *rest = (list(graph.output_specs.values()) for graph in _branches(attrs))
    for other in rest:
        if len(first) != len(other) or any(
            a.dtype != b.dtype or not same_dims(a.shape, b.shape)
            for a, b in zip(first, other, strict=False)
        ):
            raise fail(
                "if_",
                f"both branches must give the same results; then {show(first)}, else {show(other)}",
            )
    return tuple(first)


def _if(
    xp: Any,
    condition: Any,
    *captured: Any,
    then_branch: Graph | str,
    else_branch: Graph | str,
) -> Any:
    branch = then_branch if bool(condition.reshape(-1)[0]) else else_branch
    if isinstance(branch, str):
        raise FeedError(branch)
    feeds = dict(zip(branch.inputs, captured, strict=True))
    return tuple(reference.evaluate(branch, feeds, xp=xp).values())


def _if_work(specs: Specs, outs: Sequence[TensorSpec], attrs: Attrs) -> Work:
    """The dearer branch."""
    costs = [reference.graph_work(graph) for graph in _branches(attrs)]
    return max(costs, key=lambda w: (w.flops, w.bytes)) + traffic(specs, outs)


entry(
    "if_",
    {"condition": of(TRUTH), "captured*": of(ANY)},
    attrs={"then_branch": REQUIRED, "else_branch": REQUIRED},
    canon=_if_canon,
    infer=_if_infer,
    run=_if,
    work=_if_work,
    extension=True,
    host=True,
    many=True,
)
