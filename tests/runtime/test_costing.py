"""Costs of ops on devices, and the file they are kept in."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import crossdock as xd
from crossdock.devices import cpu
from crossdock.runtime import costing, kept
from crossdock.runtime.costing import UNKNOWN_SECONDS, CostStore
from crossdock.runtime.errors import CacheWarning
from crossdock.runtime.graph import Graph
from crossdock.scheduler import CostModel, DeviceRates, Estimate, LinkModel

CPU = cpu.probe().devices[0]
GPU = replace(CPU, id="opencl:9", kind="nothing-runs-here")


def graph() -> Graph:
    b = xd.GraphBuilder(fold=False)
    x = b.input("x", (8, 16))
    w = b.constant(np.ones((16, 4), np.float32))
    y = b.reshape(b.matmul(x, w, label="mm"), [4, 8], label="shape")
    return b.build({"y": b.identity(b.reshape(y, [32])), "z": b.relu(y, label="act")})


def test_calls_know_specs_and_constants() -> None:
    calls = costing.op_calls(graph())
    assert [str(s) for s in calls["mm"].inputs] == ["float32[8,16]", "float32[16,4]"]
    assert list(calls["mm"].constants) == [1]
    work = costing.op_work(calls["mm"])
    assert work.flops == 2 * 8 * 16 * 4
    assert costing.cost_work(calls["mm"]).op_class == "gemm"


def test_aliases_share_the_bytes_of_their_root() -> None:
    made = graph()
    roots = costing.alias_roots(made)
    mm, act = (next(n for n in made.nodes if n.name == name) for name in ("mm", "act"))
    assert roots[made.outputs["y"]] == mm.outputs[0]
    assert roots[act.outputs[0]] == act.outputs[0]
    assert roots["x"] == "x"
    assert {roots[c] for c in made.constants} == set(made.constants)


def test_the_cheapest_known_kernel_is_offered() -> None:
    call = costing.op_calls(graph())["mm"]
    model = CostModel()
    blind = costing.offers(call, [CPU], model)
    assert not blind.best[CPU.id].estimate.known
    model.record_many(CPU.fingerprint, "array", call.key(), [1e-6] * 5)
    assert costing.offers(call, [CPU], model).best[CPU.id].kernel.name == "array"


def test_a_kernel_for_any_op_has_to_be_faster_for_sure() -> None:
    """Array calls run on one thread, which suffers least while something else runs, too."""
    call = costing.op_calls(graph())["mm"]
    model = CostModel()

    def chosen() -> str:
        return costing.offers(call, [CPU], model).best[CPU.id].kernel.name

    model.record_many(CPU.fingerprint, "cpu.matmul.small", call.key(), [1.0e-6] * 5)
    model.record_many(CPU.fingerprint, "array", call.key(), [0.5e-6, 1.6e-6, 0.9e-6])
    found = model.estimate(CPU.fingerprint, "array", call.key())
    assert found.seconds is not None
    assert found.high is not None
    assert found.seconds < 1e-6 < found.high
    assert chosen() == "cpu.matmul.small"
    model.record_many(CPU.fingerprint, "array", call.key(), [0.5e-6] * 60)
    assert chosen() == "array"


def test_a_device_without_a_kernel_says_why() -> None:
    made = costing.offers(costing.op_calls(graph())["mm"], [CPU, GPU], CostModel())
    assert set(made.best) == {CPU.id}
    assert set(made.reasons) == {GPU.id}
    assert made.reasons[GPU.id]


def test_an_interval_is_ordered_even_for_the_unknown() -> None:
    for estimate in (Estimate.unknown(), DEFINITE):
        seconds, low, high = costing.interval(estimate)
        assert 0 <= low <= seconds <= high
    assert costing.interval(Estimate.unknown())[0] == UNKNOWN_SECONDS


MODEL = CostModel()
MODEL.record_many("cpu", "kernel", "key", [1e-3, 2e-3, 1e-3])
DEFINITE = MODEL.estimate("cpu", "kernel", "key")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CROSSDOCK_CACHE_DIR", str(tmp_path))
    return tmp_path


def filled(key: str, folder: Path) -> CostStore:
    """A store with one measurement, its rates and a link."""
    made = CostStore()
    made.model.record_many("cpu", "kernel", key, [1e-3, 2e-3])
    made.model.set_rates(f"device of {key}", DeviceRates({"*": 1e9}, 1e9, 1e-6))
    made.model.set_link("cpu", f"device of {key}", LinkModel(1e-6, ((1.0, 1e9),)))
    return made


def test_costs_are_kept_and_read_again(folder: Path) -> None:
    filled("a", folder).save()
    assert [p.name for p in folder.iterdir()] == ["costs.json"]
    again = CostStore()
    assert again.model.samples("cpu", "kernel", "a") == (1e-3, 2e-3)
    version = again.model.version
    again.save()
    assert CostStore().model.version == version


def test_what_another_process_measured_meanwhile_is_not_lost(folder: Path) -> None:
    one, two = filled("a", folder), filled("b", folder)
    two.model.record_many("cpu", "kernel", "a", [5e-3])
    one.save()
    two.save()
    both = CostStore().model
    assert both.samples("cpu", "kernel", "a") == (5e-3,), "the last to write is believed"
    assert both.samples("cpu", "kernel", "b") == (1e-3, 2e-3)
    assert both.rates("device of a") is not None
    assert both.link("cpu", "device of b") is not None


def test_times_of_other_kernels_are_not_believed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels that were changed are measured again; devices and links are what they were."""
    filled("a", folder).save()
    monkeypatch.setattr(costing, "kernel_set", lambda: "another")
    other = CostStore()
    assert not other.model.samples("cpu", "kernel", "a")
    assert other.model.rates("device of a") is not None
    assert other.model.link("cpu", "device of a") is not None
    other.save()
    assert not json.loads((folder / "costs.json").read_text())["kernels"]


JUNK = (b"", b"{", b"[]", b"3", b"\x00\xff", b"{}", kept.sealed(b'{"schema": "other"}'), None)


@pytest.mark.parametrize("junk", JUNK)
def test_a_damaged_file_is_deleted_and_made_anew(
    folder: Path, junk: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    file = folder / "costs.json"
    filled("b", folder).save()
    sound = file.read_bytes()
    file.write_bytes(sound.replace(b"0.002", b"0.003") if junk is None else junk)
    assert file.read_bytes() != sound
    caplog.set_level("DEBUG", "crossdock")
    made = filled("a", folder)
    assert not file.exists()
    (told,) = caplog.records
    assert (told.levelname, told.getMessage().partition(" is damaged")[0]) == ("DEBUG", str(file))
    assert not made.model.samples("cpu", "kernel", "b")
    made.save()
    assert json.loads(file.read_text())["kernels"]


def test_a_file_that_cannot_be_written_is_no_failure(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = filled("a", folder)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "disk full")

    monkeypatch.setattr(os, "replace", refuse)
    monkeypatch.setattr(kept, "_WARNED", set())
    with pytest.warns(CacheWarning, match="cannot be written .disk full"):
        made.save()
    assert list(folder.iterdir()) == []
    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    made.save()


def test_without_a_cache_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROSSDOCK_CACHE_DIR", "off")
    made = CostStore()
    assert made.path is None
    made.save()
