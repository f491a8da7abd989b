"""Products by cuBLAS, on CUDA devices: matmul, gemm, and a product with what follows it.

They are for what cuBLASLt does not do, and where it is missing. What follows a product is one
launch of our own, over a product left in float32 also for half types.
"""

from __future__ import annotations

from crossdock.devices.base import DeviceInfo
from crossdock.devices.cuda_blas import MOST_CALLS, Product
from crossdock.devices.program import Lowered, Scratch
from crossdock.kernels import table
from crossdock.kernels.fused import FusedBody, FusedStep
from crossdock.kernels.fused_matmul import product_of, whole_body
from crossdock.kernels.grid_common import has, operand
from crossdock.kernels.grid_matmul import factors_of
from crossdock.kernels.library_kernels import launch_over, misfit, register
from crossdock.kernels.precision import FORMATS
from crossdock.kernels.refusal import Cause, Refusal
from crossdock.kernels.spec import OpCall
from crossdock.runtime.refused import refused
from crossdock.runtime.tensor import TensorSpec, to_numpy

Following = tuple[FusedBody, dict[int, tuple[int, ...]]]
"""Steps over a product, and which of the op's operands are their further ones, in what shape."""
OPS = ("matmul", "gemm", "fused_matmul")
RANK = 15
ALIGNED = 16
"""Bytes that matrices of a batch begin at multiples of, where tensor units read them."""


def product_for(call: OpCall, rounds: str, *, wide: bool = False) -> Product:
    """The product that an op asks for; ``wide`` leaves half types' results in float32."""
    factors = factors_of(product_of(call))
    space = factors.space()
    result = "float32" if wide and factors.dtype != "float64" else factors.dtype
    one = space.dims == (1,)
    return Product(
        factors.m,
        factors.n,
        factors.k,
        factors.dtype,
        result,
        () if one else space.dims,
        () if one else space.strides[0],
        () if one else space.strides[1],
        factors.a_transposed,
        factors.b_transposed,
        factors.alpha,
        rounds,
    )


def fits_device(rounds: str, call: OpCall, device: DeviceInfo) -> str | None:
    """Why a card's cuBLAS has no product of such types; None where it has."""
    if missing := device.details.get("no cublas"):
        return Refusal(f"cuBLAS cannot be loaded ({missing})", Cause.LIBRARY)
    return misfit(rounds, call, device)


def fits(rounds: str, call: OpCall, device: DeviceInfo) -> str | None:
    """Why cuBLAS cannot be asked for an op's product; None where it can."""
    if (why := fits_device(rounds, call, device)) is not None:
        return why
    product = product_for(call, rounds, wide=body_of(call) is not None)
    if len(list(product.offsets())) > MOST_CALLS:
        return Refusal(f"more than {MOST_CALLS} calls for its batch", Cause.SIZE)
    return None


def _fits(rounds: str, call: OpCall, device: DeviceInfo) -> str | None:
    if (why := fits(rounds, call, device)) is not None:
        return why
    product = product_for(call, rounds, wide=body_of(call) is not None)
    if (why := _misaligned(product)) is not None:
        return why
    other = _in_a_graph(rounds, call, device)
    return f"{other} does the same, and graphs of launches hold it" if other else None


def _in_a_graph(rounds: str, call: OpCall, device: DeviceInfo) -> str | None:
    """The kernel of cuBLASLt that does the same, unless it did not build.

    What graphs save does not show where kernels are timed one by one, so costs cannot decide.
    """
    for other in table.kernels(call.op):
        same = other.name.startswith("cublaslt.") and other.rounds == rounds and other.exact
        if same and other.when(call, device) is None:
            mark = (device.fingerprint, other.name, call.key())
            return None if mark in refused() else other.name
    return None


def _misaligned(p: Product) -> str | None:
    """Why matrices of a batch do not lie where cuBLAS's tensor kernels may read them.

    The rule is the one in cuBLAS's manual for batches of half types and fast modes. cuBLASLt is
    told how matrices are aligned.
    """
    if not p.batch or not (p.rounds or p.dtype in ("float16", "bfloat16")):
        return None
    wanted = ALIGNED if p.k % 8 == 0 else 4 if p.k % 2 == 0 else 1
    lying = ((p.dtype, p.a_strides), (p.dtype, p.b_strides), (p.result, p.y_strides))
    for dtype, strides in lying:
        size = to_numpy(dtype).itemsize
        if any(stride * size % wanted for stride in strides):
            return Refusal(f"its matrices do not begin at multiples of {wanted} bytes", Cause.FORM)
    return None


def _lower(rounds: str, call: OpCall, device: DeviceInfo) -> Lowered:
    """One call of cuBLAS, and one launch for what follows it."""
    follows = body_of(call)
    if follows is None:
        return Lowered((product_for(call, rounds).step(),))
    product = product_for(call, rounds, wide=True)
    between = TensorSpec(product.result, call.outputs[0].dims)
    last = launch_over(between, *follows, call, device)
    return Lowered((product.step(y=Scratch(0)), last), (between.nbytes,))


def body_of(call: OpCall) -> Following | None:
    """What follows the product; None for nothing."""
    if call.op == "fused_matmul":
        body, places = whole_body(call)
        return (body, {i: operand(call, i).dims for i in places}) if body.steps else None
    if call.op == "matmul" or not has(call, 2):
        return None
    dtype, beta = call.outputs[0].dtype, float(call.attrs["beta"])
    scaled = FusedStep("linear", {"alpha": beta, "beta": 0.0}, (1,), dtype, (dtype,))
    added = FusedStep("add", {}, (0, 1 if beta == 1.0 else -1), dtype, (dtype, dtype))
    steps = (added,) if beta == 1.0 else (scaled, added)
    return FusedBody(steps), {2: operand(call, 2).dims}


for _op in OPS:
    for _rounds in ("", *FORMATS):
        register(f"cublas.{_op}", _op, RANK, _rounds, _fits, _lower, declines=False)
