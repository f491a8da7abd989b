"""MiniLM as an ONNX model, in the nodes that exporters write: the other computation of it.

Sizes come from Shape nodes, positions from a slice of a table, GELU from Erf, the mask as int64.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

LAYERS, HEADS, WIDTH, FEATURES = 6, 12, 32, 384


class Exporter:
    """Collects nodes and initializers."""

    def __init__(self, weights: Mapping[str, Any]) -> None:
        self.weights = weights
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}

    def node(self, op: str, *inputs: str, **attrs: Any) -> str:
        """Append a node; returns the name of its first output."""
        name = f"{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attrs))
        return name

    def keep(self, name: str, array: Any) -> str:
        self.initializers[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)
        return name

    def weight(self, name: str) -> str:
        return self.keep(name, self.weights[name])

    def ints(self, *values: int) -> str:
        return self.keep("ints_" + "_".join(map(str, values)), np.array(values, np.int64))

    def number(self, value: float) -> str:
        return self.keep(f"number_{value}", np.array(value, np.float32))

    def linear(self, x: str, name: str) -> str:
        turned = self.keep(f"{name}.weight.T", self.weights[f"{name}.weight"].T)
        return self.node("Add", self.node("MatMul", x, turned), self.weight(f"{name}.bias"))

    def norm(self, x: str, name: str) -> str:
        scale, bias = self.weight(f"{name}.weight"), self.weight(f"{name}.bias")
        return self.node("LayerNormalization", x, scale, bias, axis=-1, epsilon=1e-12)

    def embeddings(self) -> str:
        sizes = self.node("Shape", "input_ids")
        length = self.node("Slice", sizes, self.ints(1), self.ints(2), self.ints(0))
        ids = self.weight("embeddings.position_ids")
        places = self.node("Slice", ids, self.ints(0), length, self.ints(1))
        types = self.node("Mul", "input_ids", self.ints(0))
        parts = [
            self.node("Gather", self.weight(f"embeddings.{kind}_embeddings.weight"), indices)
            for kind, indices in (
                ("word", "input_ids"),
                ("token_type", types),
                ("position", places),
            )
        ]
        total = self.node("Add", self.node("Add", parts[0], parts[1]), parts[2])
        return self.norm(total, "embeddings.LayerNorm")

    def attention(self, x: str, bias: str, name: str) -> str:
        parts = []
        for part in ("query", "key", "value"):
            flat = self.linear(x, f"{name}.self.{part}")
            split = self.node("Reshape", flat, self.ints(0, 0, HEADS, WIDTH))
            order = [0, 2, 3, 1] if part == "key" else [0, 2, 1, 3]
            parts.append(self.node("Transpose", split, perm=order))
        scores = self.node("MatMul", parts[0], parts[1])
        scores = self.node("Div", scores, self.number(float(np.sqrt(WIDTH))))
        shares = self.node("Softmax", self.node("Add", scores, bias), axis=-1)
        mixed = self.node("Transpose", self.node("MatMul", shares, parts[2]), perm=[0, 2, 1, 3])
        joined = self.node("Reshape", mixed, self.ints(0, 0, FEATURES))
        return self.linear(joined, f"{name}.output.dense")

    def gelu(self, x: str) -> str:
        bent = self.node("Erf", self.node("Div", x, self.number(float(np.sqrt(2)))))
        return self.node(
            "Mul",
            self.node("Mul", x, self.node("Add", bent, self.number(1.0))),
            self.number(0.5),
        )

    def layer(self, x: str, bias: str, name: str) -> str:
        mixed = self.node("Add", self.attention(x, bias, f"{name}.attention"), x)
        x = self.norm(mixed, f"{name}.attention.output.LayerNorm")
        wide = self.gelu(self.linear(x, f"{name}.intermediate.dense"))
        narrow = self.node("Add", self.linear(wide, f"{name}.output.dense"), x)
        return self.norm(narrow, f"{name}.output.LayerNorm")

    def pooled(self, x: str, mask: str) -> str:
        kept = self.node("Mul", x, self.node("Unsqueeze", mask, self.ints(2)))
        total = self.node("ReduceSum", kept, self.ints(1), keepdims=0)
        count = self.node("ReduceSum", mask, self.ints(1), keepdims=1)
        mean = self.node("Div", total, count)
        return self.node("LpNormalization", mean, axis=1, p=2)


def export(weights: Mapping[str, Any]) -> onnx.ModelProto:
    """``input_ids`` and ``attention_mask`` (int64[batch, length]) to ``embeddings``."""
    e = Exporter(weights)
    mask = e.node("Cast", "attention_mask", to=TensorProto.FLOAT)
    padding = e.node("Sub", e.number(1.0), e.node("Unsqueeze", mask, e.ints(1, 2)))
    bias = e.node("Mul", padding, e.number(-10000.0))
    x = e.embeddings()
    for layer in range(LAYERS):
        x = e.layer(x, bias, f"encoder.layer.{layer}")
    e.nodes.append(helper.make_node("Identity", [e.pooled(x, mask)], ["embeddings"]))
    sizes = ["batch", "length"]
    graph = helper.make_graph(
        e.nodes,
        "minilm",
        [
            helper.make_tensor_value_info(name, TensorProto.INT64, sizes)
            for name in ("input_ids", "attention_mask")
        ],
        [helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, ["batch", FEATURES])],
        list(e.initializers.values()),
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model
