"""What only a real card can show; the fake one stands in for it everywhere else."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

import crossdock as xd
from crossdock.devices import cuda
from crossdock.devices.cuda import CudaCommands, CudaDevice
from crossdock.devices.cuda_graph import Segment
from crossdock.devices.program import GridLaunch, In, Out
from crossdock.runtime.errors import CompileError, OutOfMemory
from crossdock.runtime.tensor import TensorSpec
from tests.devices.steps import axpb_array, axpb_grid, download, record, upload

pytestmark = pytest.mark.cuda
N = 1000


@pytest.fixture
def device() -> Iterator[CudaDevice]:
    opened = cuda.open_device("cuda:0")
    yield opened
    opened.close()


def test_the_card_is_described(device: CudaDevice) -> None:
    info = device.info
    major, minor = map(int, info.details["compute_capability"].split("."))
    assert major >= 5
    assert minor >= 0
    assert info.physical_id.startswith("pci-")
    assert info.memory_bytes >= 64 << 20
    assert "driver" in info.driver


def test_launches_are_replayed_as_a_graph(device: CudaDevice) -> None:
    x = upload(device, np.arange(N, dtype=np.float32))
    y, z = device.allocate(4 * N), device.allocate(4 * N)
    commands = record(
        device,
        (axpb_grid(N, 2, 1), {In(0): x, Out(0): y}),
        (axpb_grid(N, 3, 0), {In(0): y, Out(0): z}),
    )
    assert isinstance(commands, CudaCommands)
    for _ in range(3):
        done = device.queues["compute"].execute(commands)
    result = download(device, z, np.empty(N, np.float32), done)
    assert np.array_equal(result, 3 * (2 * np.arange(N, dtype=np.float32) + 1))
    (segment,) = commands.parts
    assert isinstance(segment, Segment)
    assert segment.replayed, segment.reason


def test_a_graph_sees_what_is_uploaded_between_its_replays(device: CudaDevice) -> None:
    x, y, z = (device.allocate(4 * N) for _ in range(3))
    commands = record(
        device,
        (axpb_grid(N, 2, 0), {In(0): x, Out(0): y}),
        (axpb_grid(N, 1, 1), {In(0): y, Out(0): z}),
    )
    for i in range(4):
        sent = device.queues["upload"].write(x, np.full(N, i, np.float32))
        done = device.queues["compute"].execute(commands, [sent])
        assert (download(device, z, np.empty(N, np.float32), done) == 2 * i + 1).all()


def test_array_calls_stand_between_graphs(device: CudaDevice) -> None:
    x = upload(device, np.ones(N, np.float32))
    buffers = [device.allocate(4 * N) for _ in range(5)]
    steps = [axpb_grid, axpb_grid, axpb_array, axpb_grid, axpb_grid]
    chain = [x, *buffers]
    commands = record(
        device,
        *((step(N, 1, 1), {In(0): chain[i], Out(0): chain[i + 1]}) for i, step in enumerate(steps)),
    )
    for _ in range(3):
        done = device.queues["compute"].execute(commands)
    assert (download(device, buffers[-1], np.empty(N, np.float32), done) == 6).all()


@pytest.mark.parametrize("pinned", [True, False], ids=["pinned", "pageable"])
@pytest.mark.parametrize("nbytes", [1, 4 << 20, (4 << 20) + 1, (13 << 20) + 5])
def test_copies_of_any_size_arrive(device: CudaDevice, nbytes: int, pinned: bool) -> None:
    data = np.random.default_rng(0).integers(0, 256, nbytes, np.uint8)
    spec = TensorSpec("uint8", (nbytes,))
    source = device.host_array(spec) if pinned else np.empty(nbytes, np.uint8)
    target = device.host_array(spec) if pinned else np.zeros(nbytes, np.uint8)
    source[:] = data
    buffer = device.allocate(nbytes)
    sent = device.queues["upload"].write(buffer, source)
    device.queues["download"].read(buffer, target, [sent]).wait()
    assert np.array_equal(target, data)


def test_the_budget_is_kept_on_the_card() -> None:
    device = cuda.open_device("cuda:0", limit=8 << 20)
    with pytest.raises(OutOfMemory, match="8388608 free of 8388608"):
        device.allocate(9 << 20)
    kept = [device.allocate(1 << 20) for _ in range(8)]
    with pytest.raises(OutOfMemory):
        device.allocate(1 << 20)
    for buffer in kept:
        buffer.release()
    device.allocate(8 << 20).release()
    device.close()


def test_a_text_that_is_wrong_has_its_log(device: CudaDevice) -> None:
    text = "KERNEL void bad(GLOBAL float *y) { y[0] = nothing; }"
    with pytest.raises(CompileError, match="nothing") as raised:
        device.compile(GridLaunch(text, "bad", (Out(0),), (1,), (1,)))
    assert raised.value.log


def test_a_model_gives_what_the_processor_gives() -> None:
    rng = np.random.default_rng(0)
    b = xd.GraphBuilder()
    x = b.input("x", (8, 64))
    w = b.constant(rng.standard_normal((64, 32)).astype(np.float32))
    graph = b.build({"y": b.softmax(b.gelu(b.matmul(x, w)), axis=1)})
    feed = {"x": rng.standard_normal((8, 64)).astype(np.float32)}
    answers = {}
    for name in ("cpu:0", "cuda:0"):
        with xd.compile(graph, name) as session:
            answers[name] = session.run(feed)["y"]
            assert {op.device for op in session.receipt.ops} == {name}
    np.testing.assert_allclose(answers["cuda:0"], answers["cpu:0"], atol=1e-5)
