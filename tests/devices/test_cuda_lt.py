"""Products by cuBLASLt: against a library of C functions that checks them, and the real one's own
descriptors, which need no card."""

from __future__ import annotations

import ctypes
import gc
import json
import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from ctypes import byref, c_size_t, c_uint32, c_uint64, c_void_p
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from crossdock.devices import cuda, cuda_blas, cuda_lt, cuda_lt_library
from crossdock.devices.cuda import CudaDevice
from crossdock.devices.cuda_blas import Product
from crossdock.devices.cuda_graph import Segment
from crossdock.devices.cuda_lt import LtProduct
from crossdock.devices.cuda_lt_choice import Algorithm, Chosen
from crossdock.devices.cuda_lt_library import Library, Refused
from crossdock.devices.isolated_forms import read_step, step_form
from crossdock.devices.program import ArrayCall, In, Out, Scratch, fixed
from crossdock.runtime.errors import CompileError, DeviceError, Error
from crossdock.runtime.tensor import Array, to_numpy
from tests.devices.steps import download, record, upload
from tests.devices.test_cuda_blas import expected, operands
from tests.fakes import cards, cublaslt, cupy_fake
from tests.fakes.cuda_machine import UsageError

SPACE = 4096
FUNCTIONS: dict[str, Callable[[Array], Array]] = {
    "": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "gelu": lambda x: x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
}
PLAIN = Product(5, 7, 3, "float32", "float32")
TURNED = Product(6, 4, 9, "float32", "float32", a_transposed=True)
BATCH = Product(4, 6, 5, "float32", "float32", (3,), (20,), (0,))
PRODUCTS = {
    "plain": LtProduct(PLAIN, workspace=SPACE),
    "without workspace": LtProduct(TURNED),
    "batch": LtProduct(BATCH, workspace=SPACE),
    "scaled": LtProduct(replace(PLAIN, alpha=-0.5, b_transposed=True), workspace=SPACE),
    "bias": LtProduct(PLAIN, bias=True, workspace=SPACE),
    "bias and relu": LtProduct(TURNED, bias=True, function="relu", workspace=SPACE),
    "added": LtProduct(PLAIN, c=True, beta=0.25, workspace=SPACE),
    "all of it": LtProduct(BATCH, bias=True, c=True, beta=1.0, function="relu", workspace=SPACE),
    "gelu": LtProduct(TURNED, function="gelu", workspace=SPACE),
    "bias, added and gelu": LtProduct(
        PLAIN, bias=True, c=True, beta=1.0, function="gelu", workspace=SPACE
    ),
    "two batches": LtProduct(
        Product(2, 3, 4, "float32", "float32", (2, 3), (8, 0), (0, 12)), bias=True, workspace=SPACE
    ),
    "halves": LtProduct(
        Product(8, 24, 16, "float16", "float16"), bias=True, function="relu", workspace=SPACE
    ),
}


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> cupy_fake.FakeCupy:
    return cupy_fake.install(monkeypatch)


@pytest.fixture
def device(fake: cupy_fake.FakeCupy) -> Iterator[CudaDevice]:
    with cards.checked(fake), cards.first() as made:
        yield made
    assert fake.cublaslt.live == 0, "descriptors are left"


@dataclass
class Job:
    """A product with its memory on a device, and what it should give."""

    step: Any
    buffers: dict[Any, Any]
    want: Array
    got: Array


def job(device: CudaDevice, wanted: LtProduct) -> Job:
    p = wanted.product
    a, b = operands(p)
    made = expected(p, a, b)
    rng = np.random.default_rng(5)
    bias = rng.uniform(-1, 1, p.n).astype(to_numpy(p.result))
    c = rng.uniform(-1, 1, made.shape).astype(to_numpy(p.result))
    made = made + (wanted.beta * c.astype(np.float64) if wanted.c else 0)
    made = made + (bias.astype(np.float64) if wanted.bias else 0)
    got = np.empty(made.shape, to_numpy(p.result))
    buffers: dict[Any, Any] = {
        In(0): upload(device, a), In(1): upload(device, b), Out(0): device.allocate(got.nbytes)
    }  # fmt: skip
    if wanted.workspace:
        buffers[Scratch(0)] = device.allocate(wanted.workspace)
    if wanted.bias:
        buffers[In(2)] = upload(device, bias)
    if wanted.c:
        buffers[In(3)] = upload(device, c)
    step = wanted.step(In(2) if wanted.bias else None, In(3) if wanted.c else None)
    return Job(step, buffers, FUNCTIONS[wanted.function](made), got)


