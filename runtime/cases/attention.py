"""Cases of attention: heads that share keys, biases of every rank, causal masks, hidden rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from crossdock.runtime.cases.kit import Case, Feed, typed

F = Feed
OP = "scaled_dot_product_attention"
WIDE = ("float32", "float16")
HALVES = ("float16", "bfloat16")
HIDDEN = float("-inf")


def _case(
    name: str, bias: Feed | None = None, heads: int = 4, features: int = 6, **attrs: Any
) -> Case:
    """Two sequences of 5 queries and 7 keys, of 8 features, and values of 6."""
    feeds: Mapping[str, Feed | None] = {
        "query": F((2, 4, 5, 8)),
        "key": F((2, heads, 7, 8)),
        "value": F((2, heads, 7, features)),
        "bias": bias,
    }
    return Case(
        OP,
        name,
        {name: feed for name, feed in feeds.items() if feed is not None},
        attrs,
        ulps=8,
        terms=2,
        reason="a mean of 7 values by exponentials of rounded scores; halves are rounded once",
    )


def attention_cases() -> Iterator[Case]:
    """All of them.

    In bfloat16 within one spacing, twice what a rounding takes: it is 0.8 %, and four of them let
    3 % through.
    """
    for case in _cases():
        yield replace(case, ulps=1) if "bfloat16" in case.dtypes else case


def _cases() -> Iterator[Case]:
    yield from typed(_case("plain"), *WIDE, "bfloat16")
    yield from typed(_case("grouped", heads=2, bias=F((2, 4, 5, 7))), *WIDE)
    yield _case("one-head-for-all", heads=1, scale=0.5)
    for name, shape in {
        "keys": (7,),
        "plane": (5, 7),
        "heads": (4, 1, 1),
        "batch": (2, 1, 1, 7),
    }.items():
        yield _case(f"bias-{name}", F(shape))
    for offset in (-2, 0, 2):
        yield from typed(_case(f"causal-{offset}", causal_offset=offset), *WIDE)
    yield _case("causal-biased", F((4, 5, 7)), causal_offset=1)
    yield _case("capped", F((5, 7)), softcap=1.5)
    yield from typed(_case("pieces", heads=2, features=8), *HALVES)
    yield from typed(_case("pieces-causal", heads=1, features=8, causal_offset=2), *HALVES)
    masks = {"padding": (0.0,) * 5 + (HIDDEN,) * 2, "row": (0.0,) * 7 + (HIDDEN,) * 7}
    for name, values in masks.items():
        yield from typed(_case(f"hidden-{name}", F((5, 7), values=values)), *WIDE)
        bias = F((2, 1, 5, 7), values=values)
        yield from typed(_case(f"pieces-hidden-{name}", bias, features=8), *HALVES)
