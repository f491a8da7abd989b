"""Recurrent cells step by step, for what WebNN's do not have.

ONNX lets cells clip, choose among eleven activations, couple gates, and end each row of a batch
after its own number of steps; its LSTM's output gate looks at the new cell state, where WebNN's
looks at the old. The steps of a graph of fixed shapes are written out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from crossdock.runtime.builder import Operand
from crossdock.runtime.loaders.onnx_model import shown
from crossdock.runtime.loaders.onnx_table import Context
from crossdock.runtime.tensor import to_numpy

Activation = Callable[[Operand], Operand]

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
PEEPHOLES = {"i": 0, "o": 1, "f": 2}
DEFAULTS = {
    "RNN": ("Tanh",),
    "GRU": ("Sigmoid", "Tanh"),
    "LSTM": ("Sigmoid", "Tanh", "Tanh"),
}
"""Activations of one direction."""

ALPHA = {
    "affine": 1.0, "leakyrelu": 0.01, "thresholdedrelu": 1.0, "scaledtanh": 1.0,
    "hardsigmoid": 0.2, "elu": 1.0,
}  # fmt: skip
BETA = {"affine": 0.0, "scaledtanh": 1.0, "hardsigmoid": 0.5}
"""Activations with parameters, and what they are by default."""

PLAIN = {
    "relu": "relu",
    "tanh": "tanh",
    "sigmoid": "sigmoid",
    "softsign": "softsign",
    "softplus": "softplus",
}


def activations(ctx: Context, directions: int) -> list[list[Activation]]:
    """The functions of each direction; those with parameters take the next of the lists."""
    node = ctx.node
    each = DEFAULTS[node.op]
    names = node.get_strs("activations") or each * directions
    if len(names) != len(each) * directions:
        raise ctx.malformed(f"{len(names)} activations; {len(each)} a direction are needed")
    alphas, betas = (iter(node.get_floats(f"activation_{n}") or ()) for n in ("alpha", "beta"))
    made = []
    for index, name in enumerate(names):
        kind = name.lower()
        if kind not in PLAIN and kind not in ALPHA:
            raise ctx.malformed(f"activation {shown(name)}")
        alpha = next(alphas, ALPHA[kind]) if kind in ALPHA else 0.0
        beta = next(betas, BETA[kind]) if kind in BETA else 0.0
        # What an LSTM shows of its cell state is not clipped, as runtimes have it.
        clip = "clip" in node.attrs and index % len(each) < 2
        made.append(_activation(ctx, kind, alpha, beta, clip=clip))
    return [made[i : i + len(each)] for i in range(0, len(made), len(each))]


def _activation(ctx: Context, kind: str, alpha: float, beta: float, *, clip: bool) -> Activation:
    b = ctx.b
    limit = abs(ctx.node.get_float("clip"))

    def apply(x: Operand) -> Operand:
        if clip:
            x = b.clamp(x, min_value=-limit, max_value=limit)
        if kind in PLAIN:
            method: Activation = getattr(b, PLAIN[kind])
            return method(x)
        if kind == "affine":
            return b.linear(x, alpha=alpha, beta=beta)
        if kind == "leakyrelu":
            return b.leaky_relu(x, alpha=alpha)
        if kind == "elu":
            return b.elu(x, alpha=alpha)
        if kind == "hardsigmoid":
            return b.hard_sigmoid(x, alpha=alpha, beta=beta)
        if kind == "scaledtanh":
            return b.mul(b.tanh(b.mul(x, ctx.like(beta, x))), ctx.like(alpha, x))
        return b.where(b.lesser(x, ctx.like(alpha, x)), ctx.like(0, x), x)

    return apply


@dataclass(frozen=True)
class Weights:
    """One direction's operands: input and state weights, biases (or None), peepholes (or None)."""

    w: Operand
    r: Operand
    w_bias: Operand | None
    r_bias: Operand | None
    peepholes: list[Operand] | None


@dataclass(frozen=True)
class Run:
    """A cell over one direction: what it needs at each step."""

    ctx: Context
    weights: Weights
    functions: Sequence[Activation]
    width: int

    def project(self, h: Operand, r: Operand, bias: Operand | None) -> Operand:
        """H R^T + bias."""
        out = self.ctx.b.gemm(h, r, b_transpose=True)
        return out if bias is None else self.ctx.b.add(out, bias)

    def step(self, now: Operand, h: Operand, c: Operand | None) -> tuple[Operand, Operand | None]:
        """The states after a step; ``now`` is the input's projection with its biases."""
        if c is not None:
            return self.lstm(now, h, c)
        weights = self.weights
        if self.ctx.node.op == "GRU":
            return self.gru(now, h), None
        state = self.project(h, weights.r, weights.r_bias)
        return self.functions[0](self.ctx.b.add(now, state)), None

    def gru(self, now: Operand, h: Operand) -> Operand:
        """Update, reset and hidden gate, in this order."""
        b, weights, width = self.ctx.b, self.weights, self.width
        sizes = [2 * width, width]
        r_gates, r_hidden = b.split(weights.r, sizes, axis=0)
        biases: Sequence[Operand | None] = (None, None)
        if weights.r_bias is not None:
            biases = b.split(weights.r_bias, sizes, axis=1)
        now_gates, now_hidden = b.split(now, sizes, axis=1)
        gates = self.functions[0](b.add(now_gates, self.project(h, r_gates, biases[0])))
        z, r = b.split(gates, 2, axis=1)
        if self.ctx.node.get_int("linear_before_reset"):
            state = b.mul(r, self.project(h, r_hidden, biases[1]))
        else:
            state = self.project(b.mul(r, h), r_hidden, biases[1])
        fresh = self.functions[1](b.add(now_hidden, state))
        return b.add(b.mul(b.sub(self.ctx.like(1, z), z), fresh), b.mul(z, h))

    def lstm(self, now: Operand, h: Operand, c: Operand) -> tuple[Operand, Operand]:
        """Input, output, forget and cell gate, in this order."""
        b, (act, squash, show) = self.ctx.b, self.functions
        weights = self.weights
        i, o, f, g = b.split(b.add(now, self.project(h, weights.r, weights.r_bias)), 4, axis=1)
        i = act(self.peeped(i, "i", c))
        if self.ctx.node.get_int("input_forget"):
            f = b.sub(self.ctx.like(1, i), i)
        else:
            f = act(self.peeped(f, "f", c))
        c = b.add(b.mul(f, c), b.mul(i, squash(g)))
        return b.mul(act(self.peeped(o, "o", c)), show(c)), c

    def peeped(self, gate: Operand, name: str, c: Operand) -> Operand:
        """A gate with what its peephole shows it of the cell state."""
        peepholes = self.weights.peepholes
        if peepholes is None:
            return gate
        return self.ctx.b.add(gate, self.ctx.b.mul(peepholes[PEEPHOLES[name]], c))