def off(device: CudaDevice, wanted: LtProduct) -> float:
    """How far a product is from what it should be."""
    made = job(device, wanted)
    done = device.queues["compute"].execute(record(device, (made.step, made.buffers)))
    got = download(device, made.buffers[Out(0)], made.got, done)
    return float(np.abs(got - made.want).max())


def limit(wanted: LtProduct) -> float:
    return 2e-3 if wanted.product.result == "float16" else 1e-5


@pytest.mark.parametrize("name", PRODUCTS)
def test_products(device: CudaDevice, name: str) -> None:
    assert off(device, PRODUCTS[name]) < limit(PRODUCTS[name])


def test_another_process_makes_the_same_step() -> None:
    step = PRODUCTS["all of it"].step(In(2), In(3))
    made = read_step(json.loads(json.dumps(step_form(step, "isolated:cuda:0"))))
    assert isinstance(made, ArrayCall)
    assert isinstance(made.fn, cuda_lt.LtGemm)
    assert made.fn.wanted == PRODUCTS["all of it"]
    assert made == replace(step, fn=made.fn)


def test_the_same_step_with_nothing_that_was_measured() -> None:
    """Where its slots are others by now, as those of an op that is a part of another, they stay."""
    step = PRODUCTS["all of it"].step(In(2), In(3))
    moved = replace(step, ins=tuple(In(i + 4) for i in range(4)), outs=(Scratch(5), Scratch(6)))
    made = fixed(moved)
    assert isinstance(made, ArrayCall)
    assert isinstance(made.fn, cuda_lt.LtGemm)
    assert made.fn.wanted == replace(PRODUCTS["all of it"], tuned=False)
    assert made == replace(moved, fn=made.fn)
    read = read_step(json.loads(json.dumps(step_form(made, "isolated:cuda:0"))))
    assert isinstance(read, ArrayCall)
    assert isinstance(read.fn, cuda_lt.LtGemm)
    assert read.fn.wanted == made.fn.wanted
    assert fixed(made) is made


def test_a_graph_holds_products(device: CudaDevice) -> None:
    """One after the other, captured when they have run once, and then replayed."""
    jobs = [job(device, PRODUCTS[name]) for name in ("bias and relu", "all of it", "plain")]
    commands = record(device, *((j.step, j.buffers) for j in jobs))
    (segment,) = commands.parts  # type: ignore[attr-defined]
    assert isinstance(segment, Segment)
    for run in range(3):
        for j in jobs:
            done = device.queues["upload"].write(j.buffers[Out(0)], np.full_like(j.got, 9.0))
            done.wait()
        done = device.queues["compute"].execute(commands)
        for j in jobs:
            got = download(device, j.buffers[Out(0)], j.got, done)
            np.testing.assert_allclose(got, j.want, rtol=0, atol=1e-5)
        assert segment.replayed == (run > 0)
    assert commands.notes == ()  # type: ignore[attr-defined]


def test_a_product_that_no_graph_can_hold_is_run_all_the_same(device: CudaDevice) -> None:
    jobs = [job(device, PRODUCTS["plain"]) for _ in range(2)]
    commands = record(device, *((j.step, j.buffers) for j in jobs))
    device.cp.cublaslt.refuse, device.cp.cublaslt.capturing = 14, True
    for _ in range(3):
        done = device.queues["compute"].execute(commands)
        got = download(device, jobs[1].buffers[Out(0)], jobs[1].got, done)
        np.testing.assert_allclose(got, jobs[1].want, rtol=0, atol=1e-5)
    (note,) = commands.notes  # type: ignore[attr-defined]
    assert "no CUDA graph of 2 launches: cuda:0: cuBLAS, 5x3 times 3x7" in note


# --- planted bugs ---------------------------------------------------------------------------------


def shifted_bias(made: Any, desc: Any = cuda_lt._LtGemm._description) -> Any:
    def description(self: Any, bias: int) -> Any:
        return desc(self, bias + made)

    return description


def swapped_layouts(self: Any, cp: Any, lt: Any, p: Any, *, init: Any) -> None:
    init(self, cp, lt, replace(p, m=p.n, n=p.m))


