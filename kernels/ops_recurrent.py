"""lstm, gru and their cells.

Gates are stacked along the weights' rows: i, o, f, g (``iofg``) or i, f, g, o (``ifgo``) for
lstm; z, r, n (``zrn``) or r, z, n (``rzn``) for gru. Peephole weights are stacked i, o, f.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from crossdock.devices.program import Work
from crossdock.kernels import ops_math
from crossdock.kernels.ops_recurrent_steps import (
    gru_cell_steps,
    gru_steps,
    lstm_cell_steps,
    lstm_steps,
)
from crossdock.kernels.ops_rules import (
    FLOAT,
    choice,
    entry,
    fail,
    flag,
    integer,
    like,
    must_be,
    of,
    some,
)
from crossdock.kernels.ops_work import TRANSCENDENTAL, traffic
from crossdock.kernels.spec import REQUIRED, Attrs, Canon, Specs
from crossdock.runtime.tensor import Dim, TensorSpec

DIRECTIONS = ("forward", "backward", "both")

ACTIVATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "relu": lambda xp, x: xp.maximum(x, 0),
    "sigmoid": lambda xp, x: 1 / (1 + xp.exp(-x)),
    "tanh": lambda xp, x: xp.tanh(x),
}

# --- rules ----------------------------------------------------------------------------------------


def _activations(op: str, given: Any, default: tuple[str, ...]) -> tuple[str, ...]:
    if given is None:
        return default
    if not isinstance(given, list | tuple) or len(given) != len(default):
        raise fail(op, f"activations must have {len(default)} names; it is {given!r}")
    return tuple(choice(op, "activations", name, tuple(ACTIVATIONS)) for name in given)


def _canon(op: str, layouts: tuple[str, ...], default: tuple[str, ...], *, cell: bool) -> Canon:
    def canon(specs: Specs, attrs: dict[str, Any]) -> dict[str, Any]:
        out = attrs | {
            "hidden_size": integer(op, "hidden_size", attrs["hidden_size"], 1),
            "layout": choice(op, "layout", attrs["layout"], layouts),
            "activations": _activations(op, attrs["activations"], default),
        }
        if "reset_after" in attrs:
            out["reset_after"] = flag(op, "reset_after", attrs["reset_after"])
        if cell:
            return out
        steps, dim = integer(op, "steps", attrs["steps"], 1), some(specs[0]).shape[0]
        if isinstance(dim, int) and dim != steps:
            raise fail(op, f"steps must be the input's first dimension; {steps} is not {dim}")
        out["steps"] = steps
        out["return_sequence"] = flag(op, "return_sequence", attrs["return_sequence"])
        out["direction"] = choice(op, "direction", attrs["direction"], DIRECTIONS)
        return out

    return canon


def _directions(attrs: Attrs) -> tuple[int, ...]:
    return () if "direction" not in attrs else (2 if attrs["direction"] == "both" else 1,)


def _check(op: str, gates: int, names: Sequence[str], specs: Specs, attrs: Attrs) -> None:
    """Check every operand's shape; cells have no leading direction dimension."""
    spec, hidden, lead = some(specs[0]), attrs["hidden_size"], _directions(attrs)
    batch, width = spec.shape[-2], spec.shape[-1]
    rows = gates * hidden
    state = (*lead, batch, hidden)
    shapes: dict[str, tuple[Dim, ...]] = {
        "weight": (*lead, rows, width),
        "recurrent_weight": (*lead, rows, hidden),
        "bias": (*lead, rows),
        "recurrent_bias": (*lead, rows),
        "peephole_weight": (*lead, 3 * hidden),
        "hidden_state": state,
        "cell_state": state,
        "initial_hidden_state": state,
        "initial_cell_state": state,
    }
    for name, given in zip(names[1:], specs[1:], strict=False):
        bare = name.rstrip("?")
        must_be(op, bare, given, shapes[bare])


def _results(specs: Specs, attrs: Attrs, states: int) -> tuple[TensorSpec, ...]:
    spec, lead = some(specs[0]), _directions(attrs)
    state = spec.with_shape((*lead, spec.shape[-2], attrs["hidden_size"]))
    results = (state,) * states
    if attrs.get("return_sequence"):
        results += (spec.with_shape((attrs["steps"], *state.shape)),)
    return results


def _work(gates: int) -> Callable[..., Work]:
    def work(specs: Specs, outs: Sequence[TensorSpec], attrs: Attrs) -> Work:
        spec, hidden = some(specs[0]), attrs["hidden_size"]
        batch, width = spec.dims[-2], spec.dims[-1]
        runs = attrs.get("steps", 1) * (_directions(attrs) or (1,))[0]
        cell = batch * gates * hidden * (2.0 * (width + hidden) + TRANSCENDENTAL + 4)
        return traffic(specs, outs, runs * cell)

    return work