def unrolled(ctx: Context, x: Operand, back: Sequence[bool]) -> list[Operand]:
    """All hidden states [steps, directions, batch, width], then the last states of each kind.

    ``x`` is [steps, batch, inputs]; ``back`` says which directions go backwards.
    """
    b = ctx.b
    functions = activations(ctx, len(back))
    sequences, lasts = [], []
    for index, backwards in enumerate(back):
        run = Run(ctx, _weights(ctx, index), functions[index], ctx.x(2).shape[2])
        outputs, states = _one_way(run, x, index, back=backwards)
        stacked = [b.reshape(h, [1, 1, *h.shape]) for h in outputs]
        sequences.append(b.concat(stacked, 0) if len(stacked) > 1 else stacked[0])
        lasts.append([b.reshape(s, [1, *s.shape]) for s in states])
    parts = [sequences, *([each[k] for each in lasts] for k in range(len(lasts[0])))]
    axes = [1] + [0] * (len(parts) - 1)
    return [
        b.concat(group, axis) if len(group) > 1 else group[0]
        for group, axis in zip(parts, axes, strict=True)
    ]


def _part(ctx: Context, operand: Operand, index: int) -> Operand:
    """One direction's share of an operand; vectors become rows."""
    b = ctx.b
    dims = [1, *operand.shape[1:]]
    own = (
        operand if operand.shape[0] == 1 else b.slice(operand, [index] + [0] * len(dims[1:]), dims)
    )
    return b.reshape(own, dims[1:] if len(dims) > 2 else dims)


def _weights(ctx: Context, index: int) -> Weights:
    b, w, r = ctx.b, ctx.x(1), ctx.x(2)
    width = GATES[ctx.node.op] * r.shape[2]
    if w.shape[1] != width or r.shape[1] != width:
        raise ctx.malformed(f"W {list(w.shape)} and R {list(r.shape)} for {r.shape[2]} units")
    w_bias: Operand | None = None
    r_bias: Operand | None = None
    if ctx.opt(3) is not None:
        w_bias, r_bias = b.split(_part(ctx, ctx.x(3), index), 2, axis=1)
    peepholes = None
    if ctx.node.op == "LSTM" and ctx.opt(7) is not None:
        peepholes = list(b.split(_part(ctx, ctx.x(7), index), 3, axis=1))
    return Weights(_part(ctx, w, index), _part(ctx, r, index), w_bias, r_bias, peepholes)


def _one_way(
    run: Run, x: Operand, index: int, *, back: bool
) -> tuple[list[Operand], list[Operand]]:
    """One direction: the hidden state of each step (zero after a row's end), and the last states.

    A row's state stays as it is where the row is over: backwards, until its end is reached.
    """
    b, ctx, width = run.ctx.b, run.ctx, run.width
    steps, batch, size = x.shape
    flat = run.project(b.reshape(x, [steps * batch, size]), run.weights.w, run.weights.w_bias)
    h = _initial(run, 5, index, batch, x.dtype)
    c = _initial(run, 6, index, batch, x.dtype) if ctx.node.op == "LSTM" else None
    lengths = None if ctx.opt(4) is None else b.reshape(ctx.x(4), [batch, 1])
    nothing = ctx.like(0, h)
    gates = GATES[ctx.node.op] * width
    outputs: list[Operand] = []
    for t in reversed(range(steps)) if back else range(steps):
        now = b.slice(flat, [t * batch, 0], [batch, gates])
        fresh, cell = run.step(now, h, c)
        if lengths is None:
            h, c = fresh, cell
            outputs.append(fresh)
            continue
        live = b.lesser(ctx.like(t, lengths), lengths)
        outputs.append(b.where(live, fresh, nothing))
        h = b.where(live, fresh, h)
        c = b.where(live, cell, c) if cell is not None and c is not None else None
    return outputs[::-1] if back else outputs, [h] if c is None else [h, c]


def _initial(run: Run, at: int, index: int, batch: int, dtype: str) -> Operand:
    """An initial state [batch, width]; zeros by default."""
    ctx = run.ctx
    given = ctx.opt(at)
    if given is None:
        return ctx.b.constant(np.zeros((batch, run.width), to_numpy(dtype)))
    if ctx.node.get_int("layout") and ctx.opset >= 14:
        given = ctx.b.transpose(given, permutation=[1, 0, 2])
    return _part(ctx, given, index)
