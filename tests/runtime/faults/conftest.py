"""The machine of these tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from crossdock.runtime import costing, knowledge
from tests.runtime.conftest import costs as costs
from tests.runtime.conftest import no_hang as no_hang
from tests.runtime.conftest import no_profile
from tests.runtime.conftest import opencl as opencl
from tests.runtime.faults.machine import FaultyMachine


@pytest.fixture
def faulty(costs: costing.CostStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyMachine]:
    """Devices that fail, and costs of their own; the real ones are not probed."""
    monkeypatch.setattr(knowledge, "probe", lambda **_: no_profile())
    made = FaultyMachine()
    yield made
    made.end()
