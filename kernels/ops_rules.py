"""What the op families share: operand rules, attribute checks, broadcasting, and ``entry``.

A rule gives an operand's element types and ranks as the WebNN specification allows them. The five
element types outside WebNN follow their nearest class: float64 and bfloat16 are floats, int16 and
uint16 are integers, bool stands beside uint8. Every message is one line: op, operand, the rule,
and what was given.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from crossdock.kernels.spec import (
    ArrayFunction,
    Attrs,
    Canon,
    Decompose,
    Expression,
    Infer,
    OpSpec,
    Specs,
    WorkFn,
)
from crossdock.kernels.table import define
from crossdock.runtime.errors import ShapeError
from crossdock.runtime.tensor import DTYPES, Dim, TensorSpec, to_numpy

FLOAT = frozenset({"float32", "float16", "float64", "bfloat16"})
ANY = frozenset(DTYPES)
NUMERIC = ANY - {"bool"}
SIGNED = FLOAT | {"int64", "int32", "int16", "int8"}
SUMMABLE = FLOAT | {"int32", "uint32", "int64", "uint64", "int16", "uint16"}
INDEX = frozenset({"int32", "uint32", "int64"})
TRUTH = frozenset({"uint8", "bool"})
QUANTIZED = frozenset({"uint8", "int8", "uint16", "int16", "uint32", "int32"})
SAMPLED = FLOAT | {"uint8", "int8"}

Shape = tuple[Dim, ...]


@dataclass(frozen=True, slots=True)
class Rule:
    """Element types and ranks an operand may have; ``like`` names the operand it must match."""

    dtypes: frozenset[str]
    low: int = 0
    high: int | None = None
    like: str = ""

    def ranks(self) -> str:
        """The allowed ranks, in words."""
        if self.high is None:
            return f"rank {self.low} or more" if self.low else "any rank"
        return f"rank {self.low}" if self.low == self.high else f"rank {self.low} to {self.high}"


def of(dtypes: frozenset[str], low: int = 0, high: int | None = None) -> Rule:
    """An operand of these element types and ranks."""
    return Rule(dtypes, low, high)


def like(name: str, low: int = 0, high: int | None = None) -> Rule:
    """An operand with the element type of operand ``name``."""
    return Rule(ANY, low, high, name)


RULES: dict[str, dict[str, Rule]] = {}
"""The operand rules of every op, by op and bare operand name."""

MANY: set[str] = set()
"""Ops that give a tuple of results however many there are."""


def bare(operand: str) -> str:
    """An operand's name without its mark (``?`` optional, ``*`` list)."""
    return operand.rstrip("?*")


def entry(
    name: str,
    operands: Mapping[str, Rule],
    *,
    infer: Infer,
    run: ArrayFunction,
    work: WorkFn,
    params: tuple[str, ...] = (),
    attrs: Mapping[str, Any] | None = None,
    canon: Canon | None = None,
    expr: Expression | None = None,
    decompose: Decompose | None = None,
    extension: bool = False,
    alias: bool = False,
    host: bool = False,
    many: bool = False,
) -> OpSpec:
    """Define an op; its operands are checked against their rules before ``canon`` and ``infer``."""
    RULES[name] = {bare(key): rule for key, rule in operands.items()}
    order = tuple(operands)
    if many:
        MANY.add(name)

    def checked_canon(specs: Specs, given: dict[str, Any]) -> dict[str, Any]:
        check(name, order, specs)
        return canon(specs, given) if canon is not None else given

    def checked_infer(specs: Specs, given: Attrs) -> tuple[TensorSpec, ...]:
        check(name, order, specs)
        return infer(specs, given)

    return define(
        OpSpec(
            name=name,
            operands=order,
            infer=checked_infer,
            run=run,
            work=work,
            params=params,
            attrs=dict(attrs or {}),
            canon=checked_canon,
            expr=expr,
            decompose=decompose,
            extension=extension,
            alias=alias,
            host=host,
        )
    )


