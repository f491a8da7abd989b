"""Einsum equations: what numpy takes is taken, what is malformed is refused in one line."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from crossdock.runtime.errors import MalformedModel
from crossdock.runtime.loaders import load
from crossdock.runtime.loaders.onnx_einsum import BadEquation, parse_equation
from tests.runtime.loaders.conftest import build_model, run_ours

SIZES = {"i": 2, "j": 3, "k": 4, "l": 1, "A": 3, "b": 2}
SPREAD = (2, 3)
RNG = np.random.default_rng(0)


def ours(equation: str, arrays: list[Any]) -> Any:
    names = [f"x{i}" for i in range(len(arrays))]
    node = helper.make_node("Einsum", names, ["y"], equation=equation)
    feeds = dict(zip(names, arrays, strict=True))
    return run_ours(load(build_model([node], feeds, ["y"], 12)), feeds)["y"]


@st.composite
def equations(draw: st.DrawFn) -> tuple[str, list[tuple[int, ...]]]:
    """A well-formed equation and shapes for it: repeated labels, ellipses, sizes of one."""
    terms, shapes = [], []
    for _ in range(draw(st.integers(1, 3))):
        labels = draw(st.lists(st.sampled_from(sorted(SIZES)), max_size=3))
        depth = draw(st.integers(0, 2)) if draw(st.booleans()) else None
        at = draw(st.integers(0, len(labels)))
        sizes = [SIZES[n] for n in labels]
        spread = list(SPREAD[2 - (depth or 0) :])
        if depth and draw(st.booleans()):
            spread[0] = 1
        text = "".join(labels)
        terms.append(text if depth is None else f"{text[:at]}...{text[at:]}")
        shapes.append(tuple(sizes[:at] + spread + sizes[at:]))
    equation = draw(st.sampled_from([",", ", ", " , "])).join(terms)
    if draw(st.booleans()):
        known = sorted({n for t in terms for n in t if n.isalpha()})
        kept = draw(st.permutations(known))[: draw(st.integers(0, len(known)))]
        at = draw(st.integers(0, len(kept)))
        middle = "..." if any("." in t for t in terms) else ""
        equation += f"->{''.join(kept[:at])}{middle}{''.join(kept[at:])}"
    return equation, shapes


@given(equations())
@settings(max_examples=150, deadline=None)
def test_what_numpy_takes(drawn: tuple[str, list[tuple[int, ...]]]) -> None:
    equation, shapes = drawn
    arrays = [RNG.uniform(-1, 1, s).astype(np.float32) for s in shapes]
    want = np.einsum(equation, *(a.astype(np.float64) for a in arrays))
    got = ours(equation, arrays)
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@given(st.text("ij.,->Z1 ", max_size=12), st.lists(st.integers(0, 3), min_size=1, max_size=3))
@settings(max_examples=300, deadline=None)
def test_a_text_is_read_as_numpy_reads_it_or_refused(text: str, ranks: list[int]) -> None:
    shapes = [(2,) * rank for rank in ranks]
    try:
        equation = parse_equation(text, shapes)
    except BadEquation:
        return
    want = np.einsum(text, *(np.ones(s) for s in shapes))
    assert want.shape == tuple(equation.sizes[n] for n in equation.result)


MALFORMED = [
    ("ij->i", [(2,)], "term 0 has 2 labels for an operand of rank 1"),
    ("i->i", [(2, 3)], "term 0 has 1 labels for an operand of rank 2"),
    ("ijk...->i", [(2, 3)], "term 0 has 3 labels for an operand of rank 2"),
    ("i,j->ij", [(2,)], "2 terms for 1 operands"),
    ("i->ij", [(2,)], "'j' of the result is in no term"),
    ("ij->ii", [(2, 2)], "'i' stands twice in the result"),
    ("ij,jk->ik", [(2, 3), (4, 5)], "'j' has sizes 3 and 4"),
    ("ii->i", [(2, 3)], "'i' has sizes 2 and 3 in operand 0"),
    ("......->", [(2, 3)], "term 0 has more than one ellipsis"),
    ("i..->i", [(2,)], "'.', which is no letter"),
    ("i1->i", [(2, 3)], "'1', which is no letter"),
    ("i->i->i", [(2,)], "'-', which is no letter"),
    ("...i->i", [(2, 3)], "leaves out the ellipsis"),
    ("...,...->...", [(2,), (3,)], "the ellipsis has sizes 2 and 3"),
]


@pytest.mark.parametrize(("equation", "shapes", "match"), MALFORMED)
def test_malformed(equation: str, shapes: list[tuple[int, ...]], match: str) -> None:
    arrays = [np.ones(s, np.float32) for s in shapes]
    with pytest.raises(MalformedModel, match="Einsum") as caught:
        ours(equation, arrays)
    assert match in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", ["int32", "int64", "uint8", "float16", "float64"])
def test_other_types(dtype: str) -> None:
    a, b = (RNG.integers(0, 4, s).astype(dtype) for s in ((2, 3, 4), (2, 4, 5)))
    got = ours("bij,bjk->bik", [a, b])
    assert got.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(got, np.einsum("bij,bjk->bik", a, b))


def test_without_elements() -> None:
    empty = [np.ones((2, 0), np.float32), np.ones((0, 3), np.float32)]
    np.testing.assert_array_equal(ours("ij,jk->ik", empty), np.zeros((2, 3)))
