"""Small files that ask for much: shapes that overflow, operators that multiply what they get."""

from __future__ import annotations

import random
from collections.abc import Iterator
from string import ascii_letters
from typing import Any

import numpy as np
from onnx import TensorProto as T
from onnx import helper, numpy_helper

from tests.runtime.hostile.kit import (
    EITHER,
    ERROR,
    RIGHT,
    Case,
    info,
    later,
    model,
    node,
    register,
    saved,
)

X = info("x")


def _one(
    op: str, inputs: str, *, x: Any = X, opset: int = 17, attrs: Any = None, **held: Any
) -> Any:
    inputs_of = [x] if "x" in inputs.split() else []
    return saved(
        model([node(op, inputs, "y", **(attrs or {}))], inputs_of, ["y"], opset=opset, **held)
    )


def _shape(*dims: int) -> Any:
    return np.array(dims, np.int64)


@register
def shapes(_rng: random.Random) -> Iterator[Case]:
    """Dimensions of inputs and initialisers."""
    kind = "dims"
    rows = {
        "product-2^63": (2**21, 2**21, 2**21),
        "product-2^126": (2**63 - 1, 2**63 - 1),
        "2^62": (2**62,),
        "2^40": (2**40,),
        "rank-65": (1,) * 65,
        "rank-10000": (1,) * 10_000,
        "rank-33": (1,) * 33,
    }
    for name, dims in rows.items():
        proto = model([node("Relu", "x", "y")], [info("x", shape=dims)], ["y"])
        yield Case(kind, f"input-{name}", saved(proto))
        held = T(name="w", data_type=T.FLOAT, dims=dims, raw_data=b"\0" * 8)
        proto = model([node("Relu", "w", "y")], [], ["y"], initializers=[held])
        yield Case(kind, f"tensor-{name}", saved(proto))
    for dims in ((-1,), (-(2**63),), (2, -3)):
        held = T(name="w", data_type=T.FLOAT, dims=dims, raw_data=b"\0" * 8)
        proto = model([node("Relu", "w", "y")], [], ["y"], initializers=[held])
        yield Case(kind, f"tensor{dims}", saved(proto))
    empty = model([node("Relu", "x", "y")], [info("x", shape=(0, 2**40))], ["y"])
    yield Case(kind, "empty-and-huge", saved(empty), EITHER)


@register
def tensors(_rng: random.Random) -> Iterator[Case]:
    """Initialisers whose data does not fit."""
    f = {"name": "w", "data_type": T.FLOAT, "dims": [2]}
    rows = {
        "no-data": T(**f),
        "short": T(**f, raw_data=b"\0" * 7),
        "long": T(**f, raw_data=b"\0" * 9),
        "two-fields": T(**f, raw_data=b"\0" * 8, float_data=[1, 2]),
        "wrong-field": T(**f, int64_data=[1, 2]),
        "two-typed-fields": T(**f, float_data=[1, 2], int32_data=[1, 2]),
        "type-0": T(name="w", data_type=0, dims=[2], raw_data=b"\0" * 8),
        "type-999": T(name="w", data_type=999, dims=[2], raw_data=b"\0" * 8),
        "strings-in-raw": T(name="w", data_type=T.STRING, dims=[2], raw_data=b"ab"),
        "strings-short": T(name="w", data_type=T.STRING, dims=[2], string_data=[b"a"]),
        "segment": T(**f, raw_data=b"\0" * 8, segment=T.Segment(begin=0, end=1)),
        "int4-short": T(name="w", data_type=T.INT4, dims=[9], raw_data=b"\0"),
        "complex": T(name="w", data_type=T.COMPLEX64, dims=[1], raw_data=b"\0" * 8),
    }
    for name, held in rows.items():
        proto = model([node("Relu", "w", "y")], [], ["y"], initializers=[held])
        yield Case("tensor", name, saved(proto))
    twice = [T(**f, raw_data=b"\0" * 8)] * 2
    proto = model([node("Relu", "w", "y")], [], ["y"], initializers=twice)
    yield Case("tensor", "twice", saved(proto))
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(np.ones(1, np.float32), "w"),
        numpy_helper.from_array(_shape(0)), [2**20, 2**20],
    )  # fmt: skip
    proto = model([node("ReduceSum", "w", "y")], [], ["y"])
    proto.graph.sparse_initializer.append(sparse)
    yield Case("tensor", "sparse-bomb", saved(proto))
    outside = helper.make_sparse_tensor(
        numpy_helper.from_array(np.ones(1, np.float32), "w"),
        numpy_helper.from_array(_shape(99)), [2],
    )  # fmt: skip
    proto = model([node("Relu", "w", "y")], [], ["y"])
    proto.graph.sparse_initializer.append(outside)
    yield Case("tensor", "sparse-outside", saved(proto))


