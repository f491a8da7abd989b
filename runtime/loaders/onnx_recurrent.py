"""ONNX LSTM and GRU, whose gate orders are WebNN's defaults."""

from __future__ import annotations

from typing import Any

import numpy as np

from crossdock.runtime.builder import Operand
from crossdock.runtime.loaders.onnx_elementwise import method
from crossdock.runtime.loaders.onnx_model import shown
from crossdock.runtime.loaders.onnx_table import Context, onnx_op
from crossdock.runtime.tensor import to_numpy

DIRECTIONS = {"forward": "forward", "reverse": "backward", "bidirectional": "both"}
ACTIVATIONS = {"sigmoid", "tanh", "relu"}


class _Cell:
    """What LSTM and GRU share: operands, sizes, directions, activations, the batch-first layout."""

    def __init__(self, ctx: Context, gates: int, activations: int) -> None:
        self.ctx, self.gates = ctx, gates
        node = ctx.node
        self.batch_first = bool(node.get_int("layout")) and ctx.opset >= 14
        direction = node.get_str("direction", "forward")
        if direction not in DIRECTIONS:
            raise ctx.malformed(f"direction {shown(direction)}")
        self.x = self.steps_first(ctx.x(0))
        self.weight, self.recurrent = ctx.x(1), ctx.x(2)
        for operand in (self.x, self.weight, self.recurrent):
            if len(operand.shape) != 3:
                raise ctx.malformed("input, W and R must have rank 3")
        self.hidden = self.recurrent.shape[2]
        self.options: dict[str, Any] = {"direction": DIRECTIONS[direction]}
        self.check(activations)
        self.bias()

    @property
    def steps(self) -> int:
        """Time steps."""
        return self.x.shape[0]

    def steps_first(self, x: Operand) -> Operand:
        """Swap the batch axis with the one before it, where the layout asks for that."""
        return self.ctx.b.transpose(x, permutation=[1, 0, 2]) if self.batch_first else x

    def check(self, count: int) -> None:
        """Refuse what WebNN's cells do not have; read the activations."""
        ctx, node = self.ctx, self.ctx.node
        if "clip" in node.attrs or node.get_int("input_forget"):
            raise ctx.unsupported("clipping, or coupling of input and forget gate,")
        lengths = ctx.known(4)
        if ctx.opt(4) is not None and (lengths is None or (lengths != self.steps).any()):
            raise ctx.unsupported("a batch of sequences of different lengths")
        names = node.get_strs("activations")
        if names:
            chosen = [name.lower() for name in names]
            if chosen[:count] * (len(chosen) // count) != chosen or set(chosen) - ACTIVATIONS:
                raise ctx.unsupported(f"activations {', '.join(names)}")
            self.options["activations"] = chosen[:count]

    def bias(self) -> None:
        """Split operand 3 into the biases of input and state."""
        both = self.ctx.opt(3)
        if both is not None:
            directions, width = both.shape[0], self.gates * self.hidden
            for i, name in enumerate(("bias", "recurrent_bias")):
                self.options[name] = self.ctx.b.slice(both, [0, i * width], [directions, width])

    def state(self, index: int, name: str) -> None:
        """Take an initial state from an operand."""
        given = self.ctx.opt(index)
        if given is not None:
            self.options[name] = self.steps_first(given)

    def sequence(self, y: Operand) -> Operand:
        """The results of all steps in the node's layout."""
        return self.ctx.b.transpose(y, permutation=[2, 0, 1, 3]) if self.batch_first else y


@onnx_op("LSTM", since=7)
def lstm(ctx: Context) -> list[Operand | None]:
    """Long short-term memory (Hochreiter & Schmidhuber 1997), with optional peepholes."""
    cell = _Cell(ctx, 4, 3)
    cell.state(5, "initial_hidden_state")
    cell.state(6, "initial_cell_state")
    if ctx.opt(7) is not None:
        return _with_peepholes(cell)
    sequence = ctx.wants(0)
    hidden, state, *rest = ctx.b.lstm(
        cell.x,
        cell.weight,
        cell.recurrent,
        cell.steps,
        cell.hidden,
        return_sequence=sequence,
        **cell.options,
    )
    first = cell.sequence(rest[0]) if sequence else None
    return [first, cell.steps_first(hidden), cell.steps_first(state)]


def _with_peepholes(cell: _Cell) -> list[Operand | None]:
    """Step by step: in ONNX the output gate looks at the new cell state, in WebNN at the old."""
    b = cell.ctx.b
    ways = {"forward": [False], "backward": [True], "both": [False, True]}
    sequences, hiddens, states = [], [], []
    for index, back in enumerate(ways[cell.options["direction"]]):
        hs, state = _one_way(cell, index, back=back)
        hiddens.append(hs[0 if back else -1])
        states.append(state)
        sequences.append(b.concat([b.reshape(h, [1, 1, *h.shape]) for h in hs], 0))
    parts = [[b.reshape(o, [1, *o.shape]) for o in group] for group in (hiddens, states)]
    hidden, state = (cell.steps_first(b.concat(group, 0)) for group in parts)
    return [cell.sequence(b.concat(sequences, 1)), hidden, state]


def _one_way(cell: _Cell, index: int, *, back: bool) -> tuple[list[Operand], Operand]:
    """One direction of an LSTM: the hidden state after each step, and the last cell state."""
    b, ctx, width = cell.ctx.b, cell.ctx, cell.hidden
    steps, batch, size = cell.x.shape

    def part(operand: Operand, shape: list[int]) -> Operand:
        sizes = [1, *operand.shape[1:]]
        return b.reshape(b.slice(operand, [index] + [0] * (operand.rank - 1), sizes), shape)

    def initial(name: str) -> Operand:
        given = cell.options.get(name)
        if given is None:
            return b.constant(np.zeros((batch, width), to_numpy(cell.x.dtype)))
        return part(given, [batch, width])

    flat = b.reshape(cell.x, [steps * batch, size])
    gates = b.gemm(flat, part(cell.weight, [4 * width, size]), b_transpose=True)
    for name in ("bias", "recurrent_bias"):
        if name in cell.options:
            gates = b.add(gates, part(cell.options[name], [1, 4 * width]))
    recurrent = part(cell.recurrent, [4 * width, width])
    peepholes = b.split(part(ctx.x(7), [1, 3 * width]), 3, axis=1)
    names = cell.options.get("activations", ["sigmoid", "tanh", "tanh"])
    act, squash, show = (method(ctx, name) for name in names)
    h, c = initial("initial_hidden_state"), initial("initial_cell_state")
    outputs: list[Operand] = []
    for t in reversed(range(steps)) if back else range(steps):
        now = b.slice(gates, [t * batch, 0], [batch, 4 * width])
        i, o, f, g = b.split(b.gemm(h, recurrent, c=now, b_transpose=True), 4, axis=1)
        kept = b.mul(act(b.add(f, b.mul(peepholes[2], c))), c)
        c = b.add(kept, b.mul(act(b.add(i, b.mul(peepholes[0], c))), squash(g)))
        h = b.mul(act(b.add(o, b.mul(peepholes[1], c))), show(c))
        outputs.append(h)
    return (outputs[::-1] if back else outputs), c


@onnx_op("GRU", since=7)
def gru(ctx: Context) -> list[Operand | None]:
    """Gated recurrent unit (Cho et al. 2014)."""
    cell = _Cell(ctx, 3, 2)
    cell.state(5, "initial_hidden_state")
    sequence = ctx.wants(0)
    hidden, *rest = ctx.b.gru(
        cell.x,
        cell.weight,
        cell.recurrent,
        cell.steps,
        cell.hidden,
        return_sequence=sequence,
        reset_after=bool(ctx.node.get_int("linear_before_reset")),
        **cell.options,
    )
    first = cell.sequence(rest[0]) if sequence else None
    return [first, cell.steps_first(hidden)]
