"""average_pool2d, l2_pool2d, max_pool2d and resample2d.

Padded cells are no part of an average unless the extension attribute ``count_include_pad`` is set
(cells that only rounding up reaches never are).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from crossdock.devices.program import Work
from crossdock.kernels import ops_math
from crossdock.kernels.ops_resample import Taps, resample, source_positions
from crossdock.kernels.ops_rules import (
    ANY,
    FLOAT,
    SAMPLED,
    choice,
    entry,
    fail,
    flag,
    integers,
    number,
    of,
    size_of,
    some,
)
from crossdock.kernels.ops_window import (
    Image,
    fitted,
    from_nchw,
    output_size,
    shifted,
    spatial_sizes,
    to_nchw,
    window_attrs,
)
from crossdock.kernels.ops_work import product, traffic
from crossdock.kernels.spec import Attrs, Specs
from crossdock.runtime.tensor import TensorSpec

POOL = {
    "window_dimensions": None,
    "padding": None,
    "strides": None,
    "dilations": None,
    "layout": "nchw",
    "output_shape_rounding": "floor",
    "output_sizes": None,
}


def _pool_canon(op: str, specs: Specs, attrs: dict[str, Any]) -> dict[str, Any]:
    attrs = window_attrs(op, attrs)
    spec = some(specs[0])
    sizes = spatial_sizes(op, spec, attrs["layout"])
    given = attrs["window_dimensions"]
    window = sizes if given is None else integers(op, "window_dimensions", given, count=2, low=1)
    rounding = choice(
        op, "output_shape_rounding", attrs["output_shape_rounding"], ("floor", "ceil")
    )
    pads = attrs["padding"]
    floor, ceil = (
        tuple(
            output_size(
                op,
                sizes[i],
                window[i],
                pads[2 * i],
                pads[2 * i + 1],
                attrs["strides"][i],
                attrs["dilations"][i],
                up=up,
            )
            for i in range(2)
        )
        for up in (False, True)
    )
    wanted = attrs["output_sizes"]
    if wanted is None:
        out = ceil if rounding == "ceil" else floor
    else:
        out = integers(op, "output_sizes", wanted, count=2, low=1)
        if any(o not in (f, c) for o, f, c in zip(out, floor, ceil, strict=True)):
            raise fail(
                op,
                f"output_sizes must be {list(floor)} (rounded down) or {list(ceil)} (rounded up); "
                f"it is {list(out)}",
            )
    return attrs | {
        "window_dimensions": window,
        "output_shape_rounding": rounding,
        "output_sizes": out,
    }


def _pool_infer(specs: Specs, attrs: Attrs) -> tuple[TensorSpec, ...]:
    spec, layout = some(specs[0]), attrs["layout"]
    image = Image.of(spec, layout)
    return (
        spec.with_shape(Image(image.batch, image.channels, *attrs["output_sizes"]).shape(layout)),
    )


def _pool_work(specs: Specs, outs: Sequence[TensorSpec], attrs: Attrs) -> Work:
    return traffic(specs, outs, float(outs[0].size * product(attrs["window_dimensions"])))


def _views(xp: Any, x: Any, attrs: Attrs, fill: float) -> Any:
    """The shifted views of the padded NCHW image, one for each window cell."""
    window = {**attrs, "window": attrs["window_dimensions"]}
    out = attrs["output_sizes"]
    return (view for _, _, view in shifted(fitted(xp, x, window, out, fill), window, out))


def _counts(xp: Any, x: Any, attrs: Attrs) -> Any:
    """How many cells each window counts: those of the input, or of the padded input."""
    top, bottom, left, right = attrs["padding"]
    padded = attrs["count_include_pad"]
    spans = ((x.shape[2], top, bottom), (x.shape[3], left, right))
    along = []
    for i, (size, begin, end) in enumerate(spans):
        low, high = (0, begin + size + end) if padded else (begin, begin + size)
        cells = np.arange(attrs["window_dimensions"][i]) * attrs["dilations"][i]
        at = np.arange(attrs["output_sizes"][i])[:, None] * attrs["strides"][i] + cells
        along.append(((at >= low) & (at < high)).sum(axis=1))
    count = np.maximum(np.outer(*along), 1)
    return xp.asarray(count.astype(x.dtype if x.dtype.kind == "f" else "float32"))


def _average(xp: Any, x: Any, **attrs: Any) -> Any:
    x = to_nchw(x, attrs["layout"])
    total = sum(_views(xp, x, attrs, 0))
    return from_nchw(total / _counts(xp, x, attrs), attrs["layout"])


def _l2(xp: Any, x: Any, **attrs: Any) -> Any:
    x = to_nchw(x, attrs["layout"])
    return from_nchw(xp.sqrt(sum(v * v for v in _views(xp, x, attrs, 0))), attrs["layout"])


def _lowest(dtype: Any) -> Any:
    if dtype.kind in "iu":
        return np.iinfo(dtype).min
    return False if dtype.kind == "b" else -np.inf


def _max(xp: Any, x: Any, **attrs: Any) -> Any:
    x = to_nchw(x, attrs["layout"])
    views = _views(xp, x, attrs, _lowest(x.dtype))
    out = next(views).copy()
    for view in views:
        out = xp.maximum(out, view)
    return from_nchw(out, attrs["layout"])


def _pool(
    name: str, run: Callable[..., Any], dtypes: frozenset[str], attrs: dict[str, Any]
) -> None:
    def canon(specs: Specs, given: dict[str, Any]) -> dict[str, Any]:
        for extra in attrs:
            flag(name, extra, given[extra])
        return _pool_canon(name, specs, given)

    entry(
        name,
        {"input": of(dtypes, 4, 4)},
        attrs=POOL | attrs,
        canon=canon,
        infer=_pool_infer,
        run=ops_math.widened(run),
        work=_pool_work,
    )


_pool("average_pool2d", _average, FLOAT, {"count_include_pad": False})
_pool("l2_pool2d", _l2, FLOAT, {})
_pool("max_pool2d", _max, ANY, {})

# --- resample2d -----------------------------------------------------------------------------------


def _resample_canon(specs: Specs, attrs: dict[str, Any]) -> dict[str, Any]:
    op, spec = "resample2d", some(specs[0])
    axes = (2, 3) if attrs["axes"] is None else integers(op, "axes", attrs["axes"], count=2)
    if axes[1] != axes[0] + 1 or axes[1] >= spec.rank:
        raise fail(op, f"axes must be two consecutive axes of the input; it is {list(axes)}")
    mode = choice(op, "mode", attrs["mode"], ("nearest-neighbor", "linear"))
    sizes = tuple(size_of(op, "input", spec, axis) for axis in axes)
    if attrs["sizes"] is not None:
        out = integers(op, "sizes", attrs["sizes"], count=2, low=1)
    else:
        out = _scaled(op, sizes, attrs["scales"])
    scales = tuple(o / s for o, s in zip(out, sizes, strict=True))
    return {"mode": mode, "scales": scales, "sizes": out, "axes": axes}


def _scaled(op: str, sizes: tuple[int, ...], scales: Any) -> tuple[int, ...]:
    if scales is None:
        return sizes
    if not isinstance(scales, list | tuple) or len(scales) != 2:
        raise fail(op, f"scales must have 2 values; it is {scales!r}")
    factors = [number(op, "scales", s) for s in scales]
    if min(factors) <= 0:
        raise fail(op, f"scales must be positive; it is {factors}")
    out = tuple(int(s * f) for s, f in zip(sizes, factors, strict=True))
    if min(out) < 1:
        raise fail(op, f"scales {factors} leave nothing of {list(sizes)}")
    return out


def _resample_infer(specs: Specs, attrs: Attrs) -> tuple[TensorSpec, ...]:
    spec = some(specs[0])
    shape = list(spec.shape)
    for axis, size in zip(attrs["axes"], attrs["sizes"], strict=True):
        shape[axis] = size
    return (spec.with_shape(shape),)


def taps_of(size: int, out: int, mode: str) -> Taps:
    """Source cells and weights of each output cell along one axis of resample2d."""
    at = np.clip(source_positions(out, out / size), 0, size - 1)
    if mode == "nearest-neighbor":
        return Taps(np.ceil(at - 0.5).astype(np.int64)[:, None], np.ones((out, 1)))
    low = np.floor(at).astype(np.int64)
    part = at - low
    cells = np.stack((low, np.minimum(low + 1, size - 1)), axis=1)
    return Taps(cells, np.stack((1 - part, part), axis=1))


def _resample(xp: Any, x: Any, **attrs: Any) -> Any:
    axes = zip(attrs["axes"], attrs["sizes"], strict=True)
    taps = {axis: taps_of(x.shape[axis], size, attrs["mode"]) for axis, size in axes}
    return resample(xp, x, taps)


def _resample_work(specs: Specs, outs: Sequence[TensorSpec], attrs: Attrs) -> Work:
    return traffic(specs, outs, outs[0].size * (8.0 if attrs["mode"] == "linear" else 0.0))


entry(
    "resample2d",
    {"input": of(SAMPLED, 4, 4)},
    attrs={"mode": "nearest-neighbor", "scales": None, "sizes": None, "axes": None},
    canon=_resample_canon,
    infer=_resample_infer,
    run=_resample,
    work=_resample_work,
)
