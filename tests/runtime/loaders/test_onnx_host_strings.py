"""Operators on strings, and the matcher of patterns."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from crossdock.runtime.errors import MalformedModel, UnsafeModel, UnsupportedModel
from crossdock.runtime.loaders.onnx_regex import PatternError, PatternLimit, Regex
from tests.runtime.loaders.onnx_hosts import run_host, words


def test_normaliser() -> None:
    x = words("Monday", "tuesday", "monday")

    def kept(**attrs: Any) -> list[str]:
        found: list[str] = run_host("StringNormalizer", x, **attrs)[0].tolist()
        return found

    assert kept() == ["Monday", "tuesday", "monday"]
    assert kept(stopwords=["MONDAY"]) == ["tuesday"]
    assert kept(stopwords=["monday"], is_case_sensitive=1, case_change_action="UPPER") == [
        "MONDAY",
        "TUESDAY",
    ]
    assert kept(stopwords=["monday", "tuesday"]) == [""]
    (row,) = run_host("StringNormalizer", x.reshape(1, 3), stopwords=["monday", "tuesday"])
    assert row.tolist() == [[""]]
    with pytest.raises(MalformedModel, match="neither"):
        run_host("StringNormalizer", x.reshape(3, 1))
    with pytest.raises(MalformedModel, match="case_change_action"):
        kept(case_change_action="TITLE")
    with pytest.raises(MalformedModel, match="not a tensor of strings"):
        run_host("StringNormalizer", np.zeros(2))


def test_concat_broadcasts() -> None:
    (got,) = run_host("StringConcat", words("a", "b").reshape(2, 1), words("", "x"))
    assert got.tolist() == [["a", "ax"], ["b", "bx"]]
    with pytest.raises(MalformedModel, match="broadcast"):
        run_host("StringConcat", words("a", "b"), words("a", "b", "c"))


def test_split() -> None:
    x = words("a,b,,c", "d", "")
    y, counts = run_host("StringSplit", x, delimiter=",", outputs=2)
    assert y.tolist() == [["a", "b", "", "c"], ["d", "", "", ""], ["", "", "", ""]]
    assert counts.tolist() == [4, 1, 1]
    y, counts = run_host("StringSplit", words("  a  b c ", "  "), maxsplit=1, outputs=2)
    assert (y.tolist(), counts.tolist()) == ([["a", "b c"], ["", ""]], [2, 0])
    y, counts = run_host("StringSplit", words(), delimiter=",", outputs=2)
    assert (y.shape, counts.shape) == ((0, 0), (0,))
    assert run_host("StringSplit", words("a,b"), delimiter=",", maxsplit=0, outputs=2)[1][0] == 1


PATTERNS = [
    "a*b",
    "(a|b)*abb",
    "[a-c]{2,3}",
    "(?i)aBc",
    r"\bab\b",
    "(a+)+b",
    "x{0}",
    "(?:ab){1,2}?c",
    "[^a-c]*",
    r"\d+\.\d*",
    "a||b",
    "(?s).",
    "(?m)^a$\n^b$",
    "[]a]+",
    r"[a\]-]+",
    r"\x41B",
    r"\w\W\s",
    "()*",
    "(|a)+b",
    r"[\w.-]*",
    r"a\Bb",
    "(?P<n>a)b",
    "[^\\W\\d]+",
    "a{2,}",
]


@given(st.sampled_from(PATTERNS), st.text("aAbBc.1 \n-]", max_size=6))
@example("a*b", "b")
def test_patterns_match_as_pythons_do(pattern: str, text: str) -> None:
    # `\b` of an empty text and the like are the same in both; `$` before a last newline is not.
    assert Regex(pattern).matches(text) is (re.fullmatch(pattern, text, re.ASCII) is not None)


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        (r"\x{1F600}+", "\U0001f600", "x"),
        (r"\Qa.b\E+", "a.bb", "axb"),
        (r"\pL+", "aé", "a1"),
        (r"\P{Lu}", "a", "A"),
        (r"\p{^Lu}", "a", "A"),
        (r"[[:^alpha:]]", "1", "a"),
        (r"[[:word:]\pN]", "²", "-"),
        ("^a$", "a", "a\n"),
        (r"\Aa\z", "a", "ab"),
        ("a{,2}", "a{,2}", "a"),
        ("(?i:a)b", "Ab", "AB"),
        ("(?i)k", "\u212a", "l"),
        ("(?s-s:.)", "a", "\n"),
        (r"\101\07", "A\a", "A"),
        ("", "", "a"),
    ],
)
def test_what_only_re2_has(pattern: str, yes: str, no: str) -> None:
    regex = Regex(pattern)
    assert regex.matches(yes)
    assert not regex.matches(no)


@pytest.mark.parametrize(
    "pattern",
    ["a**", "(?=a)", r"\1", "(?<!a)", "(?<=a)", "[a", "(a", ")", "a{1001}", "[z-a]", "*a", "\\",
     "[[:foo:]]", r"\x{110000}", r"\xg1", "(?P<1>a)", r"\y", "(?", "a{2,1}", "[b-\\d]"],
)  # fmt: skip
def test_what_re2_has_not_is_an_error(pattern: str) -> None:
    with pytest.raises(PatternError):
        Regex(pattern)


@pytest.mark.parametrize(
    "pattern", ["((x{100}){100}){100}", "(" * 300 + ")" * 300, r"\p{Greek}", "(((a{1000}){1000}))"]
)
def test_what_is_too_large_or_not_known(pattern: str) -> None:
    with pytest.raises(PatternLimit):
        Regex(pattern)


@pytest.mark.parametrize("pattern", ["(a*)*(a|aa)+b", "(a|a)*b", "(.*a){20}b", "(a?){50}a*b"])
def test_no_pattern_takes_more_than_linear_time(pattern: str) -> None:
    def looks(length: int) -> int:
        calls: list[int] = []
        assert not Regex(pattern).matches("a" * length, lambda: calls.append(1))
        return len(calls)

    # A look every 256 characters and one a new step: a longer text brings no new steps.
    assert looks(40_960) == looks(20_480) + 80


def test_full_match() -> None:
    x = words("www.a.com", "www.a.com ").reshape(2, 1)
    assert run_host("RegexFullMatch", x, pattern=r"www\.\w+\.com")[0].tolist() == [[True], [False]]
    with pytest.raises(MalformedModel, match="pattern '\\(a'"):
        run_host("RegexFullMatch", x, pattern="(a")
    with pytest.raises(UnsupportedModel, match="a script"):
        run_host("RegexFullMatch", x, pattern=r"\p{Greek}")
    with pytest.raises(MalformedModel, match="'pattern' is missing"):
        run_host("RegexFullMatch", x)


GRAMS = {
    "mode": "TF", "min_gram_length": 1, "max_gram_length": 2, "max_skip_count": 0,
    "ngram_counts": [0, 2], "ngram_indexes": [0, 1, 2],
    "pool_strings": ["a", "b", "a", "b"],
}  # fmt: skip


def counted(x: Any, **attrs: Any) -> Any:
    return run_host("TfIdfVectorizer", x, **{**GRAMS, **attrs})[0]


def test_grams() -> None:
    x = words("a", "b", "a", "c", "b")
    assert counted(x).tolist() == [2, 2, 1]
    assert counted(x, max_skip_count=1).tolist() == [2, 2, 2]
    assert counted(x, min_gram_length=2).tolist() == [0, 0, 1]
    assert counted(x, mode="IDF", weights=[2.0, 3.0, 5.0]).tolist() == [2, 3, 5]
    assert counted(x, mode="TFIDF", weights=[2.0, 3.0, 5.0]).tolist() == [4, 6, 5]
    assert counted(np.stack([x, x])).shape == (2, 3)
    assert counted(words()).tolist() == [0, 0, 0]
    assert counted(words().reshape(2, 0)).tolist() == [[0, 0, 0]] * 2


@pytest.mark.parametrize(
    "attrs",
    [{"mode": "XX"}, {"ngram_indexes": [0, 1]}, {"ngram_indexes": [0, 1, -2]}, {"weights": [1.0]},
     {"ngram_counts": [0, 9]}, {"ngram_counts": [0, 1]}, {"min_gram_length": 0},
     {"max_gram_length": 3}, {"max_skip_count": -1}, {"pool_int64s": [1]}],
)  # fmt: skip
def test_misuse_of_grams(attrs: dict[str, Any]) -> None:
    with pytest.raises(MalformedModel):
        counted(words("a"), **attrs)


def test_broadcasting_beyond_the_budget_is_refused() -> None:
    column, row = np.full((40_000, 1), "x", object), np.full((1, 40_000), "y", object)
    with pytest.raises(UnsafeModel, match="12,800,000,000 bytes"):
        run_host("StringConcat", column, row)


def test_a_pattern_looks_at_the_deadline_at_every_new_step() -> None:
    looks: list[int] = []
    assert not Regex("[ab]*a[ab]{200}").matches("ab" * 50, lambda: looks.append(1))
    assert len(looks) >= 100


def test_steps_that_hold_too_many_states_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crossdock.runtime.loaders.onnx_regex._REMEMBERED", 500)
    regex = Regex("[ab]*a[ab]{200}")
    text = "".join("ab"[(i * i // 7) % 2] for i in range(400)) + "a" + "b" * 200
    assert regex.matches(text)
    assert not regex.matches(text + "b")
    assert sum(len(after) + 1 for after in regex._steps.values()) <= 500
