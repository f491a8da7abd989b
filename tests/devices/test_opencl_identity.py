"""One card through CUDA and through OpenCL: what either driver tells comes to one identity."""

from __future__ import annotations

import struct
from types import SimpleNamespace
from typing import Any

import pytest

from crossdock.devices import cuda, opencl_identity, opencl_platforms, registry, topology
from tests.fakes import cupy_fake

GPU, CPU = 4, 2
UUID = bytes(range(16, 32))
CL = SimpleNamespace(device_type=SimpleNamespace(CPU=CPU, GPU=GPU))


def card(extensions: str, **facts: Any) -> Any:
    """A device as pyopencl shows it, of a driver with these extensions."""
    platform = SimpleNamespace(name="a platform")
    return SimpleNamespace(
        type=GPU, platform=platform, name="a card", extensions=extensions, int_ptr=1, **facts
    )


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> dict[int, bytes]:
    """What clGetDeviceInfo answers, by number; the status is an error for others."""
    answers: dict[int, bytes] = {}

    def ask(device: int, name: int, nbytes: int, found: Any, size: Any) -> int:
        if name not in answers:
            return -30
        found.raw = answers[name]
        size._obj.value = len(answers[name])
        return 0

    monkeypatch.setattr(opencl_identity, "_get_device_info", lambda cl: ask)
    monkeypatch.setattr(topology, "_CARDS", {})
    return answers


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    cupy_fake.install(monkeypatch)
    return [info.physical_id for info in cuda.probe().devices]


def test_a_card_through_cuda_and_nvidias_opencl_is_one(
    driver: dict[int, bytes], cards: list[str]
) -> None:
    shown = card(
        "cl_nv_device_attribute_query", pci_domain_id_nv=0, pci_bus_id_nv=2, pci_slot_id_nv=0
    )
    assert opencl_identity.physical_id(CL, shown) == cards[1] == "pci-0000:02:00.0"


def test_a_driver_that_tells_the_uuid_alone_shows_the_same_card(
    driver: dict[int, bytes], cards: list[str]
) -> None:
    driver[opencl_identity.UUID] = UUID
    assert opencl_identity.physical_id(CL, card("cl_khr_device_uuid")) == cards[0]
    driver[opencl_identity.UUID] = bytes(reversed(UUID))
    assert opencl_identity.physical_id(CL, card("cl_khr_device_uuid")) not in cards


def test_the_address_may_come_from_the_bus_extension(
    driver: dict[int, bytes], cards: list[str]
) -> None:
    driver[opencl_identity.PCI_BUS_INFO] = struct.pack("=4I", 0, 2, 0, 0)
    assert opencl_identity.physical_id(CL, card("cl_khr_pci_bus_info")) == cards[1]


def test_a_driver_that_tells_nothing_is_named(driver: dict[int, bytes]) -> None:
    for said in ("", "cl_khr_device_uuid cl_khr_pci_bus_info"):
        assert opencl_identity.physical_id(CL, card(said)) == "opencl a platform a card"


def test_a_uuid_that_arrived_cut_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = cupy_fake.install(monkeypatch)
    monkeypatch.setattr(topology, "_CARDS", {})
    facts = fake.cuda.runtime.getDeviceProperties
    for told, kept in ((UUID[:9], None), (UUID + b"luid", UUID.hex()), (UUID, UUID.hex())):
        monkeypatch.setattr(
            fake.cuda.runtime, "getDeviceProperties", lambda i, t=told: {**facts(i), "uuid": t}
        )
        assert cuda.probe().devices[0].details.get("uuid") == kept


@pytest.mark.skipif(
    not registry.probe_all(["opencl"])[0].devices, reason="there is no OpenCL driver"
)
def test_a_number_that_pyopencl_does_not_know_is_asked_for_all_the_same() -> None:
    vendor = 0x1001  # CL_DEVICE_VENDOR_ID, which pyopencl knows, too
    cl = opencl_platforms.load()
    for found in opencl_platforms.found_devices():
        said = opencl_identity.told(cl, found.handle, vendor, 4)
        assert int.from_bytes(said, "little") == found.handle.vendor_id
        assert opencl_identity.told(cl, found.handle, 0xFFFF, 4) == b""


@pytest.mark.parametrize(
    ("sizes", "taken"), [((8, 16, 32), 16), ((32, 64), 32), ((8,), 1), ((), 1)]
)
def test_sub_groups_have_a_size_that_kernels_can_ask_for(
    driver: dict[int, bytes], sizes: tuple[int, ...], taken: int
) -> None:
    driver[opencl_platforms.SUB_GROUP_SIZES] = struct.pack(f"@{len(sizes)}N", *sizes)
    every = sorted(opencl_platforms.SHUFFLES)
    assert opencl_platforms.subgroup(CL, card(" ".join(every))) == taken
    assert opencl_platforms.subgroup(CL, card(" ".join(every[1:]))) == 1