def check(op: str, operands: Sequence[str], specs: Specs) -> None:
    """Check operands against the op's rules; raises ShapeError."""
    rules = RULES[op]
    seen: dict[str, TensorSpec] = {}
    for name, spec in _named(op, operands, specs):
        if spec is None:
            continue
        rule = rules[name.partition("[")[0]]
        if rule.like:
            same_dtype(op, name, spec, rule.like, seen[rule.like])
        elif spec.dtype not in rule.dtypes:
            allowed = ", ".join(d for d in DTYPES if d in rule.dtypes)
            raise fail(op, f"{name} must be one of {allowed}; it is {spec}")
        if spec.rank < rule.low or (rule.high is not None and spec.rank > rule.high):
            raise fail(op, f"{name} must have {rule.ranks()}; it is {spec} (rank {spec.rank})")
        seen.setdefault(name, spec)


def _named(
    op: str, operands: Sequence[str], specs: Specs
) -> Iterable[tuple[str, TensorSpec | None]]:
    fixed = [name for name in operands if not name.endswith("*")]
    for i, name in enumerate(fixed):
        spec = specs[i] if i < len(specs) else None
        if spec is None and not name.endswith("?"):
            raise fail(op, f"operand {name!r} is missing")
        yield bare(name), spec
    if len(fixed) < len(operands):
        listed = bare(operands[-1])
        yield from ((f"{listed}[{i}]", s) for i, s in enumerate(specs[len(fixed) :]))
    elif len(specs) > len(fixed):
        raise fail(op, f"takes {len(fixed)} operands; {len(specs)} were given")


def fail(op: str, text: str) -> ShapeError:
    """The error to raise for a broken rule of ``op``."""
    return ShapeError(f"{op}: {text}")


def some(spec: TensorSpec | None) -> TensorSpec:
    """An operand that the rules have shown to be there."""
    assert spec is not None
    return spec


def same_dtype(op: str, name: str, spec: TensorSpec, other: str, first: TensorSpec) -> None:
    """Raise unless two operands have one element type."""
    if spec.dtype != first.dtype:
        raise fail(
            op, f"{name} must have the element type of {other} ({first.dtype}); it is {spec}"
        )


# --- shapes ---------------------------------------------------------------------------------------


def show(shape: Iterable[Any]) -> str:
    """A shape as the messages write it."""
    return "[" + ",".join(str(d) for d in shape) + "]"


def broadcast(op: str, shapes: Mapping[str, Shape]) -> Shape:
    """Broadcast shapes both ways, as numpy does; symbols go with themselves, 1, or any size.

    A symbol against a size above 1 gives the size: the symbol must be bound to it or to 1.
    """
    names = list(shapes)
    result = shapes[names[0]]
    for name in names[1:]:
        result = _broadcast_two(
            op, ", ".join(names[: names.index(name)]), result, name, shapes[name]
        )
    return result


def _broadcast_two(op: str, a_name: str, a: Shape, b_name: str, b: Shape) -> Shape:
    rank = max(len(a), len(b))
    left = (1,) * (rank - len(a)) + a
    right = (1,) * (rank - len(b)) + b
    result: list[Dim] = []
    for x, y in zip(left, right, strict=True):
        dim = _broadcast_dim(x, y)
        if dim is None:
            raise fail(
                op,
                f"{b_name} {show(b)} does not broadcast with {a_name} {show(a)}: "
                f"dimension {y} against {x}",
            )
        result.append(dim)
    return tuple(result)


def _broadcast_dim(x: Dim, y: Dim) -> Dim | None:
    if x == y or y == 1:
        return x
    if x == 1:
        return y
    if isinstance(x, str) != isinstance(y, str):
        return y if isinstance(x, str) else x
    return None


def broadcast_to(op: str, name: str, shape: Shape, target: Shape) -> None:
    """Raise unless ``shape`` broadcasts to ``target`` without changing it."""
    fits = len(shape) <= len(target)
    if fits:
        for x, y in zip(shape, target[len(target) - len(shape) :], strict=True):
            fits = fits and (x in (1, y) or isinstance(x, str) or isinstance(y, str))
    if not fits:
        raise fail(op, f"{name} {show(shape)} does not broadcast to {show(target)}")


def same_dims(a: Shape, b: Shape) -> bool:
    """True where two shapes agree, as far as symbols tell."""
    return len(a) == len(b) and all(
        x == y or isinstance(x, str) or isinstance(y, str) for x, y in zip(a, b, strict=True)
    )


