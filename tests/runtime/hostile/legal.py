"""Odd but legal: files that must load, and give the right answer."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto as T
from onnx import helper

from tests.runtime.hostile.external import holding, tensor
from tests.runtime.hostile.kit import EITHER, RIGHT, Case, info, model, node, register, saved

X, Y = info("x"), info("y")
W = np.arange(6, dtype=np.float32)


def _simple(*nodes: Any, inputs: Any = (X,), outputs: Any = (Y,), **held: Any) -> Any:
    return model(nodes, inputs, outputs, **held)


@register
def graphs(_rng: random.Random) -> Iterator[Case]:
    """Graphs with less, or more, than one expects."""
    passed = _simple(inputs=[X], outputs=[X])
    constant = _simple(inputs=[], outputs=[info("w")], w=np.array([3, 4], np.float32))
    unused = {f"w{i}": np.zeros((0, 3), np.float32) for i in range(200)}
    anonymous = _simple(node("Relu", "x", "y"))
    anonymous.graph.name = ""
    twin = _simple(node("Relu", "x", "y"), node("Neg", "x", "z"), outputs=[Y, info("z")])
    for made in twin.graph.node:
        made.name = "same"
    as_value = _simple(node("Relu", "x", "h", name="y"), node("Neg", "h", "y", name="x"))
    shadowed = _simple(node("Add", "x w", "y"), inputs=[X, info("w")],
                       w=np.ones(2, np.float32))  # fmt: skip
    scalar = info("x", shape=())
    branch = helper.make_graph([], "same", [], [info("x")])
    ifs = node("If", "c", "y", then_branch=branch, else_branch=branch)
    dropped = node("Dropout", "x", "y -")
    dropped.output[1] = ""
    clip = helper.make_node("Clip", ["x", "", ""], ["y"])
    trailing = helper.make_node("Clip", ["x", ""], ["y"])
    rows: dict[str, tuple[Any, Callable[[dict[str, Any]], bool] | None]] = {
        "output-is-input": (passed, lambda out: out["x"].tolist() == [0, 0]),
        "output-is-constant": (constant, lambda out: out["w"].tolist() == [3, 4]),
        "unused-constants": (_simple(node("Relu", "x", "y"), **unused), None),
        "nameless-graph": (anonymous, None),
        "nodes-of-one-name": (twin, None),
        "node-named-as-value": (as_value, None),
        "input-with-default": (shadowed, lambda out: out["y"].tolist() == [1, 1]),
        "scalar": (_simple(node("Neg", "x", "y"), inputs=[scalar], outputs=["y"]), None),
        "branches-without-nodes": (_simple(ifs, outputs=["y"], c=np.array(True)), None),
        "output-left-out": (_simple(dropped), None),
        "inputs-left-out": (_simple(clip), None),
        "input-left-out-at-end": (_simple(trailing), None),
        "identities": (_simple(*(node("Identity", f"v{i}", f"v{i + 1}") for i in range(500)),
                               inputs=[info("v0")], outputs=["v500"]), None),
        "unused-input": (_simple(node("Relu", "x", "y"), inputs=[X, info("z")]), None),
        "output-of-no-type": (_simple(node("Relu", "x", "y"), outputs=["y"]), None),
        "long-name": (_simple(node("Relu", "x", "n" * 50_000), node("Neg", "n" * 50_000, "y")),
                      None),
        "attribute-of-default-type": (_simple(helper.make_node("Softmax", ["x"], ["y"], axis=-1)),
                                      None),
        "float-of-nan": (_simple(node("Elu", "x", "y", alpha=float("nan"))), None),
        "doubled-then-unused": (_simple(node("Relu", "x", "y"), node("Neg", "y", "z")), None),
    }  # fmt: skip
    for name, (proto, check) in rows.items():
        yield Case("legal", name, saved(proto), RIGHT, check=check)


@register
def empty(_rng: random.Random) -> Iterator[Case]:
    """Tensors without elements, through operators of every family."""
    none = info("x", shape=(0, 3))
    w = np.ones((3, 4), np.float32)
    image = info("x", shape=(0, 3, 8, 8))
    kernel = np.ones((2, 3, 3, 3), np.float32)
    rows = {
        "matmul": (node("MatMul", "x w", "y"), none, {"w": w}, (0, 4)),
        "inner": (node("MatMul", "x w", "y"), info("x", shape=(2, 0)),
                  {"w": np.ones((0, 4), np.float32)}, (2, 4)),
        "gemm": (node("Gemm", "x w", "y"), none, {"w": w}, (0, 4)),
        "conv": (node("Conv", "x w", "y"), image, {"w": kernel}, (0, 2, 6, 6)),
        "pool": (node("MaxPool", "x", "y", kernel_shape=[2, 2]), image, {}, (0, 3, 7, 7)),
        "softmax": (node("Softmax", "x", "y"), none, {}, (0, 3)),
        "sum": (node("ReduceSum", "x", "y", keepdims=0), none, {}, ()),
        "concat": (node("Concat", "x w", "y", axis=0), none,
                   {"w": np.ones((1, 3), np.float32)}, (1, 3)),
        "transpose": (node("Transpose", "x", "y"), none, {}, (3, 0)),
        "gather": (node("Gather", "x w", "y", axis=1), none, {"w": np.array([0, 2])}, (0, 2)),
        "reshape": (node("Reshape", "x w", "y", allowzero=1), none, {"w": np.array([3, 0])},
                    (3, 0)),
        "add": (node("Add", "x w", "y"), none, {"w": np.ones(3, np.float32)}, (0, 3)),
        "cumsum": (node("CumSum", "x w", "y"), none, {"w": np.int64(0)}, (0, 3)),
        "topk": (node("TopK", "x w", "y i"), info("x", shape=(2, 3)), {"w": np.array([0])}, (2, 0)),
        "expand": (node("Expand", "x w", "y"), info("x", shape=(1, 3)), {"w": np.array([0, 3])},
                   (0, 3)),
        "tile": (node("Tile", "x w", "y"), info("x", shape=(2, 3)), {"w": np.array([0, 1])},
                 (0, 3)),
        "slice": (node("Slice", "x w w", "y"), info("x", shape=(2, 3)), {"w": np.array([1])},
                  (0, 3)),
        "layer-norm": (node("LayerNormalization", "x w", "y"), none,
                       {"w": np.ones(3, np.float32)}, (0, 3)),
        "nonzero": (node("NonZero", "x", "y"), info("x", shape=(2, 3)), {}, (2, 0)),
        "lstm": (node("LSTM", "x w r", "y"), info("x", shape=(0, 1, 1)),
                 {"w": np.ones((1, 4, 1), np.float32), "r": np.ones((1, 4, 1), np.float32)},
                 (0, 1, 1, 1)),
    }  # fmt: skip
    rows["lstm"][0].attribute.append(helper.make_attribute("hidden_size", 1))
    for name, (made, x, held, shape) in rows.items():
        proto = model([made], [x], ["y"], **held)
        dims = [d.dim_value for d in x.type.tensor_type.shape.dim]
        yield Case("empty", name, saved(proto), RIGHT if name != "lstm" else EITHER,
                   feeds={"x": np.zeros(dims, np.float32)},
                   check=lambda out, shape=shape: out["y"].shape == shape)  # fmt: skip
    held = T(name="w", data_type=T.FLOAT, dims=[0, 2**40])
    proto = model([node("Shape", "w", "y")], [], ["y"], initializers=[held])
    yield Case("empty", "tensor-0-by-2^40", saved(proto), EITHER)
    loop = helper.make_graph(
        [node("Identity", "going", "on"), node("Neg", "v", "w")], "body",
        [info("i", T.INT64, ()), info("going", T.BOOL, ()), info("v")],
        [info("on", T.BOOL, ()), info("w")],
    )  # fmt: skip
    proto = model([node("Loop", "n - x", "y", body=loop)], [X], ["y"], n=np.array(0))
    yield Case("empty", "loop-of-none", saved(proto), RIGHT)


SYMBOLS = (
    "a b", "2*n", "n+1", "0", "-7", "名前", "🦀", "\0", "\n", "x" * 5000, "n; rm -rf /", "{n}",
    "%s", "None ", "floor(n/2)", "\u202en", "n.0", "x.1", "captured.0", '"', "\\", "sequence",
)  # fmt: skip


@register
def symbols(_rng: random.Random) -> Iterator[Case]:
    """Names of dimensions that are no names."""
    for index, name in enumerate(SYMBOLS):
        x = info("x", shape=(name, 3))
        proto = model([node("MatMul", "x w", "h"), node("Concat", "h h", "y", axis=0)], [x],
                      [info("y", shape=(f"{name}{name}"[:9], 4))],
                      w=np.ones((3, 4), np.float32))  # fmt: skip
        yield Case("symbols", f"{index:02}", saved(proto), RIGHT,
                   check=lambda out: out["y"].shape[1] == 4)  # fmt: skip
    same = model([node("Add", "x z", "y")],
                 [info("x", shape=("n", 3)), info("z", shape=("n ", 3))], ["y"])  # fmt: skip
    yield Case("symbols", "with-a-blank", saved(same), RIGHT)
    both = info("x", shape=("n",))
    both.type.tensor_type.shape.dim[0].denotation = "DATA_BATCH\0"
    yield Case("symbols", "denotation", saved(model([node("Neg", "x", "y")], [both], ["y"])), RIGHT)


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _hub(folder: Path, name: str, location: str) -> tuple[Path, Path]:
    """A hub's cache: blobs, and a snapshot whose file links to one; the snapshot and the model."""
    proto = holding(tensor({"location": location}), "initialiser")
    _write(folder / "blobs" / "f00d", proto.SerializeToString())
    _write(folder / "blobs" / "beef", W.tobytes())
    snapshot = folder / "snapshots" / "abc"
    model_path = snapshot / name
    model_path.parent.mkdir(parents=True)
    up = "../" * (len(Path(name).parts) + 1)
    model_path.symlink_to(f"{up}blobs/f00d")
    data = model_path.parent / location
    data.parent.mkdir(parents=True, exist_ok=True)
    depth = len(data.relative_to(folder).parts) - 1
    data.symlink_to("../" * depth + "blobs/beef")
    return snapshot, model_path


