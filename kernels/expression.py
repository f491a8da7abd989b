"""The little C expression language of elementwise ops, parsed once and emitted per device.

An op entry gives an expression over ``{0}``, ``{1}`` ... (its operands) and ``{alpha}`` ... (its
attributes). Literals carry no type suffix; the emitter gives them the compute type. Grammar:

    expr    := or ('?' expr ':' expr)?
    or      := and ('||' and)*          and := cmp ('&&' cmp)*
    cmp     := sum (('<' | '<=' | '>' | '>=' | '==' | '!=') sum)?
    sum     := prod (('+' | '-') prod)*     prod := unary (('*' | '/') unary)*
    unary   := ('-' | '!') unary | primary
    primary := number | 'inf' | 'nan' | '{' index '}' | name '(' expr (',' expr)* ')' | '(' expr ')'

Functions: see ``FUNCTIONS``. Comparisons and logic give 0 or 1 in the compute type.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from crossdock.runtime.errors import GraphError

FUNCTIONS: dict[str, int] = {
    "min": 2, "max": 2, "abs": 1, "exp": 1, "log": 1, "sqrt": 1, "sin": 1, "cos": 1, "tan": 1,
    "tanh": 1, "erf": 1, "normcdf": 1, "floor": 1, "ceil": 1, "rint": 1, "pow": 2,
    "isnan": 1, "isinf": 1, "sign": 1, "mod": 2, "fma": 3, "acos": 1, "asin": 1, "atan": 1,
    "bit_and": 2, "bit_or": 2, "bit_xor": 2, "bit_not": 1, "shift_left": 2, "shift_right": 2,
}  # fmt: skip
"""Functions and their arity. min, max propagate NaN; rint rounds half to even; mod is Python's;
normcdf is the distribution function of the normal law.

Those on bits are for integers alone; a shift by the type's width or more gives 0, or for a negative
number to the right -1.
"""

BITWISE = frozenset({"bit_and", "bit_or", "bit_xor", "bit_not", "shift_left", "shift_right"})
"""Functions of integers alone."""


@dataclass(frozen=True, slots=True)
class Num:
    """A literal."""

    value: float | int


@dataclass(frozen=True, slots=True)
class Ref:
    """Operand number ``index``."""

    index: int


@dataclass(frozen=True, slots=True)
class Call:
    """``fn(args)`` with fn in FUNCTIONS."""

    fn: str
    args: tuple[Expr, ...]


@dataclass(frozen=True, slots=True)
class Unary:
    """``-x`` or ``!x``."""

    op: str
    x: Expr


@dataclass(frozen=True, slots=True)
class Binary:
    """Arithmetic, comparison or logic on two expressions."""

    op: str
    a: Expr
    b: Expr


@dataclass(frozen=True, slots=True)
class Select:
    """``cond ? a : b``."""

    cond: Expr
    a: Expr
    b: Expr


Expr = Num | Ref | Call | Unary | Binary | Select

_TOKEN = re.compile(
    r"\s*(?:(?P<num>(?:\d+\.\d*|\.\d+|\d+)(?:[eE][+-]?\d+)?)|(?P<ref>\{\d+\})|(?P<name>[a-z_]\w*)"
    r"|(?P<op><=|>=|==|!=|&&|\|\||[-+*/!<>?:(),]))"
)
_LEVELS = (("||",), ("&&",), ("<", "<=", ">", ">=", "==", "!="), ("+", "-"), ("*", "/"))


def literal(value: Any) -> str:
    """Write an attribute's value as a literal of the language (shortest form that round-trips)."""
    if isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, int):
        return str(value) if value >= 0 else f"(-{-value})"
    number = float(value)
    if number != number:
        return "nan"
    if number in (float("inf"), float("-inf")):
        return "inf" if number > 0 else "(-inf)"
    return repr(number) if number >= 0 else f"(-{-number!r})"


def parse(text: str, attrs: Mapping[str, Any] | None = None) -> Expr:
    """Parse an expression template, with attributes substituted as literals.

    Raises:
        GraphError: the text is not in the language (a bug in an op entry).
    """
    return _parsed(_HOLE.sub(lambda m: literal((attrs or {})[m.group(1)]), text))


_HOLE = re.compile(r"\{([a-z_]\w*)\}")


@functools.lru_cache(maxsize=4096)
def _parsed(text: str) -> Expr:
    """Expressions are few, and read again for every op of every plan."""
    return _Parser(text).whole()


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens: list[tuple[str, str]] = []
        at = 0
        while at < len(text.rstrip()):
            match = _TOKEN.match(text, at)
            if match is None:
                raise GraphError(f"expression {text!r}: cannot read it at {at}")
            self.tokens.append((str(match.lastgroup), match.group(str(match.lastgroup))))
            at = match.end()
        self.tokens.append(("end", ""))
        self.i = 0

    def whole(self) -> Expr:
        tree = self.expr()
        if self.tokens[self.i][0] != "end":
            raise GraphError(f"expression {self.text!r}: left over {self.tokens[self.i][1]!r}")
        return tree

    def take(self, *ops: str) -> str | None:
        kind, text = self.tokens[self.i]
        if kind == "op" and text in ops:
            self.i += 1
            return text
        return None

    def need(self, op: str) -> None:
        if self.take(op) is None:
            raise GraphError(
                f"expression {self.text!r}: expected {op!r} before {self.tokens[self.i][1]!r}"
            )

    def expr(self) -> Expr:
        cond = self.level(0)
        if self.take("?") is None:
            return cond
        a = self.expr()
        self.need(":")
        return Select(cond, a, self.expr())

    def level(self, n: int) -> Expr:
        if n == len(_LEVELS):
            return self.unary()
        left = self.level(n + 1)
        while (op := self.take(*_LEVELS[n])) is not None:
            left = Binary(op, left, self.level(n + 1))
        return left

    def unary(self) -> Expr:
        op = self.take("-", "!")
        return self.primary() if op is None else Unary(op, self.unary())

    def primary(self) -> Expr:
        kind, text = self.tokens[self.i]
        if self.take("("):
            inner = self.expr()
            self.need(")")
            return inner
        self.i += 1
        if kind == "num":
            return Num(int(text) if text.isdigit() else float(text))
        if kind == "ref":
            return Ref(int(text[1:-1]))
        if kind == "name" and text in ("inf", "nan"):
            return Num(float(text))
        if kind == "name" and text in FUNCTIONS:
            return self.call(text)
        raise GraphError(f"expression {self.text!r}: unexpected {text!r}")

    def call(self, fn: str) -> Expr:
        self.need("(")
        args = [self.expr()]
        while self.take(","):
            args.append(self.expr())
        self.need(")")
        if len(args) != FUNCTIONS[fn]:
            raise GraphError(f"expression {self.text!r}: {fn} takes {FUNCTIONS[fn]} arguments")
        return Call(fn, tuple(args))
