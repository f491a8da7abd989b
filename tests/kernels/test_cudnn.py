"""Convolutions by cuDNN: against a frontend that checks its use, and the real one where it is.

The engines of the fake that lose bits are ranked first, so that what is not deselected shows.
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

from crossdock.devices import cuda, cuda_dnn, cuda_dnn_conv, registry
from crossdock.devices.program import In
from crossdock.kernels import cudnn_conv, table
from crossdock.kernels.fused import FusedBody, FusedStep
from crossdock.kernels.precision import FORMATS
from crossdock.kernels.refusal import Cause, cause_of
from crossdock.kernels.spec import OpCall
from crossdock.runtime.binding import bind_op, compile_op, resident
from crossdock.runtime.errors import CompileError, DeviceError
from crossdock.runtime.tensor import Array
from tests.cards import CARD
from tests.cases import CASES
from tests.devices.steps import download
from tests.fakes import cudnn_fake, cupy_fake
from tests.kernels.cpu_run import call_of, expected
from tests.kernels.cudnn_run import WITH, Card, caught, drawn, kernels, opened, why
from tests.kernels.test_cpu import instance
from tests.kernels.test_cuda import execute

POCL = bool(registry.probe_all(["opencl"])[0].devices)
needs_pocl = pytest.mark.skipif(not POCL, reason="the fake cupy runs kernels on PoCL")
KIND = "float32"
OPS = ("conv2d", "fused_conv2d")


def body(*steps: tuple[str, tuple[int, ...]], dtype: str = KIND) -> FusedBody:
    return FusedBody(tuple(FusedStep(op, {}, at, dtype, (dtype,) * len(at)) for op, at in steps))


RELU = body(("relu", (0,)))
ADDED = body(("add", (0, 1)))
ADDED_RELU = body(("add", (0, 1)), ("relu", (-1,)))
SIGMOID = body(("sigmoid", (0,)))
BESIDE = body(("add", (0, 1)), ("sigmoid", (-1,)))


@pytest.fixture
def card() -> Iterator[Card]:
    with opened() as found:
        yield found


def conv(dtype: str = KIND, **attrs: Any) -> tuple[OpCall, list[Array | None]]:
    arrays: list[Array | None] = [
        drawn(2, 6, 9, 8, dtype=dtype), drawn(4, 6, 3, 3, seed=1, dtype=dtype),
        drawn(4, seed=2, dtype=dtype),
    ]  # fmt: skip
    return call_of("conv2d", arrays, attrs), arrays


def test_without_cudnn_it_says_what_to_install() -> None:
    call, _ = conv()
    said = why(call, "cudnn.conv2d", replace(CARD, details={**CARD.details, "no cudnn": "none"}))
    assert said == "none"
    assert cause_of(said) is Cause.LIBRARY


@pytest.mark.parametrize(
    ("change", "said"),
    [({"__version__": "1.31.0"}, "1.31.0 is older than 1.32"),
     ({"missing": "Unable to find symbol cudnnGetVersion"}, "cannot be loaded (Unable to find")],
)  # fmt: skip
def test_what_is_told_of_a_card_without_it(
    monkeypatch: pytest.MonkeyPatch, change: dict[str, str], said: str
) -> None:
    fake = cupy_fake.install(monkeypatch)
    (info, *_) = cuda.probe().devices
    assert "cannot be imported" in info.details["no cudnn"]
    assert "pip install 'crossdock[cudnn]'" in info.details["no cudnn"]
    vars(cudnn_fake.install(monkeypatch, fake)).update(change)
    (info, *_) = cuda.probe().devices
    assert said in info.details["no cudnn"]
    assert "cuDNN" not in info.fingerprint


def test_a_card_with_it_is_another_one_to_measure(card: Card) -> None:
    assert card.device.info.details["cudnn"] == "9.28.0"
    assert card.device.info.fingerprint.endswith("|cuDNN 9.28.0")


def test_float32_as_it_is_comes_before_our_own_and_tf32_behind() -> None:
    call, _ = conv()
    names = [k.name for k in table.candidates(call, WITH).fitting]
    assert names.index("cudnn.conv2d") < names.index("grid.conv2d.implicit")
    assert names.index("cudnn.conv2d.tf32") > names.index("grid.conv2d.implicit")
    old = replace(WITH, details={**WITH.details, "compute_capability": "7.5"})
    assert cause_of(why(call, "cudnn.conv2d.tf32", old)) is Cause.LACKS
    assert "no float64 kernel" in why(conv("float64")[0], "cudnn.conv2d", WITH)


@pytest.mark.parametrize("case", [c for c in CASES if c.op in OPS], ids=str)
def test_case(card: Card, case: Any) -> None:
    call, arrays = instance(case)
    for kernel in kernels(call, card.device.info).values():
        if len(kernel.lowered(call, card.device.info).steps) == 1 or POCL:
            case.check(execute(card.device, kernel, call, arrays), rounds=kernel.rounds)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(
    ("layout", "filter_layout"),
    [("nchw", "oihw"), ("nchw", "hwio"), ("nhwc", "ohwi"), ("nhwc", "ihwo")],
)
def test_layouts_groups_dilation_and_uneven_padding(
    card: Card, dtype: str, layout: str, filter_layout: str
) -> None:
    to_image = (0, 1, 2, 3) if layout == "nchw" else (0, 2, 3, 1)
    to_filter = ["oihw".index(axis) for axis in filter_layout]
    arrays: list[Array | None] = [
        np.ascontiguousarray(drawn(2, 6, 9, 8, dtype=dtype).transpose(to_image)),
        np.ascontiguousarray(drawn(4, 3, 3, 2, seed=1, dtype=dtype).transpose(to_filter)),
        drawn(4, seed=2, dtype=dtype),
    ]
    attrs = {
        "input_layout": layout, "filter_layout": filter_layout, "groups": 2, "dilations": [2, 1],
        "padding": [1, 2, 0, 3], "strides": [1, 2],
    }  # fmt: skip
    call = call_of("conv2d", arrays, attrs)
    (got,) = execute(
        card.device, kernels(call, card.device.info)["cudnn.conv2d"], call, arrays
    ).values()
    (want,) = expected(call, arrays)
    near = {"float32": 1e-5, "float16": 4e-3, "bfloat16": 4e-2}[dtype]
    np.testing.assert_allclose(got.astype(np.float64), want, rtol=near, atol=near)


def test_only_the_format_that_is_permitted_is_rounded_to(card: Card) -> None:
    call, arrays = conv(padding=[1, 1, 1, 1])
    (want,) = expected(call, arrays)
    off = {}
    for name, kernel in kernels(call, card.device.info).items():
        (got,) = execute(card.device, kernel, call, arrays).values()
        off[name] = float(np.abs(got - want).max())
    assert [g.engine.name for g in card.dnn.graphs if g.engine] == ["plain", "tf32"]
    assert off["cudnn.conv2d"] < 1e-5
    assert 1e-4 < off["cudnn.conv2d.tf32"] < 54 * 2.2 * FORMATS["tf32"].error


@pytest.mark.parametrize(
    ("ending", "beside", "name", "steps"),
    [(RELU, False, "fused_conv2d.relu", 1), (ADDED_RELU, True, "fused_conv2d.relu", 1),
     (ADDED, True, "fused_conv2d", 1), (SIGMOID, False, "fused_conv2d", 2),
     (BESIDE, True, "fused_conv2d", 2)],
)  # fmt: skip
@pytest.mark.parametrize("biased", [True, False])
def test_what_follows_a_convolution(
    card: Card, ending: FusedBody, beside: bool, name: str, steps: int, biased: bool
) -> None:
    arrays: list[Array | None] = [
        drawn(2, 6, 9, 8), drawn(4, 6, 3, 3, seed=1), drawn(4, seed=2) if biased else None,
        drawn(2, 4, 7, 6, seed=3) if beside else None,
    ]  # fmt: skip
    call = call_of("fused_conv2d", arrays, {**conv()[0].attrs, "body": ending})
    found = kernels(call, card.device.info)
    assert set(found) == {f"cudnn.{name}", f"cudnn.{name}.tf32"}
    kernel = found[f"cudnn.{name}"]
    assert kernel.exact == (not name.endswith("relu"))
    assert len(kernel.lowered(call, card.device.info).steps) == steps
    if steps == 1 or POCL:
        (got,) = execute(card.device, kernel, call, arrays).values()
        np.testing.assert_allclose(got, expected(call, arrays)[0], rtol=1e-5, atol=1e-5)


def test_a_refusal_is_kept_in_cudnns_words(card: Card) -> None:
    call, arrays = conv()
    kernel = kernels(call, card.device.info)["cudnn.conv2d"]
    card.dnn.refuse = "No valid engine configs for Conv_"
    with pytest.raises(CompileError, match=r"3x3 convolution of 2x6x9x8.*No valid engine configs"):
        execute(card.device, kernel, call, arrays)


def test_a_workspace_over_what_is_planned_is_refused(card: Card) -> None:
    call, _ = conv()
    (step,) = kernels(call)["cudnn.conv2d"].lowered(call, WITH).steps
    narrow = replace(step.fn.asked, workspace=512)
    with pytest.raises(CompileError, match="No valid engine configs"):
        card.device.compile(narrow.step(In(2)))


def twice(card: Card) -> tuple[Any, list[Any], Array]:
    """Two convolutions one after the other as commands, their results, and what these should be."""
    call, arrays = conv()
    op = compile_op(card.device, kernels(call, card.device.info)["cudnn.conv2d"], call)
    inputs = [None if a is None else resident(card.device, a, "input") for a in arrays]
    outs = [card.device.allocate(call.outputs[0].nbytes) for _ in range(2)]
    space = [card.device.allocate(nbytes) for nbytes in op.lowered.scratch]
    bound = [b for out in outs for b in bind_op(op, inputs, [out], space, "conv", 0.0)]
    return card.device.record(bound), outs, expected(call, arrays)[0]


def results(card: Card, commands: Any, outs: list[Any], like: Array) -> list[Array]:
    """What a run leaves in outputs that held something else."""
    got = [np.full(like.shape, 9, np.float32) for _ in outs]
    for out, array in zip(outs, got, strict=True):
        card.device.queues["upload"].write(out, array).wait()
    done = card.device.queues["compute"].execute(commands)
    return [download(card.device, out, array, done) for out, array in zip(outs, got, strict=True)]


def test_a_graph_holds_convolutions(card: Card) -> None:
    """Captured when they have run once, and then replayed."""
    commands, outs, want = twice(card)
    (segment,) = commands.parts
    for run in range(3):
        for got in results(card, commands, outs, want):
            np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)
        assert segment.replayed == (run > 0)
    assert commands.notes == ()


def test_what_no_graph_can_hold_is_run_all_the_same(card: Card) -> None:
    commands, outs, want = twice(card)
    card.dnn.capturing = "cudaErrorStreamCaptureUnsupported"
    for _ in range(3):
        for got in results(card, commands, outs, want):
            np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)
    (note,) = commands.notes
    assert "no CUDA graph of 2 launches: cuda:0: cuDNN, 3x3 convolution of 2x6x9x8" in note


def test_a_failure_of_a_run_says_what_and_where(card: Card) -> None:
    commands, outs, want = twice(card)
    card.dnn.failing = "CUDNN_STATUS_EXECUTION_FAILED"
    with pytest.raises(DeviceError, match=r"cuda:0: cuDNN, 3x3 convolution .*EXECUTION_FAILED"):
        results(card, commands, outs, want)


def test_another_process_makes_the_same_call() -> None:
    call, _ = conv()
    (step,) = kernels(call)["cudnn.conv2d.tf32"].lowered(call, WITH).steps
    module, name, data = step.form()
    made = getattr(importlib.import_module(module), name)(json.loads(json.dumps(data)))
    assert made.asked == step.fn.asked


def test_the_real_frontend_takes_the_graph() -> None:
    """As far as it goes without a card: up to its validation, and that where there is a cuDNN."""
    real = pytest.importorskip("cudnn", reason="nvidia-cudnn-frontend is not installed")
    arrays = [drawn(2, 6, 9, 8), drawn(4, 3, 3, 2), drawn(4), drawn(2, 4, 9, 8)]
    attrs = {**conv(padding=[1, 1, 0, 1])[0].attrs, "groups": 2, "body": ADDED_RELU}
    (step,) = (
        kernels(call_of("fused_conv2d", arrays, attrs))["cudnn.fused_conv2d.relu"]
        .lowered(call_of("fused_conv2d", arrays, attrs), WITH)
        .steps
    )
    graph = cuda_dnn.graph_of(real, step.fn.asked, handle=real.Handle(1, 0, 0))
    made = [node.name.partition(".")[0] for node in graph.nodes]
    assert made == ["conv_fprop", "add", "bias", "relu"]
    fixed = {
        t.uid: (list(t.dim), list(t.stride)) for t in graph.tensors.values() if not t.is_virtual
    }
    assert fixed == {
        number: (list(placed.sizes), list(placed.strides))
        for number, placed in step.fn.asked.tensors().items()
    }
    if why := cuda_dnn.problem():
        with pytest.raises(RuntimeError, match="cudnnGetVersion"):
            graph.validate()
        pytest.skip(why)
    graph.validate()


# --- bugs planted in the call -------------------------------------------------------------------


def run(card: Card) -> float:
    call, arrays = conv(input_layout="nchw")
    (got,) = execute(
        card.device, kernels(call, card.device.info)["cudnn.conv2d"], call, arrays
    ).values()
    return float(np.abs(got - expected(call, arrays)[0]).max())


def test_without_a_bug_nothing_is_wrong(card: Card) -> None:
    assert run(card) < 1e-5
    assert run(card) < 1e-5


def test_strides_in_the_wrong_order_show(card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    right = cuda_dnn_conv.strides
    turned = {"nchw": "nhwc", "oihw": "ohwi"}
    monkeypatch.setattr(
        cuda_dnn_conv, "strides",
        lambda sizes, layout, order="nchw": right(sizes, turned.get(layout, layout), order),
    )  # fmt: skip
    assert run(card) > 0.1


def test_a_workspace_smaller_than_cudnn_was_told_shows(
    card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = cudnn_conv._wanted
    monkeypatch.setattr(
        cudnn_conv, "_wanted", lambda rounds, call: replace(right(rounds, call), workspace=512)
    )
    settle = cuda_dnn.settle
    monkeypatch.setattr(
        cuda_dnn, "settle",
        lambda dnn, graph, wanted: settle(dnn, graph, replace(wanted, workspace=1 << 20)),
    )  # fmt: skip
    caught(card, "outside an allocation", partial(run, card))


def test_a_handle_whose_stream_is_not_set_shows(
    card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(card.dnn, "set_stream", lambda handle, stream: None)
    caught(card, "stream is not the current one", partial(run, card))
