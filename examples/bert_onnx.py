"""BERT (Devlin et al. 2019) as an ONNX model, written as exporters write it.

MiniLM's weights make MiniLM; ``random_weights`` those of any other size. Products and their biases,
heads, scaling, mask, softmax, the error function and normalisations are nodes of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

EPSILON = 1e-12


@dataclass(frozen=True)
class Size:
    """How many layers and heads, how wide the states are, and the layers between."""

    layers: int = 6
    heads: int = 12
    width: int = 384
    inner: int = 1536


MINILM = Size()
"""all-MiniLM-L6-v2."""


def random_weights(size: Size, *, words: int = 1000, places: int = 512) -> dict[str, Any]:
    """Weights by the names that BERT's have, drawn so that states keep their size."""
    rng = np.random.default_rng(0)
    width, inner = size.width, size.inner

    def drawn(*shape: int) -> Any:
        return (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)

    def normalised(name: str) -> dict[str, Any]:
        """A layer normalisation."""
        return {
            f"{name}.LayerNorm.weight": 1 + drawn(width),
            f"{name}.LayerNorm.bias": drawn(width),
        }

    made = {
        "embeddings.word_embeddings.weight": drawn(words, width),
        "embeddings.position_embeddings.weight": drawn(places, width),
        "embeddings.token_type_embeddings.weight": drawn(2, width),
        **normalised("embeddings"),
    }
    for i in range(size.layers):
        layer = f"encoder.layer.{i}"
        parts = {
            **{f"attention.self.{p}": (width, width) for p in ("query", "key", "value")},
            "attention.output.dense": (width, width),
            "intermediate.dense": (inner, width),
            "output.dense": (width, inner),
        }
        for name, shape in parts.items():
            made[f"{layer}.{name}.weight"] = drawn(*shape)
            made[f"{layer}.{name}.bias"] = drawn(shape[0])
        made |= normalised(f"{layer}.attention.output") | normalised(f"{layer}.output")
    return made


class Writer:
    """Nodes and initialisers of one graph."""

    def __init__(self, weights: dict[str, Any], size: Size) -> None:
        self.weights, self.size = weights, size
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}

    def add(self, op: str, *names: str, **attrs: Any) -> str:
        """A node of one result; its name."""
        result = f"{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(names), [result], name=result, **attrs))
        return result

    def array(self, value: Any) -> str:
        """A constant."""
        name = f"constant_{len(self.constants)}"
        self.constants[name] = np.asarray(value)
        return name

    def weight(self, name: str, *, turned: bool = False) -> str:
        """A weight; ``turned``: transposed."""
        array = self.weights[name]
        return self.array(np.ascontiguousarray(array.T) if turned else array)

    def dense(self, name: str, x: str) -> str:
        """A product with a weight, and a bias."""
        product = self.add("MatMul", x, self.weight(f"{name}.weight", turned=True))
        return self.add("Add", self.weight(f"{name}.bias"), product)

    def normalised(self, name: str, x: str) -> str:
        """A layer normalisation."""
        scale, bias = (self.weight(f"{name}.LayerNorm.{part}") for part in ("weight", "bias"))
        return self.add("LayerNormalization", x, scale, bias, axis=-1, epsilon=EPSILON)

    def heads(self, x: str, perm: list[int]) -> str:
        """States by heads, in another order of axes."""
        heads, width = self.size.heads, self.size.width
        shape = self.array(np.array([0, 0, heads, width // heads], np.int64))
        return self.add("Transpose", self.add("Reshape", x, shape), perm=perm)

    def gelu(self, x: str) -> str:
        """The Gaussian error linear unit, written out."""
        error = self.add("Erf", self.add("Div", x, self.array(np.float32(np.sqrt(2)))))
        more = self.add("Add", error, self.array(np.float32(1)))
        return self.add("Mul", self.add("Mul", x, more), self.array(np.float32(0.5)))

    def layer(self, name: str, x: str, bias: str) -> str:
        """Attention, then two dense layers, each with what went in added and normalised."""
        q, k, v = (
            self.heads(self.dense(f"{name}.attention.self.{part}", x), perm)
            for part, perm in (
                ("query", [0, 2, 1, 3]),
                ("key", [0, 2, 3, 1]),
                ("value", [0, 2, 1, 3]),
            )
        )
        root = self.array(np.float32(np.sqrt(self.size.width // self.size.heads)))
        scores = self.add("Div", self.add("MatMul", q, k), root)
        weights = self.add("Softmax", self.add("Add", scores, bias), axis=-1)
        mixed = self.add("Transpose", self.add("MatMul", weights, v), perm=[0, 2, 1, 3])
        flat = self.add("Reshape", mixed, self.array(np.array([0, 0, self.size.width], np.int64)))
        near = self.dense(f"{name}.attention.output.dense", flat)
        x = self.normalised(f"{name}.attention.output", self.add("Add", near, x))
        inner = self.gelu(self.dense(f"{name}.intermediate.dense", x))
        outer = self.dense(f"{name}.output.dense", inner)
        return self.normalised(f"{name}.output", self.add("Add", outer, x))


def model_of(weights: dict[str, Any], size: Size = MINILM) -> Any:
    """Inputs ids (int64) and mask (int64), [batch, length]; output embedding [batch, width]."""
    w = Writer(weights, size)
    table = "embeddings.{}_embeddings.weight"
    length = w.add("Gather", w.add("Shape", "ids"), w.array(np.array([1], np.int64)))
    zero = w.array(np.array([0], np.int64))
    near = w.add("Slice", w.weight(table.format("position")), zero, length, zero)
    tokens = w.add("Gather", w.weight(table.format("word")), "ids")
    segments = w.add("ConstantOfShape", w.add("Shape", "ids"), value=int64_zero())
    kinds = w.add("Gather", w.weight(table.format("token_type")), segments)
    x = w.normalised("embeddings", w.add("Add", w.add("Add", tokens, kinds), near))
    kept = w.add("Cast", "mask", to=TensorProto.FLOAT)
    wide = w.add("Unsqueeze", kept, w.array(np.array([1, 2], np.int64)))
    hidden = w.add("Sub", w.array(np.float32(1)), wide)
    bias = w.add("Mul", hidden, w.array(np.float32(np.finfo(np.float32).min)))
    for i in range(size.layers):
        x = w.layer(f"encoder.layer.{i}", x, bias)
    last, one = (w.array(np.array([axis], np.int64)) for axis in (-1, 1))
    total = w.add("ReduceSum", w.add("Mul", x, w.add("Unsqueeze", kept, last)), one, keepdims=0)
    mean = w.add("Div", total, w.add("ReduceSum", kept, one, keepdims=1))
    w.nodes.append(
        helper.make_node("LpNormalization", [mean], ["embedding"], axis=-1, p=2, name="norm")
    )
    dims = ["batch", "length"]
    graph = helper.make_graph(
        w.nodes,
        "bert",
        [helper.make_tensor_value_info(n, TensorProto.INT64, dims) for n in ("ids", "mask")],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", size.width])],
        initializer=[numpy_helper.from_array(a, n) for n, a in w.constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def int64_zero() -> Any:
    """A zero, as an attribute."""
    return numpy_helper.from_array(np.zeros(1, np.int64))
