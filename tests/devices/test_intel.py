"""Intel's OpenCL runtime for processors: a second vendor's driver beside PoCL."""

from __future__ import annotations

import pytest

from crossdock.devices import registry
from crossdock.devices.base import DeviceInfo
from crossdock.kernels import table
from crossdock.runtime.cli.verify_check import check
from tests.cases import CASES

pytestmark = pytest.mark.intel
FIRST = tuple({case.op: case for case in reversed(CASES)}.values())


@pytest.fixture
def intel() -> DeviceInfo:
    found = registry.probe_all(["opencl"])[0].devices
    return next(info for info in found if "Intel(R) OpenCL" in str(info.details["platform"]))


def test_it_shares_the_processor_with_the_host(intel: DeviceInfo) -> None:
    assert intel.resource_group == registry.open_device("cpu:0").info.resource_group


def test_a_case_of_every_op_is_right_on_it(intel: DeviceInfo) -> None:
    cases = [c for c in FIRST if not table.op(c.op).host]
    findings, missing = check(cases, [registry.open_device(intel.id)], lambda *_: None)
    assert [f for f in findings if not f.passed] == []
    assert missing == []
    assert len({f.op for f in findings}) > 100
