"""Elementwise kernels on a grid: any broadcast, any chain, and the text that they come from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossdock.devices.base import Device
from crossdock.kernels import table
from crossdock.kernels.expression import parse
from crossdock.kernels.fused import FusedBody, FusedStep
from crossdock.kernels.grid_emit import Step, Value, emit, literal
from crossdock.kernels.spec import OpCall
from crossdock.runtime.tensor import Array, TensorSpec, to_numpy
from tests.kernels.grid_run import as_gpu, call_of, check, execute, grid_kernels, opencl_ids, opened


@pytest.fixture(scope="module", params=opencl_ids())
def device(request: pytest.FixtureRequest) -> Device:
    return opened(request.param)


def drawn(shape: Sequence[int], dtype: str, seed: int) -> Array:
    rng = np.random.default_rng(seed)
    if to_numpy(dtype).kind == "f":
        return rng.uniform(-2, 2, tuple(shape)).astype(to_numpy(dtype))
    return rng.integers(-9 if to_numpy(dtype).kind == "i" else 0, 9, tuple(shape)).astype(dtype)


@st.composite
def broadcasts(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Two shapes that broadcast, long rows among them."""
    full = draw(st.lists(st.sampled_from([1, 2, 3, 5, 17, 40]), min_size=0, max_size=4))
    shapes = []
    for _ in range(2):
        shape = [1 if draw(st.booleans()) else n for n in full]
        drop = draw(st.integers(0, len(shape)))
        shapes.append(tuple(shape if drop == len(shape) else shape[drop:]))
    return shapes[0], shapes[1]


