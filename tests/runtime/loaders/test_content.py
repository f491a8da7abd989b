"""What ``load`` says about files that are no model, or not here."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper

from crossdock.runtime.errors import LoadError, MalformedModel, UnsafeModel, UnsupportedModel
from crossdock.runtime.files import open_regular
from crossdock.runtime.loaders import load


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("model.onnx", b"\x08\x08")
    return buffer.getvalue()


def npy() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(2))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "error", "match"),
    [
        (b"", MalformedModel, "empty"),
        (gzip.compress(b"\x08\x08", mtime=0), MalformedModel, "gzip.*unpack"),
        (zipped(), MalformedModel, "zip archive"),
        (b"  <!DOCTYPE html>\n<html>", MalformedModel, "web page"),
        (b"\xef\xbb\xbf<html lang=en>", MalformedModel, "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid", MalformedModel, "git lfs pull"),
        (pickle.dumps({"a": 1}), MalformedModel, "never opened"),
        (npy(), UnsupportedModel, "load_tensors"),
        (b"\x10\0\0\0\0\0\0\0{", UnsupportedModel, "load_tensors"),
        (b"\x1c\0\0\0TFL3\0\0", UnsupportedModel, "TFLite"),
        (b"\x89HDF\r\n", MalformedModel, "HDF5"),
        (b"GGUF\3\0", MalformedModel, "GGUF"),
        (b"ir_version: 8\ngraph {", UnsupportedModel, "onnx.save"),
        (b'{"a": 1}', MalformedModel, "JSON"),
        (b"\x00\x01\x02\x03", MalformedModel, "00 01 02 03"),
        (b"BZh91AY", MalformedModel, "bzip2"),
        (b"\x08", MalformedModel, "cannot be decoded"),
        (b"\x08\x08", MalformedModel, "no graph"),
    ],
)
def test_other_files_are_named(data: bytes, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match) as caught:
        load(data)
    assert "\n" not in str(caught.value)


def test_paths(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"nowhere\.onnx: cannot be read: No such file"):
        load(tmp_path / "nowhere.onnx")
    with pytest.raises(UnsafeModel, match="is a folder"):
        load(str(tmp_path))
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(UnsafeModel, match="not a regular file"):
        load(pipe)
    with pytest.raises(LoadError, match="cannot be read"):
        load("a\0b")
    (tmp_path / "page.onnx").write_text("<html>")
    with pytest.raises(MalformedModel, match=r"page\.onnx: this is a web page"):
        load(tmp_path / "page.onnx")


def test_a_sparse_giant_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "giant.onnx"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(UnsafeModel, match="external data"):
        load(path)


def relu(make: Any) -> Any:
    x = np.zeros((2, 3), np.float32)
    return make([helper.make_node("Relu", ["x"], ["y"], name="r")], {"x": x}, ["y"])


def test_every_kind_of_source(make: Any, tmp_path: Path) -> None:
    model = relu(make)
    data = model.SerializeToString()
    path = tmp_path / "model.bin"
    path.write_bytes(data)
    sources: list[Any] = [
        model,
        data,
        bytearray(data),
        memoryview(data),
        path,
        str(path),
        io.BytesIO(data),
    ]
    for source in sources:
        graph = load(source)
        assert [n.name for n in graph.nodes] == ["r"]
    with path.open("rb") as file:
        assert load(file).inputs["x"].shape == (2, 3)


def test_sources_of_the_wrong_type() -> None:
    with pytest.raises(LoadError, match="cannot load a int"):
        load(3)
    with pytest.raises(LoadError, match="binary mode"):
        load(io.StringIO("model"))


def test_a_missing_package_is_named(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    data = relu(make).SerializeToString()
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(LoadError, match=r"pip install crossdock\[onnx\]"):
        load(data)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="descriptors are listed on Linux")
def test_what_is_no_file_does_not_stay_open(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.onnx")
    before = len(os.listdir("/proc/self/fd"))
    for path in (tmp_path, tmp_path / "pipe.onnx"):
        for _ in range(5):
            with pytest.raises(UnsafeModel):
                open_regular(path, "model")
    assert len(os.listdir("/proc/self/fd")) == before
