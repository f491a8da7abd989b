"""Renders runtime/operators.py, the builder's methods with their types, from the op table.

``python -m tests.runtime.operator_stub`` writes the file anew after an op was added.
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from crossdock.kernels import table
from crossdock.kernels.fused_conv import INTERNAL
from crossdock.kernels.ops_rules import MANY, bare
from crossdock.kernels.spec import REQUIRED, OpSpec

TARGET = Path(__file__).resolve().parents[2] / "runtime" / "operators.py"

HEADER = '''\
"""The builder's methods with their types, for type checkers and editors.

Made by tests/runtime/operator_stub.py from the op table. Never imported at run time: GraphBuilder
makes the methods from the table itself.
"""
# mypy: disable-error-code="empty-body"
# ruff: noqa: A002, D102
# fmt: off

from __future__ import annotations

from collections.abc import Sequence

from crossdock.runtime.graph import Graph
from crossdock.runtime.operand import Operand
from crossdock.runtime.tensor import Dim


class Operators:
    """A method for every op: operands, positional attributes, then options as keywords."""

'''

TYPES = {
    "activations": "Sequence[str] | None",
    "axes": "Sequence[int] | None",
    "beginning_padding": "Sequence[int]",
    "causal_offset": "int | None",
    "data_type": "str",
    "dilations": "Sequence[int] | None",
    "else_branch": "Graph",
    "ending_padding": "Sequence[int]",
    "axis": "int",
    "hidden_size": "int",
    "k": "int",
    "max_value": "float | None",
    "min_value": "float | None",
    "new_shape": "Sequence[Dim]",
    "output_padding": "Sequence[int] | None",
    "output_sizes": "Sequence[int] | None",
    "padding": "Sequence[int] | None",
    "permutation": "Sequence[int] | None",
    "repetitions": "Sequence[int]",
    "roi": "Sequence[float] | None",
    "scale": "float | None",
    "scales": "Sequence[float] | None",
    "size": "int",
    "sizes": "Sequence[int] | None",
    "splits": "int | Sequence[int]",
    "starts": "Sequence[int]",
    "steps": "int",
    "strides": "Sequence[int] | None",
    "then_branch": "Graph",
    "value": "float",
    "width": "int | None",
    "window_dimensions": "Sequence[int] | None",
}
"""Types of the attributes whose default does not tell."""


def render() -> str:
    """The whole file."""
    ops = [spec for name, spec in sorted(table.ops().items()) if name not in INTERNAL]
    return HEADER + "".join(method(spec) for spec in ops)


def method(spec: OpSpec) -> str:
    """One method's declaration."""
    needed = [mark for mark in spec.operands if not mark.endswith("?")]
    parts = ["self"]
    parts += [f"{bare(m)}: {'Sequence[Operand]' if m.endswith('*') else 'Operand'}" for m in needed]
    parts += [f"{name}: {kind(spec, name, None)}" for name in spec.params]
    parts.append("*")
    parts += [f"{bare(m)}: Operand | None = None" for m in spec.operands if m.endswith("?")]
    for name, default in spec.attrs.items():
        if name not in spec.params:
            given = "" if default is REQUIRED else f" = {default!r}".replace("'", '"')
            parts.append(f"{name}: {kind(spec, name, default)}{given}")
    parts.append('label: str = ""')
    result = "tuple[Operand, ...]" if spec.name in MANY else "Operand"
    line = f"    def {spec.name}({', '.join(parts)}) -> {result}: ...\n"
    if len(line) <= 101:
        return line
    whole = ", ".join(part.replace(" ", "\u00a0") for part in parts)
    inner = textwrap.indent(textwrap.fill(whole, 91), " " * 8).replace("\u00a0", " ")
    return f"    def {spec.name}(\n{inner},\n    ) -> {result}: ...\n"


def kind(spec: OpSpec, name: str, default: Any) -> str:
    """The type of an attribute."""
    if spec.name == "slice" and name == "sizes":
        return "Sequence[Dim]"
    if name in TYPES:
        return TYPES[name]
    return type(default).__name__


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="utf-8")
