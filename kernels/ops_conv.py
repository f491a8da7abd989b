"""conv2d and conv_transpose2d: im2col and col2im around one batched matrix product.

Layouts are handled by transposing views to NCHW and OIHW (IOHW for the transposed one). Half
precision is accumulated in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from crossdock.devices.program import Work
from crossdock.kernels import ops_math
from crossdock.kernels.ops_rules import (
    FLOAT,
    choice,
    entry,
    fail,
    integer,
    integers,
    like,
    must_be,
    of,
    size_of,
    some,
)
from crossdock.kernels.ops_window import (
    Image,
    fitted,
    from_nchw,
    output_size,
    reach,
    shifted,
    spatial_sizes,
    to_nchw,
    window_attrs,
)
from crossdock.kernels.ops_work import traffic
from crossdock.kernels.spec import Attrs, Specs
from crossdock.runtime.tensor import TensorSpec

FILTER_AXES = {
    "oihw": (0, 1, 2, 3),
    "hwio": (3, 2, 0, 1),
    "ohwi": (0, 3, 1, 2),
    "ihwo": (3, 0, 1, 2),
}
"""For each conv2d filter layout, where the axes O, I, H, W stand."""

TRANSPOSED_FILTER_AXES = {
    "iohw": (0, 1, 2, 3),
    "hwoi": (3, 2, 0, 1),
    "ohwi": (3, 0, 1, 2),
}
"""For each conv_transpose2d filter layout, where the axes I, O, H, W stand."""

OPERANDS = {
    "input": of(FLOAT, 4, 4),
    "filter": like("input", 4, 4),
    "bias?": like("input", 1, 1),
}
COMMON = {
    "padding": None,
    "strides": None,
    "dilations": None,
    "groups": 1,
    "input_layout": "nchw",
}


def conv2d_filter(op: str, spec: TensorSpec, axes: tuple[int, ...]) -> tuple[int, ...]:
    """Filter sizes in the order of ``axes``."""
    return tuple(size_of(op, "filter", spec, axis) for axis in axes)


def _bias(specs: Specs) -> TensorSpec | None:
    return specs[2] if len(specs) > 2 else None


# --- conv2d ---------------------------------------------------------------------------------------


def conv2d_canon(
    specs: Specs,  # noqa: ARG001 - Canon
    attrs: dict[str, Any],
    op: str = "conv2d",
) -> dict[str, Any]:
    """Read the attributes; ``op`` is who is checked."""
    attrs = window_attrs(op, attrs, "input_layout")
    return attrs | {
        "groups": integer(op, "groups", attrs["groups"], 1),
        "filter_layout": choice(op, "filter_layout", attrs["filter_layout"], tuple(FILTER_AXES)),
    }


def conv2d_infer(specs: Specs, attrs: Attrs, op: str = "conv2d") -> tuple[TensorSpec, ...]:
    """The result's spec; ``op`` is who is checked."""
    groups = attrs["groups"]
    spec, weights = some(specs[0]), some(specs[1])
    image = Image.of(spec, attrs["input_layout"])
    out, per_group, *window = conv2d_filter(op, weights, FILTER_AXES[attrs["filter_layout"]])
    if isinstance(image.channels, int) and image.channels != per_group * groups:
        raise fail(
            op,
            f"the filter's input channels times groups must be the input's channels; {per_group} x "
            f"{groups} is not {image.channels} (input {spec}, filter {weights})",
        )
    if out % groups:
        raise fail(op, f"groups {groups} must divide the filter's output channels {out}")
    must_be(op, "bias", _bias(specs), (out,))
    top, bottom, left, right = attrs["padding"]
    sizes = spatial_sizes(op, spec, attrs["input_layout"])
    pads = ((top, bottom), (left, right))
    height, width = (
        output_size(
            op, sizes[i], window[i], *pads[i], attrs["strides"][i], attrs["dilations"][i], up=False
        )
        for i in range(2)
    )
    result = Image(image.batch, out, height, width)
    return (spec.with_shape(result.shape(attrs["input_layout"])),)