INIT = cuda_lt._Layouts.__init__
BUGS: dict[str, tuple[Any, str, Any]] = {
    "the bias of the next column": (cuda_lt._LtGemm, "_description", shifted_bias(4)),
    "no epilogue": (LtProduct, "epilogue", property(lambda self: cuda_lt.PLAIN)),
    "a ReLU for a GELU": (cuda_lt, "FUNCTIONS", {"": 0, "relu": 2, "gelu": 2}),
    "rows for columns": (
        cuda_lt._Layouts,
        "__init__",
        lambda self, cp, lt, p: swapped_layouts(self, cp, lt, p, init=INIT),
    ),
    "a leading dimension that is the other one": (
        Product, "ldb", property(lambda self: self.n if self.b_transposed else self.k)
    ),
    "transpose flags of the other operand": (
        cuda_lt,
        "transposed",
        lambda blas, product: (int(product.a_transposed), int(product.b_transposed)),
    ),
    "a batch stride that is the result's": (
        Product,
        "inner",
        property(
            lambda p: (p.batch[-1], p.m * p.n, p.b_strides[-1], p.y_strides[-1])
            if p.batch
            else (1, 0, 0, 0)
        ),
    ),
    "the batch's size in the stride's attribute": (cuda_lt, "BATCH_STRIDE", cuda_lt.BATCH_COUNT),
    "alignment that is not there": (
        cuda_lt._LtGemm, "_alignments", lambda self: (cuda_lt.ALIGNED,) * 4
    ),
    "beta left out": (cuda_lt, "factors", lambda t, alpha, beta: cuda_blas.factors(t, alpha, 0)),
    "less workspace than is said": (
        cuda_lt._LtGemm,
        "bound",
        lambda self, ins, outs, bound=cuda_lt._LtGemm.bound: bound(
            self, ins, [outs[0], *(o[-1:] for o in outs[1:])]
        ),
    ),
}  # fmt: skip


def found(fake: cupy_fake.FakeCupy) -> list[str]:
    """What is wrong with the products of ``PRODUCTS``, errors of the machine among it."""
    wrong: list[str] = []
    device = cuda.open_device("cuda:0")
    for name, wanted in PRODUCTS.items():
        try:
            if not off(device, wanted) <= limit(wanted):
                wrong.append(name)
        except (UsageError, Error, TypeError) as error:
            wrong.append(f"{name}: {error}")
    device.close()
    gc.collect()
    return wrong + fake.machine.errors


def test_without_a_bug_nothing_is_found(fake: cupy_fake.FakeCupy) -> None:
    assert found(fake) == []


@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_found(
    name: str, fake: cupy_fake.FakeCupy, monkeypatch: pytest.MonkeyPatch
) -> None:
    where, attribute, bug = BUGS[name]
    monkeypatch.setattr(where, attribute, bug)
    assert found(fake)


# --- what is not there ----------------------------------------------------------------------------