def must_be(op: str, name: str, spec: TensorSpec | None, shape: Shape) -> None:
    """Raise unless an optional operand, where given, has exactly this shape."""
    if spec is not None and not same_dims(spec.shape, shape):
        raise fail(op, f"{name} must have shape {show(shape)}; it is {spec}")


def size_of(op: str, name: str, spec: TensorSpec, axis: int) -> int:
    """The size of a dimension that arithmetic needs; raises ShapeError while it is a symbol."""
    dim = spec.shape[axis]
    if isinstance(dim, str):
        raise fail(
            op,
            f"{name} {spec} needs a size for dimension {axis} ({dim!r}); give it a number, or "
            "build the graph with bound dimensions",
        )
    return dim


def same_as_first(specs: Specs, attrs: Attrs) -> tuple[TensorSpec, ...]:  # noqa: ARG001 - Infer
    """The result is like the first operand."""
    return (some(specs[0]),)


# --- attributes -----------------------------------------------------------------------------------


def integer(op: str, name: str, value: Any, low: int | None = 0) -> int:
    """An integer attribute, at least ``low``."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Integral):
        raise fail(op, f"{name} must be an integer; it is {value!r}")
    if low is not None and value < low:
        raise fail(op, f"{name} must be {low} or more; it is {value}")
    return int(value)


def integers(
    op: str, name: str, value: Any, *, count: int | None = None, low: int | None = 0
) -> tuple[int, ...]:
    """A list of integers as a tuple, each at least ``low``, ``count`` of them where given."""
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise fail(op, f"{name} must be a list of integers; it is {value!r}")
    found = tuple(integer(op, f"{name}[{i}]", v, low) for i, v in enumerate(value))
    if count is not None and len(found) != count:
        raise fail(op, f"{name} must have {count} values; it is {list(found)}")
    return found


def dims(op: str, name: str, value: Any) -> Shape:
    """A shape attribute: sizes, or symbols."""
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise fail(op, f"{name} must be a list of sizes; it is {value!r}")
    return tuple(
        v if isinstance(v, str) else integer(op, f"{name}[{i}]", v) for i, v in enumerate(value)
    )


def number(op: str, name: str, value: Any) -> float:
    """A real attribute as a Python float."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real | np.floating | np.integer):
        raise fail(op, f"{name} must be a number; it is {value!r}")
    return float(value)


def flag(op: str, name: str, value: Any) -> bool:
    """A boolean attribute."""
    if not isinstance(value, bool | np.bool_):
        raise fail(op, f"{name} must be True or False; it is {value!r}")
    return bool(value)


def choice(op: str, name: str, value: Any, allowed: Sequence[str]) -> str:
    """One of the names an enumeration has."""
    if value not in allowed:
        raise fail(op, f"{name} must be one of {', '.join(allowed)}; it is {value!r}")
    return str(value)


def axis_of(op: str, value: Any, rank: int, name: str = "axis") -> int:
    """An axis below ``rank``."""
    axis = integer(op, name, value)
    if axis >= rank:
        raise fail(op, f"{name} must be below the input's rank {rank}; it is {axis}")
    return axis


def axes_of(op: str, value: Any, rank: int, name: str = "axes") -> tuple[int, ...]:
    """Distinct axes below ``rank``, in the given order; None means all."""
    if value is None:
        return tuple(range(rank))
    axes = tuple(axis_of(op, v, rank, name) for v in integers(op, name, value))
    if len(set(axes)) != len(axes):
        raise fail(op, f"{name} must not repeat; it is {list(axes)}")
    return axes


Reader = Callable[[str, str, Any], Any]


def reads(op: str, **readers: Reader) -> Canon:
    """A ``canon`` that reads each named attribute with its reader."""

    def canon(specs: Specs, attrs: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG001 - Canon
        return attrs | {name: read(op, name, attrs[name]) for name, read in readers.items()}

    return canon


def cast_number(value: Any, dtype: str) -> int | float:
    """A number as an element of ``dtype``: integers saturate and truncate, floats round.

    int64 and uint64 are exact for Python integers.
    """
    if dtype in FLOAT:
        with np.errstate(over="ignore"):
            return float(to_numpy(dtype).type(value))
    if dtype == "bool":
        return int(bool(value))
    limits = np.iinfo(dtype)
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        return int(limits.max if value > 0 else limits.min)
    return min(max(int(value), int(limits.min)), int(limits.max))
