"""Identities and host facts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from crossdock.devices import registry, topology


@pytest.mark.parametrize("text", ["00000000:01:00.0", "0000:01:00.0", "0000:01:00", "1:0.0", "1:0"])
def test_one_card_has_one_pci_identity(text: str) -> None:
    assert topology.pci_id(text) == "pci-0000:01:00.0"


@pytest.mark.parametrize("text", ["", "card 1", "0000:01", "1", "0000:01:00.9", "g0:00.0"])
def test_what_is_no_pci_address(text: str) -> None:
    assert topology.pci_id(text) is None


def test_the_best_identity_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topology, "_CARDS", {})
    uuid = bytes(range(16))
    assert topology.physical_id("0a:1f.2", uuid, "x") == "pci-0000:0a:1f.2"
    assert topology.physical_id(None, uuid[::-1], "x") == f"uuid-{uuid[::-1].hex()}"
    assert topology.physical_id("", bytes(16), "x") == "x"


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 0, 1), (0, 2, 1)])
def test_a_card_is_one_whichever_of_its_names_a_driver_tells(
    order: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(topology, "_CARDS", {})
    uuid = bytes(range(16))
    ways = [("0000:0a:1f.2", uuid), ("0a:1f.2", b"")], [("", uuid), ("0a:1f.2", uuid)]
    told = [way for pair in ways for way in pair]
    assert len({topology.physical_id(*told[i]) for i in (*order, 3)}) == 1
    assert topology.physical_id("", bytes(range(1, 17))) != topology.physical_id("", uuid)


def test_the_processor_is_one_device_whatever_shows_it() -> None:
    found = [
        info
        for info in registry.devices()
        if info.kind == "cpu" or info.details.get("type") == "cpu"
    ]
    assert {info.physical_id for info in found} == {topology.HOST_CPU}
    assert {info.resource_group for info in found} == {topology.HOST_CPU}


def test_processors_follow_affinity() -> None:
    assert 1 <= topology.cpu_count() <= (os.cpu_count() or 1)


@pytest.mark.parametrize(
    ("text", "count"), [("max 100000", 64), ("150000 100000", 2), ("20000 100000", 1), ("", 64)]
)
def test_processors_follow_a_quota(monkeypatch: pytest.MonkeyPatch, text: str, count: int) -> None:
    monkeypatch.setattr(topology, "processors", lambda: frozenset(range(64)))
    monkeypatch.setattr(
        topology, "_read", lambda path: text if Path(path).name == "cpu.max" else ""
    )
    assert topology.cpu_count() == count


def test_memory_follows_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topology, "_read", lambda path: "max")
    whole = topology.memory_bytes()
    assert whole > 0
    monkeypatch.setattr(topology, "_read", lambda path: "1048576")
    assert topology.memory_bytes() == 1 << 20


def test_the_processor_has_a_model() -> None:
    assert topology.cpu_model()
