"""Products by cuBLAS and cuBLASLt: what they are for, what follows them, what rounding costs.

They run on the fake cupy, which rounds as the compute type permits it at worst.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from crossdock.devices import registry
from crossdock.devices.base import DeviceInfo
from crossdock.devices.cuda import CudaDevice
from crossdock.kernels import cublas_matmul, table
from crossdock.kernels.cublas_matmul import fits
from crossdock.kernels.fused import FusedBody, FusedStep
from crossdock.kernels.precision import FORMATS
from crossdock.kernels.refusal import Cause, cause_of
from crossdock.kernels.spec import Kernel, OpCall
from crossdock.runtime.refused import Refused
from crossdock.runtime.tensor import Array, TensorSpec, to_numpy
from tests.cards import CARD
from tests.cases import CASES
from tests.fakes import cards
from tests.kernels.cpu_run import call_of, expected
from tests.kernels.test_cpu import instance
from tests.kernels.test_cuda import execute

POCL = bool(registry.probe_all(["opencl"])[0].devices)
needs_pocl = pytest.mark.skipif(not POCL, reason="the fake cupy runs kernels on PoCL")
KIND = "float32"
RELU = FusedBody((FusedStep("relu", {}, (0,), KIND, (KIND,)),))
GELU = FusedBody((FusedStep("gelu", {}, (0,), KIND, (KIND,)),))
BESIDE = FusedBody(
    (FusedStep("add", {}, (0, 1), KIND, (KIND, KIND)), FusedStep("gelu", {}, (-1,), KIND, (KIND,)))
)
ADDED = FusedBody(BESIDE.steps[:1])
ADDED_RELU = FusedBody((*ADDED.steps, FusedStep("relu", {}, (-1,), KIND, (KIND,))))
ROUNDINGS = ("", *FORMATS)


@pytest.fixture(scope="module")
def device() -> Iterator[CudaDevice]:
    with pytest.MonkeyPatch.context() as patch, cards.opened(patch) as made:
        yield made


def drawn(*shape: int, seed: int = 0, dtype: str = KIND) -> Array:
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(to_numpy(dtype))


def why(call: OpCall, name: str, info: DeviceInfo = CARD) -> str:
    return dict(table.candidates(call, info).rejected)[name]


def kernels(call: OpCall, info: DeviceInfo = CARD, library: str = "cublas") -> dict[str, Kernel]:
    """The fitting kernels of a library by what they round operands to, as if without the other."""
    if library == "cublas":
        there = [k for k in table.kernels(call.op) if k.name.startswith("cublas.")]
        return {k.rounds: k for k in there if fits(k.rounds, call, info) is None}
    found = table.candidates(call, info).fitting
    return {k.rounds: k for k in found if k.name.startswith(f"{library}.")}


def test_float32_is_first_and_rounding_behind_our_own_kernels() -> None:
    found = table.candidates(call_of("matmul", [drawn(20, 30), drawn(30, 40)]), CARD).fitting
    assert [k.name for k in found] == [
        "cublaslt.matmul", "grid.matmul.tiled", "cublaslt.matmul.tf32", "cublaslt.matmul.bfloat16"
    ]  # fmt: skip


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_types_are_not_rounded(dtype: str) -> None:
    arrays = [drawn(20, 32, dtype=dtype), drawn(32, 40, dtype=dtype)]
    assert set(kernels(call_of("matmul", arrays))) == {""}


def test_old_cards_have_no_tensor_units_for_it() -> None:
    old = replace(CARD, details={"compute_capability": "7.5"})
    call = call_of("matmul", [drawn(20, 30), drawn(30, 40)])
    assert set(kernels(call, old)) == {""}
    said = why(call, "cublaslt.matmul.tf32", old)
    assert cause_of(said) is Cause.LACKS
    assert "capability 7.5 has no tf32" in said
    halves = [drawn(20, 32, dtype="bfloat16"), drawn(32, 40, dtype="bfloat16")]
    assert "cublas.matmul" in dict(table.candidates(call_of("matmul", halves), old).rejected)


def test_what_cublas_is_not_asked_for() -> None:
    halves = [drawn(3, 5, 8, dtype="float16"), drawn(3, 8, 6, dtype="float16")]
    assert "multiples of 16 bytes" in why(call_of("matmul", halves), "cublas.matmul")
    assert "" in kernels(call_of("matmul", halves), library="cublaslt")
    many = [drawn(70, 2, 2, 3), drawn(70, 1, 3, 2)]
    assert "more than 64 calls" in why(call_of("matmul", many), "cublas.matmul")
    few = [drawn(3, 2, 2, 3), drawn(3, 1, 3, 2)]
    assert "" in kernels(call_of("matmul", few))
    assert "" in kernels(call_of("matmul", few), library="cublaslt")
    wide = [drawn(4, 5, dtype="float64"), drawn(5, 6, dtype="float64")]
    assert "no float64" in why(call_of("matmul", wide), "cublaslt.matmul")


def test_cupys_own_products_hang_on_its_environment() -> None:
    call = call_of("matmul", [drawn(20, 30), drawn(30, 40)])
    assert "CUPY_TF32" in why(call, "array")


def test_what_the_call_itself_does() -> None:
    """A bias, what is added and a ReLU are one step; other things are a launch after it."""
    a, b, bias, beside = drawn(4, 5), drawn(5, 6), drawn(6), drawn(4, 6)

    def steps(arrays: list[Array | None], body: FusedBody | None) -> tuple[str, int]:
        call = call_of("fused_matmul", arrays, {"body": body})
        kernel = kernels(call, library="cublaslt")[""]
        return kernel.name, len(kernel.lowered(call, CARD).steps)

    assert steps([a, b, bias, None], None) == ("cublaslt.fused_matmul", 1)
    assert steps([a, b, bias, beside], ADDED) == ("cublaslt.fused_matmul", 1)
    assert steps([a, b, bias, beside], ADDED_RELU) == ("cublaslt.fused_matmul.relu", 1)
    assert steps([a, b, None, None], RELU) == ("cublaslt.fused_matmul.relu", 1)
    assert steps([a, b, bias, None], GELU) == ("cublaslt.fused_matmul", 2)
    for c, beta, count in ((bias, 1.0, 1), (beside, -2.0, 1), (bias, 0.5, 2), (bias[:1], 1.0, 2)):
        call = call_of("gemm", [a, b, c], {"beta": beta})
        assert len(kernels(call, library="cublaslt")[""].lowered(call, CARD).steps) == count


def test_a_relu_that_may_hide_a_nan_is_not_exact() -> None:
    call = call_of("fused_matmul", [drawn(4, 5), drawn(5, 6), None, None], {"body": RELU})
    names = {k.name: k.exact for k in table.candidates(call, CARD).fitting}
    assert not names["cublaslt.fused_matmul.relu"]
    assert names["cublas.fused_matmul"], "strict=True needs it"


def test_cublas_stands_in_where_cublaslt_does_not_build(monkeypatch: pytest.MonkeyPatch) -> None:
    call = call_of("matmul", [drawn(20, 30), drawn(30, 40)])
    assert "graphs of launches hold it" in why(call, "cublas.matmul")
    mark = (CARD.fingerprint, "cublaslt.matmul", call.key())
    gone = Refused(CARD.id, "cublaslt.matmul", "libcublasLt.so.12 cannot be loaded", "")
    monkeypatch.setattr(cublas_matmul, "refused", lambda: {mark: gone})
    names = [k.name for k in table.candidates(call, CARD).fitting]
    assert "cublas.matmul" in names
    assert "cublas.matmul.tf32" not in names


@needs_pocl
@pytest.mark.parametrize("library", ["cublas", "cublaslt"])
@pytest.mark.parametrize("rounds", ROUNDINGS)
@pytest.mark.parametrize(
    ("biased", "beside", "body"),
    [(True, False, None), (False, True, BESIDE), (True, True, ADDED_RELU), (True, False, RELU),
     (False, False, GELU), (True, True, ADDED)],
)  # fmt: skip
def test_what_follows_a_product(
    device: CudaDevice,
    library: str,
    rounds: str,
    biased: bool,
    beside: bool,
    body: FusedBody | None,
) -> None:
    m, k, n = 17, 40, 24
    arrays: list[Array | None] = [
        drawn(m, k), drawn(k, n, seed=1), drawn(n, seed=2) if biased else None,
        drawn(m, n, seed=3) if beside else None,
    ]  # fmt: skip
    call = call_of("fused_matmul", arrays, {"body": body})
    kernel = kernels(call, device.info, library)[rounds]
    (got,) = execute(device, kernel, call, arrays).values()
    (want,) = expected(call, arrays)
    limit = 2.2 * FORMATS[rounds].error if rounds else 1e-6  # GELU's slope is below 1.13
    np.testing.assert_allclose(got, want, rtol=0, atol=k * limit)
    if rounds:
        assert np.abs(got - want).max() > 1e-4, "nothing was rounded"


@needs_pocl
@pytest.mark.parametrize("library", ["cublas", "cublaslt"])
def test_half_types_are_rounded_once(device: CudaDevice, library: str) -> None:
    """A product of 2049 and what takes 2048 from it again: the sum does not fit a half."""
    a, b = np.ones((1, 2049), np.float16), np.ones((2049, 8), np.float16)
    bias = np.full(8, -2048, np.float16)
    call = call_of("fused_matmul", [a, b, bias, None], {"body": None})
    kernel = kernels(call, device.info, library)[""]
    (got,) = execute(device, kernel, call, [a, b, bias, None]).values()
    assert (got == 1).all()


@needs_pocl
@pytest.mark.parametrize("library", ["cublas", "cublaslt"])
def test_parts_of_sums_are_not_added_up_as_halves(device: CudaDevice, library: str) -> None:
    """2049 in the first half, which no float16 is, and -2047 in the second."""
    a, b = np.ones((1, 8192), np.float16), np.zeros((8192, 8), np.float16)
    b[:2049], b[4096:6143] = 1, -1
    call = call_of("matmul", [a, b])
    (got,) = execute(device, kernels(call, device.info, library)[""], call, [a, b]).values()
    assert (got == 2).all()


@needs_pocl
@pytest.mark.parametrize("case", ["matmul-long-float32", "matmul-tall-float32", "gemm-c131-10"])
def test_tolerances_know_what_is_rounded(device: CudaDevice, case: str) -> None:
    """What is rounded passes by its own tolerance alone, and the coarser format is further off."""
    found = next(c for c in CASES if str(c) == case)
    call, arrays = instance(found)
    off = []
    for rounds in FORMATS:
        got = execute(device, kernels(call, device.info)[rounds], call, arrays)
        found.check(got, rounds=rounds)
        with pytest.raises(AssertionError, match="Not equal to tolerance"):
            found.check(got)
        off.append(np.abs(got["y0"] - found.reference()["y0"]).max())
    assert 3 * off[0] < off[1]


# --- convolutions that are products ---------------------------------------------------------------

LT_CONV = "cublaslt.conv2d"
FILTERS = {"oihw": (6, 8, 1, 1), "hwio": (1, 1, 8, 6), "ohwi": (6, 1, 1, 8), "ihwo": (8, 1, 1, 6)}
LEAKY = FusedBody((FusedStep("leaky_relu", {"alpha": 0.25}, (0,), KIND, (KIND,)),))


def convolved(
    layout: str, filters: str, biased: bool, body: FusedBody | None, batch: int = 3
) -> tuple[OpCall, list[Array | None]]:
    """A convolution of 8 channels to 6, of places of 4 by 6."""
    shape = {"nchw": (batch, 8, 4, 6), "nhwc": (batch, 4, 6, 8)}[layout]
    arrays: list[Array | None] = [
        drawn(*shape), drawn(*FILTERS[filters], seed=1), drawn(6, seed=2) if biased else None
    ]  # fmt: skip
    attrs = {"input_layout": layout, "filter_layout": filters}
    call = call_of("conv2d", arrays, attrs)
    if body is None:
        return call, arrays
    if body in (ADDED, ADDED_RELU, BESIDE):
        arrays.append(drawn(*call.outputs[0].dims, seed=3))
    specs = (*call.inputs, *(TensorSpec.of(a) for a in arrays[3:] if a is not None))
    attrs = {**call.attrs, "body": body}
    return OpCall("fused_conv2d", attrs, specs, call.outputs, {}, "conv"), arrays


@pytest.mark.parametrize(
    ("layout", "biased", "body", "relu", "steps"),
    [
        ("nchw", False, None, "", 1), ("nchw", True, None, "", 2), ("nhwc", True, None, "", 1),
        ("nhwc", True, RELU, "relu", 1), ("nhwc", True, ADDED_RELU, "relu", 1),
        ("nchw", False, ADDED_RELU, "relu", 1), ("nchw", True, ADDED_RELU, "", 2),
        ("nhwc", True, LEAKY, "", 2),
    ],
)  # fmt: skip
def test_what_the_call_of_a_convolution_does(
    layout: str, biased: bool, body: FusedBody | None, relu: str, steps: int
) -> None:
    call, _ = convolved(layout, "oihw", biased, body)
    kernel = kernels(call, library="cublaslt")[""]
    assert kernel.name == f"cublaslt.{call.op}.{relu}".rstrip(".")
    assert len(kernel.lowered(call, CARD).steps) == steps


@needs_pocl
@pytest.mark.parametrize("rounds", ["", "tf32"])
@pytest.mark.parametrize(
    ("layout", "filters", "biased", "body"),
    [
        *((layout, name, False, None) for name in FILTERS for layout in ("nchw", "nhwc")),
        ("nchw", "oihw", True, RELU), ("nchw", "hwio", False, ADDED_RELU),
        ("nhwc", "ohwi", True, ADDED_RELU), ("nhwc", "ihwo", True, None),
    ],
)  # fmt: skip
def test_convolutions(
    device: CudaDevice,
    rounds: str,
    layout: str,
    filters: str,
    biased: bool,
    body: FusedBody | None,
) -> None:
    call, arrays = convolved(layout, filters, biased, body, batch=1 + biased)
    kernel = kernels(call, device.info, "cublaslt")[rounds]
    (got,) = execute(device, kernel, call, arrays).values()
    (want,) = expected(call, arrays)
    limit = 2.2 * FORMATS[rounds].error if rounds else 1e-6
    np.testing.assert_allclose(got, want, rtol=0, atol=8 * limit)


def test_other_convolutions_are_no_products() -> None:
    x, w = drawn(1, 8, 6, 6), drawn(6, 8, 1, 1)
    assert "no product" in why(call_of("conv2d", [x, w, None], {"strides": [2, 2]}), LT_CONV)
    grouped = call_of("conv2d", [x, drawn(6, 4, 1, 1), None], {"groups": 2})
    assert "no product" in why(grouped, LT_CONV)
    assert "no product" in why(call_of("conv2d", [x, drawn(6, 8, 3, 3), None], {}), LT_CONV)
