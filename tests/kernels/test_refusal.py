"""Reasons with codes: they read as sentences, keep their code when copied, and join to one."""

from __future__ import annotations

import copy
import pickle

import pytest

from crossdock.kernels.refusal import Cause, Refusal, cause_of, joined


def test_a_refusal_is_its_sentence_and_keeps_its_code() -> None:
    made = Refusal("no int8 kernel", Cause.DTYPE)
    assert made == "no int8 kernel"
    for other in (copy.copy(made), copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert other == made
        assert cause_of(other) is Cause.DTYPE


def test_a_plain_sentence_is_about_the_form_and_none_is_no_refusal() -> None:
    assert cause_of("axes are not neighbours") is Cause.FORM
    assert cause_of("") is Cause.OK


@pytest.mark.parametrize(
    ("causes", "cause"),
    [
        ((), Cause.NO_KERNEL),
        ((Cause.DTYPE,), Cause.DTYPE),
        ((Cause.DTYPE, Cause.FORM), Cause.DTYPE),
        ((Cause.DTYPE, Cause.RANK), Cause.NO_KERNEL),
        ((Cause.FORM, Cause.FORM), Cause.NO_KERNEL),
    ],
)
def test_the_reasons_of_several_kernels_have_the_code_they_share(
    causes: tuple[Cause, ...], cause: Cause
) -> None:
    made = joined([(f"k{i}", Refusal("why", c)) for i, c in enumerate(causes)])
    assert made.cause is cause
    assert made == ("; ".join(f"k{i}: why" for i in range(len(causes))) or "no kernel is known")
