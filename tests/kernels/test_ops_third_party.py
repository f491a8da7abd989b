"""The third-party WebNN cases, evaluated with numpy, under their own tolerances."""

from __future__ import annotations

from collections import Counter

import pytest

from crossdock.kernels import table
from crossdock.kernels.reference import evaluate
from tests.cases import naming
from tests.kernels.third_party import LARGE, ThirdParty, array, build, read, verdict

CASES = list(read())

CONTRADICTORY = "the operand is int32 and the expected result float32, which the operator never is"


def _contradicts(case: ThirdParty) -> bool:
    """Cases converted without regard to the type: only the expected result says float32."""
    types = {entry["descriptor"]["dataType"] for entry in case.graph["inputs"].values()}
    wanted = {e["descriptor"]["dataType"] for e in case.graph["expectedOutputs"].values()}
    return case.file in ("slice", "split") and types == {"int32"} and wanted == {"float32"}


def marked(case: ThirdParty, *, slow: bool = False) -> object:
    marks = [pytest.mark.slow] if slow or case.size > LARGE else []
    if _contradicts(case):
        marks.append(pytest.mark.skip(reason=CONTRADICTORY))
    return pytest.param(case, id=f"{case.file}-{case.source[:12]}-{case.name}", marks=marks)


@pytest.mark.skipif(not CASES, reason="no folder `shared/webnn/cases` beside the checkout")
def test_the_cases_cover_the_operators() -> None:
    from tests.kernels.third_party import snake

    counts = Counter(snake(case.file) for case in CASES)
    webnn = {name for name, spec in table.ops().items() if not spec.extension}
    assert set(counts) - {"subgraph"} <= webnn
    assert len(CASES) >= 1400


def judge(case: ThirdParty) -> None:
    graph, feeds = build(case)
    outputs = evaluate(graph, feeds)
    for name, entry in case.graph["expectedOutputs"].items():
        assert (wrong := verdict(case, outputs[name], array(entry))) is None, f"{name}: {wrong}"


ALONE: list[ThirdParty] = []
TOGETHER: dict[str, list[ThirdParty]] = {}
for _case in CASES:
    if _case.size > LARGE or _contradicts(_case):
        ALONE.append(_case)
    else:
        TOGETHER.setdefault(_case.file, []).append(_case)


@pytest.mark.parametrize("file", TOGETHER)
def test_third_party(file: str) -> None:
    for case in TOGETHER[file]:
        with naming(case):
            judge(case)


@pytest.mark.parametrize("case", [marked(case) for case in ALONE])
def test_third_party_alone(case: ThirdParty) -> None:
    judge(case)
