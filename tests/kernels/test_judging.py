"""The judge of op cases is strict: two percent off is refused, for every op and float type."""

from __future__ import annotations

import numpy as np
import pytest

from crossdock.runtime.cases import of_op
from crossdock.runtime.cases.types import typed_case
from crossdock.runtime.tensor import FLOATS, to_numpy
from tests.cases import CASES, Case

OPS = sorted({c.op for c in CASES})


def refuses(case: Case, factor: float) -> bool:
    """Whether a case refuses its own results in one element each, off by a factor."""
    outputs = {}
    for name, want in case.reference().items():
        dtype = case.graph.output_specs[name].dtype
        got = want.astype(to_numpy(dtype))
        if dtype in FLOATS and got.size:
            flat = got.reshape(-1)
            at = int(np.argmax(np.where(np.isfinite(flat), np.abs(flat), -1)))
            flat[at] *= factor
            got = flat.reshape(got.shape)
        outputs[name] = got
    try:
        case.check(outputs)
    except AssertionError:
        return True
    return False


def of_type(op: str, dtype: str) -> list[Case]:
    """The op's cases with a result of this type."""
    made = typed_case(op, dtype)
    cases = [*of_op(op), *([made] if isinstance(made, Case) else [])]
    return [c for c in cases if any(s.dtype == dtype for s in c.graph.output_specs.values())]


@pytest.mark.parametrize(
    ("op", "dtype"),
    [(op, dtype) for op in OPS for dtype in ("float32", "float16") if of_type(op, dtype)],
)
def test_two_percent_in_one_element_are_refused(op: str, dtype: str) -> None:
    for factor in (1.02, 0.98):
        assert any(refuses(case, factor) for case in of_type(op, dtype))