@settings(max_examples=40)
@given(broadcasts())
def test_any_broadcast(device: Device, shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    arrays = [drawn(s, "float32", i) for i, s in enumerate(shapes)]
    call = call_of("sub", arrays)
    check(call, arrays, device)
    check(call, arrays, device, info=as_gpu(device.info))


UNARY = ("abs", "neg", "sqrt", "exp", "tanh", "sigmoid", "relu", "floor", "sign", "erf", "softplus")
BINARY = ("add", "sub", "mul", "max", "min", "greater", "equal")


@st.composite
def bodies(draw: st.DrawFn) -> FusedBody:
    """A chain over three float32 operands, with comparisons, selections and casts in it."""
    steps: list[FusedStep] = []
    dtypes: list[str] = []

    def value(dtype: str) -> int:
        made = [-1 - k for k, d in enumerate(dtypes) if d == dtype]
        return draw(st.sampled_from(made + ([0, 1, 2] if dtype == "float32" else [])))

    def add(op: str, args: tuple[int, ...], inputs: tuple[str, ...], dtype: str) -> None:
        attrs = {"data_type": dtype} if op == "cast" else dict(table.op(op).attrs)
        steps.append(FusedStep(op, attrs, args, dtype, inputs))
        dtypes.append(dtype)

    for _ in range(draw(st.integers(1, 6))):
        kind = draw(st.sampled_from(["unary", "binary", "where", "cast"]))
        f = "float32"
        if kind == "unary":
            add(draw(st.sampled_from(UNARY)), (value(f),), (f,), f)
        elif kind == "binary":
            op = draw(st.sampled_from(BINARY))
            out = "uint8" if op in ("greater", "equal") else f
            add(op, (value(f), value(f)), (f, f), out)
        elif kind == "where" and "uint8" in dtypes:
            add("where", (value("uint8"), value(f), value(f)), ("uint8", f, f), f)
        elif "uint8" in dtypes:
            add("cast", (value("uint8"),), ("uint8",), f)
    if not steps or steps[-1].dtype != "float32":
        add("add", (value("float32"), 2), ("float32", "float32"), "float32")
    return FusedBody(tuple(steps))


@settings(max_examples=20)
@given(bodies())
def test_any_chain(device: Device, body: FusedBody) -> None:
    arrays = [drawn(s, "float32", i) for i, s in enumerate([(2, 3, 40), (40,), (3, 1)])]
    spec = table.op("fused").infer([TensorSpec.of(a) for a in arrays], {"body": body})
    call = OpCall("fused", {"body": body}, tuple(TensorSpec.of(a) for a in arrays), spec)
    with np.errstate(all="ignore"):
        # in float32, as comparisons and floors must see the same roundings
        want = np.broadcast_to(table.op("fused").run(np, *arrays, body=body), spec[0].dims)
    (kernel,) = grid_kernels(call, device.info)
    (got,) = execute(kernel.lower(call, device.info), call, arrays, device)
    # a few roundings a step; where one flips a floor or a comparison, whole numbers differ: rare
    # enough to bound by count
    finite = np.isfinite(want) & np.isfinite(got)
    scale = max(1.0, float(np.abs(want[finite]).max(initial=0.0)))
    off = np.abs(got - want, where=finite, out=np.zeros(spec[0].dims, np.float32)) > 1e-4 * scale
    assert off.mean() < 0.02, str(body)
    assert (np.isnan(got) != np.isnan(want)).mean() < 0.02, str(body)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64"])
@pytest.mark.parametrize("op", ["add", "mul", "div", "max", "pow", "mod"])
def test_integers_wrap_and_divide_as_numpy_does(device: Device, op: str, dtype: str) -> None:
    limits = np.iinfo(dtype)
    a = np.array([limits.min, limits.max, 7, 0, 100, 5], dtype)
    b = np.array([1, 2, 3, 4, 3, 5], dtype)
    check(call_of(op, [a, b]), [a, b], device)


@pytest.mark.parametrize(
    ("value", "dtype", "want"),
    [
        (-3.7, "int8", -3),
        (3.7, "int32", 3),
        (70000.0, "uint16", 65535),
        (-1.0, "bool", True),
        (2.5, "float16", 2.5),
    ],
)
def test_casts_truncate_and_saturate(device: Device, value: float, dtype: str, want: float) -> None:
    a = np.full(5, value, np.float32)
    call = call_of("cast", [a], {"data_type": dtype})
    (kernel,) = grid_kernels(call, device.info)
    (got,) = execute(kernel.lower(call, device.info), call, [a], device)
    np.testing.assert_array_equal(got, np.full(5, want, to_numpy(dtype)))


def test_a_cast_to_half_rounds_within_a_chain(device: Device) -> None:
    a = np.array([1.0001, 3e-8, 1e6, np.nan, -2049.0, 6e-5], np.float32)
    steps = (
        FusedStep("cast", {"data_type": "float16"}, (0,), "float16", ("float32",)),
        FusedStep("cast", {"data_type": "float32"}, (-1,), "float32", ("float16",)),
    )
    spec = TensorSpec("float32", (6,))
    call = OpCall("fused", {"body": FusedBody(steps)}, (spec,), (spec,))
    (kernel,) = grid_kernels(call, device.info)
    (got,) = execute(kernel.lower(call, device.info), call, [a], device)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(got, a.astype(np.float16).astype(np.float32))


def test_gelu_is_off_by_no_more_than_its_operands_last_place(device: Device) -> None:
    x = np.concatenate([np.linspace(-8, 8, 4001), [-1e4, 1e4, 0.0]]).astype(np.float32)
    call = call_of("gelu", [x])
    (kernel,) = grid_kernels(call, device.info)
    (got,) = execute(kernel.lower(call, device.info), call, [x], device)
    want = table.op("gelu").run(np, x.astype(np.float64))
    assert (np.abs(got - want) <= 2.0**-23 * np.abs(x) + 2.0**-22 * np.abs(want)).all()


@pytest.mark.parametrize("function", ["exp", "log", "tanh", "erf", "sqrt", "floor", "ceil"])
def test_mathematics_over_the_whole_range(device: Device, function: str) -> None:
    edges = [0.0, -0.0, 1.0, -1.0, 89.0, -104.0, 1e-40, 3e38, np.inf, -np.inf, np.nan, 0.625, 4.0]
    powers = 2.0 ** np.linspace(-20, 7, 200)
    a = np.concatenate((edges, powers, -powers)).astype(np.float32)
    a = np.abs(a) if function in ("log", "sqrt") else a
    call = call_of(function, [a])
    (kernel,) = grid_kernels(call, device.info)
    (got,) = execute(kernel.lower(call, device.info), call, [a], device)
    with np.errstate(all="ignore"):
        want = table.op(function).run(np, a.astype(np.float64)).astype(np.float32)
    normal = np.isfinite(want) & ((np.abs(want) > 1.2e-38) | (want == 0))
    # three units in the last place, the bound that grid_math states
    np.testing.assert_allclose(got[normal], want[normal], rtol=3.6e-7)
    np.testing.assert_array_equal(got[~np.isfinite(want)], want[~np.isfinite(want)])


def test_literals_have_the_type_they_meet() -> None:
    assert literal(0.1, "f32") == "(0.10000000149011612f)"
    assert literal(float("inf"), "i32") == "((i32)2147483647)"
    assert literal(-1, "f64") == "(-1.0)"
    assert "9223372036854775807 - 1" in literal(-(2**63), "i64")
    assert "INFINITY" in literal(1e300, "f32")
    assert literal(float("nan"), "f32") == "((f32)NAN)"


def test_a_known_exponent_is_a_product() -> None:
    step = Step(parse("pow({0}, {1})"), (0, 1), "float32")
    operands = [Value("x0", "f32"), Value("x1", "f32")]
    assert "X_POW" in "".join(emit([step], operands, cpu=False).lines)
    known = emit([step], operands, cpu=False, scalars={1: 2.0})
    assert known.lines == ["const f32 v0 = x0 * x0;"]


def test_an_integer_beside_itself_is_not_compared() -> None:
    step = Step(parse("{0} == {1} ? 2 : 3"), (0, 0), "int32")
    for kind, compared in (("i32", False), ("f32", True)):
        lines = emit([step], [Value("x0", kind)], cpu=False).lines
        assert any("x0 == x0" in line for line in lines) is compared


def test_reasons(device: Device) -> None:
    def reason(op: str, *arrays: Array) -> str:
        return table.candidates(call_of(op, list(arrays)), device.info).reason()

    assert "not elementwise" in reason("transpose", np.zeros((2, 3, 0), np.float32))
    assert "grid.transpose: an operand is empty" in reason("transpose", np.zeros(0, np.float32))
    assert "an operand is empty" in reason("relu", np.zeros((2, 0), np.float32))
