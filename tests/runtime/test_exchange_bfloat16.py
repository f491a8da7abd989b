"""Arrays of bfloat16 shared with a card, whose array library has none: the fake cupy refuses them.

The capsules are real ones, as numpy makes them, with the type that a library with bfloat16 says.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import crossdock as xd
from crossdock.devices import cuda_exchange, dlpack
from crossdock.runtime import costing
from crossdock.runtime.errors import FeedError
from crossdock.runtime.session import Session
from tests.fakes import cupy_fake
from tests.runtime.test_exchange_cuda import ByDlpack, ByInterface, Producer

pytestmark = pytest.mark.usefixtures("no_hang")
CARD = "cuda:0"
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
VALUES = (np.arange(12).reshape(3, 4) - 5.5).astype(BFLOAT16)
DOUBLE = (2 * VALUES.astype(np.float32)).astype(BFLOAT16)


@contextmanager
def producing(fake: cupy_fake.FakeCupy) -> Iterator[Producer]:
    """Another library, whose work is waited for whatever happens."""
    library = Producer(fake)
    try:
        yield library
    finally:
        library.release()


def on_card() -> Session:
    """y = 2 x in bfloat16, on the card."""
    b = xd.GraphBuilder()
    x = b.input("x", (3, 4), "bfloat16")
    graph = b.build({"y": b.add(x, x, label="double")})
    rules = xd.Constraints(pin={"double": CARD})
    return xd.compile(graph, ["cpu:0", CARD], constraints=rules, measure=False)


@pytest.mark.parametrize("kind", [ByDlpack, ByInterface])
def test_in_without_a_copy(fake: cupy_fake.FakeCupy, kind: type[Any]) -> None:
    with producing(fake) as library, on_card() as session:
        array = library.array(VALUES)
        for _ in range(2):
            made = session.run({"x": kind(library, array)})
            assert made["y"].dtype == BFLOAT16
            np.testing.assert_array_equal(made["y"], DOUBLE)
        assert session.receipt.avoided == {"cpu:0->cuda:0": VALUES.nbytes}


def test_out_without_a_copy(fake: cupy_fake.FakeCupy) -> None:
    with on_card() as session:
        kept = session.run({"x": VALUES}, outputs="device")["y"]
        assert kept.dtype == BFLOAT16
        assert kept.__dlpack_device__() == (2, 0)
        with fake.cuda.Device(0), fake.cuda.Stream(non_blocking=True) as stream:
            capsule = kept.__dlpack__(stream=stream.ptr, max_version=(1, 0))
        told = dlpack.tensor_of(capsule)
        assert (told.dtype.code, told.dtype.bits, told.dtype.lanes) == (4, 16, 1)
        assert (told.device_type, told.device_id, told.ndim) == (2, 0, 2)
        assert [told.shape[0], told.shape[1]] == [3, 4]
        facts = kept.__cuda_array_interface__
        assert facts["typestr"] == BFLOAT16.str == "<V2"
        assert (facts["shape"], facts["stream"]) == ((3, 4), None)
        assert facts["data"][0] == told.data + told.byte_offset
        again = session.run({"x": kept}, outputs="device")["y"]
        np.testing.assert_array_equal(kept.numpy(), DOUBLE)
        np.testing.assert_array_equal(again.numpy(), 2 * DOUBLE)
        del capsule, told


def test_another_session_takes_it_by_each_protocol(fake: cupy_fake.FakeCupy) -> None:
    with on_card() as session, on_card() as other:
        kept = session.run({"x": VALUES}, outputs="device")["y"]
        for name in ("__dlpack__", "__cuda_array_interface__"):
            with fake.cuda.Stream(non_blocking=True):
                made = other.run({"x": _only(kept, name)})
            np.testing.assert_array_equal(made["y"], 2 * DOUBLE)
            assert other.receipt.avoided == {"cpu:0->cuda:0": VALUES.nbytes}


def _only(array: Any, name: str) -> Any:
    """An array that knows one protocol alone."""
    if name == "__dlpack__":
        names = {"__dlpack__": staticmethod(array.__dlpack__),
                 "__dlpack_device__": staticmethod(array.__dlpack_device__)}  # fmt: skip
        return type("ByDlpack", (), names)()
    return type("ByInterface", (), {name: array.__cuda_array_interface__})()


def test_uint16_stays_uint16(fake: cupy_fake.FakeCupy) -> None:
    with producing(fake) as library, on_card() as session:
        array = library.array(VALUES.view(np.uint16))
        for kind in (ByDlpack, ByInterface):
            with pytest.raises(FeedError, match=r"wants bfloat16\[3,4\], got uint16\[3,4\]"):
                session.run({"x": kind(library, array)})


def test_the_memory_of_a_feed_is_let_go(fake: cupy_fake.FakeCupy) -> None:
    library = Producer(fake)
    with on_card() as session:
        array = library.array(VALUES)
        session.run({"x": ByDlpack(library, array)})
        library.release()
        after = fake.machine.used(0)
        del array
        gc.collect()
        assert after - fake.machine.used(0) == VALUES.nbytes


def test_host_memory_is_shared_too(costs: costing.CostStore) -> None:
    """In and out as other libraries have it, which numpy refuses to export and to take."""
    del costs
    b = xd.GraphBuilder()
    x = b.input("x", (3, 4), "bfloat16")
    graph = b.build({"y": b.add(x, x), "z": b.identity(x)})
    array = VALUES.copy()
    with pytest.raises(BufferError):
        array.__dlpack__()
    with xd.compile(graph, "cpu:0", measure=False) as session:
        kept = session.run({"x": dlpack.Bfloat16(array.view(np.uint16))}, outputs="device")["y"]
        assert kept.dtype == BFLOAT16
        assert kept.__dlpack_device__() == (1, 0)
        assert dlpack.tensor_of(kept.__dlpack__(max_version=(1, 0))).dtype.code == 4
        taken = dlpack.as_numpy(kept)
        np.testing.assert_array_equal(taken, DOUBLE)
        taken[0, 0] = 7
        assert kept.numpy()[0, 0] == 7, "it is the memory itself"
        assert not hasattr(kept, "__cuda_array_interface__")
        again = session.run({"x": kept})["y"]
        np.testing.assert_array_equal(again[1:], 2 * DOUBLE[1:])


def test_a_capsule_is_taken_once_and_others_are_refused() -> None:
    capsule = np.zeros(3, np.uint16).__dlpack__(max_version=(1, 0))
    assert not dlpack.as_bits(capsule)
    dlpack.tensor_of(capsule).dtype.code = dlpack.BFLOAT
    assert dlpack.as_bits(capsule)
    old = np.zeros(3, np.uint16).__dlpack__()
    assert dlpack.tensor_of(old).shape[0] == 3
    for value in (np.zeros(3), object(), None):
        with pytest.raises(BufferError, match="is no DLPack capsule"):
            dlpack.tensor_of(value)


BUGS: dict[str, tuple[Any, str, Any]] = {
    "the type is not written over": (dlpack, "as_bits", lambda capsule: False),
    "all two-byte types are bfloat16": (
        dlpack, "as_bits", lambda capsule: dlpack.tensor_of(capsule).dtype.bits == 16
    ),
    "it goes out as uint16": (dlpack, "BFLOAT", dlpack.UINT),
    "its interface says float16": (dlpack, "TYPESTR", "<f2"),
    "bits are lent as they are": (dlpack, "Bfloat16", lambda bits: bits),
    "by name it is no bfloat16": (cuda_exchange, "dlpack", None),
}  # fmt: skip


@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_found(
    name: str, fake: cupy_fake.FakeCupy, monkeypatch: pytest.MonkeyPatch
) -> None:
    where, attribute, bug = BUGS[name]
    monkeypatch.setattr(where, attribute, bug)
    assert any(_fails(look, fake) for look in LOOKS)
    fake.machine.errors.clear()


LOOKS: tuple[Callable[[cupy_fake.FakeCupy], None], ...] = (
    lambda fake: test_in_without_a_copy(fake, ByDlpack),
    lambda fake: test_in_without_a_copy(fake, ByInterface),
    test_uint16_stays_uint16,
    test_out_without_a_copy,
)


def _fails(look: Callable[[cupy_fake.FakeCupy], None], fake: cupy_fake.FakeCupy) -> bool:
    try:
        look(fake)
    except (Exception, pytest.fail.Exception):  # noqa: BLE001 - whatever a bug leads to
        return True
    return False
