"""ONNX Einsum: equations read and checked, then written with products, sums and transposes.

The grammar is numpy's: terms of letters with at most one ellipsis each, separated by commas, and
``->`` before the result's term where it is given. Equations are checked here, against the operands'
shapes, before anything is written.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import ascii_letters

import numpy as np

from crossdock.runtime.builder import Operand
from crossdock.runtime.loaders.onnx_model import shown
from crossdock.runtime.loaders.onnx_shape import reshaped
from crossdock.runtime.loaders.onnx_table import Context, onnx_op
from crossdock.runtime.tensor import FLOATS, to_numpy

Label = str | int
"""A letter, or a negative number: an axis of the ellipsis, counted from its end."""

ELLIPSIS = "..."


class BadEquation(ValueError):
    """An equation that is malformed, or does not fit the operands' shapes."""


@dataclass(frozen=True)
class Equation:
    """Labels of every operand's axes and of the result's, and each label's size."""

    terms: tuple[tuple[Label, ...], ...]
    result: tuple[Label, ...]
    sizes: Mapping[Label, int]


def parse_equation(text: str, shapes: Sequence[Sequence[int]]) -> Equation:
    """Read an equation for operands of these shapes.

    Raises:
        BadEquation: in one line, what is wrong.
    """
    left, arrow, right = text.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != len(shapes):
        raise BadEquation(f"has {len(terms)} terms for {len(shapes)} operands")
    labels = tuple(_term(t, len(s), i) for i, (t, s) in enumerate(zip(terms, shapes, strict=True)))
    sizes = _sizes(labels, shapes)
    depth = -min((n for n in sizes if isinstance(n, int)), default=0)
    spread = tuple(range(-depth, 0))
    if arrow:
        result = _result(right, spread, sizes)
    else:
        counts = Counter(itertools.chain.from_iterable(labels))
        once = sorted(n for n, count in counts.items() if isinstance(n, str) and count == 1)
        result = (*spread, *once)
    return Equation(labels, result, sizes)


def _term(text: str, rank: int, index: int) -> tuple[Label, ...]:
    """The labels of an operand's axes."""
    before, after = _letters(text, f"term {index}")
    if after is None:
        if len(before) != rank:
            raise BadEquation(
                f"term {index} has {len(before)} labels for an operand of rank {rank}"
            )
        return tuple(before)
    depth = rank - len(before) - len(after)
    if depth < 0:
        raise BadEquation(
            f"term {index} has {len(before) + len(after)} labels for an operand of rank {rank}"
        )
    return (*before, *range(-depth, 0), *after)


def _letters(text: str, what: str) -> tuple[str, str | None]:
    """The letters before and after the ellipsis; None for the latter where there is none."""
    parts = text.split(ELLIPSIS)
    if len(parts) > 2:
        raise BadEquation(f"{what} has more than one ellipsis")
    for letter in "".join(parts):
        if letter not in ascii_letters:
            raise BadEquation(f"{what} has {letter!r}, which is no letter")
    return parts[0], parts[1] if len(parts) == 2 else None


def _sizes(labels: Sequence[Sequence[Label]], shapes: Sequence[Sequence[int]]) -> dict[Label, int]:
    """Each label's size; a size of one goes with any other, but not inside one operand."""
    sizes: dict[Label, int] = {}
    for index, (term, shape) in enumerate(zip(labels, shapes, strict=True)):
        own: dict[Label, int] = {}
        for label, size in zip(term, shape, strict=True):
            if own.setdefault(label, size) != size:
                raise BadEquation(
                    f"label {label!r} has sizes {own[label]} and {size} in operand {index}"
                )
        for label, size in own.items():
            known = sizes.get(label, 1)
            if known != size and 1 not in (known, size):
                name = f"label {label!r}" if isinstance(label, str) else "the ellipsis"
                raise BadEquation(f"{name} has sizes {known} and {size}")
            sizes[label] = size if known == 1 else known
    return sizes


def _result(text: str, spread: tuple[int, ...], sizes: Mapping[Label, int]) -> tuple[Label, ...]:
    """The labels of the result's axes."""
    before, after = _letters(text, "the result")
    if after is None and spread:
        raise BadEquation("the result leaves out the ellipsis")
    letters = before + (after or "")
    for letter in letters:
        if letter not in sizes:
            raise BadEquation(f"label {letter!r} of the result is in no term")
        if letters.count(letter) > 1:
            raise BadEquation(f"label {letter!r} stands twice in the result")
    return (*before, *spread, *(after or "")) if after is not None else tuple(before)


# --- writing --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Part:
    """An operand and the labels of its axes, all distinct."""

    operand: Operand
    labels: tuple[Label, ...]


