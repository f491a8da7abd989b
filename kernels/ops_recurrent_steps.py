"""lstm and gru as other ops: one cell a step, a cell as products of its gates."""

from __future__ import annotations

from typing import Any


def _rows(b: Any, x: Any, gate: int, hidden: int) -> Any:
    """The rows of one gate of stacked weights or biases; None stays None."""
    if x is None:
        return None
    starts, sizes = [0] * len(x.shape), list(x.shape)
    starts[0], sizes[0] = gate * hidden, hidden
    return b.slice(x, starts, sizes)


def _affine(b: Any, x: Any, weight: Any, bias: Any) -> Any:
    out = b.matmul(x, b.transpose(weight))
    return out if bias is None else b.add(out, bias)


def _activate(b: Any, name: str, x: Any) -> Any:
    return getattr(b, name)(x)


def lstm_cell_steps(
    b: Any,
    x: Any,
    weight: Any,
    recurrent: Any,
    h: Any,
    c: Any,
    bias: Any,
    recurrent_bias: Any,
    peephole: Any,
    *,
    hidden_size: int,
    layout: str,
    activations: tuple[str, ...],
) -> Any:
    """One lstm step from matmul, add, mul and activations."""

    def gate(name: str) -> Any:
        k = layout.index(name)
        w, r, wb, rb = (
            _rows(b, v, k, hidden_size) for v in (weight, recurrent, bias, recurrent_bias)
        )
        total = b.add(_affine(b, x, w, wb), _affine(b, h, r, rb))
        if peephole is not None and name in "iof":
            total = b.add(total, b.mul(c, _rows(b, peephole, "iof".index(name), hidden_size)))
        return _activate(b, activations[1 if name == "g" else 0], total)

    fresh = b.add(b.mul(gate("f"), c), b.mul(gate("i"), gate("g")))
    return b.mul(gate("o"), _activate(b, activations[2], fresh)), fresh


def gru_cell_steps(
    b: Any,
    x: Any,
    weight: Any,
    recurrent: Any,
    h: Any,
    bias: Any,
    recurrent_bias: Any,
    *,
    hidden_size: int,
    reset_after: bool,
    layout: str,
    activations: tuple[str, ...],
) -> Any:
    """One gru step from matmul, add, mul and activations."""

    def parts(name: str) -> tuple[Any, Any, Any]:
        k = layout.index(name)
        w, r, wb, rb = (
            _rows(b, v, k, hidden_size) for v in (weight, recurrent, bias, recurrent_bias)
        )
        return _affine(b, x, w, wb), r, rb

    def total(name: str) -> Any:
        drive, rows, row_bias = parts(name)
        return b.add(drive, _affine(b, h, rows, row_bias))

    update = total("z")
    z, r = _activate(b, activations[0], update), _activate(b, activations[0], total("r"))
    drive, rows, row_bias = parts("n")
    if reset_after:
        pull = b.mul(r, _affine(b, h, rows, row_bias))
    else:
        pull = _affine(b, b.mul(r, h), rows, row_bias)
    n = _activate(b, activations[1], b.add(drive, pull))
    if activations[0] == "sigmoid":
        keep = b.sigmoid(b.neg(update))
    else:
        keep = b.sub(b.constant(1, x.dtype), z)
    return b.add(b.mul(z, h), b.mul(keep, n))


def _part(b: Any, x: Any, index: int) -> Any:
    """Element ``index`` along the first axis, which goes away."""
    if x is None:
        return None
    sizes = [1, *x.shape[1:]]
    return b.reshape(b.slice(x, [index, *[0] * (len(x.shape) - 1)], sizes), x.shape[1:])


def _stack(b: Any, parts: list[Any]) -> Any:
    """Operands stacked along a new first axis."""
    return b.concat([b.reshape(p, [1, *p.shape]) for p in parts], 0)


def _zeros(b: Any, x: Any, hidden: int) -> Any:
    return b.expand(b.constant(0, x.dtype), [x.shape[1], hidden])


def _order(direction: str, d: int, steps: int) -> list[int]:
    times = list(range(steps))
    return times[::-1] if direction == "backward" or d == 1 else times


def lstm_steps(
    b: Any,
    x: Any,
    weight: Any,
    recurrent: Any,
    bias: Any,
    recurrent_bias: Any,
    peephole: Any,
    h0: Any,
    c0: Any,
    *,
    steps: int,
    hidden_size: int,
    return_sequence: bool,
    direction: str,
    layout: str,
    activations: tuple[str, ...],
) -> Any:
    """Lstm as a cell a step and direction."""
    ends: list[tuple[Any, Any]] = []
    rows: list[list[Any]] = [[None] * weight.shape[0] for _ in range(steps)]
    for d in range(weight.shape[0]):
        h = _part(b, h0, d) or _zeros(b, x, hidden_size)
        c = _part(b, c0, d) or _zeros(b, x, hidden_size)
        for t in _order(direction, d, steps):
            h, c = b.lstm_cell(
                _part(b, x, t),
                _part(b, weight, d),
                _part(b, recurrent, d),
                h,
                c,
                hidden_size,
                bias=_part(b, bias, d),
                recurrent_bias=_part(b, recurrent_bias, d),
                peephole_weight=_part(b, peephole, d),
                layout=layout,
                activations=activations,
            )
            rows[t][d] = h
        ends.append((h, c))
    result = (_stack(b, [h for h, _ in ends]), _stack(b, [c for _, c in ends]))
    return (*result, _stack(b, [_stack(b, r) for r in rows])) if return_sequence else result


def gru_steps(
    b: Any,
    x: Any,
    weight: Any,
    recurrent: Any,
    bias: Any,
    recurrent_bias: Any,
    h0: Any,
    *,
    steps: int,
    hidden_size: int,
    reset_after: bool,
    return_sequence: bool,
    direction: str,
    layout: str,
    activations: tuple[str, ...],
) -> Any:
    """Gru as a cell a step and direction."""
    ends: list[Any] = []
    rows: list[list[Any]] = [[None] * weight.shape[0] for _ in range(steps)]
    for d in range(weight.shape[0]):
        h = _part(b, h0, d) or _zeros(b, x, hidden_size)
        for t in _order(direction, d, steps):
            h = b.gru_cell(
                _part(b, x, t),
                _part(b, weight, d),
                _part(b, recurrent, d),
                h,
                hidden_size,
                bias=_part(b, bias, d),
                recurrent_bias=_part(b, recurrent_bias, d),
                reset_after=reset_after,
                layout=layout,
                activations=activations,
            )
            rows[t][d] = h
        ends.append(h)
    last = _stack(b, ends)
    return (last, _stack(b, [_stack(b, r) for r in rows])) if return_sequence else (last,)
