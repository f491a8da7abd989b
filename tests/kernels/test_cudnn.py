"""Convolutions by cuDNN: against a frontend that checks its use, and the real one where it is.

The engines of the fake that lose bits are ranked first, so that what is not deselected shows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from crossdock.devices import cuda, cuda_dnn, registry
from crossdock.devices.cuda import CudaDevice
from crossdock.devices.program import In
from crossdock.kernels import cudnn_conv, table
from crossdock.kernels.fused import FusedBody, FusedStep
from crossdock.kernels.precision import FORMATS
from crossdock.kernels.refusal import Cause, cause_of
from crossdock.kernels.spec import Kernel, OpCall
from crossdock.runtime.errors import CompileError
from crossdock.runtime.tensor import Array, to_numpy
from tests.cards import CARD
from tests.cases import CASES
from tests.fakes import cudnn_fake, cupy_fake
from tests.fakes.cuda_machine import UsageError
from tests.kernels.cpu_run import call_of, expected
from tests.kernels.test_cpu import instance
from tests.kernels.test_cuda import execute

POCL = bool(registry.probe_all(["opencl"])[0].devices)
needs_pocl = pytest.mark.skipif(not POCL, reason="the fake cupy runs kernels on PoCL")
KIND = "float32"
WITH = replace(CARD, details={**CARD.details, "cudnn": "9.28.0"})
OPS = ("conv2d", "fused_conv2d")


def body(*steps: tuple[str, tuple[int, ...]], dtype: str = KIND) -> FusedBody:
    return FusedBody(tuple(FusedStep(op, {}, at, dtype, (dtype,) * len(at)) for op, at in steps))


RELU = body(("relu", (0,)))
ADDED = body(("add", (0, 1)))
ADDED_RELU = body(("add", (0, 1)), ("relu", (-1,)))
SIGMOID = body(("sigmoid", (0,)))
BESIDE = body(("add", (0, 1)), ("sigmoid", (-1,)))


@dataclass
class Card:
    """A fake card with cuDNN."""

    device: CudaDevice
    dnn: cudnn_fake.Cudnn


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Iterator[Card]:
    fake = cupy_fake.install(monkeypatch)
    dnn = cudnn_fake.install(monkeypatch, fake)
    opened = cuda.open_device("cuda:0")
    yield Card(opened, dnn)
    opened.close()
    assert fake.machine.errors == []


def drawn(*shape: int, seed: int = 0, dtype: str = KIND) -> Array:
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(to_numpy(dtype))


def kernels(call: OpCall, info: Any = WITH) -> dict[str, Kernel]:
    found = table.candidates(call, info).fitting
    return {k.name: k for k in found if k.name.startswith("cudnn.")}


def why(call: OpCall, name: str, info: Any) -> str:
    return dict(table.candidates(call, info).rejected)[name]


def conv(dtype: str = KIND, **attrs: Any) -> tuple[OpCall, list[Array | None]]:
    arrays: list[Array | None] = [
        drawn(2, 6, 9, 8, dtype=dtype), drawn(4, 6, 3, 3, seed=1, dtype=dtype),
        drawn(4, seed=2, dtype=dtype),
    ]  # fmt: skip
    return call_of("conv2d", arrays, attrs), arrays


def test_without_cudnn_it_says_what_to_install() -> None:
    call, _ = conv()
    said = why(call, "cudnn.conv2d", replace(CARD, details={**CARD.details, "no_cudnn": "none"}))
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
    assert "cannot be imported" in info.details["no_cudnn"]
    assert "pip install 'crossdock[cudnn]'" in info.details["no_cudnn"]
    vars(cudnn_fake.install(monkeypatch, fake)).update(change)
    (info, *_) = cuda.probe().devices
    assert said in info.details["no_cudnn"]
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
    assert "none of float32" in why(conv("float64")[0], "cudnn.conv2d", WITH)


@pytest.mark.parametrize("case", [c for c in CASES if c.op in OPS], ids=str)
def test_case(card: Card, case: Any) -> None:
    call, arrays = instance(case)
    for kernel in kernels(call, card.device.info).values():
        if len(kernel.lowered(call, card.device.info).steps) == 1 or POCL:
            case.check(execute(card.device, kernel, call, arrays), rounds=kernel.rounds)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("filter_layout", ["oihw", "ohwi", "hwio", "ihwo"])
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
    narrow = replace(step.fn.wanted, workspace=512)
    with pytest.raises(CompileError, match="No valid engine configs"):
        card.device.compile(narrow.step(In(2)))


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
    right = cuda_dnn.strides
    turned = {"nchw": "nhwc", "oihw": "ohwi"}
    monkeypatch.setattr(
        cuda_dnn, "strides",
        lambda sizes, layout, order="nchw": right(sizes, turned.get(layout, layout), order),
    )  # fmt: skip
    assert run(card) > 0.1


def caught(card: Card, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        run(card)
    assert len(card.dnn.machine.errors) == 1
    card.dnn.machine.errors.clear()


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
    caught(card, "outside an allocation")


def test_a_handle_whose_stream_is_not_set_shows(
    card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(card.dnn, "set_stream", lambda handle, stream: None)
    caught(card, "stream is not the current one")
