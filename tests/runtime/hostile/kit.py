"""What the corpus of hostile files is made of: cases, and short ways to write ONNX models."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto as T
from onnx import helper, numpy_helper

ERROR, RIGHT, EITHER = "error", "right", "either"
"""What a case must end with: a typed error, the right answer, or one of them (damage by chance may
leave a sound file)."""

Build = Callable[[Path], Path]
"""Writes a case's files into an empty folder; the path that is opened."""

Check = Callable[[dict[str, Any]], bool]


@dataclass(frozen=True)
class Case:
    """One hostile, broken or odd file.

    ``reader`` is what opens it: "model" loads, compiles and runs on zeros (or ``feeds``);
    "tensors", "plan", "machine" and "costs" read one of those files. ``seconds`` of a processor
    are what it may take.
    """

    kind: str
    name: str
    build: Build
    expect: str = ERROR
    reader: str = "model"
    feeds: dict[str, Any] | None = None
    check: Check | None = None
    slow: bool = False
    seconds: int = 10

    @property
    def id(self) -> str:
        """Kind and name."""
        return f"{self.kind}/{self.name}"


Maker = Callable[[random.Random], Iterator[Case]]


@dataclass
class Register:
    """The makers of cases, in order."""

    makers: list[Maker] = field(default_factory=list)

    def __call__(self, maker: Maker) -> Maker:
        """Decorator: add a maker."""
        self.makers.append(maker)
        return maker


register = Register()


def corpus(seed: int) -> list[Case]:
    """All cases for a seed; their names are unique."""
    from tests.runtime.hostile import (  # noqa: F401 - they register makers
        archives,
        encoded,
        external,
        graphs,
        legal,
        loops,
        numbers,
        records,
        structure,
        tensor_files,
    )

    rng = random.Random(seed)
    cases = [case for maker in register.makers for case in maker(rng)]
    assert len({case.id for case in cases}) == len(cases)
    return cases


# --- models ---------------------------------------------------------------------------------------


def node(op: str, inputs: str, outputs: str, **attrs: Any) -> Any:
    """A node; names are separated by spaces, "-" is none."""
    names = ["" if n == "-" else n for n in inputs.split()]
    return helper.make_node(op, names, outputs.split(), **attrs)


def info(name: str, dtype: int = T.FLOAT, shape: Any = (2,)) -> Any:
    """A declared value."""
    return helper.make_tensor_value_info(name, dtype, shape)


def model(
    nodes: Sequence[Any],
    inputs: Sequence[Any] = (),
    outputs: Sequence[Any] = (),
    *,
    opset: int = 17,
    functions: Sequence[Any] = (),
    initializers: Sequence[Any] = (),
    **constants: Any,
) -> Any:
    """A ModelProto; keywords are initialisers by name."""
    held = [numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items()]
    ends = [onnx.ValueInfoProto(name=o) if isinstance(o, str) else o for o in outputs]
    graph = helper.make_graph(list(nodes), "g", list(inputs), ends, [*held, *initializers])
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("mine", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10, functions=list(functions))


def saved(proto: Any) -> Build:
    """Write a model."""
    data = proto if isinstance(proto, bytes) else proto.SerializeToString()
    return written(data, "model.onnx")


def written(data: bytes, name: str) -> Build:
    """Write bytes under a name."""

    def build(folder: Path) -> Path:
        path = folder / name
        path.write_bytes(data)
        return path

    return build


def later(make: Callable[[], Any]) -> Build:
    """Write what takes long to make only when its case is run."""
    return lambda folder: saved(make())(folder)


def seed_model() -> Any:
    """A small sound model: a product, a conditional and constants."""
    branch = [
        helper.make_graph([node(op, "h", "b")], op, [], [info("b", T.FLOAT, (2, 4))])
        for op in ("Relu", "Neg")
    ]
    return model(
        [
            node("MatMul", "x w", "h", name="product"),
            node("Greater", "t zero", "c"),
            node("If", "c", "y", then_branch=branch[0], else_branch=branch[1]),
        ],
        [info("x", T.FLOAT, (2, 3)), info("t", T.FLOAT, ())],
        [info("y", T.FLOAT, (2, 4))],
        w=np.arange(12, dtype=np.float32).reshape(3, 4),
        zero=np.float32(0),
    )


# --- protobuf by hand -----------------------------------------------------------------------------


def varint(value: int) -> bytes:
    """A number as protobuf writes it."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def chunk(number: int, data: bytes) -> bytes:
    """A field with a length."""
    return varint(number << 3 | 2) + varint(len(data)) + data
