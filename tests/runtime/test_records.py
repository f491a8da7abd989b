"""Programs kept on disk: found for the same, for nothing else; damage and foreign hands."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import crossdock as xd
from crossdock.devices import cpu_llvm, registry
from crossdock.kernels import table
from crossdock.kernels.reference import evaluate
from crossdock.runtime import explain, kept, prepare, record_file, records, settings
from crossdock.runtime.errors import CacheWarning, LoadError
from crossdock.runtime.kept import Folder
from crossdock.runtime.lazy_graph import LazyGraph
from crossdock.runtime.record_file import Damaged, RecordFile

RNG = np.random.default_rng(0)
FILTERS = RNG.standard_normal((16, 8, 3, 3), np.float32) / 8
BIAS = RNG.standard_normal(16, np.float32)
WEIGHT = RNG.standard_normal((16, 5), np.float32)
ROOM = 1 << 30
X = RNG.standard_normal((1, 8, 12, 12), np.float32)


def write_model(path: Path, scale: float = 1.0, side: int | str = 12) -> Path:
    """A convolution, an activation, a mean and a product."""
    constants = {"f": FILTERS * np.float32(scale), "b": BIAS, "w": WEIGHT}
    nodes = [
        helper.make_node("Conv", ["x", "f", "b"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["v"]),
        helper.make_node("MatMul", ["v", "w"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", 1, (1, 8, side, side))],
        [helper.make_tensor_value_info("y", 1, (1, 5))],
        [numpy_helper.from_array(a, n) for n, a in constants.items()],
    )
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where programs are kept: a folder of this test's own, beside the machine code of all."""
    monkeypatch.setattr(records, "FOLDER", Folder(f"programs-{tmp_path.name}", 0))
    root = settings.cache_dir()
    assert root is not None
    return root / records.FOLDER.name


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of this test's own."""
    monkeypatch.setenv("CROSSDOCK_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(cpu_llvm, "_MADE", {})  # code made before is in another cache
    monkeypatch.setattr("crossdock.kernels.cpu_ir._ADDRESSES", {})
    return tmp_path / "cache"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "small.onnx")


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The graphs that were prepared anew."""
    made, known = [], prepare.prepare

    def counting(graph: Any, *args: Any, **options: Any) -> Any:
        made.append(graph.name)
        return known(graph, *args, **options)

    monkeypatch.setattr(prepare, "prepare", counting)
    return made


def run(path: Path, feed: Any = X, **options: Any) -> Any:
    with xd.compile(
        xd.load(path), "cpu:0", **{"threads": 1, "measure": 0.05, **options}
    ) as session:
        return session.run({"x": feed})["y"]


def files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def test_a_program_is_made_once(folder: Path, model: Path, prepared: list[str]) -> None:
    first = run(model)
    assert prepared == ["small"]
    assert len(files(folder)) == 1
    np.testing.assert_array_equal(run(model), first)
    assert prepared == ["small"]
    want = evaluate(xd.load(model), {"x": X})["y"]
    np.testing.assert_allclose(first, want, rtol=1e-3, atol=1e-4)


def test_what_is_kept_is_the_same_session(folder: Path, model: Path) -> None:
    with xd.compile(xd.load(model), "cpu:0", threads=1, measure=0.05) as one:
        first, want = one.run({"x": X})["y"], one.plan
        told, text = one.plan.explain(), one.plan.explain_op(one.plan.launches()[0].name)
        graph = one.ready().program.graph
    with xd.compile(xd.load(model), "cpu:0", threads=1, measure=0.05) as other:
        assert other.plan.to_json() == want.to_json()
        assert other.plan.explain() == told
        np.testing.assert_array_equal(other.run({"x": X})["y"], first)
        assert records.NOTE in other.receipt.notes
        assert other.receipt.devices == {s.name: "host-cpu" for s in want.launches()}
        assert other.estimate().peak_bytes == {d.id: d.peak_bytes for d in want.devices}
        assert other.ready().program.graph.digest() == graph.digest()
        name = want.launches()[0].name
        assert other.plan.explain_op(name).splitlines()[0] == text.splitlines()[0]
        assert [e.name for e in explain.explain_all(other.plan, 0.5)] == [
            s.name for s in want.launches()
        ]
        spans = other.profile({"x": X}).spans
        assert [s.label for s in spans["cpu:0/compute"]] == [s.name for s in want.launches()]


def test_memory_is_what_the_plan_says(folder: Path, model: Path, prepared: list[str]) -> None:
    run(model)
    device = registry.open_device("cpu:0", threads=1)
    gc.collect()
    device.allocate(1)  # what was freed before is counted by then
    before = device.gauge.used
    device.gauge.reset()
    with xd.compile(xd.load(model), "cpu:0", threads=1, measure=0.05) as session:
        session.run({"x": X})
        assert device.gauge.peak - before == session.plan.device("cpu:0").peak_bytes
    del session
    assert prepared == ["small"]
    assert device.gauge.used == before


def test_the_model_itself_is_loaded_when_looked_at(folder: Path, model: Path) -> None:
    run(model)
    whole = xd.load(model)
    graph = xd.load(model)
    assert isinstance(graph, LazyGraph)
    assert "nodes" not in graph.__dict__
    assert graph.inputs == {"x": whole.inputs["x"]}
    assert [n.op for n in graph.nodes] == [n.op for n in whole.nodes]
    assert graph.digest() == whole.digest()
    kept = xd.load(model)
    model.unlink()
    assert [n.op for n in kept.nodes] == [n.op for n in whole.nodes]  # the file is held open
    write_model(model)
    other = xd.load(model)
    model.write_bytes(model.read_bytes()[::-1])
    with pytest.raises(LoadError, match=r"small\.onnx: the file has changed since it was loaded"):
        _ = other.constants


def test_weights_are_not_held_twice(folder: Path, model: Path) -> None:
    graph = xd.load(model)
    with xd.compile(graph, "cpu:0", threads=1, measure=0.05) as session:
        session.run({"x": X})
        assert isinstance(graph, LazyGraph)
        inside = session.ready().program.graph
        assert "constants" not in graph.__dict__
        assert "constants" not in inside.__dict__
        assert set(graph.constants) == set(xd.load(model).constants)
        assert {v for n in inside.nodes for v in n.operands} <= {*inside.specs}
        assert records.NOTE not in session.receipt.notes


def test_sizes_bound_later(folder: Path, tmp_path: Path, prepared: list[str]) -> None:
    path = write_model(tmp_path / "sizes.onnx", side="s")
    small = X[:, :, :6, :6].copy()
    first = [run(path, feed) for feed in (X, small)]
    assert len(prepared) == 2
    again = [run(path, feed) for feed in (X, small)]
    bound = run(path, shapes={"x": X.shape})
    assert len(prepared) == 2
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    np.testing.assert_array_equal(first[0], bound)
    with xd.compile(xd.load(path), "cpu:0", threads=1) as session:  # the second is made anew
        np.testing.assert_allclose(session.run({"x": X})["y"], first[0], rtol=1e-5)
        np.testing.assert_allclose(session.run({"x": small})["y"], first[1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"threads": 2},
        {"strict": True},
        {"skip_passes": ["fuse-epilogue"]},
        {"runs_at_once": 2},
        {"constraints": xd.Constraints(memory={"cpu:0": 1 << 20})},
    ],
    ids=str,
)
def test_other_arguments_are_another_program(
    folder: Path, model: Path, prepared: list[str], options: dict[str, Any]
) -> None:
    first = run(model)
    np.testing.assert_allclose(run(model, **options), first, rtol=1e-3, atol=1e-4)
    assert len(prepared) == 2
    run(model, **options)
    assert len(prepared) == 2


def test_another_content_or_setting_is_another_program(
    folder: Path, model: Path, prepared: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(model)
    write_model(model, scale=-1.0)
    assert not np.allclose(run(model), first)
    assert len(prepared) == 2
    monkeypatch.setenv("CROSSDOCK_FAST_ERROR", "0")
    run(model)
    assert len(prepared) == 3
    monkeypatch.setattr(records, "stamp", lambda: "other sources")
    run(model)
    assert len(prepared) == 4


def test_what_is_made_differently_is_not_kept(folder: Path, model: Path) -> None:
    run(model, measure=False)
    run(model, check_finite=True)
    b = xd.GraphBuilder()
    built = b.build({"y": b.tanh(b.input("x", (3,)))})
    with xd.compile(built, "cpu:0", threads=1):
        pass
    graph = xd.load(model)
    with xd.compile(graph, "cpu:0", threads=1, resident={"x": X}):
        pass
    assert not folder.exists()


def test_array_code_is_made_again(folder: Path, tmp_path: Path, prepared: list[str]) -> None:
    """An op without a native kernel among others that have one."""
    path = tmp_path / "sum.onnx"
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("CumSum", ["r", "axis"], ["s"], reverse=1),
        helper.make_node("Exp", ["s"], ["y"]),
    ]
    info = [helper.make_tensor_value_info(n, 1, (3, 4)) for n in "xy"]
    axis = numpy_helper.from_array(np.array(1, np.int64), "axis")
    graph = helper.make_graph(nodes, "sum", info[:1], info[1:], [axis])
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    x = RNG.standard_normal((3, 4), np.float32)
    first = run(path, x)
    with xd.compile(xd.load(path), "cpu:0", threads=1, measure=0.05) as session:
        assert "array" in {step.kernel for step in session.plan.launches()}
        np.testing.assert_array_equal(session.run({"x": x})["y"], first)
    assert prepared == ["sum"]


def test_branches_are_kept_with_their_weights(
    folder: Path, tmp_path: Path, prepared: list[str]
) -> None:
    def branch(name: str, weight: Any) -> Any:
        made = helper.make_node("MatMul", ["x", name], [f"{name}_out"])
        out = helper.make_tensor_value_info(f"{name}_out", 1, (2, 64))
        return helper.make_graph([made], name, [], [out], [numpy_helper.from_array(weight, name)])

    weights = RNG.standard_normal((2, 64, 64), np.float32)
    graph = helper.make_graph(
        [
            helper.make_node(
                "If", ["flag"], ["y"], then_branch=branch("one", weights[0]),
                else_branch=branch("other", weights[1]),
            )
        ],
        "choice",
        [
            helper.make_tensor_value_info("flag", 9, ()),
            helper.make_tensor_value_info("x", 1, (2, 64)),
        ],
        [helper.make_tensor_value_info("y", 1, (2, 64))],
    )  # fmt: skip
    path = tmp_path / "choice.onnx"
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    x = RNG.standard_normal((2, 64), np.float32)
    for _ in range(2):
        with xd.compile(xd.load(path), "cpu:0", threads=1, measure=0.05) as session:
            for flag, weight in ((True, weights[0]), (False, weights[1])):
                found = session.run({"flag": np.array(flag), "x": x})["y"]
                np.testing.assert_allclose(found, x @ weight, rtol=1e-4, atol=1e-4)
    assert prepared == ["choice"]


def test_what_third_parties_make_is_not_kept(
    folder: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def everyone() -> list[str]:
        return [f"{k.op} {k.name}" for kernels in table._KERNELS.values() for k in kernels]

    monkeypatch.setattr(table, "foreign_names", everyone)
    run(model)
    assert files(folder) == []


Harm = Callable[[Path], object]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4096])


def flip(at: int) -> Harm:
    def harm(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[at] ^= 4
        path.write_bytes(content)

    return harm


def flip_weight(path: Path) -> None:
    with RecordFile(os.open(path, os.O_RDONLY), path.name) as file:
        at = max(block.at for block in file._blocks)
    flip(at)(path)


def link(path: Path) -> None:
    path.rename(path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere")


@pytest.mark.parametrize(
    "harm",
    [
        cut, flip(0), flip(33), flip(39), flip(2000), flip_weight, link,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(os.urandom(5000)),
        lambda path: path.chmod(0o666),
        lambda path: path.unlink(),
    ],
)  # fmt: skip
def test_damage_means_making_it_anew(
    folder: Path, model: Path, prepared: list[str], harm: Harm
) -> None:
    first = run(model)
    (file,) = files(folder)
    harm(file)
    np.testing.assert_array_equal(run(model), first)
    assert len(prepared) == 2
    np.testing.assert_array_equal(run(model), first)
    assert len(prepared) == 2  # it was put right


def test_machine_code_that_is_gone_means_making_it_anew(
    cache: Path, model: Path, prepared: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(model)
    monkeypatch.setattr(cpu_llvm, "_MADE", {})
    for file in (cache / "native").iterdir():
        file.write_bytes(file.read_bytes()[:-1])
    np.testing.assert_array_equal(run(model), first)
    assert len(prepared) == 2


def test_a_folder_of_somebody_else_is_not_used(
    folder: Path, model: Path, prepared: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(model)
    monkeypatch.setattr(kept, "_WARNED", set())
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.warns(CacheWarning, match="is not this user's alone"):
        np.testing.assert_array_equal(run(model), first)
    assert len(prepared) == 2
    run(model)  # and says so once


def test_a_folder_that_cannot_be_had_is_done_without(
    tmp_path: Path, model: Path, prepared: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("CROSSDOCK_CACHE_DIR", str(tmp_path / "file"))
    monkeypatch.setattr(kept, "_WARNED", set())
    with pytest.warns(CacheWarning, match="cannot be made") as told:
        first = run(model)
    assert len(told) == 1
    np.testing.assert_array_equal(run(model), first)
    assert len(prepared) == 2


def test_a_full_disk_is_done_without(
    folder: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(model)
    (file,) = files(folder)
    file.unlink()
    monkeypatch.setattr(kept, "_WARNED", set())

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.warns(CacheWarning, match="No space left"):
        np.testing.assert_array_equal(run(model), first)
    assert files(folder) == []


def test_the_least_lately_used_make_room(
    folder: Path, tmp_path: Path, prepared: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Strictly, so that no model's weights are packed for Winograd, at four times the size.
    paths = [write_model(tmp_path / f"{i}.onnx", 1.0 + i) for i in range(3)]
    for path in paths[:2]:
        run(path, strict=True)
    two = sum(file.stat().st_size for file in files(folder))
    monkeypatch.setenv("CROSSDOCK_CACHE_BYTES", str(int(1.25 * two)))
    run(paths[0], strict=True)  # the other one is now the one not used for longest
    run(paths[2], strict=True)
    assert len(files(folder)) == 2
    assert len(prepared) == 3
    run(paths[0], strict=True)
    assert len(prepared) == 3
    run(paths[1], strict=True)
    assert len(prepared) == 4
    monkeypatch.setenv("CROSSDOCK_CACHE_BYTES", "0")
    run(paths[1])
    assert len(files(folder)) == 2
    assert settings.cache_bytes() == 0


def test_runs_that_take_too_long_are_planned_again(
    folder: Path, model: Path, prepared: list[str]
) -> None:
    run(model)
    with xd.compile(xd.load(model), "cpu:0", threads=1, measure=0.05) as session:
        ready = session.ready()
        assert ready.replan is not None
        for _ in range(3):
            ready.watch.note(1000.0)
        made = ready.replan(ready)
        assert made is not ready
        assert len(prepared) == 2
        for _ in range(100):
            ready.watch.note(0.0)
        assert ready.replan(ready) is ready


# --- files ---------------------------------------------------------------------------------------


@pytest.fixture
def shelf(cache: Path) -> Folder:
    return Folder("shelf", 0)


def block(size: int, value: int) -> Any:
    return np.full(size, value, np.uint8)


def read(shelf: Folder, name: str, threads: int = 3) -> tuple[Any, list[Any]]:
    descriptor = shelf.open(name)
    assert descriptor is not None
    with RecordFile(descriptor, name) as file:
        targets = [np.empty(n, np.uint8) for n in file.sizes()]
        file.read(targets, threads)
        return file.told, targets


def test_blocks_come_back(shelf: Folder) -> None:
    sizes = (0, 1, 4096, 3 * record_file.PIECE + 17)
    blocks = [block(n, i) for i, n in enumerate(sizes)]
    assert record_file.save(shelf, "a", {"x": [1, "y"]}, blocks, ROOM)
    told, found = read(shelf, "a")
    assert told == {"x": [1, "y"]}
    assert all((a == b).all() for a, b in zip(found, blocks, strict=True))


def test_a_file_under_another_name_is_damaged(shelf: Folder) -> None:
    record_file.save(shelf, "a", {}, [], ROOM)
    record_file.save(shelf, "b", {}, [], ROOM)
    place = shelf.path()
    assert place is not None
    (place / "a").rename(place / "b")
    with pytest.raises(Damaged):
        read(shelf, "b")


def test_writers_and_readers_at_once_see_whole_files(shelf: Folder) -> None:
    size, wrong, over = 2 * record_file.PIECE, [], threading.Event()
    record_file.save(shelf, "a", {"v": 0}, [block(size, 0)], ROOM)

    def write(value: int) -> None:
        for _ in range(8):
            record_file.save(shelf, "a", {"v": value}, [block(size, value)], ROOM)

    def look() -> None:
        while not over.is_set():
            told, (found,) = read(shelf, "a", 1)
            if not (found == told["v"]).all():
                wrong.append(told)

    writers = [threading.Thread(target=write, args=(i,)) for i in (1, 2, 3)]
    reader = threading.Thread(target=look)
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    over.set()
    reader.join()
    assert wrong == []
    place = shelf.path()
    assert place is not None
    assert [p.name for p in place.iterdir()] == ["a"]


RUN = """
import sys
import numpy as np
import crossdock as xd
x = np.random.default_rng(1).standard_normal((1, 8, 12, 12), np.float32)
with xd.compile(xd.load(sys.argv[1]), "cpu:0", threads=1, measure=0.05) as session:
    print(np.abs(session.run({"x": x})["y"]).sum().round(2))
    print("crossdock.runtime.prepare" in sys.modules, "llvmlite" in sys.modules)
"""


@pytest.mark.slow
def test_processes_share_what_one_of_them_made(cache: Path, model: Path) -> None:
    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-W", "error", "-c", RUN, str(model)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    told = [process.communicate(timeout=120)[0].split() for process in [start() for _ in range(3)]]
    last = start().communicate(timeout=120)[0].split()
    assert len({row[0] for row in (*told, last)}) == 1
    assert last[1:] == ["False", "False"]  # nothing was planned or compiled