def _recurrent(
    op: str,
    operands: dict[str, Any],
    run: Callable[..., Any],
    decompose: Callable[..., Any],
    *,
    gates: int,
    attrs: dict[str, Any],
    activations: tuple[str, ...],
    layouts: tuple[str, ...],
) -> None:
    cell = op.endswith("_cell")
    names = tuple(operands)

    def infer(specs: Specs, attrs: Attrs) -> tuple[TensorSpec, ...]:
        _check(op, gates, names, specs, attrs)
        return _results(specs, attrs, 2 if op.startswith("lstm") else 1)

    sequence = {"return_sequence": False, "direction": "forward"}
    entry(
        op,
        operands,
        params=("hidden_size",) if cell else ("steps", "hidden_size"),
        attrs=({} if cell else {"steps": REQUIRED})
        | {"hidden_size": REQUIRED}
        | attrs
        | ({} if cell else sequence)
        | {"layout": layouts[0], "activations": None},
        canon=_canon(op, layouts, activations, cell=cell),
        infer=infer,
        run=ops_math.widened(run),
        work=_work(gates),
        decompose=decompose,
        many=op != "gru_cell",
    )


# --- one step -------------------------------------------------------------------------------------


def _gates(array: Any, names: str, hidden: int) -> dict[str, Any]:
    """The stacked rows of each gate (the last axis is cut)."""
    return {n: array[..., k * hidden : (k + 1) * hidden] for k, n in enumerate(names)}


def _lstm_step(
    xp: Any, drive: Any, recurrent: Any, peephole: Any, h: Any, c: Any, attrs: Attrs
) -> tuple[Any, Any]:
    """One lstm step; ``drive`` is the input's part of the gates with both biases added."""
    gate, inner, outer = (ACTIVATIONS[name] for name in attrs["activations"])
    parts = _gates(drive + xp.matmul(h, recurrent.T), attrs["layout"], attrs["hidden_size"])
    if peephole is not None:
        weights = _gates(peephole, "iof", attrs["hidden_size"])
        parts = {n: p + c * weights[n] if n in weights else p for n, p in parts.items()}
    fresh = gate(xp, parts["f"]) * c + gate(xp, parts["i"]) * inner(xp, parts["g"])
    return gate(xp, parts["o"]) * outer(xp, fresh), fresh


def _gru_step(xp: Any, drive: Any, recurrent: Any, bias: Any, h: Any, attrs: Attrs) -> Any:
    """One gru step; ``drive`` has the input's bias, ``bias`` is the recurrent one."""
    gate, inner = (ACTIVATIONS[name] for name in attrs["activations"])
    order, hidden = attrs["layout"], attrs["hidden_size"]
    k = order.index("n")
    rows = recurrent[k * hidden : (k + 1) * hidden]
    new_bias = _gates(bias, order, hidden)["n"]
    parts = _gates(drive, order, hidden)
    pulls = _gates(xp.matmul(h, recurrent.T) + bias, order, hidden)
    update, r = parts["z"] + pulls["z"], gate(xp, parts["r"] + pulls["r"])
    z = gate(xp, update)
    if attrs["reset_after"]:
        pull = r * pulls["n"]
    else:
        pull = xp.matmul(r * h, rows.T) + new_bias
    n = inner(xp, parts["n"] + pull)
    # 1 - sigmoid(x) is sigmoid(-x), which loses nothing where z is near 1.
    keep = gate(xp, -update) if attrs["activations"][0] == "sigmoid" else 1 - z
    return z * h + keep * n


def _sum_biases(bias: Any, recurrent_bias: Any) -> Any:
    if bias is None or recurrent_bias is None:
        return bias if recurrent_bias is None else recurrent_bias
    return bias + recurrent_bias


def _driven(xp: Any, x: Any, weight: Any, bias: Any) -> Any:
    drive = xp.matmul(x, weight.T)
    return drive if bias is None else drive + bias


def _lstm_cell(
    xp: Any,
    x: Any,
    weight: Any,
    recurrent: Any,
    h: Any,
    c: Any,
    bias: Any,
    recurrent_bias: Any,
    peephole: Any,
    **attrs: Any,
) -> Any:
    drive = _driven(xp, x, weight, _sum_biases(bias, recurrent_bias))
    return _lstm_step(xp, drive, recurrent, peephole, h, c, attrs)


def _gru_cell(
    xp: Any,
    x: Any,
    weight: Any,
    recurrent: Any,
    h: Any,
    bias: Any,
    recurrent_bias: Any,
    **attrs: Any,
) -> Any:
    drive = _driven(xp, x, weight, bias)
    pull = _or_zeros(xp, recurrent_bias, weight.shape[:1], x)
    return _gru_step(xp, drive, recurrent, pull, h, attrs)