def _deeper(folder: Path) -> Path:
    return _hub(folder, "onnx/model.onnx", "model.onnx_data")[1]


def _data_deeper(folder: Path) -> Path:
    return _hub(folder, "model.onnx", "data/w.bin")[1]


def _by_link_to_snapshot(folder: Path) -> Path:
    snapshot, path = _hub(folder, "model.onnx", "w")
    (folder / "latest").symlink_to(snapshot)
    return folder / "latest" / path.name


def _by_link_to_folder(folder: Path) -> Path:
    _, path = _hub(folder / "hub", "model.onnx", "w")
    (folder / "models").symlink_to(folder / "hub")
    return folder / "models" / path.relative_to(folder / "hub")


def _absolute_links(folder: Path) -> Path:
    _, path = _hub(folder, "model.onnx", "w")
    for link in (path, path.parent / "w"):
        target = link.resolve()
        link.unlink()
        link.symlink_to(target)
    return path


def _chained(folder: Path) -> Path:
    _, path = _hub(folder, "model.onnx", "w")
    (folder / "m.onnx").symlink_to(path)
    (folder / "w").symlink_to("blobs/beef")
    return folder / "m.onnx"


def _inside(folder: Path) -> Path:
    _write(folder / "data" / "w.bin", W.tobytes())
    (folder / "w").symlink_to("data/w.bin")
    proto = holding(tensor({"location": "w"}), "initialiser")
    _write(folder / "model.onnx", proto.SerializeToString())
    return folder / "model.onnx"


def _odd_folder(folder: Path) -> Path:
    place = folder / "a b\n%41 名前"
    proto = holding(tensor({"location": "w 名前.bin"}), "initialiser")
    _write(place / "m ö.onnx", proto.SerializeToString())
    _write(place / "w 名前.bin", W.tobytes())
    return place / "m ö.onnx"


def _read_only(folder: Path) -> Path:
    proto = holding(tensor({"location": "w"}), "initialiser")
    _write(folder / "model.onnx", proto.SerializeToString())
    _write(folder / "w", W.tobytes())
    for path in (folder / "w", folder / "model.onnx"):
        os.chmod(path, 0o400)
    return folder / "model.onnx"


@register
def hubs(_rng: random.Random) -> Iterator[Case]:
    """Layouts in which files are links: hubs' caches, and what people make of them."""

    for build in (_deeper, _data_deeper, _by_link_to_snapshot, _by_link_to_folder, _absolute_links,
                  _chained, _inside, _odd_folder, _read_only):  # fmt: skip
        yield Case("hub", build.__name__[1:].replace("_", "-"), build, RIGHT,
                   check=lambda out: bool((out["y"] == W).all()))  # fmt: skip