def _conv_work(specs: Specs, outs: Sequence[TensorSpec], attrs: Attrs) -> Work:
    _, per_group, kh, kw = conv2d_filter(
        "conv2d", some(specs[1]), FILTER_AXES[attrs["filter_layout"]]
    )
    bias = float(outs[0].size) if _bias(specs) is not None else 0.0
    return traffic(specs, outs, 2.0 * outs[0].size * per_group * kh * kw + bias)


def conv2d_run(xp: Any, x: Any, w: Any, bias: Any, **attrs: Any) -> Any:
    """The convolution of float arrays, in their type."""
    x = to_nchw(x, attrs["input_layout"])
    w = xp.transpose(w, FILTER_AXES[attrs["filter_layout"]])
    groups, (out_channels, per_group, kh, kw) = attrs["groups"], w.shape
    window = {**attrs, "window": (kh, kw)}
    pads = attrs["padding"]
    out = tuple(
        (x.shape[2 + i] + pads[2 * i] + pads[2 * i + 1] - reach(w.shape[2 + i], d)) // s + 1
        for i, (s, d) in enumerate(zip(attrs["strides"], attrs["dilations"], strict=True))
    )
    x = fitted(xp, x, window, out, 0)
    columns = xp.empty((x.shape[0], groups, per_group, kh, kw, *out), dtype=x.dtype)
    for i, j, view in shifted(x, window, out):
        columns[:, :, :, i, j] = view.reshape(x.shape[0], groups, per_group, *out)
    columns = columns.reshape(x.shape[0], groups, per_group * kh * kw, out[0] * out[1])
    y = xp.matmul(w.reshape(groups, out_channels // groups, per_group * kh * kw), columns)
    y = y.reshape(x.shape[0], out_channels, *out)
    if bias is not None:
        y = y + bias.reshape(1, -1, 1, 1)
    return from_nchw(y, attrs["input_layout"])


entry(
    "conv2d",
    OPERANDS,
    attrs=COMMON | {"filter_layout": "oihw"},
    canon=conv2d_canon,
    infer=conv2d_infer,
    run=ops_math.widened(conv2d_run),
    work=_conv_work,
)

# --- conv_transpose2d -----------------------------------------------------------------------------


def _transposed_sizes(specs: Specs, attrs: Attrs) -> list[int]:
    """Output sizes without output padding."""
    op = "conv_transpose2d"
    layout = attrs["input_layout"]
    _, _, *window = conv2d_filter(
        op, some(specs[1]), TRANSPOSED_FILTER_AXES[attrs["filter_layout"]]
    )
    pads = attrs["padding"]
    return [
        (size - 1) * attrs["strides"][i]
        + reach(window[i], attrs["dilations"][i])
        - pads[2 * i]
        - pads[2 * i + 1]
        for i, size in enumerate(spatial_sizes(op, some(specs[0]), layout))
    ]


def _transposed_canon(specs: Specs, attrs: dict[str, Any]) -> dict[str, Any]:
    op = "conv_transpose2d"
    attrs = window_attrs(op, attrs, "input_layout")
    attrs["groups"] = integer(op, "groups", attrs["groups"], 1)
    attrs["filter_layout"] = choice(
        op, "filter_layout", attrs["filter_layout"], tuple(TRANSPOSED_FILTER_AXES)
    )
    extra = attrs["output_padding"]
    extra = (0, 0) if extra is None else integers(op, "output_padding", extra, count=2)
    base = _transposed_sizes(specs, attrs)
    if attrs["output_sizes"] is None:
        _check_output_padding(extra, attrs["strides"])
        sizes = tuple(b + e for b, e in zip(base, extra, strict=True))
    else:
        sizes = integers(op, "output_sizes", attrs["output_sizes"], count=2, low=1)
        _check_output_sizes(sizes, base, attrs["strides"])
    if min(sizes) < 1:
        raise fail(op, f"padding {attrs['padding']} leaves no output ({list(sizes)})")
    padding = tuple(s - b for s, b in zip(sizes, base, strict=True))
    return attrs | {"output_sizes": sizes, "output_padding": padding}


def _check_output_padding(extra: tuple[int, ...], strides: tuple[int, ...]) -> None:
    for name, pad, stride in zip(("height", "width"), extra, strides, strict=True):
        if pad >= stride:
            raise fail(
                "conv_transpose2d",
                f"output_padding must be smaller than strides; for the {name} it is {pad} with "
                f"stride {stride}",
            )


def _check_output_sizes(sizes: tuple[int, ...], base: list[int], strides: tuple[int, ...]) -> None:
    for name, size, least, stride in zip(("height", "width"), sizes, base, strides, strict=True):
        if not least <= size < least + stride:
            raise fail(
                "conv_transpose2d",
                f"output_sizes {name} must be {least} to {least + stride - 1}; it is {size}",
            )


def _transposed_infer(specs: Specs, attrs: Attrs) -> tuple[TensorSpec, ...]:
    op, groups = "conv_transpose2d", attrs["groups"]
    spec, weights = some(specs[0]), some(specs[1])
    image = Image.of(spec, attrs["input_layout"])
    channels, per_group, *_ = conv2d_filter(
        op, weights, TRANSPOSED_FILTER_AXES[attrs["filter_layout"]]
    )
    if isinstance(image.channels, int) and image.channels != channels:
        raise fail(
            op,
            f"the filter's input channels must be the input's channels; {channels} is not "
            f"{image.channels} (input {spec}, filter {weights})",
        )
    if channels % groups:
        raise fail(op, f"groups {groups} must divide the input's channels {channels}")
    must_be(op, "bias", _bias(specs), (per_group * groups,))
    result = Image(image.batch, per_group * groups, *attrs["output_sizes"])
    return (spec.with_shape(result.shape(attrs["input_layout"])),)


def _transposed_work(specs: Specs, outs: Sequence[TensorSpec], attrs: Attrs) -> Work:
    axes = TRANSPOSED_FILTER_AXES[attrs["filter_layout"]]
    _, per_group, kh, kw = conv2d_filter("conv_transpose2d", some(specs[1]), axes)
    return traffic(specs, outs, 2.0 * some(specs[0]).size * per_group * kh * kw)


def _transposed(xp: Any, x: Any, w: Any, bias: Any, **attrs: Any) -> Any:
    x = to_nchw(x, attrs["input_layout"])
    w = xp.transpose(w, TRANSPOSED_FILTER_AXES[attrs["filter_layout"]])
    groups, (channels, per_group, kh, kw) = attrs["groups"], w.shape
    n, _, height, width = x.shape
    left = w.reshape(groups, channels // groups, per_group * kh * kw).transpose(0, 2, 1)
    right = x.reshape(n, groups, channels // groups, height * width)
    columns = xp.matmul(left, right).reshape(n, groups * per_group, kh, kw, height, width)
    top, _, before, _ = attrs["padding"]
    size = [
        max(
            (count - 1) * attrs["strides"][i] + reach(w.shape[2 + i], attrs["dilations"][i]),
            begin + attrs["output_sizes"][i],
        )
        for i, (count, begin) in enumerate(((height, top), (width, before)))
    ]
    full = xp.zeros((n, groups * per_group, *size), dtype=x.dtype)
    for i, j, view in shifted(full, {**attrs, "window": (kh, kw)}, (height, width)):
        view += columns[:, :, i, j]
    rows, cols = attrs["output_sizes"]
    y = full[:, :, top : top + rows, before : before + cols]
    if bias is not None:
        y = y + bias.reshape(1, -1, 1, 1)
    return from_nchw(y, attrs["input_layout"])


entry(
    "conv_transpose2d",
    OPERANDS,
    attrs=COMMON | {"filter_layout": "iohw", "output_padding": None, "output_sizes": None},
    canon=_transposed_canon,
    infer=_transposed_infer,
    run=ops_math.widened(_transposed),
    work=_transposed_work,
)
