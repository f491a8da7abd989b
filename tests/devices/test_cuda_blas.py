"""Products by cuBLAS on the fake cupy, which checks sizes, strides, types and memory of each call.

Bugs planted in what is handed to cuBLAS are found; so is every misuse of the fake's own calls.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from crossdock.devices import cuda, cuda_blas
from crossdock.devices.cuda import CudaDevice
from crossdock.devices.cuda_blas import Product
from crossdock.devices.program import In, Out
from crossdock.runtime.errors import CompileError, DeviceError, Error, OutOfMemory
from crossdock.runtime.tensor import Array, to_numpy
from tests.devices.steps import download, record, upload
from tests.fakes import cards, cupy_fake
from tests.fakes.cuda_machine import UsageError
from tests.fakes.cupy_blas import COMPUTE, INVALID_VALUE, NOT_SUPPORTED, CUBLASError

PRODUCTS = {
    "plain": Product(5, 7, 3, "float32", "float32"),
    "a turned": Product(5, 7, 3, "float32", "float32", a_transposed=True),
    "b turned": Product(5, 7, 3, "float32", "float32", b_transposed=True),
    "both turned": Product(5, 7, 3, "float32", "float32", a_transposed=True, b_transposed=True),
    "batch": Product(4, 6, 5, "float32", "float32", (3,), (20,), (30,)),
    "one b for all": Product(4, 6, 5, "float32", "float32", (3,), (20,), (0,)),
    "two batches": Product(2, 3, 4, "float32", "float32", (2, 3), (8, 0), (0, 12)),
    "scaled": Product(6, 2, 9, "float64", "float64", alpha=-0.75),
    "halves": Product(3, 5, 6, "float16", "float32"),
    "tf32": Product(4, 4, 8, "float32", "float32", (2,), (32,), (32,), rounds="tf32"),
}


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> cupy_fake.FakeCupy:
    return cupy_fake.install(monkeypatch)


@pytest.fixture
def device(fake: cupy_fake.FakeCupy) -> Iterator[CudaDevice]:
    with cards.checked(fake), cards.first() as made:
        yield made


def operands(p: Product, seed: int = 0) -> tuple[Array, Array]:
    """Flat arrays of just the elements that the product reads."""
    rng = np.random.default_rng(seed)
    sizes = (p.m * p.k, p.a_strides), (p.k * p.n, p.b_strides)
    counts = [
        size + sum((n - 1) * s for n, s in zip(p.batch, strides, strict=True))
        for size, strides in sizes
    ]
    a, b = (rng.uniform(-1, 1, n).astype(to_numpy(p.dtype)) for n in counts)
    return a, b


def expected(p: Product, a: Array, b: Array) -> Array:
    """The product in float64, element by element of the batch."""
    made = np.empty((*p.batch, p.m, p.n))
    for at in np.ndindex(*p.batch):
        starts = [sum(i * s for i, s in zip(at, p_s, strict=True))
                  for p_s in (p.a_strides, p.b_strides)]  # fmt: skip
        x = a.astype(np.float64)[starts[0] :][: p.m * p.k]
        y = b.astype(np.float64)[starts[1] :][: p.k * p.n]
        x = x.reshape(p.k, p.m).T if p.a_transposed else x.reshape(p.m, p.k)
        y = y.reshape(p.n, p.k).T if p.b_transposed else y.reshape(p.k, p.n)
        made[at] = p.alpha * (x @ y)
    return made


def run(device: CudaDevice, p: Product) -> tuple[Array, Array]:
    """What a product gives in exactly the memory that it needs, and what it should give."""
    a, b = operands(p)
    want = expected(p, a, b)
    x, y = upload(device, a), upload(device, b)
    got = np.empty(want.shape, to_numpy(p.result))
    z = device.allocate(got.nbytes)
    step = p.step()
    done = device.queues["compute"].execute(record(device, (step, {In(0): x, In(1): y, Out(0): z})))
    return download(device, z, got, done), want


@pytest.mark.parametrize("name", PRODUCTS)
def test_products(device: CudaDevice, name: str) -> None:
    got, want = run(device, PRODUCTS[name])
    rounded = 2.0**-8 if PRODUCTS[name].rounds else 0.0
    np.testing.assert_allclose(got, want, rtol=0, atol=PRODUCTS[name].k * (1e-6 + rounded))


def test_another_process_makes_the_same_step() -> None:
    step = PRODUCTS["two batches"].step()
    assert step.form is not None
    module, name, data = step.form() or ("", "", None)
    assert (module, name) == ("crossdock.devices.cuda_blas", "remade")
    assert cuda_blas.remade(data).product == PRODUCTS["two batches"]


# --- planted bugs ---------------------------------------------------------------------------------


def wrong_ldb(self: Product) -> int:
    return self.k  # of b as it lies, rows are n long


def wrong_flags(blas: Any, product: Product) -> tuple[int, int]:
    del blas
    return int(product.a_transposed), int(product.b_transposed)


def wrong_stride(self: Product) -> tuple[int, int, int, int]:
    if not self.batch:
        return 1, 0, 0, 0
    return self.batch[-1], self.m * self.n, self.b_strides[-1], self.y_strides[-1]


def wrong_order(self: Product) -> tuple[int, int, int, int]:
    if not self.batch:
        return 1, 0, 0, 0
    return self.batch[-1], self.b_strides[-1], self.a_strides[-1], self.y_strides[-1]


def whole_result(self: Product) -> tuple[int, ...]:
    return (0,) * len(self.batch)


BUGS = {
    "a leading dimension that is the other one": (Product, "ldb", property(wrong_ldb)),
    "transpose flags of the other operand": (cuda_blas, "transposed", wrong_flags),
    "a batch stride that is the result's": (Product, "inner", property(wrong_stride)),
    "batch strides of the other operand": (Product, "inner", property(wrong_order)),
    "one result for the whole batch": (Product, "y_strides", property(whole_result)),
    "a compute type that rounds": (
        cuda_blas,
        "compute_type",
        lambda product: "CUBLAS_COMPUTE_32F_FAST_16BF",
    ),
}


def found(fake: cupy_fake.FakeCupy) -> list[str]:
    """What is wrong with the products of ``PRODUCTS``, errors of the machine among it."""
    wrong: list[str] = []
    device = cuda.open_device("cuda:0")
    for name, product in PRODUCTS.items():
        try:
            got, want = run(device, product)
            limit = product.k * (2.0**-8 if product.rounds else 1e-6)
            if not np.abs(got - want).max() <= limit:
                wrong.append(f"{name}: off by {np.abs(got - want).max():.2g}")
        except (UsageError, Error, TypeError) as error:
            wrong.append(f"{name}: {error}")
    device.close()
    gc.collect()
    return wrong


def test_without_a_bug_nothing_is_found(fake: cupy_fake.FakeCupy) -> None:
    assert found(fake) == []
    assert fake.machine.errors == []


@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_found(
    name: str, fake: cupy_fake.FakeCupy, monkeypatch: pytest.MonkeyPatch
) -> None:
    where, attribute, bug = BUGS[name]
    monkeypatch.setattr(where, attribute, bug)
    assert found(fake)


# --- what the fake refuses ------------------------------------------------------------------------


def call(device: CudaDevice, a: int, b: int, c: int, **changed: int) -> None:
    """A sound product of 4 by 3 and 3 by 2, by columns, with arguments changed."""
    factors = np.array([1, 0], np.float32)
    args = {
        "transa": 0, "transb": 0, "m": 4, "n": 2, "k": 3, "alpha": factors.ctypes.data,
        "a": a, "a_type": 0, "lda": 4, "a_stride": 0, "b": b, "b_type": 0, "ldb": 3,
        "b_stride": 0, "beta": factors.ctypes.data + 4, "c": c, "c_type": 0, "ldc": 4,
        "c_stride": 0, "count": 1, "compute": COMPUTE["CUBLAS_COMPUTE_32F"], "algo": -1,
    }  # fmt: skip
    queue = device.queues["compute"]
    with device.cp.cuda.Device(0), queue.stream:
        cuda_ = device.cp.cuda
        cuda_.cublas.gemmStridedBatchedEx(cuda_.get_cublas_handle(), **{**args, **changed})


@pytest.mark.parametrize(
    ("changed", "status"),
    [
        ({"lda": 3}, INVALID_VALUE),
        ({"ldb": 2}, INVALID_VALUE),
        ({"m": -1}, INVALID_VALUE),
        ({"transa": 3}, INVALID_VALUE),
        ({"a_type": 2}, NOT_SUPPORTED),
        ({"a_type": 2, "b_type": 2, "compute": 77}, NOT_SUPPORTED),
    ],
)
def test_calls_that_cublas_refuses(
    device: CudaDevice, changed: dict[str, int], status: int
) -> None:
    buffers = [upload(device, np.ones(n, np.float32)) for n in (12, 6, 8)]
    device.queues["compute"].finish()
    with pytest.raises(CUBLASError) as caught:
        call(device, *(b.pointer.ptr for b in buffers), **changed)
    assert caught.value.status == status


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"lda": 5}, "are outside an allocation"),
        ({"count": 2, "a_stride": 12, "c_stride": 8}, "are outside an allocation"),
        ({"count": 2}, "matrices of C overlap"),
        ({"count": 2, "c_stride": 4}, "matrices of C overlap"),
    ],
)
def test_calls_that_cublas_would_take(
    fake: cupy_fake.FakeCupy, changed: dict[str, int], said: str
) -> None:
    device = cuda.open_device("cuda:0")
    buffers = [upload(device, np.ones(n, np.float32)) for n in (12, 6, 16)]
    device.queues["compute"].finish()
    with pytest.raises(UsageError, match=said):
        call(device, *(b.pointer.ptr for b in buffers), **changed)
    device.close()


def test_operands_beside_their_results_and_alignment(fake: cupy_fake.FakeCupy) -> None:
    device = cuda.open_device("cuda:0")
    whole = upload(device, np.ones(100, np.float32)).pointer.ptr
    device.queues["download"].finish()
    device.queues["upload"].finish()
    call(device, whole, whole + 48, whole + 72)
    with pytest.raises(UsageError, match="C overlaps an operand"):
        call(device, whole, whole + 48, whole + 68)
    with pytest.raises(UsageError, match="matrix B is misaligned"):
        call(device, whole, whole + 50, whole + 72)
    shape = {"k": 8, "ldb": 8, "n": 1, "count": 2, "a_stride": 1, "c_stride": 4}
    with pytest.raises(UsageError, match="matrix A is misaligned"):
        call(
            device, whole, whole, whole + 200, **shape,
            compute=COMPUTE["CUBLAS_COMPUTE_32F_FAST_TF32"],
        )  # fmt: skip
    device.close()


def test_a_capture_is_refused(device: CudaDevice) -> None:
    stream = device.queues["compute"].stream
    buffers = [upload(device, np.ones(n, np.float32)) for n in (12, 6, 8)]
    stream.begin_capture()
    with pytest.raises(NotImplementedError, match="capture"):
        call(device, *(b.pointer.ptr for b in buffers))
    stream.end_capture()


# --- what becomes of cuBLAS's errors --------------------------------------------------------------


@pytest.mark.parametrize(("status", "kind"), [(3, OutOfMemory), (13, DeviceError)])
def test_errors_are_typed(
    device: CudaDevice, monkeypatch: pytest.MonkeyPatch, status: int, kind: type[Exception]
) -> None:
    def fail(*args: object) -> None:
        raise CUBLASError(status)

    monkeypatch.setattr(device.cp.cuda.cublas, "gemmStridedBatchedEx", fail)
    with pytest.raises(kind, match="cuda:0: cuBLAS, 5x3 times 3x7 in float32: CUBLAS_STATUS"):
        run(device, PRODUCTS["plain"])


def test_no_cublas_is_a_kernel_that_does_not_build(
    device: CudaDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> int:
        raise ImportError("libcublas.so.12: cannot open shared object file")

    monkeypatch.setattr(device.cp.cuda, "get_cublas_handle", missing)
    with pytest.raises(CompileError, match="pip install nvidia-cublas"):
        device.compile(PRODUCTS["plain"].step())
