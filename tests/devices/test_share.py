"""One budget a card: what one way to it takes, no other way has."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from crossdock.devices import cpu, cuda, opencl, registry, share, sim
from crossdock.devices.base import Buffer, Device
from crossdock.devices.share import Share
from crossdock.devices.sim import SimSpec
from crossdock.runtime.errors import OutOfMemory
from tests.fakes import cards, cupy_fake

CARD = "pci-0000:ff:1f.7"
WAYS = ("one way", "another way")


@pytest.fixture(autouse=True)
def nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """What other tests left on cards of these addresses counts for nothing here."""
    monkeypatch.setattr(share, "_MEMORIES", {})


def opened(name: str, memory: int = 1000, card: str = CARD, limit: int | None = None) -> Device:
    sim.register(SimSpec(name, memory_bytes=memory, physical_id=card))
    device = sim.open_device(f"sim:{name}", limit=limit)
    sim.unregister(name)
    return device


def test_what_one_way_takes_another_has_not() -> None:
    one, other = (opened(name) for name in WAYS)
    kept = one.allocate(700, "weights")
    with pytest.raises(OutOfMemory) as caught:
        other.allocate(400, "arena")
    said = str(caught.value)
    assert "sim:another way: 400 bytes wanted for arena, 300 free of 1000" in said
    assert f"sim:one way holds 700 of the same memory, {CARD}" in said
    assert (caught.value.device, caught.value.wanted, caught.value.free) == (
        "sim:another way", 400, 300
    )  # fmt: skip
    part = other.allocate(300)
    with pytest.raises(OutOfMemory, match="sim:another way holds 300 of the same memory"):
        one.allocate(1)
    assert (one.gauge.used, other.gauge.used) == (700, 300)
    del kept
    gc.collect()
    assert other.allocate(700).nbytes == 700
    del part


def test_two_openings_of_one_way_share_as_well() -> None:
    one, again = opened(WAYS[0]), opened(WAYS[0])
    kept = one.allocate(600)
    with pytest.raises(OutOfMemory, match="400 free of 1000"):
        again.allocate(500)
    del kept


def test_each_way_keeps_to_its_own_limit_and_the_memory_is_the_largest_said() -> None:
    one, other = opened(WAYS[0], limit=300), opened(WAYS[1], memory=2000)
    with pytest.raises(OutOfMemory, match="400 bytes wanted, 300 free of 300; use smaller"):
        one.allocate(400)
    kept = [one.allocate(300), other.allocate(1700)]
    with pytest.raises(OutOfMemory, match="1 bytes wanted, 0 free of 2000"):
        other.allocate(1)
    assert len(kept) == 2


def test_a_card_that_nobody_else_leads_to_is_its_own() -> None:
    one, again = opened(WAYS[0], card=""), opened(WAYS[0], card="")
    assert [one.allocate(1000).nbytes, again.allocate(1000).nbytes] == [1000, 1000]


def test_memory_is_never_promised_twice_to_threads() -> None:
    devices = [opened(name) for name in WAYS]
    taken: list[Buffer] = []

    def take(device: Device) -> None:
        for _ in range(200):
            try:
                taken.append(device.allocate(7))
            except OutOfMemory:
                return

    threads = [threading.Thread(target=take, args=(d,)) for d in devices]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(buffer.nbytes for buffer in taken) == 1000 // 7 * 7


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[cupy_fake.FakeCupy]:
    with cards.installed(monkeypatch) as made:
        yield made


def test_a_card_through_cuda_and_another_driver_has_one_budget(fake: cupy_fake.FakeCupy) -> None:
    card = cuda.open_device("cuda:0")
    size = card.info.memory_bytes
    other = opened("opencl", size, card.info.physical_id)
    mine = card.allocate(size // 2)
    with pytest.raises(OutOfMemory, match=rf"cuda:0 holds {size // 2} of the same memory"):
        other.allocate(size // 2 + 1)
    theirs = other.allocate(size // 4)
    with pytest.raises(OutOfMemory, match=rf"sim:opencl holds {size // 4} of the same memory"):
        card.allocate(size // 2)
    second = cuda.open_device("cuda:1")
    assert second.allocate(size // 2).nbytes == size // 2, "another card has memory of its own"
    del mine, theirs
    card.close()
    second.close()


def test_memory_dropped_on_one_way_is_there_for_the_other(fake: cupy_fake.FakeCupy) -> None:
    card = cuda.open_device("cuda:0")
    size = card.info.memory_bytes
    other = opened("opencl", size, card.info.physical_id)
    data = np.ones(size // 2, np.uint8)
    card.queues["upload"].write(card.allocate(size), data)
    gc.collect()
    assert other.allocate(size).nbytes == size
    card.close()


def test_what_a_pool_keeps_is_given_back_to_others(
    fake: cupy_fake.FakeCupy, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = cuda.open_device("cuda:0")
    size = card.info.memory_bytes
    other = opened("opencl", size, card.info.physical_id)
    cached = [size // 2]
    used = card.pool.used_bytes
    monkeypatch.setattr(card.pool, "total_bytes", lambda: used() + cached[0])
    monkeypatch.setattr(card.pool, "free_all_blocks", lambda: cached.__setitem__(0, 0))
    first = card.allocate(size // 8)
    assert other._budget.free == size - size // 2 - size // 8  # type: ignore[attr-defined]
    assert card._share.free == size - size // 8, "its own pool may use what it keeps"
    kept = other.allocate(size // 2)
    assert cached == [0]
    del first, kept
    card.close()


def test_the_processor_has_one_memory_whatever_leads_to_it() -> None:
    info = registry.open_device("cpu:0").info
    others = [
        d for d in registry.devices() if d.physical_id == info.physical_id and d.id != info.id
    ]
    own = Share("a test", info.memory_bytes, info.memory_bytes, info.physical_id)
    before = own.free
    kinds = {"cpu": cpu, "opencl": opencl}
    ways = [kinds[d.kind].open_device(d.id) for d in (info, *others)]
    buffers = [way.allocate(1 << 20) for way in ways]
    assert own.free == before - (len(ways) << 20)
    del buffers
