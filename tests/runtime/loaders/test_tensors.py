"""Tensor files: every format read back right, every broken or hostile one refused cleanly."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossdock.runtime.errors import (
    Error,
    LimitError,
    LoadError,
    MalformedModel,
    UnsafeModel,
    UnsupportedModel,
)
from crossdock.runtime.limits import Limits
from crossdock.runtime.loaders.tensors import load_tensors

ARRAYS = {
    "float": np.arange(6, dtype=np.float32).reshape(2, 3),
    "half": np.array([1.5, -2], np.float16),
    "brain": np.array([1.5, -2], ml_dtypes.bfloat16),
    "long": np.array(7, np.int64),
    "bytes": np.arange(5, dtype=np.uint8),
    "bits": np.array([True, False]),
    "none": np.zeros((0, 4), np.float64),
}

NAMES = {
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "uint8": "U8",
    "bool": "BOOL",
    "float64": "F64",
}


def safetensors(arrays: dict[str, Any], **changes: Any) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "np"}}
    payload = b""
    for name, array in arrays.items():
        data = array.tobytes()
        header[name] = {
            "dtype": NAMES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [len(payload), len(payload) + len(data)],
        }
        payload += data
    header.update(changes)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + payload


@pytest.fixture
def read(tmp_path: Path) -> Any:
    def run(data: bytes, name: str = "file.bin", **options: Any) -> dict[str, Any]:
        path = tmp_path / name
        path.write_bytes(data)
        return load_tensors(path, **options)

    return run


def same(a: Any, b: Any) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def npy(array: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def test_safetensors_round_trip(read: Any) -> None:
    found = read(safetensors(ARRAYS))
    assert list(found) == list(ARRAYS)
    assert all(same(found[n], a) for n, a in ARRAYS.items())
    found["float"][0, 0] = 9


def test_silero_weights(models_dir: Path) -> None:
    found = load_tensors(models_dir / "silero_vad/data/silero_vad_16k.safetensors")
    assert found["lstm_cell.weight_ih"].shape == (512, 128)
    assert all(np.isfinite(a).all() for a in found.values())


@pytest.mark.parametrize("array", [a for n, a in ARRAYS.items() if n != "brain"], ids=str)
def test_npy_round_trip(read: Any, array: Any) -> None:
    assert same(read(npy(array), "weights.npy")["weights"], array)


def test_npy_orders_and_versions(read: Any) -> None:
    fortran = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    assert (read(npy(fortran))["file"] == fortran).all()
    big = np.arange(3, dtype=">i4")
    assert read(npy(big))["file"].dtype == np.int32
    assert (read(npy(big))["file"] == big).all()
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, fortran, version=(3, 0))
    assert (read(buffer.getvalue())["file"] == fortran).all()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_round_trip(tmp_path: Path, save: Any) -> None:
    path = tmp_path / "w.npz"
    arrays = {n: a for n, a in ARRAYS.items() if n != "brain"}
    save(path, **arrays)
    found = load_tensors(path)
    assert all(same(found[n], a) for n, a in arrays.items())


def test_objects_are_never_opened(read: Any) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return (pytest.fail, ("a pickle was opened",))

    objects = np.array([Bomb()], dtype=object)
    with pytest.raises(UnsafeModel, match="never opened"):
        read(npy(objects, allow_pickle=True))
    buffer = io.BytesIO()
    np.savez(buffer, a=objects, allow_pickle=True)
    with pytest.raises(UnsafeModel, match="never opened"):
        read(buffer.getvalue())
    with pytest.raises(MalformedModel, match="pickle"):
        read(pickle.dumps(Bomb()))


def headed(descr: str) -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': (1,), }}\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode() + b"\0" * 8


@pytest.mark.parametrize("descr", ["'|O'", "'O8'", "[('a', '|O')]", "'object'"])
def test_objects_by_any_name(read: Any, descr: str) -> None:
    with pytest.raises(UnsafeModel, match="pickled Python objects, which are never opened"):
        read(headed(descr))


def entry(**changes: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], **changes}


@pytest.mark.parametrize(
    ("header", "error", "match"),
    [
        ({"a": entry(shape=[2])}, MalformedModel, "span 4"),
        ({"a": entry(shape=[-1])}, MalformedModel, "no list of sizes"),
        ({"a": entry(shape=[True])}, MalformedModel, "no list of sizes"),
        ({"a": entry(shape=[1 << 62, 4])}, MalformedModel, "takes"),
        ({"a": entry(data_offsets=[0, 8], shape=[2])}, MalformedModel, "truncated"),
        ({"a": entry(data_offsets=[4, 0])}, MalformedModel, "span"),
        ({"a": entry(data_offsets=[0])}, MalformedModel, "pair"),
        ({"a": entry(), "b": entry()}, MalformedModel, "starts at"),
        ({}, MalformedModel, "belong to none"),
        ({"a": entry(dtype="F8_E4M3", data_offsets=[0, 1])}, UnsupportedModel, "F8_E4M3"),
        ({"a": 3}, MalformedModel, "no JSON object"),
    ],
)
def test_broken_safetensors_headers(
    read: Any, header: dict[str, Any], error: type[Exception], match: str
) -> None:
    text = json.dumps(header).encode()
    with pytest.raises(error, match=match):
        read(struct.pack("<Q", len(text)) + text + b"\0\0\0\0")


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"\x01", "truncated"),
        (struct.pack("<Q", 1 << 60) + b"{}", "header of"),
        (struct.pack("<Q", 2) + b"[]", "no JSON object"),
        (struct.pack("<Q", 14) + b'{"a":1,"a":2} ', "twice"),
        (struct.pack("<Q", 200_000) + b"[" * 200_000, "no JSON object"),
        (struct.pack("<Q", 200_000) + b'{"a":' * 40_000, "header is broken"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"<!DOCTYPE html>", "web page"),
        (b"\x1f\x8b\x08\x00aaaaaaaa", "gzip"),
        (b"\x93NUMPY\x09\x00aaaa", "unknown version"),
        (b"\x93NUMPY\x01\x00\xff\xff{", "truncated"),
        (b"\x93NUMPY\x01\x00\x0f\x00{'shape': (),}\n", "lacks"),
        (b"\x93NUMPY\x01\x00\x03\x00(((", "the npy header is broken"),
        (npy(np.zeros(4))[:-1], "the file has"),
        (npy(np.zeros(4)) + b"\0", "the file has"),
    ],
)
def test_broken_files(read: Any, data: bytes, match: str) -> None:
    with pytest.raises(MalformedModel, match=match):
        read(data)


def test_archives_that_are_no_npz(read: Any) -> None:
    def archive(*names: str) -> bytes:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as file:
            for name in names:
                file.writestr(name, npy(np.zeros(2)))
        return buffer.getvalue()

    with pytest.raises(MalformedModel, match="PyTorch"):
        read(archive("archive/data.pkl"))
    with pytest.warns(UserWarning, match="Duplicate"):
        twice = archive("a.npy", "a.npy")
    with pytest.raises(MalformedModel, match="twice"):
        read(twice)
    damaged = bytearray(archive("a.npy"))
    damaged[60] ^= 0xFF
    with pytest.raises(MalformedModel, match="npz"):
        read(bytes(damaged))


def test_a_zip_bomb_stops_at_the_budget(read: Any) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, a=np.zeros(1_000_000))
    with pytest.raises(UnsafeModel, match="8,000"):
        read(buffer.getvalue(), limits=Limits(file_bytes=1_000_000))
    with pytest.raises(LimitError, match=r"[\d,]+ bytes unpack to 8,000,[\d,]+, over the limit"):
        read(buffer.getvalue(), limits=Limits(tensor_bytes=1_000_000))


def test_types_without_a_counterpart(read: Any) -> None:
    for array in (np.zeros(2, np.complex64), np.array(["a"]), np.zeros(1, "i4,f4")):
        with pytest.raises(UnsupportedModel, match="not supported"):
            read(npy(array))


def test_paths_that_are_no_file(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="No such file"):
        load_tensors(tmp_path / "none.npy")
    with pytest.raises(UnsafeModel, match="a folder"):
        load_tensors(tmp_path)
    (tmp_path / "empty").touch()
    with pytest.raises(MalformedModel, match="empty"):
        load_tensors(tmp_path / "empty")


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "file"


def seeds() -> list[bytes]:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, a=ARRAYS["float"], b=ARRAYS["long"])
    return [safetensors(ARRAYS), npy(ARRAYS["float"]), buffer.getvalue()]


@given(
    seed=st.sampled_from(seeds()),
    cut=st.floats(0, 1),
    flips=st.lists(st.tuples(st.floats(0, 1), st.integers(1, 255)), max_size=4),
)
def test_damage_gives_our_errors_alone(
    scratch: Path, seed: bytes, cut: float, flips: list[tuple[float, int]]
) -> None:
    data = bytearray(seed[: max(1, round(len(seed) * cut))])
    for place, mask in flips:
        data[round(place * (len(data) - 1))] ^= mask
    scratch.write_bytes(data)
    with contextlib.suppress(Error):
        load_tensors(scratch)
