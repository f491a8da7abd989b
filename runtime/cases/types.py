"""One case for every op and element type: the op's first case, put on that type."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache

import numpy as np

from crossdock.kernels import table
from crossdock.kernels.ops_rules import RULES, Rule, bare
from crossdock.runtime.cases.kit import Case, Feed, Given
from crossdock.runtime.cases.table import of_op
from crossdock.runtime.errors import Error
from crossdock.runtime.tensor import DTYPES, FLOATS, to_numpy

FREE = 2
"""Operands with more types to choose from than this one have a type of their own; truth values and
indices do not."""


def governing(op: str) -> str:
    """The operand whose element type says which type an instance of the op is of."""
    rules = RULES[op]
    return next(
        (n for n, r in rules.items() if len(r.dtypes) > FREE and not r.like), next(iter(rules))
    )


@lru_cache(maxsize=4096)
def typed_case(op: str, dtype: str) -> Case | str:
    """A case of ``op`` on ``dtype`` that a builder takes, or the rule that forbids it.

    Operands that share the governing operand's type take it over; integers that can be drawn for
    the type replace values that it has not.
    """
    rules = {bare(mark): RULES[op][bare(mark)] for mark in table.op(op).operands}
    leader = governing(op)
    case = _template(op, leader)
    feeds = {name: _put(given, name, rules, leader, dtype) for name, given in case.feeds.items()}
    made = replace(case, id=f"type-{dtype}", feeds=feeds)
    try:
        made.build()
    except Error as error:
        return str(error)
    return made


def type_cases() -> tuple[Case, ...]:
    """The cases of all ops and types that there are."""
    made = (typed_case(op, dtype) for op in table.ops() if of_op(op) for dtype in DTYPES)
    return tuple(case for case in made if isinstance(case, Case))


def _template(op: str, leader: str) -> Case:
    """The op's first case that draws its values and is no scalar, else its first."""
    cases = of_op(op)
    for case in cases:
        given = case.feeds[leader]
        feeds = [given] if isinstance(given, Feed) else list(given or ())
        if feeds and not feeds[0].values and feeds[0].shape:
            return case
    return cases[0]


def _put(given: Given, name: str, rules: Mapping[str, Rule], leader: str, dtype: str) -> Given:
    """An operand on the type, where its rule ties it to the governing one."""
    if name != leader and rules[name].like != leader:
        return given
    if isinstance(given, Feed):
        return _feed(given, dtype)
    return given if given is None else [_feed(feed, dtype) for feed in given]


def _feed(feed: Feed, dtype: str) -> Feed:
    if dtype in FLOATS:
        return replace(feed, dtype=dtype)
    if dtype == "bool":
        return Feed(feed.shape, dtype, 0, 2)
    info = np.iinfo(to_numpy(dtype))
    low = max(int(feed.low), int(info.min))
    return Feed(feed.shape, dtype, low, max(low + 2, int(np.ceil(feed.high))))
