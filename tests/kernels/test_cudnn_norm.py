"""Normalisations by cuDNN on the fake cupy and the fake cuDNN.

The fake's engines that lose bits are ranked first, and all of pointwise graphs are called tensor
units, as those of cuDNN 9.28 are.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

from crossdock.devices import cuda_dnn, cuda_dnn_norm
from crossdock.devices.cuda_dnn_norm import BIAS, MEAN, SCALE, VARIANCE, Affine, Standardization
from crossdock.kernels import cudnn_norm, table
from crossdock.kernels.precision import Permission
from crossdock.kernels.refusal import Cause, cause_of
from crossdock.kernels.spec import OpCall
from crossdock.runtime.errors import CompileError
from crossdock.runtime.tensor import Array
from tests.cases import CASES
from tests.kernels.cpu_run import call_of
from tests.kernels.cudnn_run import WITH, Card, caught, drawn, kernels, off, opened, why
from tests.kernels.test_cpu import instance
from tests.kernels.test_cuda import execute

OPS = ("layer_normalization", "instance_normalization", "batch_normalization")
NEAR = {"float32": 2e-6, "float16": 1e-3, "bfloat16": 8e-3}


@pytest.fixture(scope="module")
def card() -> Iterator[Card]:
    with opened() as found:
        yield found


Given = tuple[OpCall, list[Array | None]]


def layer(
    dtype: str = "float32", axes: tuple[int, ...] = (2,), scale: bool = True, bias: bool = True,
    epsilon: float = 1e-5,
) -> Given:  # fmt: skip
    x = drawn(3, 5, 7, dtype=dtype)
    own = tuple(x.shape[axis] for axis in axes)
    arrays = [
        x, drawn(*own, seed=1, dtype=dtype) if scale else None,
        drawn(*own, seed=2, dtype=dtype) if bias else None,
    ]  # fmt: skip
    return call_of(OPS[0], arrays, {"axes": list(axes), "epsilon": epsilon}), arrays


def instance_of(dtype: str = "float32", layout: str = "nchw", scale: bool = True) -> Given:
    dims = dict(zip("nchw", (2, 6, 5, 4), strict=True))
    x = drawn(*(dims[axis] for axis in layout), dtype=dtype)
    arrays = [x, drawn(6, seed=1, dtype=dtype) if scale else None, drawn(6, seed=2, dtype=dtype)]
    return call_of(OPS[1], arrays, {"layout": layout}), arrays


def batch(dtype: str = "float32", axis: int = 1, scale: bool = True, bias: bool = True) -> Given:
    x = drawn(2, 6, 5, 4, dtype=dtype)
    mean, more, less = (drawn(x.shape[axis], seed=i, dtype=dtype) for i in (1, 2, 3))
    variance = np.abs(drawn(x.shape[axis], seed=4, dtype=dtype))
    arrays = [x, mean, variance, more if scale else None, less if bias else None]
    return call_of(OPS[2], arrays, {"axis": axis}), arrays


def named(call: OpCall) -> str:
    return f"cudnn.{call.op}"


def asked_of(call: OpCall) -> Affine:
    (step,) = kernels(call)[named(call)].lowered(call, WITH).steps
    found = step.fn.asked
    assert isinstance(found, Affine)
    return found


def check(card: Card, given: Given) -> None:
    call, arrays = given
    assert off(card, named(call), call, arrays) < NEAR[call.outputs[0].dtype]


@pytest.mark.parametrize("dtype", NEAR)
@pytest.mark.parametrize("axes", [(2,), (1, 2), (0, 1, 2)])
def test_layers(card: Card, axes: tuple[int, ...], dtype: str) -> None:
    check(card, layer(dtype, axes))


@pytest.mark.parametrize(("scale", "bias"), [(True, False), (False, True), (False, False)])
def test_what_may_be_missing(card: Card, scale: bool, bias: bool) -> None:
    """Not all of it: the frontend of version 1.32 takes no bias of layers without a scale."""
    check(card, batch(scale=scale, bias=bias))
    if bias:
        call, _ = layer(scale=scale, bias=bias)
        assert "a scale beside a bias" in why(call, "cudnn.layer_normalization")
    else:
        check(card, layer(scale=scale, bias=bias))
    call, _ = instance_of(scale=scale)
    assert scale or "both a scale and a bias" in why(call, "cudnn.instance_normalization")


@pytest.mark.parametrize("dtype", NEAR)
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_images(card: Card, layout: str, dtype: str) -> None:
    check(card, instance_of(dtype, layout))


@pytest.mark.parametrize("dtype", NEAR)
@pytest.mark.parametrize("axis", [0, 1, 3])
def test_channels_along_any_axis(card: Card, axis: int, dtype: str) -> None:
    check(card, batch(dtype, axis))


@pytest.mark.parametrize("case", [c for c in CASES if c.op in OPS], ids=str)
def test_case(card: Card, case: Any) -> None:
    call, arrays = instance(case)
    for kernel in kernels(call).values():
        case.check(execute(card.device, kernel, call, arrays), rounds=kernel.rounds)


def test_what_it_is_not_for() -> None:
    assert "last axes in their order" in why(layer(axes=(1,))[0], "cudnn.layer_normalization")
    assert "last axes in their order" in why(layer(axes=(2, 1))[0], "cudnn.layer_normalization")
    doubles = call_of(OPS[0], [drawn(3, 4).astype(np.float64), None, None], {"axes": [1]})
    assert "no float64 kernel" in why(doubles, "cudnn.layer_normalization")
    without = replace(WITH, details={"compute_capability": "8.0", "no cudnn": "none"})
    turing = replace(WITH, details={**WITH.details, "compute_capability": "7.5"})
    for call, _ in (layer("bfloat16"), instance_of("bfloat16"), batch("bfloat16")):
        assert cause_of(why(call, named(call), without)) is Cause.LIBRARY
        assert cause_of(why(call, named(call), turing)) is Cause.LACKS


def test_a_variance_that_cudnn_takes_is_not_exact() -> None:
    for (call, _), kept in ((layer(), False), (instance_of(), False), (batch(), True)):
        permitted = Permission(strict=True).permitted(table.candidates(call, WITH).fitting)
        assert (named(call) in [kernel.name for kernel in permitted]) == kept


def test_no_engine_that_loses_bits_is_taken(card: Card) -> None:
    for given in (layer(), instance_of(), batch()):
        check(card, given)
    taken = [g.engine.name for g in card.dnn.graphs[-3:] if g.engine]
    assert taken == ["plain", "plain", "pointwise"]


@pytest.mark.parametrize("given", [layer(), instance_of(layout="nhwc"), batch()], ids=str)
def test_another_process_makes_the_same_call(given: Given) -> None:
    call, _ = given
    (step,) = kernels(call)[named(call)].lowered(call, WITH).steps
    module, name, data = step.form()
    made = getattr(importlib.import_module(module), name)(json.loads(json.dumps(data)))
    assert made.asked == step.fn.asked


def test_a_refusal_is_kept_in_cudnns_words(card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(card.dnn, "refuse", "No valid engine configs for Norm_Fwd")
    call, arrays = layer()
    with pytest.raises(CompileError, match=r"layernorm of 15x7x1x1 in float32: No valid engine"):
        execute(card.device, kernels(call)[named(call)], call, arrays)


# --- bugs planted ---------------------------------------------------------------------------------


def plant(monkeypatch: pytest.MonkeyPatch, kind: type[Affine], **changed: Any) -> None:
    """Ask for something else."""
    right = kind.tensors

    def tensors(self: Affine) -> Any:
        return right(replace(self, **changed))

    monkeypatch.setattr(kind, "tensors", tensors)


def run(card: Card, given: Given) -> float:
    call, arrays = given
    return off(card, named(call), call, arrays)


@pytest.mark.parametrize(
    ("given", "changed"),
    [(instance_of(), {"strides": (120, 1, 24, 6)}),
     (instance_of(layout="nhwc"), {"strides": (120, 20, 4, 1)}),
     (batch(), {"strides": (120, 1, 6)}), (batch(axis=3), {"vector_strides": (4, 0, 1)}),
     (layer(), {"sizes": (5, 21, 1, 1), "strides": (21, 1, 1, 1), "vector": (1, 1, 1, 1)})],
    ids=["channels first", "channels last", "any axis", "vector", "rows"],
)  # fmt: skip
def test_what_lies_otherwise_shows(
    card: Card, monkeypatch: pytest.MonkeyPatch, given: Given, changed: dict[str, Any]
) -> None:
    plant(monkeypatch, type(asked_of(given[0])), **changed)
    assert run(card, given) > 0.1


@pytest.mark.parametrize("dropped", [SCALE, BIAS, MEAN, VARIANCE])
def test_operands_exchanged_show(card: Card, monkeypatch: pytest.MonkeyPatch, dropped: int) -> None:
    """One of them is read in place of the next."""
    ring = [SCALE, BIAS, MEAN, VARIANCE]
    following = ring[(ring.index(dropped) + 1) % 4]
    right = Standardization.nodes

    def nodes(self: Standardization, dnn: Any, graph: Any, made: Any) -> Any:
        return right(self, dnn, graph, {**made, dropped: made[following]})

    monkeypatch.setattr(Standardization, "nodes", nodes)
    call, arrays = batch()
    with np.errstate(all="ignore"), pytest.raises(AssertionError):
        assert off(card, named(call), call, arrays) < 0.01


def test_another_epsilon_shows(card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    given = layer(epsilon=0.5)
    check(card, given)
    monkeypatch.setattr(
        Affine, "number",
        lambda self, dnn, graph: graph.tensor_scalar(
            np.float32(1e-5), dnn.scalar_type.RUNTIME_PARAM
        ),
    )  # fmt: skip
    assert run(card, given) > 0.1


def test_an_epsilon_in_double_shows(card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_dnn_norm, "np", type("Plain", (), {"float32": float}))
    with pytest.raises(CompileError, match="runtime kernel compilation failure"):
        run(card, batch())


@pytest.mark.parametrize(
    "note", ["REDUCED_PRECISION_REDUCTION", "FFT", cuda_dnn.UNSTEADY, cuda_dnn.TENSOR_UNITS]
)
def test_a_note_that_is_not_barred_shows(
    card: Card, monkeypatch: pytest.MonkeyPatch, note: str
) -> None:
    right = Affine.barred
    monkeypatch.setattr(Affine, "barred", lambda self: [n for n in right(self) if n != note])
    assert run(card, layer()) > 10 * NEAR["float32"]


def test_tensor_units_barred_for_nothing_show(card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Standardization, "multiplies", True)
    with pytest.raises(CompileError, match="No valid engine configs"):
        run(card, batch())


def test_a_workspace_smaller_than_it_is_told_shows(
    card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cudnn_norm, "_workspace", lambda call: 16)
    settle = cuda_dnn.settle
    monkeypatch.setattr(
        cuda_dnn, "settle",
        lambda dnn, graph, asked: settle(dnn, graph, replace(asked, workspace=1 << 20)),
    )  # fmt: skip
    caught(card, "outside an allocation|overlaps", partial(run, card, instance_of()))