@onnx_op("Einsum", since=12)
def einsum(ctx: Context) -> Operand:
    """Einstein's sums; operands are joined from left to right."""
    ctx.node.require("equation")
    text = ctx.node.get_str("equation")
    operands = ctx.all()
    try:
        equation = parse_equation(text, [tuple(x.shape) for x in operands])
    except BadEquation as error:
        raise ctx.malformed(f"the equation {shown(text)} {error}") from None
    shape = [equation.sizes[n] for n in equation.result]
    if 0 in equation.sizes.values():
        return ctx.frame.filled(shape, np.zeros((), to_numpy(operands[0].dtype))).operand
    writer = _Writer(ctx, equation)
    dtype = operands[0].dtype
    parts = [writer.taken(x, t) for x, t in zip(operands, equation.terms, strict=True)]
    whole = parts[0]
    for index, part in enumerate(parts[1:], 1):
        later = {n for p in parts[index + 1 :] for n in p.labels} | set(equation.result)
        whole = writer.joined(whole, part, later)
    whole = writer.summed(whole, set(equation.result))
    out = writer.ordered(whole, equation.result)
    return out if out.dtype == dtype else ctx.b.cast(out, dtype)


@dataclass(frozen=True)
class _Writer:
    ctx: Context
    equation: Equation

    def taken(self, x: Operand, term: Sequence[Label]) -> _Part:
        """An operand with every label once: the diagonal of those that stand there twice."""
        b = self.ctx.b
        labels = list(term)
        if x.dtype in ("int8", "uint8", "int16", "uint16"):
            x = b.cast(x, "int32")
        for label in dict.fromkeys(term):
            while labels.count(label) > 1:
                i = labels.index(label)
                j = labels.index(label, i + 1)
                rest = [k for k in range(len(labels)) if k not in (i, j)]
                size = x.shape[i]
                dims = [x.shape[k] for k in rest]
                x = b.transpose(x, permutation=[*rest, i, j])
                x = b.reshape(x, [*dims, size * size])
                strides = [1] * len(dims) + [size + 1]
                x = b.slice(x, [0] * len(strides), [*dims, size * size], strides=strides)
                labels = [*(labels[k] for k in rest), label]
        return _Part(x, tuple(labels))

    def summed(self, part: _Part, kept: set[Label]) -> _Part:
        """The sum over the labels that nothing else needs."""
        axes = [i for i, n in enumerate(part.labels) if n not in kept]
        if not axes:
            return part
        out = self.ctx.b.reduce_sum(part.operand, axes=axes)
        return _Part(out, tuple(n for n in part.labels if n in kept))

    def ordered(self, part: _Part, labels: Sequence[Label]) -> Operand:
        """The operand with axes in this order and of full size; absent labels have size one."""
        b = self.ctx.b
        present = [n for n in labels if n in part.labels]
        order = [part.labels.index(n) for n in present]
        x = part.operand
        if order != list(range(len(order))):
            x = b.transpose(x, permutation=order)
        sizes = [x.shape[present.index(n)] if n in part.labels else 1 for n in labels]
        return reshaped(self.ctx, x, sizes)

    def full(self, part: _Part, labels: Sequence[Label]) -> Operand:
        """The same, with every one of the labels in its full size."""
        x = self.ordered(part, labels)
        sizes = [self.equation.sizes[n] for n in labels]
        return x if list(x.shape) == sizes else self.ctx.b.expand(x, sizes)

    def joined(self, left: _Part, right: _Part, later: set[Label]) -> _Part:
        """Two operands as one; what neither the result nor a later operand needs is summed."""
        b = self.ctx.b
        left = self.summed(left, later | set(right.labels))
        right = self.summed(right, later | set(left.labels))
        both = [n for n in left.labels if n in right.labels]
        inner = [n for n in both if n not in later]
        batch = [n for n in both if n in later]
        rows = [n for n in left.labels if n not in right.labels]
        columns = [n for n in right.labels if n not in left.labels]
        labels = (*batch, *rows, *columns)
        if not inner or left.operand.dtype not in FLOATS:
            every = (*labels, *inner)
            product = _Part(b.mul(self.ordered(left, every), self.ordered(right, every)), every)
            return self.summed(product, later)
        a = self.full(left, (*batch, *rows, *inner))
        c = self.full(right, (*batch, *inner, *columns))
        shape = [self.equation.sizes[n] for n in labels]
        sizes = [
            math.prod(self.equation.sizes[n] for n in g) for g in (batch, rows, inner, columns)
        ]
        a = reshaped(self.ctx, a, [sizes[0], sizes[1], sizes[2]])
        c = reshaped(self.ctx, c, [sizes[0], sizes[2], sizes[3]])
        return _Part(reshaped(self.ctx, b.matmul(a, c), shape), labels)
