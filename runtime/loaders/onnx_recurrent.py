"""ONNX RNN, GRU and LSTM: WebNN's cells, whose gate orders are the same, or steps written out."""

from __future__ import annotations

from typing import Any

from crossdock.runtime.builder import Operand
from crossdock.runtime.loaders.onnx_cells import unrolled
from crossdock.runtime.loaders.onnx_model import shown
from crossdock.runtime.loaders.onnx_table import Context, onnx_op

DIRECTIONS = {"forward": "forward", "reverse": "backward", "bidirectional": "both"}
ACTIVATIONS = {"sigmoid", "tanh", "relu"}


class _Cell:
    """What the cells share: operands, sizes, directions, activations, the batch-first layout."""

    def __init__(self, ctx: Context, gates: int) -> None:
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
        if node.get_int("hidden_size", self.hidden) != self.hidden:
            raise ctx.malformed(
                f"hidden_size is {node.get_int('hidden_size')}, R has {self.hidden}"
            )
        self.options: dict[str, Any] = {"direction": DIRECTIONS[direction]}
        self.bias()

    @property
    def steps(self) -> int:
        """Time steps."""
        return self.x.shape[0]

    def steps_first(self, x: Operand) -> Operand:
        """Swap the batch axis with the one before it, where the layout asks for that."""
        return self.ctx.b.transpose(x, permutation=[1, 0, 2]) if self.batch_first else x

    def is_webnn(self, count: int) -> bool:
        """True where WebNN's cells have the node's options; reads the activations."""
        ctx, node = self.ctx, self.ctx.node
        if "clip" in node.attrs or node.get_int("input_forget") or ctx.opt(7) is not None:
            return False
        lengths = ctx.known(4)
        if ctx.opt(4) is not None and (lengths is None or (lengths != self.steps).any()):
            return False
        names = node.get_strs("activations")
        if names:
            chosen = [name.lower() for name in names]
            if chosen[:count] * (len(chosen) // count) != chosen or set(chosen) - ACTIVATIONS:
                return False
            self.options["activations"] = chosen[:count]
        return True

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

    def written_out(self) -> list[Operand | None]:
        """The node's results, step by step."""
        back = {"forward": [False], "backward": [True], "both": [False, True]}
        made = unrolled(self.ctx, self.x, back[self.options["direction"]])
        return [self.sequence(made[0]), *(self.steps_first(state) for state in made[1:])]


@onnx_op("RNN")
def rnn(ctx: Context) -> list[Operand | None]:
    """Simple recurrent network (Elman 1990)."""
    return _Cell(ctx, 1).written_out()


@onnx_op("LSTM")
def lstm(ctx: Context) -> list[Operand | None]:
    """Long short-term memory (Hochreiter & Schmidhuber 1997), with optional peepholes."""
    cell = _Cell(ctx, 4)
    if not cell.is_webnn(3):
        return cell.written_out()
    cell.state(5, "initial_hidden_state")
    cell.state(6, "initial_cell_state")
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


@onnx_op("GRU")
def gru(ctx: Context) -> list[Operand | None]:
    """Gated recurrent unit (Cho et al. 2014)."""
    cell = _Cell(ctx, 3)
    if not cell.is_webnn(2):
        return cell.written_out()
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
