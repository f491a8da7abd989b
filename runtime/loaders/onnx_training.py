"""One step of an optimiser: Adagrad, Adam and Momentum of ai.onnx.preview.training.

Formulas of ONNX operators.md. R is the learning rate, T the number of updates so far; then come all
tensors X to be optimised, all their gradients G, and all of each state.
"""

from __future__ import annotations

from collections.abc import Callable

from crossdock.runtime.builder import Operand
from crossdock.runtime.loaders.onnx_model import shown
from crossdock.runtime.loaders.onnx_table import Context, onnx_op

_DOMAIN = "ai.onnx.preview.training"

Step = Callable[..., tuple[Operand, ...]]
"""From X, its gradient (regularised) and its states to the new X and states."""


def _steps(ctx: Context, states: int, step: Step) -> list[Operand]:
    """A step for every tensor; all new tensors, then all of each new state."""
    rest = [ctx.x(i) for i in range(2, len(ctx))]
    count, left = divmod(len(rest), 2 + states)
    if left or not count:
        raise ctx.malformed(f"{len(rest)} tensors, not a multiple of {2 + states}")
    rows = [rest[i::count] for i in range(count)]
    for row in rows:
        if any(t.shape != row[0].shape or t.dtype != row[0].dtype for t in row):
            raise ctx.malformed("a gradient or state whose shape or type is not its tensor's")
    b, weight = ctx.b, ctx.node.get_float("norm_coefficient")
    made = []
    for x, gradient, *held in rows:
        made.append(step(x, b.add(b.mul(x, ctx.like(weight, x)), gradient), *held))
    return [row[i] for i in range(1 + states) for row in made]


def _rate(ctx: Context, like: Operand) -> Operand:
    """The learning rate, in the type of a tensor."""
    return _scalar(ctx, 0, like)


def _scalar(ctx: Context, index: int, like: Operand) -> Operand:
    value = ctx.x(index)
    if any(d != 1 for d in value.shape):
        raise ctx.malformed(f"input {index} has shape {list(value.shape)}, not one element")
    return ctx.b.cast(ctx.b.reshape(value, []), like.dtype)


@onnx_op("Adagrad", domain=_DOMAIN)
def adagrad(ctx: Context) -> list[Operand]:
    """Duchi, Hazan and Singer 2011: the state H is the sum of squared gradients."""
    b, node = ctx.b, ctx.node
    decay, epsilon = node.get_float("decay_factor"), node.get_float("epsilon", 1e-6)

    def step(x: Operand, gradient: Operand, h: Operand) -> tuple[Operand, ...]:
        slower = b.mul(_scalar(ctx, 1, x), ctx.like(decay, x))
        rate = b.div(_rate(ctx, x), b.add(ctx.like(1, x), slower))
        total = b.add(h, b.mul(gradient, gradient))
        size = b.add(b.sqrt(total), ctx.like(epsilon, x))
        return b.sub(x, b.div(b.mul(rate, gradient), size)), total

    return _steps(ctx, 1, step)


@onnx_op("Adam", domain=_DOMAIN)
def adam(ctx: Context) -> list[Operand]:
    """Kingma and Ba 2015: the states V and H are running means of gradients and their squares."""
    b, node = ctx.b, ctx.node
    alpha, beta = node.get_float("alpha", 0.9), node.get_float("beta", 0.999)
    epsilon, after = node.get_float("epsilon", 1e-6), node.get_float("norm_coefficient_post")

    def remaining(base: float, t: Operand) -> Operand:
        return b.sub(ctx.like(1, t), b.pow(ctx.like(base, t), t))

    def step(x: Operand, gradient: Operand, v: Operand, h: Operand) -> tuple[Operand, ...]:
        t, rate, one = _scalar(ctx, 1, x), _rate(ctx, x), ctx.like(1, x)
        mean = _running(ctx, alpha, v, gradient)
        square = _running(ctx, beta, h, b.mul(gradient, gradient))
        started = b.greater(t, ctx.like(0, x))
        # At T = 0 the correction is zero by zero, and not used.
        safe = b.where(started, t, one)
        bias = b.div(b.sqrt(remaining(beta, safe)), remaining(alpha, safe))
        adjusted = b.where(started, b.mul(rate, bias), rate)
        size = b.add(b.sqrt(square), ctx.like(epsilon, x))
        moved = b.sub(x, b.div(b.mul(adjusted, mean), size))
        return b.mul(moved, ctx.like(1 - after, x)), mean, square

    return _steps(ctx, 2, step)


def _running(ctx: Context, share: float, old: Operand, new: Operand) -> Operand:
    """A running mean that keeps a share of the old value."""
    b = ctx.b
    return b.add(b.mul(old, ctx.like(share, old)), b.mul(new, ctx.like(1 - share, old)))


@onnx_op("Momentum", domain=_DOMAIN)
def momentum(ctx: Context) -> list[Operand]:
    """Gradient descent whose state V is a decaying sum of gradients; Nesterov looks one ahead."""
    b, node = ctx.b, ctx.node
    for name in ("alpha", "beta", "mode", "norm_coefficient"):
        node.require(name)
    alpha, beta, mode = node.get_float("alpha"), node.get_float("beta"), node.get_str("mode")
    if mode not in ("standard", "nesterov"):
        raise ctx.malformed(f"mode {shown(mode)} is neither standard nor nesterov")

    def step(x: Operand, gradient: Operand, v: Operand) -> tuple[Operand, ...]:
        one = ctx.like(1, x)
        started = b.greater(_scalar(ctx, 1, x), ctx.like(0, x))
        scale = b.where(started, ctx.like(beta, x), one)
        moving = b.add(b.mul(v, ctx.like(alpha, x)), b.mul(gradient, scale))
        along = moving
        if mode == "nesterov":
            along = b.add(gradient, b.mul(moving, ctx.like(alpha, x)))
        return b.sub(x, b.mul(_rate(ctx, x), along)), moving

    return _steps(ctx, 1, step)
