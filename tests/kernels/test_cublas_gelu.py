"""Gaussian error linear units after products: which of the two is in cuBLASLt's call, and when."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import crossdock as xd
from crossdock.devices.cuda import CudaDevice
from crossdock.kernels import table
from crossdock.kernels.fused import FusedBody
from crossdock.kernels.fused_matmul import with_bias
from crossdock.kernels.precision import FORMATS
from crossdock.kernels.spec import OpCall
from crossdock.runtime import passes
from crossdock.runtime.calls import op_calls
from crossdock.runtime.tensor import Array, to_numpy
from tests.cards import CARD
from tests.fakes import cards
from tests.kernels.cpu_run import call_of, expected
from tests.kernels.test_cuda import execute

KIND = "float32"


@pytest.fixture(scope="module")
def device() -> Iterator[CudaDevice]:
    with pytest.MonkeyPatch.context() as patch, cards.opened(patch) as made:
        yield made


def drawn(*shape: int, seed: int = 0, dtype: str = KIND) -> Array:
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(to_numpy(dtype))


SCALE, CUBIC = math.sqrt(2 / math.pi), 0.044715
Chain = Callable[[Any, Any, Callable[[float], Any]], Any]
BY_TANH: dict[str, Chain] = {
    "a power": lambda b, x, c: b.mul(
        b.mul(c(0.5), x),
        b.add(c(1), b.tanh(b.mul(c(SCALE), b.add(x, b.mul(c(CUBIC), b.pow(x, c(3))))))),
    ),
    "products": lambda b, x, c: b.mul(
        b.mul(x, b.add(b.tanh(b.mul(b.add(x, b.mul(b.mul(b.mul(x, x), x), c(CUBIC))), c(SCALE))),
                       c(1))),
        c(0.5),
    ),
    "multiplied out": lambda b, x, c: b.div(
        b.add(x, b.mul(x, b.tanh(b.mul(x, b.add(c(SCALE), b.mul(c(SCALE * CUBIC), b.mul(x, x))))))),
        c(2),
    ),
    "linear": lambda b, x, c: b.mul(
        x, b.linear(b.tanh(b.mul(b.mul(c(SCALE), x), b.linear(b.mul(x, x), alpha=CUBIC, beta=1.0))),
                    alpha=0.5, beta=0.5)
    ),
}  # fmt: skip
OTHERS: dict[str, Chain] = {
    "another constant": lambda b, x, c: b.mul(
        b.mul(c(0.5), x),
        b.add(c(1), b.tanh(b.mul(c(0.8), b.add(x, b.mul(c(CUBIC), b.pow(x, c(3))))))),
    ),
    "a square": lambda b, x, c: b.mul(
        b.mul(c(0.5), x),
        b.add(c(1), b.tanh(b.mul(c(SCALE), b.add(x, b.mul(c(CUBIC), b.pow(x, c(2))))))),
    ),
    "not halved": lambda b, x, c: b.mul(
        x, b.add(c(1), b.tanh(b.mul(c(SCALE), b.add(x, b.mul(c(CUBIC), b.pow(x, c(3)))))))
    ),
    "less the tanh": lambda b, x, c: b.mul(
        b.mul(c(0.5), x),
        b.sub(c(1), b.tanh(b.mul(c(SCALE), b.add(x, b.mul(c(CUBIC), b.pow(x, c(3))))))),
    ),
    "a term more": lambda b, x, c: b.add(BY_TANH["a power"](b, x, c), b.mul(x, x)),
    "a term more within": lambda b, x, c: b.mul(
        b.mul(c(0.5), x),
        b.add(c(1), b.tanh(b.add(b.mul(x, x),
                                 b.mul(c(SCALE), b.add(x, b.mul(c(CUBIC), b.pow(x, c(3)))))))),
    ),
    "by a sigmoid": lambda b, x, c: b.mul(x, b.sigmoid(b.mul(x, c(1.702)))),
    "twice": lambda b, x, c: b.gelu(b.gelu(x)),
    "of the double": lambda b, x, c: b.gelu(b.add(x, x)),
}  # fmt: skip


def ended(
    chain: Chain, dtype: str = KIND, *, beside: bool = False
) -> tuple[OpCall, list[Array | None]]:
    """The op that a product with a bias, an addend and a chain of steps becomes."""
    b = xd.GraphBuilder()
    w, bias = 3 * drawn(12, 16, seed=1), drawn(16, seed=2)
    y = b.add(b.matmul(b.input("a", (8, 12)), b.constant(w)), b.constant(bias))
    made = chain(b, y, lambda value: b.constant(np.float32(value)))
    graph = passes.run(b.build({"y": made}), skip=["flush-subnormals"])
    (call,) = (c for c in op_calls(graph).values() if c.op == "fused_matmul")
    arrays = [drawn(8, 12), w, bias, drawn(8, 16, seed=3) if beside else None]
    narrow = [None if x is None else x.astype(to_numpy(dtype)) for x in arrays]
    body = FusedBody(
        tuple(replace(s, dtype=dtype, inputs=(dtype,) * len(s.inputs)) if s.inputs else s
              for s in call.attrs["body"].steps)
    )  # fmt: skip
    body = with_bias(body, 1, dtype) if beside else body
    return call_of("fused_matmul", narrow, {"body": body}), narrow


def named(call: OpCall) -> dict[str, str]:
    """By the names of cuBLASLt's kernels, why they do not fit, or nothing."""
    found = table.candidates(call, CARD)
    there = {**dict.fromkeys((k.name for k in found.fitting), ""), **dict(found.rejected)}
    return {k.removeprefix("cublaslt.fused_matmul"): v for k, v in there.items() if "cublaslt" in k}


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("chain", BY_TANH)
def test_a_gelu_by_tanh_is_in_the_call(
    device: CudaDevice, chain: str, beside: bool, dtype: str
) -> None:
    call, arrays = ended(BY_TANH[chain], dtype, beside=beside)
    found = named(call)
    assert found[".gelu"] == found[""] == "", "one with it and, for strict=True, one without"
    kernel = next(k for k in table.kernels(call.op) if k.name == "cublaslt.fused_matmul.gelu")
    assert not kernel.exact
    assert len(kernel.lowered(call, CARD).steps) == 1
    (got,) = execute(device, kernel, call, arrays).values()
    (want,) = expected(call, arrays)
    limit = {"float32": 1e-6, "float16": 4e-3, "bfloat16": 3e-2}[dtype]
    np.testing.assert_allclose(
        got.astype(np.float64), want.astype(np.float64), rtol=0, atol=8 * limit
    )


