"""Products by cuBLASLt on CUDA devices, with a bias, an addend, and a ReLU or GELU in the call.

Other things that follow a product are a launch of our own, as with ``cublas_matmul``. Its ReLU may
make a zero of a NaN, and so is not exact.

Its GELU is the approximation by tanh: NVIDIA's manual does not say so, but PyTorch (pull request
104061) and XLA (``ApproxGeluActivation`` among the tests of its rewriter, in float32 within 1e-5)
found it. So it serves chains of steps that are that approximation, and, not known to the last bit,
is not exact. The op ``gelu``, the exact one, is up to 1.8e-4 |x| from it: too far for float32, and
in half types for the results of negative x, which are small. It is in the call only where operands
are rounded to bfloat16, which moves x by up to 2^-8 of its terms, more than twenty times as much.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from crossdock.devices.base import DeviceInfo
from crossdock.devices.cuda_blas import Product
from crossdock.devices.cuda_lt import LtProduct
from crossdock.devices.program import In, Lowered, Scratch, Slot
from crossdock.kernels.cublas_matmul import OPS, Following, body_of, fits, product_for
from crossdock.kernels.fused import FusedBody
from crossdock.kernels.fused_gelu import BY_TANH, EXACT, gelu_of
from crossdock.kernels.grid_common import has, operand
from crossdock.kernels.library_kernels import launch_over, register
from crossdock.kernels.precision import FORMATS
from crossdock.kernels.refusal import Cause, Refusal
from crossdock.kernels.spec import OpCall
from crossdock.runtime.tensor import TensorSpec

A, B = In(0), In(1)
Endable = Callable[[str, str, OpCall, DeviceInfo], str | None]
Ended = Callable[[str, str, OpCall, DeviceInfo], Lowered]
"""``library_kernels.Fits`` and ``Lower`` of the kernel with a function in the call, or with ""."""
FOLLOWS = {"relu": "ReLU", "gelu": "GELU by tanh"}
"""How the functions are called that may be in the call."""
COARSE = "bfloat16"
"""The format of operands that loses more than an exact GELU does by tanh."""
RANK = 14
WORKSPACE = {8: 4 << 20, 9: 32 << 20}
"""Most bytes of workspace from a compute capability on, as cuBLAS itself takes them."""
PARTS = 8
"""Parts of a sum in the workspace at a time, at most."""


@dataclass(frozen=True)
class Ending:
    """What the call itself does after the product; ``function`` as in ``LtProduct``."""

    bias: Slot | None = None
    c: Slot | None = None
    beta: float = 0.0
    function: str = ""


def ending_of(rounds: str, call: OpCall) -> Ending | None:
    """What follows the product, where cuBLASLt can do it in the call; None where it cannot."""
    if call.op == "gemm":
        return _ending_of_gemm(call)
    if call.op == "matmul":
        return Ending()
    return ending_for(rounds, call.attrs["body"], has(call, 2), has(call, 3))


def ending_for(rounds: str, body: FusedBody | None, biased: bool, beside: bool) -> Ending | None:
    """The same for a body over operand 3, after a bias that is operand 2 and one a column."""
    bias, c = (In(2) if biased else None), (In(3) if beside else None)
    steps = [(step.op, step.args) for step in (body or FusedBody()).steps]
    added = [("add", (0, 1))] if beside else []
    beta = 1.0 if beside else 0.0
    if steps == added:
        return Ending(bias, c, beta)
    if steps == [*added, ("relu", (-1,) if added else (0,))]:
        return Ending(bias, c, beta, "relu")
    gelu = gelu_of(body or FusedBody(), beside)
    if gelu == BY_TANH or (gelu == EXACT and rounds == COARSE):
        return Ending(bias, c, beta, "gelu")
    return None


def _ending_of_gemm(call: OpCall) -> Ending | None:
    if not has(call, 2):
        return Ending()
    beta, (m, n), dims = float(call.attrs["beta"]), call.outputs[0].dims, operand(call, 2).dims
    if dims == (m, n):
        return Ending(c=In(2), beta=beta)
    if beta == 1.0 and dims in ((n,), (1, n)):
        return Ending(bias=In(2))
    return None


def unlike(function: str, ending: Ending | None) -> str | None:
    """Why a kernel with a function in the call, or with none, is not for what follows.

    What ends in a GELU has the kernel without it, too, which keeps every bit.
    """
    there = "" if ending is None else ending.function
    if function:
        return None if function == there else f"no {FOLLOWS[function]} follows"
    return "the kernel with a ReLU does it" if there == "relu" else None


def taken(function: str, ending: Ending | None) -> Ending | None:
    """What the call does in a kernel with a function in it, or with none."""
    return ending if ending is not None and ending.function == function else None


def _fits(function: str, rounds: str, call: OpCall, device: DeviceInfo) -> str | None:
    if (why := fits(rounds, call, device)) is not None:
        return why
    if operand(call, 0).dtype == "float64":
        return Refusal("no float64 kernel", Cause.DTYPE)
    return unlike(function, ending_of(rounds, call))


def _lower(function: str, rounds: str, call: OpCall, device: DeviceInfo) -> Lowered:
    ending = taken(function, ending_of(rounds, call))
    product = product_for(call, rounds, wide=ending is None)
    if ending is not None:
        return in_call(product, ending, call, device)
    follows = body_of(call)
    assert follows is not None
    return and_then(product, follows, call, device)


def in_call(
    product: Product, ending: Ending, call: OpCall, device: DeviceInfo, a: Slot = A, b: Slot = B
) -> Lowered:
    """One call of cuBLASLt."""
    wanted = LtProduct(
        product,
        ending.bias is not None,
        ending.c is not None,
        ending.beta,
        ending.function,
        workspace_of(call, device),
    )
    return Lowered((wanted.step(ending.bias, ending.c, a, b),), (wanted.workspace,))


def and_then(
    product: Product,
    follows: Following,
    call: OpCall,
    device: DeviceInfo,
    a: Slot = A,
    b: Slot = B,
) -> Lowered:
    """One call, and one launch over its result for what follows."""
    wanted = LtProduct(product, workspace=workspace_of(call, device))
    between = TensorSpec(product.result, call.outputs[0].dims)
    last = launch_over(between, *follows, call, device)
    step = wanted.step(a=a, b=b, y=Scratch(0), workspace=Scratch(1))
    return Lowered((step, last), (between.nbytes, wanted.workspace))


def workspace_of(call: OpCall, device: DeviceInfo) -> int:
    """Bytes that an algorithm may take: for parts of sums in float32, in small products few."""
    capability = float(device.details.get("compute_capability", "0"))
    most = WORKSPACE[9 if capability >= 9 else 8]
    wanted = PARTS * 4 * call.outputs[0].size
    return min(most, -(-wanted // device.alignment) * device.alignment)


def register_all(op: str, fits: Endable, lower: Ended, fused: str) -> None:
    """Register the kernels of an op, and of the op that is ``fused`` with functions in the call."""
    functions = ("", *FOLLOWS) if op == fused else ("",)
    for rounds in ("", *FORMATS):
        for function in functions:
            register(
                f"cublaslt.{op}.{function}".rstrip("."),
                op,
                RANK - (function == "gelu"),
                rounds,
                partial(fits, function),
                partial(lower, function),
                exact=not function,
            )


for _op in OPS:
    register_all(_op, _fits, _lower, "fused_matmul")
