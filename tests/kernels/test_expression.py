"""The expression language: what it reads, what it refuses, and its precedence."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossdock.kernels.expression import (
    Binary,
    Call,
    Expr,
    Num,
    Ref,
    Select,
    Unary,
    literal,
    parse,
)
from crossdock.runtime.errors import GraphError


def value(tree: Expr, *refs: float) -> float:
    """Evaluate a tree in Python, for checking precedence."""
    match tree:
        case Num(v):
            return float(v)
        case Ref(i):
            return refs[i]
        case Unary(op, x):
            return -value(x, *refs) if op == "-" else float(not value(x, *refs))
        case Select(c, a, b):
            return value(a if value(c, *refs) else b, *refs)
        case Call("max", (a, b)):
            return max(value(a, *refs), value(b, *refs))
        case Binary(op, a, b):
            x, y = value(a, *refs), value(b, *refs)
            table = {"+": x + y, "-": x - y, "*": x * y, "<": x < y, "&&": bool(x and y)}
            return float(table[op] if op != "/" else x / y)
    raise AssertionError(tree)


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("1 + 2 * 3", 7.0),
        ("(1 + 2) * 3", 9.0),
        ("8 - 2 - 1", 5.0),
        ("8 / 4 / 2", 1.0),
        ("-2 * 3", -6.0),
        ("1 < 2 && 2 < 1 ? 5 : 6", 6.0),
        ("1 < 2 ? 0 < 1 ? 7 : 8 : 9", 7.0),
        ("max({0}, 0) - {1}", -2.5),
        ("!0 + 1", 2.0),
        ("1.5e2 + .5", 150.5),
    ],
)
def test_precedence_and_association(text: str, want: float) -> None:
    assert value(parse(text), -3.0, 2.5) == want


@given(st.one_of(st.floats(), st.integers(-(2**63), 2**63 - 1), st.booleans()))
def test_an_attribute_survives_as_a_literal(number: float) -> None:
    tree = parse("{alpha}", {"alpha": number})
    got = value(tree)
    if isinstance(number, float) and math.isnan(number):
        assert math.isnan(got)
    else:
        assert got == float(number)
    assert repr(parse(literal(number))) == repr(tree)


@pytest.mark.parametrize(
    "text", ["", "1 +", "foo({0})", "max({0})", "{0} {1}", "1; 2", "{0} ? 1", "system(1)", "a.b"]
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(GraphError, match="expression"):
        parse(text)
