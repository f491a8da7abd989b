"""Products by cuBLAS and cuBLASLt on a real card: what the fakes of both only take for granted."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from crossdock.devices import cuda
from crossdock.devices.cuda import CudaCommands, CudaDevice
from crossdock.devices.cuda_blas import Product
from crossdock.devices.cuda_graph import Segment
from crossdock.devices.cuda_lt import LtProduct
from crossdock.devices.program import Out
from crossdock.kernels.precision import FORMATS
from tests.devices import test_cuda_blas, test_cuda_lt
from tests.devices.steps import download, record

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
