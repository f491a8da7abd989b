"""What is declared of mutants holds: the list cannot rot while nobody runs it."""

from __future__ import annotations

import ast
from collections import Counter

import pytest

from tests.mutants.kit import ROOT, ROWS, Mutant, mutants, named

ALL = mutants()


@pytest.mark.parametrize("mutant", ALL, ids=lambda m: m.id)
def test_its_text_stands_once_and_what_it_becomes_is_python(mutant: Mutant) -> None:
    content = (ROOT / mutant.file).read_text(encoding="utf-8")
    assert content.count(mutant.text) == 1
    changed = mutant.changed(content)
    assert changed != content
    assert ast.parse(changed)


def test_every_row_has_some_and_names_are_unique() -> None:
    assert {m.row for m in ALL} == set(ROWS)
    assert len(ALL) >= 80
    assert max(Counter(m.id for m in ALL).values()) == 1


def test_the_tests_that_are_named_are_there() -> None:
    for test in named(ALL):
        file, _, name = test.partition("::")
        text = (ROOT / file).read_text(encoding="utf-8")
        assert not name or f"def {name.partition('[')[0]}(" in text, test
