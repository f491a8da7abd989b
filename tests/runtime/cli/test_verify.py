"""Verifying kernels: what passes, what fails, what is missing, and how errors are measured."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from crossdock.runtime.cli import kernel_run, verify_check
from crossdock.runtime.cli.kernel_run import worst
from crossdock.runtime.errors import Declined, DeviceLost


def test_an_op_is_verified_on_a_device(call: Any) -> None:
    got = call("verify", "--op", "relu", "--op", "gather", "--device", "cpu:0")
    assert got.status == 0, got.out + got.err
    for said in ("relu", "gather", "passed", "0 of "):
        assert said in got.out


def test_the_json_names_every_kernel_that_ran(call: Any) -> None:
    data = call("verify", "--op", "matmul", "--device", "cpu:0", "--json", "-").json
    assert data["schema"] == "crossdock-verify/1"
    assert data["devices"] == ["cpu:0"]
    assert {f["op"] for f in data["findings"]} == {"matmul"}
    assert len({f["kernel"] for f in data["findings"]}) >= 2
    assert all(f["passed"] and 0 <= f["error"] <= 1 for f in data["findings"])


def test_a_wrong_result_fails_and_is_listed(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run = kernel_run.run_kernel
    monkeypatch.setattr(verify_check, "run_kernel", lambda *args: [a + 1 for a in run(*args)])
    got = call("verify", "--op", "tanh", "--device", "cpu:0")
    assert got.status == 1
    assert "FAILED" in got.out
    assert "times what is allowed" in got.out


def test_a_device_that_fails_is_a_finding(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*_args: object) -> list[Any]:
        raise DeviceLost("the card is gone")

    monkeypatch.setattr(verify_check, "run_kernel", lost)
    got = call("verify", "--op", "tanh", "--device", "cpu:0")
    assert got.status == 1
    assert "the card is gone" in got.out


def test_what_a_library_declines_is_no_failure(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs go on with the next candidate; the table says what was not run."""
    run = kernel_run.run_kernel

    def declined(device: Any, kernel: Any, *rest: Any) -> list[Any]:
        if kernel.name != "array":
            raise Declined("the library has no such engine", log="")
        return run(device, kernel, *rest)

    monkeypatch.setattr(verify_check, "run_kernel", declined)
    got = call("verify", "--op", "tanh", "--device", "cpu:0")
    assert got.status == 0, got.out
    assert "the library has no such engine" in got.out
    assert "passed" in got.out


def test_an_unknown_op_is_bad_input_with_near_names(call: Any) -> None:
    got = call("verify", "--op", "matmu")
    assert got.status == 2
    assert "did you mean matmul" in got.err


INF, NAN = math.inf, math.nan


@pytest.mark.parametrize(
    ("have", "want", "over", "off"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0, 0.0),
        ([1.1], [1.0], 0.5, 0.1),
        ([NAN], [NAN], 0.0, 0.0),
        ([INF], [INF], 0.0, 0.0),
        ([NAN], [1.0], INF, INF),
        ([1.0], [NAN], INF, INF),
        ([-INF], [INF], INF, INF),
        ([INF], [1e300], 0.0, 0.0),
        ([], [], 0.0, 0.0),
    ],
)
def test_errors_of_floats(have: list[float], want: list[float], over: float, off: float) -> None:
    made = worst(np.array(have, np.float32), np.array(want), rtol=0.1, atol=0.1)
    # 1.1 is not a float32: its own rounding shows.
    assert made == (pytest.approx(over, abs=1e-5), pytest.approx(off, abs=1e-6))


def test_errors_of_integers_do_not_overflow() -> None:
    have, want = np.array([0], np.uint64), np.array([2**64 - 1], np.uint64)
    assert worst(have, want, 0.0, 1.0) == (2.0**64, 2.0**64)
    assert worst(have, have, 0.0, 0.0) == (0.0, 0.0)
    assert worst(have, have + np.uint64(1), 0.0, 0.0) == (INF, 1.0)
