"""Recipes as ONNX models, as far as ONNX has the ops, and onnxruntime as one more way to run them.

An op that is not in the table below, or that ONNX defines otherwise, makes a recipe one that is
not written: then onnxruntime has no say on it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from crossdock.runtime.differential.recipe import Recipe
from crossdock.runtime.errors import ExecutionError
from crossdock.runtime.graph import Graph, Node
from crossdock.runtime.tensor import FLOATS, TensorSpec

OPSET = 21
SAME = {
    "add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "max": "Max", "min": "Min",
    "pow": "Pow", "abs": "Abs", "ceil": "Ceil", "cos": "Cos", "erf": "Erf", "exp": "Exp",
    "floor": "Floor", "log": "Log", "neg": "Neg", "reciprocal": "Reciprocal", "round_even": "Round",
    "sign": "Sign", "sin": "Sin", "sqrt": "Sqrt", "tan": "Tan", "acos": "Acos", "asin": "Asin",
    "atan": "Atan", "elu": "Elu", "gelu": "Gelu", "hard_sigmoid": "HardSigmoid",
    "leaky_relu": "LeakyRelu", "relu": "Relu", "sigmoid": "Sigmoid", "softplus": "Softplus",
    "softsign": "Softsign", "tanh": "Tanh", "prelu": "PRelu", "identity": "Identity",
    "matmul": "MatMul", "bitwise_and": "BitwiseAnd", "bitwise_or": "BitwiseOr",
    "bitwise_xor": "BitwiseXor", "bitwise_not": "BitwiseNot", "det": "Det",
}  # fmt: skip
"""Ops that mean the same, attributes included."""
RENAMED: dict[str, dict[str, str]] = {
    "transpose": {"permutation": "perm"},
    "softmax": {"axis": "axis"},
    "concat": {"axis": "axis"},
    "gemm": {"alpha": "alpha", "beta": "beta", "a_transpose": "transA", "b_transpose": "transB"},
}
"""ONNX's names for attributes; others keep theirs."""
TYPED = {"transpose": "Transpose", "softmax": "Softmax", "concat": "Concat", "gemm": "Gemm"}
REDUCED = {
    "reduce_l1": "ReduceL1", "reduce_l2": "ReduceL2", "reduce_log_sum": "ReduceLogSum",
    "reduce_log_sum_exp": "ReduceLogSumExp", "reduce_max": "ReduceMax", "reduce_mean": "ReduceMean",
    "reduce_min": "ReduceMin", "reduce_product": "ReduceProd", "reduce_sum": "ReduceSum",
    "reduce_sum_square": "ReduceSumSquare",
}  # fmt: skip
COMPARED = {
    "equal": "Equal", "greater": "Greater", "greater_or_equal": "GreaterOrEqual", "lesser": "Less",
    "lesser_or_equal": "LessOrEqual",
}  # fmt: skip
PLAIN = frozenset({"float32"})
"""Float types that onnxruntime computes in as they are; it has half types by way of float32, with
other roundings, or not at all."""
INTEGERS = frozenset({"int32", "int64", "uint8", "bool"})


class NotWritten(Exception):
    """ONNX has no op that means the same."""


def available() -> bool:
    """Whether the packages that this needs are installed."""
    return all(importlib.util.find_spec(name) is not None for name in ("onnx", "onnxruntime"))


def written(recipe: Recipe) -> bytes:
    """The recipe as an ONNX model; raises NotWritten naming the op that stands against it."""
    import onnx

    graph, _ = recipe.build()
    made = _Writer(graph).model()
    return bytes(onnx.ModelProto.SerializeToString(made))


def run(recipe: Recipe) -> Sequence[Mapping[str, Any]]:
    """Outputs of onnxruntime, its own passes off: what is compared is what the ops mean."""
    session = _session(recipe)
    names = [output.name for output in session.get_outputs()]
    fed = {i.name for i in session.get_inputs()}
    feeds = {name: array for name, array in recipe.feeds().items() if name in fed}
    try:
        return [dict(zip(names, session.run(names, feeds), strict=True))]
    except Exception as error:  # its exceptions have no common base but this
        raise ExecutionError(f"onnxruntime: {error}") from error


def _session(recipe: Recipe) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return ort.InferenceSession(written(recipe), options, providers=["CPUExecutionProvider"])


