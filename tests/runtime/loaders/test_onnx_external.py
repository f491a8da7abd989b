"""External data: read from the model's own folder, and from nowhere else."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from crossdock.runtime.errors import LimitError, LoadError, MalformedModel, UnsafeModel
from crossdock.runtime.limits import Limits
from crossdock.runtime.loaders import load, onnx_tensor

W = np.arange(6, dtype=np.float32).reshape(2, 3)
X = np.zeros((2, 3), np.float32)


def external(location: str | None, **entries: Any) -> Any:
    tensor = TensorProto(name="w", data_type=1, dims=[2, 3], data_location=TensorProto.EXTERNAL)
    if location is not None:
        entries = {"location": location, **entries}
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


@pytest.fixture
def save(make: Any, tmp_path: Path) -> Any:
    """Write a model whose weights lie at a location, into a folder of its own."""
    folder = tmp_path / "models" / "m"
    folder.mkdir(parents=True)

    def run(location: str | None, data: bytes | None = W.tobytes(), **entries: Any) -> Path:
        model = make([helper.make_node("Add", ["x", "w"], ["y"])], {"x": X}, ["y"])
        model.graph.initializer.append(external(location, **entries))
        path = folder / "model.onnx"
        path.write_bytes(model.SerializeToString())
        if data is not None and location:
            (folder / location).parent.mkdir(exist_ok=True)
            (folder / location).write_bytes(data)
        return path

    return run


def weights(path: Any) -> Any:
    (found,) = load(path).constants.values()
    return found


def test_beside_the_model(save: Any) -> None:
    assert (weights(save("w.bin")) == W).all()
    assert (weights(save("sub/w.bin", length=24)) == W).all()
    assert (weights(save("w.bin", b"\1" * 16 + W.tobytes(), offset=16, length=24)) == W).all()


def test_from_a_relative_path(save: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save("w.bin")
    monkeypatch.chdir(path.parent)
    assert (weights("model.onnx") == W).all()
    with open("model.onnx", "rb") as file:
        assert (weights(file) == W).all()


def test_a_model_without_a_place(save: Any) -> None:
    data = save("w.bin").read_bytes()
    for source in (data, io.BytesIO(data)):
        with pytest.raises(LoadError, match="load the model by its path"):
            load(source)


@pytest.mark.parametrize(
    "location",
    ["../w.bin", "/etc/hostname", "a/../../w.bin", "C:\\w.bin", "\\\\host\\w.bin", "..\\w.bin"],
)
def test_outside_the_folder(save: Any, location: str) -> None:
    with pytest.raises(UnsafeModel, match="outside the model's folder"):
        load(save(location, None))


@pytest.mark.parametrize("location", [None, "", "a\0b"])
def test_locations_that_are_none(save: Any, location: str | None) -> None:
    with pytest.raises(MalformedModel, match="without a location"):
        load(save(location, None))


@pytest.mark.parametrize(
    ("entries", "data", "match"),
    [
        ({}, None, "No such file"),
        ({}, W.tobytes()[:-1], "24 are due; truncated"),
        ({"offset": 4}, W.tobytes(), "28 are due"),
        ({"offset": -4}, W.tobytes(), "at -4"),
        ({"length": 20}, W.tobytes(), "20 bytes at 0, where 24 are due"),
        ({"offset": "x"}, W.tobytes(), "is no number"),
        ({"offset": "9" * 5000}, W.tobytes(), "is no number of bytes: '9{77}"),
        ({"offset": 2**62}, W.tobytes(), "4611686018427387928 are due"),
    ],
)
def test_spans_that_do_not_fit(save: Any, entries: Any, data: bytes | None, match: str) -> None:
    with pytest.raises(MalformedModel, match=match):
        load(save("w.bin", data, **entries))


def test_links_within_the_folder_are_followed(save: Any) -> None:
    path = save("real.bin")
    (path.parent / "w.bin").symlink_to("real.bin")
    path = save("w.bin", None)
    assert (weights(path) == W).all()


def test_links_out_of_the_folder_are_not(save: Any, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(W.tobytes())
    path = save("w.bin", None)
    (path.parent / "w.bin").symlink_to(tmp_path / "secret")
    with pytest.raises(UnsafeModel, match="a link to"):
        load(path)
    (path.parent / "w.bin").unlink()
    (path.parent / "d").symlink_to(tmp_path)
    with pytest.raises(UnsafeModel, match="a link to"):
        load(save("d/secret", None))
    (path.parent / "w.bin").symlink_to("w.bin")
    with pytest.raises(LoadError, match=r"w\.bin"):
        load(save("w.bin", None))


def test_a_hub_cache_is_followed(save: Any, tmp_path: Path) -> None:
    """Snapshots hold links into a folder of blobs, the model's and its data's alike."""
    path = save("w.bin")
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "rev"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for name in ("model.onnx", "w.bin"):
        os.rename(path.parent / name, blobs / f"hash-{name}")
        (snapshot / name).symlink_to(f"../../blobs/hash-{name}")
    assert (weights(snapshot / "model.onnx") == W).all()


def test_a_second_name_of_some_other_file_is_not_read(save: Any, tmp_path: Path) -> None:
    """Unless the model has one, too: installers share files so."""
    (tmp_path / "secret").write_bytes(W.tobytes())
    path = save("w.bin", None)
    os.link(tmp_path / "secret", path.parent / "w.bin")
    with pytest.raises(UnsafeModel, match="is a hard link"):
        load(path)
    os.link(path, tmp_path / "installed")
    assert (weights(path) == W).all()


def test_a_link_put_there_while_the_model_is_read_is_not_followed(
    save: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret").write_bytes(W.tobytes())
    path = save("w.bin")
    resolve = onnx_tensor.resolve

    def slow(*args: Any) -> Path:
        found = resolve(*args)
        (path.parent / "w.bin").unlink()
        (path.parent / "w.bin").symlink_to(tmp_path / "secret")
        return found

    monkeypatch.setattr(onnx_tensor, "resolve", slow)
    with pytest.raises(MalformedModel, match="cannot be read: Too many levels of symbolic links"):
        load(path)


def test_spans_that_overlap_take_no_more_than_twice_the_file(make: Any, tmp_path: Path) -> None:
    names = [f"w{i}" for i in range(9)]
    proto = make([helper.make_node("Sum", names, ["y"])], {}, ["y"])
    for i, name in enumerate(names):
        held = external("w.bin", offset=4 * i)
        held.name = name
        proto.graph.initializer.append(held)
    (tmp_path / "w.bin").write_bytes(bytes(24 + 4 * 8))
    path = tmp_path / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    assert load(path)
    with pytest.raises(LimitError, match="overlap and take more than 122 bytes together"):
        load(path, limits=Limits(tensor_bytes=10, growth=10))


def test_things_that_are_no_file(save: Any) -> None:
    path = save("w.bin", None)
    os.mkfifo(path.parent / "w.bin")
    with pytest.raises(UnsafeModel, match="not a regular file"):
        load(path)
    os.unlink(path.parent / "w.bin")
    (path.parent / "w.bin").mkdir()
    with pytest.raises(UnsafeModel, match="is a folder"):
        load(path)


def test_tensors_in_attributes_and_subgraphs_obey_too(make: Any, tmp_path: Path) -> None:
    constant = helper.make_node("Constant", [], ["w"], value=external("../w.bin"))
    add = helper.make_node("Add", ["x", "w"], ["y"])
    path = tmp_path / "model.onnx"
    path.write_bytes(make([constant, add], {"x": X}, ["y"]).SerializeToString())
    with pytest.raises(UnsafeModel, match="outside the model's folder"):
        load(path)
    branch = helper.make_graph(
        [helper.make_node("Neg", ["w"], ["t"])],
        "b",
        [],
        [helper.make_tensor_value_info("t", 1, [2, 3])],
        initializer=[external("/etc/hostname")],
    )
    choice = helper.make_node("If", ["f"], ["y"], then_branch=branch, else_branch=branch)
    model = make([choice], {"f": np.array(True)}, ["y"])
    path.write_bytes(model.SerializeToString())
    with pytest.raises(UnsafeModel, match="outside the model's folder"):
        load(path)
