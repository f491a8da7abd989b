"""Listing and probing devices, and how good predictions are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from crossdock.devices.machine import DeviceProfile, Machine, Status
from crossdock.runtime.calibrate import is_calibrated
from crossdock.runtime.cli.output import Output
from crossdock.runtime.cli.probe import show
from tests.cards import CARD


def test_devices_lists_the_processor_and_says_why_others_are_missing(call: Any) -> None:
    got = call("devices")
    assert (got.status, got.err) == (0, "")
    assert "cpu:0" in got.out
    kinds = call("devices", "--json", "-").json["kinds"]
    cpu = next(k for k in kinds if k["kind"] == "cpu")
    assert cpu["devices"][0]["id"] == "cpu:0"
    assert all(k["reason"] for k in kinds if not k["devices"])


@pytest.fixture
def only_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROSSDOCK_DEVICES", "cpu")


@pytest.mark.usefixtures("only_the_processor")
def test_probe_prints_devices_speeds_and_writes_a_profile(call: Any, tmp_path: Path) -> None:
    path = tmp_path / "machine.json"
    got = call("probe", "--quick", "--json", path)
    assert got.status == 0, got.err
    for said in ("cpu:0", "PASS", "ABSENT", "FLOP/s", "GB/s", "launch", "quick probe"):
        assert said in got.out
    again = call("probe", "--quick", "--json", "-")
    assert Machine.from_json(again.json).device("cpu:0") is not None
    assert path.read_text() == again.out


@pytest.mark.usefixtures("only_the_processor")
def test_accuracy_compares_ops_and_the_whole(call: Any, model: Path) -> None:
    args = ("accuracy", model, "--dim", "N=64", "--repeat", "3", "--measure", "5")
    args += ("--no-calibrate",)
    got = call(*args)
    assert got.status == 0, got.err
    for said in ("MAPE", "within 10 %", "in interval", "matmul", "never seen", "composed"):
        assert said in got.out
    made = call(*args, "--json", "-").json
    (row,) = made["rows"]
    assert set(made["by_devices"]) == {"cpu:0"}
    assert made["placements"] is None  # one set of devices has no order
    assert row["composed"]["measured"] == row["whole"]["measured"]
    assert row["devices"] == ["cpu:0"]
    assert row["whole"]["measured"] > 0
    assert {op["op"] for op in row["ops"]} >= {"matmul"}
    assert 0 <= row["metrics"]["within_10"] <= row["metrics"]["within_15"] <= 1
    assert row["metrics"]["count"] == len(row["ops"])


@pytest.mark.usefixtures("only_the_processor")
def test_accuracy_of_nothing_is_bad_input(call: Any, model: Path) -> None:
    got = call("accuracy", model, "--dim", "N=8", "--policy", "none", "--no-calibrate")
    assert got.status == 2
    assert "there is no policy 'none'" in got.err


@pytest.mark.usefixtures("only_the_processor")
def test_calibrate_says_what_it_timed_and_keeps_it(call: Any) -> None:
    args = ("calibrate", "--device", "cpu:0", "--threads", "1", "--budget", "1")
    got = call(*args)
    assert got.status == 0, got.err
    assert "cpu:0" in got.out
    (found,) = call(*args, "--json", "-").json["devices"]
    assert found["kernels"] > 5
    assert is_calibrated("cpu:0", 1)
    assert not is_calibrated("cpu:0", 2)
    assert call("calibrate", "--device", "cpu:7").status == 2


def test_probe_says_which_ways_lead_to_one_card(capsys: pytest.CaptureFixture[str]) -> None:
    ways = [CARD, replace(CARD, id="opencl:1", kind="opencl"), replace(CARD, id="cuda:1",
            physical_id="pci-0000:02:00.0")]  # fmt: skip
    found = tuple(DeviceProfile(w.id, w.kind, Status.PASS, info=w) for w in ways)
    show(Machine("print", "a processor", 2, {}, "now", True, 0.0, found), Output())
    said = capsys.readouterr().out
    assert "cuda:0 and opencl:1 are one device (pci-0000:01:00.0)" in said
    assert said.count("are one device") == 1


def test_probe_says_which_versions_a_card_has(capsys: pytest.CaptureFixture[str]) -> None:
    card = replace(
        CARD,
        driver="CUDA 12.9, driver for CUDA 13.0",
        details={"compute_capability": "9.0", "nvrtc": "12.9"},
    )
    found = (DeviceProfile(card.id, card.kind, Status.PASS, info=card),)
    show(Machine("print", "a processor", 2, {}, "now", True, 0.0, found), Output())
    assert (
        "cuda:0: CUDA 12.9, driver for CUDA 13.0; compute capability 9.0, NVRTC 12.9\n"
        in capsys.readouterr().out
    )