class _Writer:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.nodes: list[Any] = []
        self.tensors: list[Any] = []

    def model(self) -> Any:
        from onnx import helper

        for spec in self.graph.specs.values():
            if spec.dtype not in PLAIN | INTEGERS or 0 in spec.dims:
                raise NotWritten(str(spec))
        for name, array in self.graph.constants.items():
            self._tensor(name, array)
        for node in self.graph.nodes:
            self._node(node)
        for name, value in self.graph.outputs.items():
            self._add("Identity", [value], name)
        inputs = [_info(name, spec) for name, spec in self.graph.inputs.items()]
        outputs = [_info(name, spec) for name, spec in self.graph.output_specs.items()]
        body = helper.make_graph(self.nodes, self.graph.name, inputs, outputs, self.tensors)
        made = helper.make_model(body, opset_imports=[helper.make_opsetid("", OPSET)])
        made.ir_version = 10
        return made

    def _tensor(self, name: str, array: Any) -> str:
        from onnx import numpy_helper

        self.tensors.append(numpy_helper.from_array(np.array(array, order="C"), name))
        return name

    def _add(
        self, op: str, inputs: Sequence[str], output: str | Sequence[str], **attrs: Any
    ) -> None:
        from onnx import helper

        outputs = [output] if isinstance(output, str) else list(output)
        self.nodes.append(helper.make_node(op, list(inputs), outputs, **attrs))

    def _ints(self, node: Node, name: str, values: Sequence[int]) -> str:
        return self._tensor(f"{node.name}/{name}", np.array(values, np.int64))

    def _node(self, node: Node) -> None:
        operands = [v or "" for v in node.inputs]
        out = node.outputs[0]
        if node.op in SAME:
            self._add(SAME[node.op], operands, out, **node.attrs)
        elif node.op in TYPED:
            names = RENAMED[node.op]
            attrs = {names[k]: _plain(v) for k, v in node.attrs.items() if k in names}
            self._add(TYPED[node.op], operands, out, **attrs)
        elif node.op in REDUCED:
            self._reduced(node)
        elif node.op in COMPARED:
            self._add(COMPARED[node.op], operands, f"{out}/truth")
            self._cast(f"{out}/truth", out)
        else:
            writer = WRITERS.get(node.op)
            if writer is None:
                raise NotWritten(node.op)
            writer(self, node)

    def _cast(self, value: str, out: str) -> None:
        from onnx import helper

        kind = helper.np_dtype_to_tensor_dtype(np.dtype(self.graph.specs[out].dtype))
        self._add("Cast", [value], out, to=kind)

    def _reduced(self, node: Node) -> None:
        value, axes = str(node.inputs[0]), node.attrs["axes"]
        if not axes or not self.graph.specs[value].rank:
            raise NotWritten("no axis to reduce")
        self._add(
            REDUCED[node.op], [value, self._ints(node, "axes", axes)], node.outputs[0],
            keepdims=int(node.attrs["keep_dimensions"]),
        )  # fmt: skip

    def reshape(self, node: Node) -> None:
        """Also expand and tile: a list of integers is the second operand."""
        op, attr = {
            "reshape": ("Reshape", "new_shape"), "expand": ("Expand", "new_shape"),
            "tile": ("Tile", "repetitions"),
        }[node.op]  # fmt: skip
        values = self._ints(node, attr, node.attrs[attr])
        self._add(op, [str(node.inputs[0]), values], node.outputs[0])

    def slice(self, node: Node) -> None:
        """Starts and ends; a rank of 0 has none."""
        starts, sizes = node.attrs["starts"], node.attrs["sizes"]
        if not starts:
            self._add("Identity", [str(node.inputs[0])], node.outputs[0])
            return
        lists = {
            "starts": starts, "ends": [a + b for a, b in zip(starts, sizes, strict=True)],
            "axes": range(len(starts)), "steps": node.attrs["strides"],
        }  # fmt: skip
        given = [self._ints(node, key, list(values)) for key, values in lists.items()]
        self._add("Slice", [str(node.inputs[0]), *given], node.outputs[0])

    def split(self, node: Node) -> None:
        """Sizes of the parts come from the results."""
        axis = node.attrs["axis"]
        sizes = [self.graph.specs[v].dims[axis] for v in node.outputs]
        given = self._ints(node, "split", sizes)
        self._add("Split", [str(node.inputs[0]), given], node.outputs, axis=axis)

    def cast(self, node: Node) -> None:
        """A cast of types that both have."""
        self._cast(str(node.inputs[0]), node.outputs[0])

    def clamp(self, node: Node) -> None:
        """Clip; an absent limit would be the type's largest number, not an infinite one."""
        dtype = self.graph.specs[node.outputs[0]].dtype
        limits = [
            "" if np.isinf(node.attrs[key]) and dtype not in FLOATS
            else self._tensor(f"{node.name}/{key}", np.array(node.attrs[key], dtype))
            for key in ("min_value", "max_value")
        ]  # fmt: skip
        self._add("Clip", [str(node.inputs[0]), *limits], node.outputs[0])

    def where(self, node: Node) -> None:
        """The condition is a truth value in ONNX."""
        from onnx import TensorProto

        self._add("Cast", [str(node.inputs[0])], f"{node.name}/truth", to=TensorProto.BOOL)
        others = [str(v) for v in node.inputs[1:]]
        self._add("Where", [f"{node.name}/truth", *others], node.outputs[0])

    def along(self, node: Node) -> None:
        """cumulative_sum: the axis is an operand."""
        axis = self._tensor(f"{node.name}/axis", np.array(node.attrs["axis"], np.int64))
        self._add(
            "CumSum", [str(node.inputs[0]), axis], node.outputs[0],
            exclusive=int(node.attrs["exclusive"]), reverse=int(node.attrs["reversed"]),
        )  # fmt: skip

    def gather(self, node: Node) -> None:
        """Both take negative indices; those out of range, which are clamped here, are errors."""
        self._add("Gather", [str(v) for v in node.inputs], node.outputs[0], axis=node.attrs["axis"])

    def arg(self, node: Node) -> None:
        """The first of equal elements; the type is always int64 in ONNX."""
        out = node.outputs[0]
        op = {"arg_max": "ArgMax", "arg_min": "ArgMin"}[node.op]
        self._add(
            op, [str(node.inputs[0])], f"{out}/long", axis=node.attrs["axis"],
            keepdims=int(node.attrs["keep_dimensions"]),
        )  # fmt: skip
        self._cast(f"{out}/long", out)

    def conv2d(self, node: Node) -> None:
        """Padding is begin and end of each dimension in turn here, begins then ends in ONNX."""
        attrs = node.attrs
        if attrs["input_layout"] != "nchw" or attrs["filter_layout"] != "oihw":
            raise NotWritten("conv2d in another layout")
        top, bottom, left, right = attrs["padding"]
        self._add(
            "Conv", [str(v) for v in node.inputs if v], node.outputs[0], group=attrs["groups"],
            pads=[top, left, bottom, right], strides=list(attrs["strides"]),
            dilations=list(attrs["dilations"]),
        )  # fmt: skip


WRITERS: dict[str, Callable[[_Writer, Node], None]] = {
    "reshape": _Writer.reshape, "expand": _Writer.reshape, "tile": _Writer.reshape,
    "slice": _Writer.slice, "split": _Writer.split, "cast": _Writer.cast, "clamp": _Writer.clamp,
    "where": _Writer.where, "cumulative_sum": _Writer.along, "gather": _Writer.gather,
    "arg_max": _Writer.arg, "arg_min": _Writer.arg, "conv2d": _Writer.conv2d,
}  # fmt: skip


OPS = frozenset({*SAME, *TYPED, *REDUCED, *COMPARED, *WRITERS})
"""The ops that can be written, with the attributes that most cases have."""


def _info(name: str, spec: TensorSpec) -> Any:
    from onnx import helper

    return helper.make_tensor_value_info(
        name, helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype)), spec.dims
    )


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return int(value) if isinstance(value, bool) else value


def can_write(recipe: Recipe) -> bool:
    """Whether there is an ONNX model of a recipe, of types that onnxruntime has kernels for."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    try:
        _session(recipe)
    except (NotWritten, state.InvalidGraph, state.NotImplemented):
        return False
    except state.Fail:
        return True  # it refuses the values, and says so again where it is run
    return True
