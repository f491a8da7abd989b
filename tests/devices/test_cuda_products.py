"""Products by cuBLAS and cuBLASLt on a real card: what the fakes of both only take for granted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from crossdock.devices import cuda, cuda_lt_library
from crossdock.devices.cuda import CudaCommands, CudaDevice
from crossdock.devices.cuda_blas import Product
from crossdock.devices.cuda_graph import Segment
from crossdock.devices.cuda_lt import LtProduct
from crossdock.devices.program import Out
from crossdock.kernels import table
from crossdock.kernels.fused_attention import Extents
from crossdock.kernels.precision import FORMATS
from crossdock.runtime.binding import compile_op
from crossdock.runtime.trial import prepare_trial
from tests.devices import test_cuda_blas, test_cuda_lt
from tests.devices.steps import download, record
from tests.kernels import test_cublas_attention
from tests.kernels.cpu_run import call_of

pytestmark = pytest.mark.cuda


@pytest.fixture
def device() -> Iterator[CudaDevice]:
    opened = cuda.open_device("cuda:0")
    yield opened
    opened.close()


def needs_tensor_units(device: CudaDevice) -> None:
    if float(device.info.details["compute_capability"]) < 8:
        pytest.skip("the card has no TF32")


@pytest.mark.parametrize("name", test_cuda_blas.PRODUCTS)
def test_cublas(device: CudaDevice, name: str) -> None:
    product = test_cuda_blas.PRODUCTS[name]
    if product.rounds:
        needs_tensor_units(device)
    got, want = test_cuda_blas.run(device, product)
    rounded = 2 * FORMATS[product.rounds].error if product.rounds else 0.0
    np.testing.assert_allclose(got, want, rtol=0, atol=product.k * (1e-6 + rounded))


@pytest.mark.parametrize("name", test_cuda_lt.PRODUCTS)
def test_cublaslt(device: CudaDevice, name: str) -> None:
    wanted = test_cuda_lt.PRODUCTS[name]
    assert test_cuda_lt.off(device, wanted) < test_cuda_lt.limit(wanted)


def test_a_graph_holds_cublaslt(device: CudaDevice) -> None:
    names = ("bias and relu", "all of it", "plain")
    jobs = [test_cuda_lt.job(device, test_cuda_lt.PRODUCTS[name]) for name in names]
    commands = record(device, *((j.step, j.buffers) for j in jobs))
    assert isinstance(commands, CudaCommands)
    for _ in range(3):
        done = device.queues["compute"].execute(commands)
    for j in jobs:
        got = download(device, j.buffers[Out(0)], j.got, done)
        np.testing.assert_allclose(got, j.want, rtol=0, atol=1e-5)
    (segment,) = commands.parts
    assert isinstance(segment, Segment)
    assert segment.replayed, segment.reason


@pytest.mark.parametrize("rounds", ["", *FORMATS])
def test_operands_are_rounded_by_no_more_than_is_said(device: CudaDevice, rounds: str) -> None:
    """By a product that is large enough for tensor units to be worth it."""
    if rounds:
        needs_tensor_units(device)
    product = Product(512, 512, 8, "float32", "float32", rounds=rounds)
    wanted = LtProduct(product, workspace=1 << 22)
    error = FORMATS[rounds].error if rounds else 2.0**-23
    assert test_cuda_lt.off(device, wanted) <= 2 * product.k * error


def test_algorithms_are_timed_and_the_choice_is_kept(
    device: CudaDevice, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By the library itself, which has several algorithms for a product of this size."""
    tmp_path.chmod(0o700)
    monkeypatch.setenv("CROSSDOCK_CACHE_DIR", str(tmp_path))
    a, b = (np.full(n, 0.5, np.float16) for n in ((384, 640), (640, 512)))
    call = call_of("matmul", [a, b])
    fitting = table.candidates(call, device.info).fitting
    kernel = next(k for k in fitting if k.name == "cublaslt.matmul")
    prepare_trial(device, kernel, call).close()
    said = compile_op(device, kernel, call).said
    assert "timed" in said
    assert not said.endswith("its own first choice, not timed")
    cuda_lt_library._library.cache_clear()  # as in another process
    executable = compile_op(device, kernel, call).executables[0]
    assert (executable.said, device.algorithms(executable)) == (said, 0)
    assert "not timed" in compile_op(device, kernel, call, steady=True).said


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_attention_in_half_types(device: CudaDevice, dtype: str) -> None:
    if dtype == "bfloat16":
        needs_tensor_units(device)
    arrays = test_cublas_attention.operands(Extents(2, 8, 2, 64, 200, 64, 32), dtype)
    test_cublas_attention.run_halves(device, [*arrays, None], {}, dtype)
