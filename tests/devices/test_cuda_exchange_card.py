"""Arrays shared with cupy, torch and jax on a real card; a fake card stands in for it elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import crossdock as xd

pytestmark = pytest.mark.cuda
ROWS, COLUMNS = 512, 1024
NBYTES = 4 * ROWS * COLUMNS


@pytest.fixture
def session() -> Iterator[xd.Session]:
    b = xd.GraphBuilder()
    x = b.input("x", (ROWS, COLUMNS))
    graph = b.build({"y": b.relu(b.add(x, x, label="double"), label="relu")})
    rules = xd.Constraints(pin={"double": "cuda:0", "relu": "cuda:0"})
    with xd.compile(graph, ["cuda:0"], constraints=rules, measure=False) as made:
        yield made


class ByInterface:
    """An array that knows the CUDA array interface alone."""

    def __init__(self, array: Any) -> None:
        self._array = array

    @property
    def __cuda_array_interface__(self) -> Any:
        return self._array.__cuda_array_interface__


@pytest.mark.parametrize("interface", [False, True], ids=["dlpack", "interface"])
def test_cupy_arrays_are_taken_after_the_stream_that_writes_them(
    session: xd.Session, interface: bool
) -> None:
    import cupy as cp

    with cp.cuda.Stream(non_blocking=True):
        for i in range(20):
            array = cp.full((ROWS, COLUMNS), -1, np.float32)
            for _ in range(50):
                array += 0.02 * (i + 1)  # still at work when the run begins
            fed = ByInterface(array) if interface else array
            y = session.run({"x": fed}, outputs="device")["y"]
            want = 2 * cp.maximum(array, 0)
            assert bool(cp.allclose(cp.from_dlpack(y), want)), i
            assert bool(cp.allclose(cp.asarray(y), want)), i
    assert session.receipt.links == {}
    assert session.receipt.avoided == {"cpu:0->cuda:0": NBYTES, "cuda:0->cpu:0": NBYTES}


def test_torch_tensors_go_in_and_out(session: xd.Session) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    if not torch.cuda.is_available():
        pytest.skip("torch is installed without CUDA")
    x = torch.randn(ROWS, COLUMNS, device="cuda:0")
    y = torch.from_dlpack(session.run({"x": x}, outputs="device")["y"])
    assert y.device == x.device
    assert torch.equal(y, torch.relu(x + x))
    again = session.run({"x": y}, outputs="device")["y"]
    np.testing.assert_array_equal(again.numpy(), torch.relu(y + y).cpu().numpy())
    host = session.run({"x": x.cpu()})["y"]
    np.testing.assert_array_equal(host, torch.relu(x + x).cpu().numpy())
    with pytest.raises(xd.Error, match="not in C order"):
        session.run({"x": torch.randn(COLUMNS, ROWS, device="cuda:0").T})


def test_jax_arrays_go_in_and_out(session: xd.Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the card's memory is for all
    jax = pytest.importorskip("jax", reason="jax is not installed")
    if jax.default_backend() != "gpu":
        pytest.skip("jax is installed without CUDA")
    x = jax.random.normal(jax.random.key(0), (ROWS, COLUMNS))
    y = jax.numpy.from_dlpack(session.run({"x": x}, outputs="device")["y"])
    assert session.receipt.links == {}
    assert y.devices() == x.devices()
    np.testing.assert_array_equal(np.asarray(y), np.maximum(2 * np.asarray(x), 0))
    again = session.run({"x": y}, outputs="device")["y"]
    np.testing.assert_array_equal(again.numpy(), 2 * np.asarray(y))
