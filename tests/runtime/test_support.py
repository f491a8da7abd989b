"""What devices say they can run: true of every op and type, and told in WebNN's terms."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import crossdock as xd
from crossdock.devices.base import Device
from crossdock.kernels import table
from crossdock.runtime import emulation
from crossdock.runtime.cases.types import typed_case
from crossdock.runtime.cli.kernel_run import run_kernel
from crossdock.runtime.errors import Unavailable
from crossdock.runtime.support import MAX_RANK, Level, listed_ops, support, supports
from crossdock.runtime.tensor import DTYPES, WEBNN_DTYPES
from tests.cases import Case
from tests.fakes import cards
from tests.kernels.grid_run import opencl_ids, opened
from tests.kernels.test_cpu import instance

IDS = ["cpu:0", opencl_ids()[0]]
QUICK = ["float32", "int32", "uint8"]
REST = [d for d in WEBNN_DTYPES if d not in QUICK]
"""A kernel is built for each op and type, which takes long where the driver has kept none."""
BEYOND = [d for d in DTYPES if d not in WEBNN_DTYPES]


def run_all(case: Case, device: Device) -> list[str]:
    """Run every candidate of a case and judge it; the names of what ran."""
    call, arrays = instance(case)
    fitting = emulation.candidates(call, device.info).fitting
    for kernel in fitting:
        outputs = run_kernel(device, kernel, call, arrays)
        try:
            named = {f"y{i}": array for i, array in enumerate(outputs)}
            case.check(named, rounds=kernel.rounds)
        except AssertionError as error:
            raise AssertionError(f"{kernel.name}: {error}") from error
    return [kernel.name for kernel in fitting]


def check_claims(op: str, dtypes: list[str], device: Device) -> None:
    for dtype in dtypes:
        said = support(op, dtype, device.info)
        case = typed_case(op, dtype)
        if said.level is Level.UNSUPPORTED:
            assert isinstance(case, str)
            assert op in case
            continue
        assert isinstance(case, Case)
        if table.op(op).alias:
            continue
        ran = run_all(case, device)
        assert ran == list(said.kernels)
        assert bool(ran) == (said.level in (Level.NATIVE, Level.EMULATED))
        assert said.reason or said.level is Level.NATIVE


@pytest.fixture(scope="module")
def card() -> Iterator[Device]:
    """A card on the fake cupy, which runs kernels on the OpenCL device."""
    opened(IDS[1])
    with pytest.MonkeyPatch.context() as patch, cards.opened(patch) as made:
        yield made


@pytest.mark.parametrize(
    ("device_id", "dtypes"),
    [
        pytest.param(IDS[0], list(WEBNN_DTYPES), id=IDS[0]),
        pytest.param(IDS[1], QUICK, id=IDS[1]),
        pytest.param(IDS[1], REST, id=f"{IDS[1]}-rest", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("op", listed_ops())
def test_what_is_said_to_run_runs(op: str, device_id: str, dtypes: list[str]) -> None:
    check_claims(op, dtypes, opened(device_id))


@pytest.mark.slow
@pytest.mark.parametrize("device_id", IDS)
@pytest.mark.parametrize("op", listed_ops())
def test_what_is_said_of_types_beyond_webnn_is_true(op: str, device_id: str) -> None:
    check_claims(op, BEYOND, opened(device_id))


@pytest.mark.slow
@pytest.mark.parametrize("op", listed_ops())
def test_what_is_said_of_a_card_is_true(op: str, card: Device) -> None:
    check_claims(op, list(DTYPES), card)


@pytest.mark.parametrize("device_id", IDS)
def test_no_webnn_operator_falls_back(device_id: str) -> None:
    webnn = [op for op in listed_ops() if not table.op(op).extension]
    assert len(webnn) == 95
    found = supports(opened(device_id).info, webnn, WEBNN_DTYPES)
    assert {s.op for s in found if s.level is Level.FALLBACK} == set()
    assert {s.op for s in found if s.level is Level.NATIVE} == set(webnn)


def test_a_type_that_only_the_host_runs_says_why() -> None:
    said = support("conv2d", "float64", opened(IDS[1]).info)
    assert said.level is Level.FALLBACK
    assert "no float64 kernel" in said.reason
    assert support("matmul", "int8", opened("cpu:0").info).level is Level.UNSUPPORTED


def test_an_emulation_says_what_it_goes_through() -> None:
    said = support("layer_normalization", "float64", opened(IDS[1]).info)
    assert said.level is Level.EMULATED
    assert {"reduce_mean", "sqrt"} <= set(said.through)


@pytest.mark.parametrize("device_id", IDS)
def test_limits_have_every_operator_and_operand(device_id: str) -> None:
    opened(device_id)
    limits = xd.Context(device_id).op_support_limits()
    assert limits["preferred_input_layout"] in ("nchw", "nhwc")
    assert limits["max_tensor_byte_length"] >= 1 << 28
    for part in ("input", "constant", "output"):
        assert limits[part]["data_types"] == list(WEBNN_DTYPES)
    every = {"data_types": list(WEBNN_DTYPES), "rank_range": {"min": 0, "max": MAX_RANK}}
    truth = {"data_types": ["uint8"], "rank_range": {"min": 0, "max": MAX_RANK}}
    assert limits["where"] == {
        "condition": truth, "true_value": every, "false_value": every, "output": every,
    }  # fmt: skip
    assert limits["equal"]["output"] == truth
    assert limits["cast"]["output"] == every
    assert limits["conv2d"]["input"]["rank_range"] == {"min": 4, "max": 4}
    assert limits["conv2d"]["bias"]["rank_range"] == {"min": 1, "max": 1}
    assert limits["arg_max"]["output"]["data_types"] == ["int32", "int64"]
    assert limits["concat"]["inputs"]["data_types"] == list(WEBNN_DTYPES)
    assert len(limits) == 5 + 95


def test_a_context_of_no_device_is_refused() -> None:
    with pytest.raises(Unavailable, match="vulkan:0"):
        xd.Context("vulkan:0")
