"""Reads the third-party WebNN cases laid beside the checkout, and judges results as they say."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from crossdock.kernels import table
from crossdock.kernels.ops_rules import bare
from crossdock.runtime.builder import GraphBuilder, Operand
from crossdock.runtime.graph import Graph
from crossdock.runtime.tensor import Array

FOLDER = Path(__file__).resolve().parents[3] / "shared" / "webnn" / "cases"
SPECIAL = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}
LARGE = 1_000_000


def snake(name: str) -> str:
    """WebNN's camelCase as this project writes it: isNaN is is_nan, gatherND is gather_nd."""
    plain = re.sub(r"(NaN|ND)$", lambda m: m.group(0).capitalize(), name)
    return re.sub(r"(?<=[a-z0-9])([A-Z])", lambda m: "_" + m.group(1).lower(), plain).lower()


@dataclass(frozen=True)
class ThirdParty:
    """One case: its file, name, source, graph and tolerance as the JSON has them."""

    file: str
    name: str
    source: str
    graph: Mapping[str, Any] = field(repr=False)
    tolerance: Mapping[str, Any]

    @property
    def size(self) -> int:
        """Elements of the largest tensor."""
        parts = (*self.graph["inputs"].values(), *self.graph["expectedOutputs"].values())
        return max(int(np.prod(p["descriptor"]["shape"])) for p in parts)


def read(folder: Path = FOLDER) -> Iterator[ThirdParty]:
    """Every case of every file; none where the folder is absent."""
    for path in sorted(folder.glob("*.json")):
        for case in json.loads(path.read_text(encoding="utf-8"))["cases"]:
            yield ThirdParty(
                path.stem, case["name"], case["source"], case["graph"], case["tolerance"]
            )


def array(entry: Mapping[str, Any]) -> Array:
    """The data of an input or an expected output."""
    shape, dtype = tuple(entry["descriptor"]["shape"]), np.dtype(entry["descriptor"]["dataType"])
    data = entry["data"]
    if not isinstance(data, list):
        return np.full(shape, _number(data, dtype), dtype)
    values = [_number(v, dtype) for v in data]
    with np.errstate(over="ignore"):
        return np.array(values, dtype=dtype).reshape(shape)


def _number(value: Any, dtype: np.dtype[Any]) -> int | float:
    if isinstance(value, str):
        return SPECIAL[value] if value in SPECIAL else int(value)
    return int(value) if dtype.kind in "iu" else value


def build(case: ThirdParty) -> tuple[Graph, dict[str, Array]]:
    """The case as a graph, and the feeds of those of its inputs that are not constants."""
    b = GraphBuilder(case.name)
    values: dict[str, Operand] = {}
    feeds: dict[str, Array] = {}
    for name, entry in case.graph["inputs"].items():
        data = array(entry)
        if entry.get("constant"):
            values[name] = b.constant(data)
        else:
            feeds[name] = data
            values[name] = b.input(name, data.shape, str(data.dtype))
    for operator in case.graph["operators"]:
        results = _call(b, operator, values)
        names = operator["outputs"]
        names = [names] if isinstance(names, str) else names
        values.update(zip(names, results, strict=True))
    graph = b.build({name: values[name] for name in case.graph["expectedOutputs"]})
    return graph, feeds


def _call(
    b: GraphBuilder, operator: Mapping[str, Any], values: Mapping[str, Operand]
) -> tuple[Operand, ...]:
    op = snake(operator["name"])
    marks = [bare(m) for m in table.op(op).operands]
    positional: list[Any] = []
    options: dict[str, Any] = {}
    for argument in operator["arguments"]:
        for name, value in argument.items():
            if name == "options":
                options = {snake(k): v for k, v in value.items()}
            elif len(positional) < len(marks) and not table.op(op).operands[
                len(positional)
            ].endswith("?"):
                positional.append(_argument(value, values))
            else:
                positional.append(_literal(value))
    for name, value in options.items():
        options[name] = _argument(value, values) if name in marks else _literal(value)
    made = getattr(b, op)(*positional, **options)
    return made if isinstance(made, tuple) else (made,)


def _argument(value: Any, values: Mapping[str, Operand]) -> Any:
    return [values[v] for v in value] if isinstance(value, list) else values[value]


def _literal(value: Any) -> Any:
    if isinstance(value, str) and value in SPECIAL:
        return SPECIAL[value]
    if isinstance(value, str) and re.fullmatch(r"-?\d+n?", value):
        return int(value.rstrip("n"))
    return value


def verdict(case: ThirdParty, got: Array, want: Array) -> str | None:
    """None where ``got`` is within the case's tolerance of ``want``, else what is wrong."""
    if got.dtype != want.dtype or got.shape != want.shape:
        return f"got {got.dtype}{list(got.shape)}, want {want.dtype}{list(want.shape)}"
    if want.dtype.kind == "f":
        if not np.array_equal(np.isnan(got), np.isnan(want)):
            return "NaN where there should be none, or the reverse"
        keep = ~np.isnan(want)
        got, want = got[keep], want[keep]
    error, limit = _distance(case.tolerance, got, want)
    worst = float(np.max(error - limit, initial=0.0))
    return None if worst <= 0 else f"off by {worst} beyond {dict(case.tolerance)}"


def _distance(tolerance: Mapping[str, Any], got: Array, want: Array) -> tuple[Any, Any]:
    kind = tolerance["metricType"]
    if kind == "ULP":
        if want.dtype.kind == "f":
            return np.abs(ordered(got) - ordered(want)), tolerance["value"]
        return np.abs(got.astype(object) - want.astype(object)).astype(float), tolerance["value"]
    with np.errstate(invalid="ignore"):
        error = np.abs(got.astype(np.float64) - want.astype(np.float64))
    error = np.where(got == want, 0.0, error)
    if kind == "ATOL":
        return error, tolerance["value"]
    assert kind == "ALLCLOSE", kind
    scale = np.where(np.isfinite(want), np.abs(want.astype(np.float64)), 0.0)
    return error, tolerance["atol"] + tolerance["rtol"] * scale


def ordered(values: Array) -> Array:
    """Floats as integers in their own order, so that neighbours differ by one; -0 is 0."""
    bits = values.view(f"int{values.dtype.itemsize * 8}").astype(np.int64)
    lowest = -(2 ** (values.dtype.itemsize * 8 - 1))
    return np.where(bits < 0, lowest - bits, bits).astype(np.float64)
