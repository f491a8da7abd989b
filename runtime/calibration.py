"""Ops of many shapes, to learn from what kernels cost at shapes never measured.

Shapes are drawn as those of real networks are: channels in steps of eight between 8 and 1024,
images from 7 to 224, windows of 1, 3, 5 and 7, rows of transformers. The draw is the same on every
machine and ordered so that any beginning of it covers all ops.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from crossdock.kernels import table
from crossdock.kernels.spec import OpCall
from crossdock.runtime import passes
from crossdock.runtime.builder import GraphBuilder, Operand
from crossdock.runtime.calls import op_calls

Draw = np.random.Generator
MOST_FLOPS = 3e8
"""Larger products take longer to measure than they teach."""
MOST_BYTES = 16 << 20
MOST_LINE_BYTES = 80 << 20
"""Of a product with one row, whose weights are read once: they are the large ones of networks."""


def calibration_calls(count: int, seed: int = 0) -> Iterator[OpCall]:
    """Yield ``count`` op instances, all families in turn, the more common ones more often."""
    draw = np.random.default_rng(seed)
    order = [make for make, share in FAMILIES.items() for _ in range(share)]
    seen: set[str] = set()
    made = 0
    while made < count:
        for index in draw.permutation(len(order)).tolist():
            call = _call(order[index], draw)
            if call is None or call.key() in seen:
                continue
            seen.add(call.key())
            yield call
            made += 1
            if made == count:
                return


def _call(make: Callable[[GraphBuilder, Draw], Operand], draw: Draw) -> OpCall | None:
    """The op of a graph that has one, after the passes; None where it is too large."""
    b = GraphBuilder()
    graph = passes.run(b.build({"y": make(b, draw)}))
    calls = [c for c in op_calls(graph).values() if not table.op(c.op).alias]
    if len(calls) != 1:
        return None
    call = calls[0]
    work = table.op(call.op).work(call.inputs, call.outputs, call.attrs)
    most = MOST_LINE_BYTES if make is _line else MOST_BYTES
    return call if work.flops <= MOST_FLOPS and work.bytes <= most else None


def _channels(draw: Draw, most: int = 1024) -> int:
    """A number of channels, evenly over the logarithm, mostly a multiple of eight."""
    value = 2.0 ** draw.uniform(3.0, np.log2(most))
    return max(1, round(value / 8) * 8) if draw.random() < 0.9 else max(1, int(value))


def _side(draw: Draw, most: int = 112) -> int:
    return int(
        draw.choice([s for s in (7, 8, 13, 14, 24, 27, 28, 40, 55, 56, 80, 112) if s <= most])
    )


def _weights(b: GraphBuilder, *shape: int) -> Operand:
    return b.constant(np.full(shape, 0.01, np.float32))


def _conv(b: GraphBuilder, draw: Draw) -> Operand:
    window = int(draw.choice((1, 1, 1, 3, 3, 3, 5, 7)))
    side, stride = _side(draw), int(draw.choice((1, 1, 1, 2)))
    groups = int(draw.choice((1, 1, 1, 1, 1, 4)))
    inside = _channels(draw) if draw.random() < 0.9 else 3
    outside = _channels(draw)
    if groups > 1:
        inside, outside = -(-inside // groups) * groups, -(-outside // groups) * groups
    wide = side if draw.random() < 0.8 else side * 2
    x = b.input("x", (1, inside, side, wide))
    bias = _weights(b, outside) if draw.random() < 0.7 else None
    pad = window // 2
    return b.conv2d(
        x, _weights(b, outside, inside // groups, window, window), bias=bias,
        padding=[pad] * 4, strides=[stride, stride], groups=groups,
    )  # fmt: skip


def _depthwise(b: GraphBuilder, draw: Draw) -> Operand:
    channels, side = _channels(draw), _side(draw)
    wide = side * int(draw.choice((1, 1, 1, 2, 4)))
    window, stride = int(draw.choice((3, 3, 5))), int(draw.choice((1, 1, 2)))
    return b.conv2d(
        b.input("x", (1, channels, side, wide)),
        _weights(b, channels, 1, window, window),
        bias=_weights(b, channels),
        padding=[window // 2] * 4, strides=[stride, stride], groups=channels,
    )  # fmt: skip


def _pool(b: GraphBuilder, draw: Draw) -> Operand:
    x = b.input("x", (1, _channels(draw), _side(draw), _side(draw)))
    window, stride = int(draw.choice((2, 3, 3))), int(draw.choice((1, 2, 2)))
    run = b.max_pool2d if draw.random() < 0.6 else b.average_pool2d
    pad = int(draw.integers(0, 1 + window // 2))
    return run(x, window_dimensions=[window] * 2, strides=[stride] * 2, padding=[pad] * 4)


def _gemm(b: GraphBuilder, draw: Draw) -> Operand:
    rows = int(2.0 ** draw.uniform(0.0, 9.0))
    deep, columns = _channels(draw, 4096), _channels(draw, 4096)
    turned = draw.random() < 0.5
    w = _weights(b, columns, deep) if turned else _weights(b, deep, columns)
    c = _weights(b, columns) if draw.random() < 0.7 else None
    return b.gemm(b.input("x", (rows, deep)), w, c=c, b_transpose=turned)


def _line(b: GraphBuilder, draw: Draw) -> Operand:
    deep, columns = _channels(draw, 16384), _channels(draw, 4096)
    w = _weights(b, columns, deep)
    return b.gemm(b.input("x", (1, deep)), w, c=_weights(b, columns), b_transpose=True)


def _heads(b: GraphBuilder, draw: Draw) -> Operand:
    heads, rows = int(draw.choice((2, 4, 8, 12))), int(2.0 ** draw.uniform(3.0, 9.0))
    deep = int(draw.choice((15, 16, 32, 64, 80)))
    q, k = (1, heads, rows, deep), (1, heads, deep, rows)
    if draw.random() < 0.5:
        return b.matmul(b.input("q", q), b.input("k", k))
    return b.matmul(b.input("p", (1, heads, rows, rows)), b.input("v", q))


def _matmul(b: GraphBuilder, draw: Draw) -> Operand:
    batch = int(draw.choice((1, 1, 4, 12)))
    rows, deep = int(2.0 ** draw.uniform(0.0, 9.0)), _channels(draw, 2048)
    columns = _channels(draw, 2048)
    x = b.input("x", (batch, rows, deep))
    if draw.random() < 0.5:
        return b.matmul(x, b.input("w", (batch, deep, columns)))
    return b.matmul(x, _weights(b, deep, columns))


def _elements(draw: Draw) -> tuple[int, ...]:
    kind = draw.random()
    if kind < 0.3:
        return (1, int(2.0 ** draw.uniform(3.0, 10.0)), _channels(draw))
    if kind < 0.4:
        return (1, _channels(draw), 1, 1)
    if kind < 0.5:
        return (1, int(2.0 ** draw.uniform(0.0, 6.0)), int(2.0 ** draw.uniform(0.0, 8.0)))
    side = _side(draw)
    return (1, _channels(draw), side, side)


def _elementwise(b: GraphBuilder, draw: Draw) -> Operand:
    shape = _elements(draw)
    y = b.input("x", shape)
    for k in range(int(draw.integers(1, 5))):
        kind = int(draw.integers(0, 10))
        if kind == 8:
            y = b.div(
                b.mul(y, b.clamp(b.add(y, b.constant(np.float32(3))))), b.constant(np.float32(6))
            )
        elif kind == 9:
            y = b.hard_sigmoid(y)
        elif kind < 2:
            y = b.relu(y)
        elif kind < 4:
            y = b.add(y, b.input(f"a{k}", shape))
        elif kind == 4:
            y = b.mul(y, _weights(b, shape[1], *(1,) * (len(shape) - 2)))
        elif kind == 5:
            y = b.mul(y, b.sigmoid(y))
        elif kind == 6:
            y = b.clamp(y, min_value=0.0, max_value=6.0)
        else:
            y = b.tanh(y)
    return y


def _norm(b: GraphBuilder, draw: Draw) -> Operand:
    rows, width = int(2.0 ** draw.uniform(0.0, 9.0)), _channels(draw)
    x = b.input("x", (1, rows, width))
    if draw.random() < 0.5:
        return b.softmax(x, 2)
    return b.layer_normalization(x, scale=_weights(b, width), bias=_weights(b, width), axes=[2])


def _batch_norm(b: GraphBuilder, draw: Draw) -> Operand:
    shape = (1, _channels(draw), _side(draw), _side(draw))
    mean, scale = _weights(b, shape[1]), _weights(b, shape[1])
    return b.batch_normalization(b.input("x", shape), mean, scale, scale=scale, bias=mean)


def _reduce(b: GraphBuilder, draw: Draw) -> Operand:
    shape = _elements(draw)
    axes = [2, 3] if len(shape) == 4 else [2]
    runs = (b.reduce_mean, b.reduce_mean, b.reduce_max, b.reduce_sum, b.reduce_min)
    run = runs[int(draw.integers(0, len(runs)))]
    return run(b.input("x", shape), axes=axes, keep_dimensions=True)


def _transpose(b: GraphBuilder, draw: Draw) -> Operand:
    shape = _elements(draw)
    orders = (
        ((0, 2, 3, 1), (0, 3, 1, 2), (0, 2, 1, 3)) if len(shape) == 4 else ((0, 2, 1), (1, 0, 2))
    )
    order = orders[int(draw.integers(0, len(orders)))]
    return b.transpose(b.input("x", shape), permutation=list(order))


def _shuffle(b: GraphBuilder, draw: Draw) -> Operand:
    """Rows of the last axes change places: channels between groups, heads and positions."""
    if draw.random() < 0.5:
        groups, side = int(draw.choice((2, 3, 4, 8))), _side(draw)
        shape = (1, groups, max(1, _channels(draw, 512) // groups), side, side)
        return b.transpose(b.input("x", shape), permutation=[0, 2, 1, 3, 4])
    heads, deep = int(draw.choice((4, 8, 12))), int(draw.choice((15, 16, 32, 64)))
    rows = int(2.0 ** draw.uniform(3.0, 9.0))
    order = [0, 2, 1, 3] if draw.random() < 0.6 else [0, 2, 3, 1]
    return b.transpose(b.input("x", (1, rows, heads, deep)), permutation=order)


def _concat(b: GraphBuilder, draw: Draw) -> Operand:
    shape = list(_elements(draw))
    parts = [_channels(draw, 256) for _ in range(int(draw.integers(2, 5)))]
    return b.concat(
        [b.input(f"x{k}", (shape[0], part, *shape[2:])) for k, part in enumerate(parts)], 1
    )


def _pad(b: GraphBuilder, draw: Draw) -> Operand:
    mode = "constant" if draw.random() < 0.6 else "reflection"
    if draw.random() < 0.3:
        edge = [0, 0, int(draw.choice((16, 64, 128)))]
        x = b.input("x", (1, 1, int(2.0 ** draw.uniform(8.0, 15.0))))
        return b.pad(x, edge, edge, mode=mode)
    shape = (1, _channels(draw), _side(draw), _side(draw))
    edge = [0, 0, int(draw.integers(0, 3)), int(draw.integers(1, 3))]
    return b.pad(b.input("x", shape), edge, edge, mode=mode)


def _slice(b: GraphBuilder, draw: Draw) -> Operand:
    shape = _elements(draw)
    half = [shape[0], max(1, shape[1] // 2), *shape[2:]]
    return b.slice(b.input("x", shape), [0] * len(shape), half)


def _resample(b: GraphBuilder, draw: Draw) -> Operand:
    side = _side(draw, 56)
    mode = "linear" if draw.random() < 0.5 else "nearest-neighbor"
    x = b.input("x", (1, _channels(draw, 256), side, side * int(draw.choice((1, 1, 2, 4)))))
    scale = float(draw.choice((2.0, 2.0, 4.0, 8.0)))
    return b.resample2d(x, mode=mode, scales=[scale, scale])


FAMILIES: dict[Callable[[GraphBuilder, Draw], Operand], int] = {
    _conv: 8,
    _depthwise: 2,
    _pool: 2,
    _gemm: 3,
    _line: 1,
    _matmul: 2,
    _heads: 1,
    _elementwise: 6,
    _norm: 2,
    _batch_norm: 1,
    _reduce: 2,
    _transpose: 1,
    _shuffle: 1,
    _concat: 1,
    _slice: 1,
    _pad: 1,
    _resample: 1,
}
"""Families and how often each is drawn."""