@pytest.mark.parametrize("chain", OTHERS)
def test_what_is_no_gelu_by_tanh_is_a_launch(chain: str) -> None:
    call, _ = ended(OTHERS[chain])
    found = named(call)
    assert "no GELU by tanh follows" in found[".gelu"]
    assert found[""] == ""
    assert "no GELU by tanh follows" in found[".gelu.bfloat16"]


@pytest.mark.parametrize("beside", [False, True])
def test_an_exact_gelu_is_in_the_call_only_where_more_is_lost(
    device: CudaDevice, beside: bool
) -> None:
    call, arrays = ended(lambda b, x, _c: b.gelu(x), beside=beside)
    found = named(call)
    assert found[""] == found[".tf32"] == found[".gelu.bfloat16"] == ""
    assert "no GELU by tanh follows" in found[".gelu"]
    assert "no GELU by tanh follows" in found[".gelu.tf32"]
    (want,) = expected(call, arrays)
    terms = np.abs(arrays[0]) @ np.abs(arrays[1])  # type: ignore[arg-type]
    kernel = next(
        k for k in table.kernels(call.op) if k.name == "cublaslt.fused_matmul.gelu.bfloat16"
    )
    (got,) = execute(device, kernel, call, arrays).values()
    assert (np.abs(got - want) <= 2.2 * FORMATS["bfloat16"].error * terms).all()
    for dtype in ("float16", "bfloat16"):
        halves, _ = ended(lambda b, x, _c: b.gelu(x), dtype)
        assert not any(v == "" for k, v in named(halves).items() if k.startswith(".gelu"))


def test_the_two_are_as_close_as_is_said() -> None:
    x = np.linspace(-12, 12, 100_001)
    exact = x / 2 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    off = np.abs(exact - x / 2 * (1 + np.tanh(SCALE * (x + CUBIC * x**3))))
    assert off.max() < 4.8e-4
    assert (off <= 1.8e-4 * np.abs(x)).all()
    assert FORMATS["bfloat16"].error > 20 * 1.8e-4