# --- sequences ------------------------------------------------------------------------------------


def _or_zeros(xp: Any, array: Any, shape: tuple[int, ...], x: Any) -> Any:
    return xp.zeros(shape, dtype=x.dtype) if array is None else array


def _pick(array: Any, direction: int) -> Any:
    return None if array is None else array[direction]


def _time_order(attrs: Attrs, direction: int) -> range:
    backward = attrs["direction"] == "backward" or direction == 1
    return range(attrs["steps"] - 1, -1, -1) if backward else range(attrs["steps"])


def _lstm(
    xp: Any,
    x: Any,
    weight: Any,
    recurrent: Any,
    bias: Any,
    recurrent_bias: Any,
    peephole: Any,
    h0: Any,
    c0: Any,
    **attrs: Any,
) -> Any:
    count = weight.shape[0]
    shape = (count, x.shape[1], attrs["hidden_size"])
    h0, c0 = _or_zeros(xp, h0, shape, x), _or_zeros(xp, c0, shape, x)
    sequence = xp.empty((attrs["steps"], *shape), dtype=x.dtype)
    last_h, last_c = xp.empty(shape, dtype=x.dtype), xp.empty(shape, dtype=x.dtype)
    for d in range(count):
        h, c = h0[d], c0[d]
        drive = _driven(xp, x, weight[d], _sum_biases(_pick(bias, d), _pick(recurrent_bias, d)))
        for t in _time_order(attrs, d):
            h, c = _lstm_step(xp, drive[t], recurrent[d], _pick(peephole, d), h, c, attrs)
            sequence[t, d] = h
        last_h[d], last_c[d] = h, c
    return (last_h, last_c, sequence) if attrs["return_sequence"] else (last_h, last_c)


def _gru(
    xp: Any,
    x: Any,
    weight: Any,
    recurrent: Any,
    bias: Any,
    recurrent_bias: Any,
    h0: Any,
    **attrs: Any,
) -> Any:
    count = weight.shape[0]
    shape = (count, x.shape[1], attrs["hidden_size"])
    h0 = _or_zeros(xp, h0, shape, x)
    pull = _or_zeros(xp, recurrent_bias, weight.shape[:2], x)
    sequence = xp.empty((attrs["steps"], *shape), dtype=x.dtype)
    last = xp.empty(shape, dtype=x.dtype)
    for d in range(count):
        h = h0[d]
        drive = _driven(xp, x, weight[d], _pick(bias, d))
        for t in _time_order(attrs, d):
            h = _gru_step(xp, drive[t], recurrent[d], pull[d], h, attrs)
            sequence[t, d] = h
        last[d] = h
    return (last, sequence) if attrs["return_sequence"] else (last,)


# --- entries --------------------------------------------------------------------------------------


def _operands(rank: int, required: Sequence[str], optional: dict[str, int]) -> dict[str, Any]:
    rules: dict[str, Any] = {"input": of(FLOAT, rank, rank)}
    rules |= {name: like("input", rank, rank) for name in required}
    return rules | {f"{name}?": like("input", r, r) for name, r in optional.items()}


_recurrent(
    "lstm",
    _operands(
        3,
        ("weight", "recurrent_weight"),
        {
            "bias": 2,
            "recurrent_bias": 2,
            "peephole_weight": 2,
            "initial_hidden_state": 3,
            "initial_cell_state": 3,
        },
    ),
    _lstm,
    lstm_steps,
    gates=4,
    attrs={},
    activations=("sigmoid", "tanh", "tanh"),
    layouts=("iofg", "ifgo"),
)
_recurrent(
    "lstm_cell",
    _operands(
        2,
        ("weight", "recurrent_weight", "hidden_state", "cell_state"),
        {"bias": 1, "recurrent_bias": 1, "peephole_weight": 1},
    ),
    _lstm_cell,
    lstm_cell_steps,
    gates=4,
    attrs={},
    activations=("sigmoid", "tanh", "tanh"),
    layouts=("iofg", "ifgo"),
)
_recurrent(
    "gru",
    _operands(
        3,
        ("weight", "recurrent_weight"),
        {"bias": 2, "recurrent_bias": 2, "initial_hidden_state": 3},
    ),
    _gru,
    gru_steps,
    gates=3,
    attrs={"reset_after": True},
    activations=("sigmoid", "tanh"),
    layouts=("zrn", "rzn"),
)
_recurrent(
    "gru_cell",
    _operands(
        2,
        ("weight", "recurrent_weight", "hidden_state"),
        {"bias": 1, "recurrent_bias": 1},
    ),
    _gru_cell,
    gru_cell_steps,
    gates=3,
    attrs={"reset_after": True},
    activations=("sigmoid", "tanh"),
    layouts=("zrn", "rzn"),
)
