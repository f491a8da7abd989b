"""The short forms; ``make soak`` runs the long ones."""

from __future__ import annotations

import sys

import pytest

from tests.soak import caches, callers, cancels, endings, graphs, kills, steady
from tests.soak.figures import assert_passed

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="what a process holds is read from Linux's /proc"
)


def test_runs_leave_nothing_behind() -> None:
    assert_passed(steady.runs(1_000))


def test_loads_and_failed_loads_leave_nothing_behind() -> None:
    assert_passed(steady.loads(60))


def test_sixteen_threads_get_the_bits_of_one() -> None:
    assert_passed(callers.threads(60))


def test_sessions_share_their_devices() -> None:
    assert_passed([f for f in callers.sharing(1.0) if f.what.startswith("wrong")])


def test_an_event_loop_goes_on_under_a_thousand_runs() -> None:
    assert_passed(callers.asynchronous(1_000))


def test_callers_who_give_up_are_free_at_once() -> None:
    assert_passed(cancels.cancels(20))


@pytest.mark.parametrize("device", ["cpu:0", *graphs.opencl()])
def test_processes_end_with_work_in_flight(device: str) -> None:
    assert_passed(endings.exits(1, device))


@pytest.mark.parametrize("device", ["cpu:0", *graphs.opencl()])
def test_control_c_interrupts_a_long_run(device: str) -> None:
    assert_passed(endings.interrupts(1, device))


def test_processes_of_devices_may_be_killed() -> None:
    assert_passed(kills.kills(30))


def test_builds_in_a_cache_that_is_damaged_meanwhile_are_right() -> None:
    assert_passed([f for f in caches.shared(8) if "8 builds" in f.what])
