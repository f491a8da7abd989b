"""The short form of the fault soak: a few hundred runs, none lost and none wrong."""

from __future__ import annotations

import pytest

from crossdock.runtime import costing, knowledge
from tests.runtime.conftest import costs as costs
from tests.runtime.conftest import no_hang as no_hang
from tests.runtime.conftest import no_profile
from tests.soak.faults import soak


@pytest.mark.usefixtures("no_hang")
def test_runs_where_every_call_may_fail(
    costs: costing.CostStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(knowledge, "probe", lambda **_: no_profile())
    monkeypatch.setenv("CROSSDOCK_WATCHDOG", "0.1")  # restored at the end
    report = soak(runs=200, seed=7, chance=0.01)
    assert report.sound, str(report)
    assert report.runs >= 200
    assert len(report.injected) > 5
    assert report.right > 0.9 * report.runs
