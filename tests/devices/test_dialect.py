"""The dialect means the same on every OpenCL device as numpy does, and NVRTC compiles it."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest

from crossdock.devices.base import Cap, Device
from crossdock.devices.dialect import CUDA_HEADER, OPENCL_HEADER, assemble
from crossdock.devices.program import GridLaunch, In, Out
from crossdock.kernels.expression import BITWISE, FUNCTIONS
from tests import nvrtc
from tests.devices.steps import download, record, upload

SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.5, 2.5, -3.5, 1e-30, 30.0, np.inf, -np.inf, np.nan]
UNARY = {
    "abs": np.abs, "exp": np.exp, "log": np.log, "sqrt": np.sqrt, "sin": np.sin, "cos": np.cos,
    "tan": np.tan, "tanh": np.tanh, "floor": np.floor, "ceil": np.ceil, "rint": np.rint,
    "acos": np.arccos, "asin": np.arcsin, "atan": np.arctan,
    "erf": np.vectorize(math.erf), "normcdf": np.vectorize(lambda x: math.erfc(-x / 2**0.5) / 2),
    "isnan": np.isnan, "isinf": np.isinf, "sign": np.sign,
}  # fmt: skip
BINARY = {"min": np.minimum, "max": np.maximum, "pow": np.power, "mod": np.mod}
VECTORS = """
KERNEL void f(CONSTANT float *RESTRICT x, GLOBAL float *RESTRICT y)
{
    f32x4 a = VLOAD4(x);
    f32x8 b = VLOAD8(x + 4);
    f32x16 c = VLOAD16(x + 12);
    a = FMA4(a, SPLAT4(2.0f), SPLAT4(1.0f)) - 1.0f;
    b = FMA8(SPLAT8(2.0f), b, SPLAT8(0.0f)) * SPLAT8(0.5f) + b;
    c = 4.0f * FMA16(c, SPLAT16(1.0f), SPLAT16(0.0f)) / 2.0f;
    c -= SPLAT16(0.0f);
    VSTORE4(y, a);
    VSTORE8(y + 4, b);
    VSTORE16(y + 12, c);
    y[28] = a.s3 + b.s7 + c.sf;
}
"""
STORAGE = """
KERNEL void f(CONSTANT float *x, CONSTANT f16 *h, CONSTANT bf16 *b,
              GLOBAL f16 *ho, GLOBAL bf16 *bo, GLOBAL float *hf, GLOBAL float *bf)
{
    int i = GLOBAL_ID(0);
    STORE_HALF(ho, i, x[i]);
    STORE_BF16(bo, i, x[i]);
    hf[i] = LOAD_HALF(h, i);
    bf[i] = LOAD_BF16(b, i);
}
"""
INTEGERS = """
KERNEL void f(CONSTANT ELEMENT *a, CONSTANT ELEMENT *b, GLOBAL ELEMENT *y)
{
    int i = GLOBAL_ID(0);
    y[i] = X_IDIV(a[i], b[i]);
    y[i + COUNT] = X_IMOD(a[i], b[i]);
    y[i + 2 * COUNT] = X_MIN(a[i], b[i]);
    y[i + 3 * COUNT] = X_MAX(a[i], b[i]);
}
"""
C_TYPE = {"int8": "i8", "uint8": "u8", "int32": "i32", "uint32": "u32", "int64": "i64",
          "uint64": "u64"}  # fmt: skip


def run(device: Device, step: GridLaunch, *outs: np.ndarray, **ins: np.ndarray) -> list[np.ndarray]:
    buffers = {In(i): upload(device, data) for i, data in enumerate(ins.values())}
    buffers |= {Out(i): upload(device, data) for i, data in enumerate(outs)}
    done = device.queues["compute"].execute(record(device, (step, buffers)))
    return [download(device, buffers[Out(i)], data, done) for i, data in enumerate(outs)]


def expression(name: str, dtype: str) -> str:
    arity = FUNCTIONS[name]
    args = ", ".join(["x[i]", "z[i]", "x[i]"][:arity])
    kind = "float" if dtype == "float32" else "double"
    return (
        f"KERNEL void f(CONSTANT {kind} *x, CONSTANT {kind} *z, GLOBAL {kind} *y) "
        f"{{ int i = GLOBAL_ID(0); y[i] = X_{name.upper()}({args}); }}"
    )


@pytest.mark.needs(Cap.GRID, Cap.FLOAT64)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", [*UNARY, *BINARY])
def test_functions(device: Device, name: str, dtype: str) -> None:
    values = np.array([*SPECIAL, *np.linspace(-5, 5, 20)], dtype)
    x, z = (grid.ravel() for grid in np.meshgrid(values, values))
    x, z = np.ascontiguousarray(x), np.ascontiguousarray(z)
    with np.errstate(all="ignore"):
        wide = x.astype(np.float64), z.astype(np.float64)
        exact = (UNARY[name](wide[0]) if name in UNARY else BINARY[name](*wide)).astype(dtype)
        if name in BINARY and name != "pow":
            exact = BINARY[name](x, z)  # exact in their own type
    step = GridLaunch(
        expression(name, dtype), "f", (In(0), In(1), Out(0)), (x.size,), (x.size // 32,)
    )
    (found,) = run(device, step, np.empty(x.size, dtype), x=x, z=z)
    # OpenCL 1.2 (7.4) allows pow and erf 16 units in the last place, tan 5, the others fewer.
    tolerance = 16 * np.finfo(dtype).eps
    assert np.allclose(found, exact, rtol=tolerance, atol=tolerance / 16, equal_nan=True)


@pytest.mark.needs(Cap.GRID)
def test_vectors(device: Device) -> None:
    x = np.arange(28, dtype=np.float32)
    (y,) = run(
        device, GridLaunch(VECTORS, "f", (In(0), Out(0)), (1,), (1,)), np.zeros(29, np.float32), x=x
    )
    expected = np.concatenate([2 * x[:4], 2 * x[4:12], 2 * x[12:], [2 * (3 + 11 + 27)]])
    assert np.array_equal(y, expected)


@pytest.mark.needs(Cap.GRID)
def test_storage_types_round_to_nearest_even(device: Device) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    h = np.arange(1 << 16, dtype=np.uint16)
    with np.errstate(all="ignore"):
        near = h.view(np.float16)[::2].astype(np.float32) * np.float32(1.0001)
        far = np.random.default_rng(0).normal(0, 1e4, 1 << 15).astype(np.float32)
        x = np.concatenate([near, far])
        half, brain = x.astype(np.float16), x.astype(ml_dtypes.bfloat16)
    names = (In(0), In(1), In(2), Out(0), Out(1), Out(2), Out(3))
    outs = (np.empty(x.size, np.float16), np.empty(x.size, ml_dtypes.bfloat16),
            np.empty_like(x), np.empty_like(x))  # fmt: skip
    step = GridLaunch(STORAGE, "f", names, (x.size,), (64,))
    ho, bo, hf, bf = run(device, step, *outs, x=x, h=h, b=h)
    pairs = ((ho, half), (bo, brain), (hf, h.view(np.float16)), (bf, h.view(ml_dtypes.bfloat16)))
    for found, exact in pairs:
        assert np.array_equal(found.astype(np.float32), exact.astype(np.float32), equal_nan=True)


@pytest.mark.needs(Cap.GRID)
@pytest.mark.parametrize("dtype", C_TYPE)
def test_integers_never_trap(device: Device, dtype: str) -> None:
    info = np.iinfo(dtype)
    values = np.array([info.min, info.max, 0, 1, 2, 3, 7, 100], dtype)
    values = np.concatenate([values, (0 - values).astype(dtype)])
    a, b = (np.ascontiguousarray(grid.ravel()) for grid in np.meshgrid(values, values))
    source = INTEGERS.replace("ELEMENT", C_TYPE[dtype]).replace("COUNT", str(a.size))
    step = GridLaunch(source, "f", (In(0), In(1), Out(0)), (a.size,), (16,))
    (y,) = run(device, step, np.empty((4, a.size), dtype), a=a, b=b)
    with np.errstate(all="ignore"):
        mod = np.where(b == 0, 0, np.mod(a, b))
        whole = a - np.where(b == 0, 0, np.fmod(a, b))
        quotient = np.where(b == 0, 0, np.floor_divide(whole, np.where(b == 0, 1, b)))
    assert np.array_equal(y[0], quotient.astype(dtype))
    assert np.array_equal(y[1], mod.astype(dtype))
    assert np.array_equal(y[2], np.minimum(a, b))
    assert np.array_equal(y[3], np.maximum(a, b))


DOTS = """
KERNEL void f(CONSTANT u32 *a, CONSTANT u32 *b, CONSTANT i32 *c, GLOBAL i32 *y)
{
    const i32 i = GLOBAL_ID(0);
    y[i] = DOT4(a[i], b[i], c[i]);
}
"""


@pytest.mark.needs(Cap.GRID)
def test_dots_are_of_signed_bytes_and_wrap(device: Device) -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.integers(0, 2**32, 256, np.uint32) for _ in range(2))
    a[:2], b[:2] = 0x80808080, 0x80808080
    c = rng.integers(-(2**31), 2**31, 256, np.int64).astype(np.int32)
    c[0] = 2**31 - 1
    step = GridLaunch(DOTS, "f", (In(0), In(1), In(2), Out(0)), (256,), (64,))
    (y,) = run(device, step, np.empty_like(c), a=a, b=b, c=c)
    products = a.view(np.int8).astype(np.int64) * b.view(np.int8)
    assert np.array_equal(y, (products.reshape(-1, 4).sum(1) + c).astype(np.int32))


ARM = """
#define cl_arm_integer_dot_product_int8 1
int __attribute__((overloadable)) arm_dot(char4 a, char4 b) { return a.x + 2 * b.w; }
"""


@pytest.mark.needs(Cap.GRID)
def test_a_dot_is_the_device_s_where_it_has_one(device: Device) -> None:
    """A stand-in that is no dot shows that it is asked, and how."""
    cl = pytest.importorskip("pyopencl")
    context = getattr(device, "context", None)
    if context is None:
        pytest.skip("not OpenCL")
    a, b, c = np.array([0x010203FD, 0x04000000, 5], np.uint32)
    y = np.zeros(1, np.int32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", cl.CompilerWarning)
        text = ARM + assemble(OPENCL_HEADER, (), DOTS)
        program = cl.Program(context, text).build(["-cl-std=CL1.2"])
    flags = cl.mem_flags.USE_HOST_PTR
    given = [cl.Buffer(context, flags, hostbuf=np.array([v])) for v in (a, b, c)]
    queue, out = cl.CommandQueue(context), cl.Buffer(context, cl.mem_flags.READ_WRITE, 4)
    program.f(queue, (1,), (1,), *given, out)
    cl.enqueue_copy(queue, y, out).wait()
    assert y[0] == -3 + 2 * 4 + 5


@pytest.mark.skipif(nvrtc.library() is None, reason=nvrtc.ABSENT)
@pytest.mark.parametrize("arch", ["sm_70", "sm_100"])
def test_a_dot_is_an_instruction_on_a_card(arch: str) -> None:
    text = f"#ifndef DOT4\n#error a function\n#endif\n{DOTS}"
    assert nvrtc.compile_text(assemble(CUDA_HEADER, (), text), arch)


@pytest.mark.skipif(nvrtc.library() is None, reason=nvrtc.ABSENT)
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_nvrtc_compiles_all_of_it(arch: str) -> None:
    text = VECTORS.replace(" f(", " vectors(") + STORAGE.replace(" f(", " storage(")
    for name in FUNCTIONS.keys() - BITWISE:
        for dtype in ("float32", "float64"):
            text += expression(name, dtype).replace(" f(", f" {name}_{dtype}(") + "\n"
    text += INTEGERS.replace("ELEMENT", "i64").replace("COUNT", "9").replace(" f(", " integers(")
    text += "KERNEL BLOCK_SIZE(8, 4, 2) void shape(GLOBAL int *y) { LOCAL int t[64];\n"
    text += "UNROLL for (int i = 0; i < 4; i++) t[i] = LOCAL_SIZE(2);\n"
    text += "UNROLL_N(2) for (int i = 0; i < 4; i++) y[i] = t[i]; BARRIER(); }\n"
    assert nvrtc.compile_text(assemble(CUDA_HEADER, (), text), arch)


@pytest.mark.skipif(nvrtc.library() is None, reason=nvrtc.ABSENT)
def test_nvrtc_refuses_what_is_wrong() -> None:
    with pytest.raises(nvrtc.BuildError, match="error"):
        nvrtc.compile_text(assemble(CUDA_HEADER, (), "KERNEL void f() { x }"), "sm_80")
