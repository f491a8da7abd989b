"""Recurrent cells with the options that WebNN's lack, against onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import helper

from crossdock.runtime.errors import MalformedModel
from crossdock.runtime.loaders import load
from tests.runtime.loaders.conftest import build_model, run_ours

RNG = np.random.default_rng(0)
STEPS, BATCH, INPUTS, WIDTH = 4, 3, 2, 5
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
DIRECTIONS = {"forward": 1, "reverse": 1, "bidirectional": 2}


def rand(*shape: int) -> Any:
    return RNG.uniform(-1, 1, shape).astype(np.float32)


def operands(op: str, direction: str, *, lengths: Any = None, peepholes: bool = False) -> list[Any]:
    d, rows = DIRECTIONS[direction], GATES[op] * WIDTH
    found = [rand(STEPS, BATCH, INPUTS), rand(d, rows, INPUTS), rand(d, rows, WIDTH)]
    found += [rand(d, 2 * rows), lengths, rand(d, BATCH, WIDTH)]
    if op == "LSTM":
        found.append(rand(d, BATCH, WIDTH))
        found += [rand(d, 3 * WIDTH)] if peepholes else []
    return found


def run(check: Any, op: str, direction: str, given: list[Any], **attrs: Any) -> None:
    check(
        op,
        *given,
        opset=attrs.pop("opset", 14),
        outputs=3 if op == "LSTM" else 2,
        hidden_size=WIDTH,
        direction=direction,
        atol=1e-5,
        **attrs,
    )


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("op", GATES)
def test_rows_that_end_early(check: Any, op: str, direction: str) -> None:
    lengths = np.array([2, STEPS, 1], np.int32)
    run(check, op, direction, operands(op, direction, lengths=lengths))


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_rnn(check: Any, direction: str) -> None:
    run(check, "RNN", direction, operands("RNN", direction), opset=7)


@pytest.mark.parametrize("op", GATES)
def test_clipping(check: Any, op: str) -> None:
    run(check, op, "forward", operands(op, "forward"), clip=0.3)


@pytest.mark.parametrize("linear", [0, 1])
def test_gru_with_other_activations(check: Any, linear: int) -> None:
    attrs = {"activations": ["HardSigmoid", "Softsign"], "linear_before_reset": linear}
    attrs |= {"activation_alpha": [0.3], "activation_beta": [0.6]}
    run(check, "GRU", "forward", operands("GRU", "forward"), **attrs)


@pytest.mark.parametrize(
    ("names", "alphas", "betas"),
    [
        (["Affine"], [0.5], [0.1]),
        (["LeakyRelu"], [0.2], []),
        (["ThresholdedRelu"], [0.4], []),
        (["ScaledTanh"], [0.7], [1.3]),
        (["HardSigmoid"], [], []),
        (["Elu"], [0.8], []),
        (["Softplus"], [], []),
        (["Softsign"], [], []),
        (["Relu"], [], []),
    ],
)
def test_activations_with_parameters(check: Any, names: Any, alphas: Any, betas: Any) -> None:
    attrs = {"activations": names}
    attrs |= {"activation_alpha": alphas} if alphas else {}
    attrs |= {"activation_beta": betas} if betas else {}
    run(check, "RNN", "forward", operands("RNN", "forward"), **attrs)


def test_directions_with_activations_of_their_own(check: Any) -> None:
    attrs = {"activations": ["Affine", "LeakyRelu"]}
    attrs |= {"activation_alpha": [0.5, 0.2], "activation_beta": [0.1]}
    run(check, "RNN", "bidirectional", operands("RNN", "bidirectional"), **attrs)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_peepholes(check: Any, direction: str) -> None:
    run(check, "LSTM", direction, operands("LSTM", direction, peepholes=True))


def test_coupled_gates(check: Any) -> None:
    run(check, "LSTM", "forward", operands("LSTM", "forward"), input_forget=1)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("op", GATES)
def test_batch_first(op: str, direction: str) -> None:
    given = operands(op, direction, lengths=np.array([2, STEPS, 1], np.int32))
    swapped = [
        np.ascontiguousarray(a.swapaxes(0, 1)) if i in (0, 5, 6) else a for i, a in enumerate(given)
    ]
    plain, turned = alone(op, direction, given, 0), alone(op, direction, swapped, 1)
    np.testing.assert_allclose(turned["y0"], plain["y0"].transpose(2, 0, 1, 3), rtol=1e-5)
    for name in list(plain)[1:]:
        np.testing.assert_allclose(turned[name], plain[name].swapaxes(0, 1), rtol=1e-5)


def alone(op: str, direction: str, given: list[Any], layout: int) -> dict[str, Any]:
    names = [f"x{i}" for i in range(len(given))]
    results = ["y0", "y1", "y2"] if op == "LSTM" else ["y0", "y1"]
    attrs = {"hidden_size": WIDTH, "direction": direction, "layout": layout}
    node = helper.make_node(op, names, results, **attrs)
    feeds = dict(zip(names, given, strict=True))
    return run_ours(load(build_model([node], feeds, results, 14)), feeds)


@pytest.mark.parametrize(
    ("names", "match"),
    [
        (["Tanh", "Tanh"], "2 activations; 1 a direction"),
        (["Nothing"], "activation 'Nothing'"),
    ],
)
def test_malformed(names: list[str], match: str) -> None:
    given = operands("RNN", "forward")
    feeds = {f"x{i}": a for i, a in enumerate(given) if a is not None}
    node = helper.make_node("RNN", ["x0", "x1", "x2"], ["y"], activations=names, hidden_size=WIDTH)
    with pytest.raises(MalformedModel, match=match):
        load(build_model([node], {n: feeds[n] for n in ("x0", "x1", "x2")}, ["y"], 14))