def test_no_library_is_a_kernel_that_does_not_build(
    device: CudaDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> Any:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(cuda_lt_library, "open_functions", missing)
    with pytest.raises(CompileError, match=r"libcublasLt\.so\.12 cannot be loaded"):
        device.compile(PRODUCTS["plain"].step())


def test_an_unknown_version_is_refused(device: CudaDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device.cp.cuda.cublas, "getVersion", lambda handle: 140000)
    with pytest.raises(CompileError, match="its interface is not known"):
        device.compile(PRODUCTS["plain"].step())


def test_no_algorithm_is_a_kernel_that_does_not_build(device: CudaDevice) -> None:
    odd = LtProduct(replace(PLAIN, dtype="float16", rounds="tf32"))
    with pytest.raises(CompileError, match="cuBLASLt has no product 5x3 times 3x7 in float16"):
        device.compile(odd.step())


def test_a_refused_call_is_typed(device: CudaDevice) -> None:
    made = job(device, PRODUCTS["plain"])
    commands = record(device, (made.step, made.buffers))
    device.cp.cublaslt.refuse = 13
    with pytest.raises(DeviceError, match="cuda:0: cuBLAS, 5x3 times 3x7 in float32"):
        device.queues["compute"].execute(commands)


def test_its_version_is_part_of_the_fingerprint(
    device: CudaDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert f"|cuBLASLt {cublaslt.VERSION}" in device.info.fingerprint
    monkeypatch.setattr(cublaslt, "VERSION", 130100)
    (other, *_) = cuda.probe().devices
    assert "|cuBLASLt 130100" in other.fingerprint

    def missing(name: str) -> Any:
        raise OSError(name)

    monkeypatch.setattr(cuda_lt_library, "open_functions", missing)
    (without, *_) = cuda.probe().devices
    assert "cuBLASLt" not in without.fingerprint


# --- the real library -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real() -> Library:
    """cuBLASLt as NVIDIA ships it; its descriptors live in host memory."""
    for major in cuda_lt_library.KNOWN:
        with suppress(OSError):
            return Library(ctypes.CDLL(f"libcublasLt.so.{major}"))
    pytest.skip("no cuBLASLt: install nvidia-cublas-cu12 and have its lib in LD_LIBRARY_PATH")


KEPT: dict[str, tuple[tuple[int, ...], dict[int, Any]]] = {
    "MatmulDesc": (
        (68, 0),
        {cuda_lt.TRANSA: ctypes.c_int32(1), cuda_lt.TRANSB: ctypes.c_int32(1),
         cuda_lt.EPILOGUE: c_uint32(cuda_lt.FUNCTIONS["gelu"] | cuda_lt.BIAS),
         cuda_lt.BIAS_POINTER: c_void_p(0x7000)},
    ),
    "MatrixLayout": (
        (0, 5, 7, 6),
        {cuda_lt.BATCH_COUNT: ctypes.c_int32(3), cuda_lt.BATCH_STRIDE: ctypes.c_int64(-35)},
    ),
    "MatmulPreference": (
        (), {cuda_lt.MAX_WORKSPACE: c_uint64(1 << 22), cuda_lt.REDUCTIONS: c_uint32(2),
             **{number: c_uint32(64) for number in cuda_lt.ALIGNMENTS}}
    ),
}  # fmt: skip
FIRST = {"MatmulDesc": {0: 68, 1: 0}, "MatrixLayout": {0: 0, 2: 5, 3: 7, 4: 6}}
"""What the arguments of creating a descriptor become, by attribute: compute and scale type; element
type, rows, columns and leading dimension."""


@pytest.mark.parametrize("kind", KEPT)
def test_the_real_library_keeps_what_it_is_told(real: Library, kind: str) -> None:
    arguments, attributes = KEPT[kind]
    made = cuda_lt_library.Owned(real, kind, *arguments)
    get = getattr(real.functions, f"cublasLt{kind}GetAttribute")
    get.argtypes = (c_void_p, ctypes.c_int, c_void_p, c_size_t, c_void_p)

    def kept(number: int, like: Any) -> Any:
        value, written = type(like)(), c_size_t()
        size = ctypes.sizeof(value)
        assert get(made.at, number, byref(value), size, byref(written)) == 0
        assert written.value == size
        return value.value

    for number, value in attributes.items():
        made.set(number, value)
        assert kept(number, value) == value.value
        wrong = (ctypes.c_int16 if ctypes.sizeof(value) == 4 else ctypes.c_int32)(1)
        with pytest.raises(Refused, match="status 7"):
            made.set(number, wrong)
    for number, first in FIRST.get(kind, {}).items():
        wide = c_uint64() if kind == "MatrixLayout" and number > 0 else c_uint32()
        assert kept(number, wide) == first


def test_the_real_library_tells_algorithms_apart(real: Library) -> None:
    """Their attributes are where the fake has them, and of its sizes; they need no card either."""
    algorithm = Algorithm()
    change = real.functions.cublasLtMatmulAlgoConfigSetAttribute
    change.argtypes = (c_void_p, ctypes.c_int, c_void_p, c_size_t)
    values = {cuda_lt_library.TILE: 20, cuda_lt_library.PARTS: 3, cuda_lt_library.STAGES: 7}
    for number, value in values.items():
        assert change(byref(algorithm), number, byref(ctypes.c_int32(value)), 4) == 0
        assert real.config(algorithm, number) == value
    assert (
        real.described(algorithm) == "cuBLASLt's algorithm 0 (tile 20, stages 7, sums in 3 parts)"
    )
    kept = Chosen(tuple(algorithm.algorithm), 0, "")
    assert real.described(kept.algorithm()) == real.described(algorithm)


def test_the_real_library_has_every_function(real: Library) -> None:
    assert all(getattr(real.functions, name).argtypes for name in cuda_lt_library.PROTOTYPES)
    version = real.functions.cublasLtGetVersion
    version.restype = c_size_t
    assert version() // 10000 in cuda_lt_library.KNOWN