@register
def bombs(_rng: random.Random) -> Iterator[Case]:
    """One operator each that makes far more than it is given."""
    kind = "op-bomb"
    big = 2**31
    column, row = info("x", shape=(60_000, 1)), np.ones((1, 60_000), np.float32)
    many = info("x", shape=(100_000,))
    rows = {
        "tile": _one("Tile", "x s", s=_shape(big)),
        "tile-2^62": _one("Tile", "x s", s=_shape(2**62)),
        "tile-folded": _one("Tile", "c s", c=np.ones(2, np.float32), s=_shape(big)),
        "tile-fed": _one("Tile", "c x", x=info("x", T.INT64, (1,)), c=np.ones(2, np.float32)),
        "expand": _one("Expand", "x s", x=info("x", shape=(1,)), s=_shape(2**20, 2**20)),
        "expand-folded": _one("Expand", "c s", c=np.ones(1, np.float32), s=_shape(2**34)),
        "constant-of-shape": _one("ConstantOfShape", "s", s=_shape(2**40)),
        "constant-of-shape-2^63": _one("ConstantOfShape", "s", s=_shape(2**62, 2**62)),
        "constant-of-shape-negative": _one("ConstantOfShape", "s", s=_shape(-5)),
        "range": _one("Range", "a b c", a=np.int64(0), b=np.int64(2**62), c=np.int64(1)),
        "range-float": _one("Range", "a b c", a=np.float32(0), b=np.float32(1e30),
                            c=np.float32(1e-30)),
        "range-nan": _one("Range", "a b c", a=np.float32(0), b=np.float32("nan"), c=np.float32(1)),
        "range-zero-step": _one("Range", "a b c", a=np.int64(0), b=np.int64(9), c=np.int64(0)),
        "pad": _one("Pad", "x p", p=_shape(0, 2**40)),
        "pad-folded": _one("Pad", "c p", c=np.ones(2, np.float32), p=_shape(2**34, 0)),
        "pad-reflect": _one("Pad", "x p", p=_shape(0, 2**40), attrs={"mode": "reflect"}),
        "pad-wrap": _one("Pad", "x p", p=_shape(0, 2**40), opset=19, attrs={"mode": "wrap"}),
        "pad-negative": _one("Pad", "x p", p=_shape(-(2**40), 0)),
        "one-hot": _one("OneHot", "x d v", x=info("x", T.INT64, (2,)), d=np.int64(2**40),
                        v=np.array([0, 1], np.float32)),
        "one-hot-wide": _one("OneHot", "x d v", x=info("x", T.INT64, (100_000,)),
                             d=np.int64(100_000), v=np.array([0, 1], np.float32)),
        "einsum-outer": _one("Einsum", "x x", x=many, attrs={"equation": "i,j->ij"}),
        "einsum-5": _one("Einsum", "x x x x x", x=info("x", shape=(999,)),
                         attrs={"equation": "a,b,c,d,e->abcde"}),
        "einsum-terms": _one("Einsum", " ".join(["x"] * 52),
                             attrs={"equation": ",".join(ascii_letters)}),
        "outer-product": _one("MatMul", "x r", x=column, r=row),
        "broadcast": _one("Add", "x r", x=column, r=row),
        "compare": _one("Less", "x r", x=info("x", shape=(60_000, 1)), r=row),
        "where": _one("Where", "c x r", x=column, r=row, c=np.array(True)),
        "resize": _one("Resize", "x - k", x=info("x", shape=(1, 1, 2, 2)),
                       k=np.array([1, 1, 1e5, 1e5], np.float32)),
        "resize-sizes": _one("Resize", "x - - s", x=info("x", shape=(1, 1, 2, 2)),
                             s=_shape(1, 1, 2**31, 2**31)),
        "resize-inf": _one("Resize", "x - k", x=info("x", shape=(1, 1, 2, 2)),
                           k=np.array([1, 1, np.inf, np.nan], np.float32)),
        "upsample": _one("Upsample", "x k", x=info("x", shape=(1, 1, 2, 2)), opset=9,
                         k=np.array([1, 1, 1e9, 1e9], np.float32)),
        "eye": _one("EyeLike", "x", x=info("x", shape=(60_000, 60_000))),
        "window": _one("HannWindow", "n", n=np.int64(2**40)),
        "mel": _one("MelWeightMatrix", "a b c d e", a=np.int64(2**20), b=np.int64(2**30),
                    c=np.int64(16000), d=np.float32(0), e=np.float32(8000)),
        "dft": _one("DFT", "x n", x=info("x", shape=(1, 4, 1)), n=np.int64(2**40)),
        "stft": _one("STFT", "x f w", x=info("x", shape=(1, 100_000, 1)), f=np.int64(1),
                     w=np.ones(50_000, np.float32)),
        "split": _one("SplitToSequence", "x n", n=np.int64(0)),
        "center-pad": _one("CenterCropPad", "x s", s=_shape(2**40), opset=18),
        "roi-align": _one("RoiAlign", "x r i", x=info("x", shape=(1, 1, 4, 4)),
                          r=np.ones((1, 4), np.float32), i=_shape(0),
                          attrs={"output_height": 2**20, "output_width": 2**20}),
        "roi-samples": _one("RoiAlign", "x r i", x=info("x", shape=(1, 1, 4, 4)),
                            r=np.ones((1, 4), np.float32), i=_shape(0),
                            attrs={"output_height": 2, "output_width": 2, "sampling_ratio": 2**30}),
        "conv-pads": _one("Conv", "x w", x=info("x", shape=(1, 1, 4, 4)),
                          w=np.ones((1, 1, 1, 1), np.float32),
                          attrs={"pads": [2**20] * 4}),
        "conv-transpose": _one("ConvTranspose", "x w", x=info("x", shape=(1, 1, 4, 4)),
                               w=np.ones((1, 1, 2, 2), np.float32),
                               attrs={"strides": [2**20, 2**20]}),
        "pool-pads": _one("MaxPool", "x", x=info("x", shape=(1, 1, 4, 4)),
                          attrs={"kernel_shape": [2**20, 2**20], "pads": [2**19] * 4}),
        "max-unpool": _one("MaxUnpool", "x i s", x=info("x", shape=(1, 1, 1, 1)),
                           i=np.zeros((1, 1, 1, 1), np.int64),
                           s=_shape(1, 1, 2**20, 2**20),
                           attrs={"kernel_shape": [2, 2]}),
        "depth-to-space": _one("DepthToSpace", "x", x=info("x", shape=(1, 4, 2, 2)),
                               attrs={"blocksize": 2**31}),
        "affine-grid": _one("AffineGrid", "x s", x=info("x", shape=(1, 2, 3)), opset=20,
                            s=_shape(1, 1, 2**20, 2**20)),
        "col2im": _one("Col2Im", "x s b", x=info("x", shape=(1, 4, 4)), opset=18,
                       s=_shape(2**20, 2**20), b=_shape(2, 2)),
        "random": _one("RandomNormal", "", attrs={"shape": [2**20, 2**20]}),
        "lstm": _one("LSTM", "x w r", x=info("x", shape=(1, 1, 1)),
                     w=np.ones((1, 4, 1), np.float32), r=np.ones((1, 4, 1), np.float32),
                     attrs={"hidden_size": 2**40}),
        "scatter": _one("ScatterND", "c i x", x=info("x", shape=(1,)), c=np.ones(2, np.float32),
                        i=np.array([[2**40]])),
        "reshape": _one("Reshape", "x s", s=_shape(2**40, -1)),
        "reshape-0": _one("Reshape", "x s", s=_shape(-1, -1)),
    }  # fmt: skip
    random_normal = node("RandomNormal", "", "y", shape=[2**20, 2**20])
    random_normal.input[:] = []
    rows["random"] = saved(model([random_normal], [], ["y"]))
    legal = {"pool-pads": EITHER}
    feeds = {"tile-fed": {"x": _shape(big)}}
    for name, build in rows.items():
        yield Case(kind, name, build, legal.get(name, ERROR), feeds=feeds.get(name))
    doubling = [node("Concat", f"v{i} v{i}", f"v{i + 1}", axis=0) for i in range(60)]
    yield Case(kind, "concat-doubling", saved(model(doubling, [info("v0")], ["v60"])))
    yield Case(
        kind, "concat-folded", saved(model(doubling, [], ["v60"], v0=np.ones(2, np.float32)))
    )
    wide = node("Concat", " ".join(["v"] * 1000), "w", axis=0)
    wider = [wide, *[node("Concat", " ".join(["w"] * 1000), f"y{i}", axis=0) for i in range(3)]]
    yield Case(kind, "concat-wide", saved(model(wider, [], ["y0"], v=np.ones(2000, np.float32))))
    large = [node("ConstantOfShape", f"s{i}", f"c{i}") for i in range(50)]
    large.append(node("Sum", " ".join(f"c{i}" for i in range(50)), "y"))
    held = {f"s{i}": _shape(50_000_000 + i // 50) for i in range(50)}
    yield Case(kind, "constants-shared", saved(model(large, [], ["y"], **held)), EITHER)
    held = {f"s{i}": _shape(i + 1, 1_000_000) for i in range(50)}
    sums = [node("ReduceSum", f"c{i}", f"r{i}") for i in range(50)]
    joined = node("Concat", " ".join(f"r{i}" for i in range(50)), "y", axis=0)
    together = model([*large[:-1], *sums, joined], [], ["y"], **held)
    yield Case(kind, "constants-together", saved(together))
    chain = [node("MatMul", "c c", "y")]
    flops = [node("ConstantOfShape", "s", "c"), *chain]
    yield Case(kind, "folded-product", saved(model(flops, [], ["y"], s=_shape(6000, 6000))), EITHER,
               slow=True)  # fmt: skip
    adds = [node("Add", f"b{i} b{i}", f"b{i + 1}") for i in range(40)]
    start = node("ConstantOfShape", "s", "b0")
    yield Case(kind, "folded-chain", saved(model(
        [start, *adds], [], ["b40"], s=_shape(40_000_000)
    )), EITHER, slow=True)  # fmt: skip


@register
def strings(_rng: random.Random) -> Iterator[Case]:
    """Operators on strings: memory and time by what they are given."""
    kind = "strings"
    words = np.array([["ab"]] * 5000, dtype=object)
    rows = {
        "concat": ("StringConcat", "a b", {}),
        "equal": ("Equal", "a b", {}),
    }
    for name, (op, inputs, attrs) in rows.items():
        nodes = [node(op, inputs, "y", **attrs)]
        proto = model(
            nodes, [], ["y"], opset=20, a=np.repeat(words, 4, 0), b=np.repeat(words, 4, 0).T
        )
        yield Case(kind, name, saved(proto))
    yield Case(kind, "split", later(_split), slow=True)
    regex = model([node("RegexFullMatch", "t", "y", pattern="(a|b|ab)*c" * 20)], [], ["y"],
                  opset=20, t=np.array(["ab" * 50_000], dtype=object))  # fmt: skip
    yield Case(kind, "regex-long", saved(regex), RIGHT, slow=True)
    for name, pattern in {
        "states": "((a{100}){100}){100}", "nested": "(" * 5000 + "a" + ")" * 5000,
        "open": "(((", "class": "[" + "a-z" * 9999, "lookahead": "(?=a)*",
        "empty-loop": "(a*)*(b*)*c",
    }.items():  # fmt: skip
        proto = model([node("RegexFullMatch", "t", "y", pattern=pattern)], [], ["y"], opset=20,
                      t=np.array(["aaaa"], dtype=object))  # fmt: skip
        yield Case(kind, f"regex-{name}", saved(proto), EITHER)
    for op in ("IsNaN", "IsInf"):
        proto = model([node(op, "t", "y")], [], ["y"], opset=20, t=np.array(["a"], dtype=object))
        yield Case(kind, op.lower(), saved(proto))
    for index in (5, -6, 2**62):
        proto = model([node("Gather", "t i", "y")], [], ["y"], t=np.array(["a", "b"], dtype=object),
                      i=_shape(index))  # fmt: skip
        yield Case(kind, f"gather-{index}", saved(proto))
    tile = model(
        [node("Tile", "t n", "y")], [], ["y"], t=np.array(["a"], dtype=object), n=_shape(2**40)
    )
    yield Case(kind, "tile", saved(tile))
    cast = model(
        [node("Cast", "t", "y", to=T.FLOAT)],
        [],
        ["y"],
        t=np.array(["Infinity", "-INF"], dtype=object),
    )
    yield Case(kind, "cast-infinity", saved(cast), RIGHT,
               check=lambda out: out["y"].tolist() == [np.inf, -np.inf])  # fmt: skip
    cast = model(
        [node("Cast", "t", "y", to=T.INT64)], [], ["y"], t=np.array(["9" * 9999], dtype=object)
    )
    yield Case(kind, "cast-9999-digits", saved(cast))


def _split() -> Any:
    text = np.array(["a " * 30_000_000], dtype=object)
    return model([node("StringSplit", "t", "y n", delimiter=" ")], [], ["n"], opset=20, t=text)


def _starts_with_nan(out: dict[str, Any]) -> bool:
    return bool(np.isnan(out["y"][0]))


@register
def arithmetic(_rng: random.Random) -> Iterator[Case]:
    """Divisions by zero, shifts and indices out of range, floods of NaN: never a signal."""
    kind = "arithmetic"
    low = {T.INT8: -(2**7), T.INT32: -(2**31), T.INT64: -(2**63)}
    for dtype, least in low.items():
        kinds = helper.tensor_dtype_to_np_dtype(dtype)
        x, d = info("x", dtype, (2,)), info("d", dtype, (2,))
        for op in ("Div", "Mod"):
            proto = model([node(op, "x d", "y")], [x, d], ["y"])
            for name, by in (("zero", 0), ("minus-one", -1)):
                feeds = {"x": np.array([least, 7], kinds), "d": np.array([by, by], kinds)}
                yield Case(kind, f"{op}-{kinds}-{name}", saved(proto), EITHER, feeds=feeds)
    u = info("x", T.UINT32, (2,))
    proto = model([node("BitShift", "x s", "y", direction="LEFT")], [u], ["y"],
                  s=np.array([32, 2**31], np.uint32))  # fmt: skip
    yield Case(kind, "shift", saved(proto), EITHER)
    x, i = info("x", shape=(4,)), info("i", T.INT64, (2,))
    wild = np.array([2**62, -(2**62)])
    feeds = {"x": np.ones(4, np.float32), "i": wild}
    for op in ("Gather", "GatherElements"):
        yield Case(kind, f"{op}-wild", saved(model([node(op, "x i", "y")], [x, i], ["y"])), EITHER,
                   feeds=feeds)  # fmt: skip
    nd = {"x": np.ones(4, np.float32), "i": wild.reshape(2, 1)}
    proto = model([node("GatherND", "x i", "y")], [x, info("i", T.INT64, (2, 1))], ["y"])
    yield Case(kind, "GatherND-wild", saved(proto), EITHER, feeds=nd)
    for op, shape in (("ScatterElements", (2,)), ("ScatterND", (2, 1))):
        u = info("u", shape=(2,))
        proto = model([node(op, "x i u", "y")], [x, info("i", T.INT64, shape), u], ["y"])
        given = {**feeds, "i": wild.reshape(shape), "u": np.ones(2, np.float32)}
        yield Case(kind, f"{op}-wild", saved(proto), EITHER, feeds=given)
    tiny = np.array([np.nan, np.inf, -np.inf, 1e-45], np.float32)
    for op in ("Exp", "Log", "Sqrt", "Tanh", "Softmax", "Relu", "Sigmoid", "Erf"):
        nan = saved(model([node(op, "x", "y")], [x], ["y"]))
        check = None if op == "Relu" else _starts_with_nan
        yield Case(kind, f"nan-{op}", nan, RIGHT, feeds={"x": tiny}, check=check)
    for to in (T.INT8, T.INT32, T.INT64, T.UINT8, T.BOOL, T.FLOAT16):
        proto = model([node("Cast", "x", "y", to=to)], [x], ["y"])
        yield Case(kind, f"cast-nan-{to}", saved(proto), RIGHT, feeds={"x": tiny})
