"""Weights in other files: where they may lie, and what may lie there."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto as T
from onnx import helper

from tests.runtime.hostile.kit import ERROR, RIGHT, Case, info, model, node, register

W = np.arange(6, dtype=np.float32)

Prepare = Callable[[Path], None]


def tensor(entries: dict[str, str], *, dims: Any = (6,), name: str = "w") -> Any:
    """A tensor whose data is elsewhere."""
    made = T(name=name, data_type=T.FLOAT, dims=list(dims), data_location=T.EXTERNAL)
    for key, value in entries.items():
        made.external_data.add(key=key, value=value)
    return made


def _write(path: Path, data: bytes = W.tobytes()) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _nothing(_folder: Path) -> None:
    pass


def _fifo(folder: Path) -> None:
    os.mkfifo(folder / "w")


def _outside(folder: Path) -> Path:
    _write(folder.parent / "elsewhere" / "w")
    return folder.parent / "elsewhere" / "w"


def _symlink(folder: Path) -> None:
    (folder / "w").symlink_to(_outside(folder))


def _symlinked_folder(folder: Path) -> None:
    (folder / "d").symlink_to(_outside(folder).parent)


def _hard_link(folder: Path) -> None:
    os.link(_outside(folder), folder / "w")


def _circle(folder: Path) -> None:
    (folder / "w").symlink_to(folder / "v")
    (folder / "v").symlink_to(folder / "w")


def _device(folder: Path) -> None:
    (folder / "w").symlink_to("/dev/zero")


def _sparse(folder: Path) -> None:
    _write(folder / "w", b"")
    os.truncate(folder / "w", 1 << 40)


def _good(folder: Path) -> None:
    _write(folder / "w")


def _deep(folder: Path) -> None:
    _write(folder / "a" / "b" / "w")


def _folder(folder: Path) -> None:
    (folder / "w").mkdir()


LOC = {"location": "w"}

ROWS: dict[str, tuple[dict[str, str], Prepare, str]] = {
    "beside": (LOC, _good, RIGHT),
    "deeper": ({"location": "a/b/w"}, _deep, RIGHT),
    "dotted": ({"location": "./a/./b/w"}, _deep, RIGHT),
    "spelled-out": ({**LOC, "offset": "0", "length": "24"}, _good, RIGHT),
    "absolute": ({"location": "/etc/hostname"}, _nothing, ERROR),
    "absolute-device": ({"location": "/dev/zero"}, _nothing, ERROR),
    "up": ({"location": "../elsewhere/w"}, lambda f: _write(_outside(f)), ERROR),
    "up-inside": ({"location": "a/../w"}, _good, ERROR),
    "backslashes": ({"location": "..\\w"}, _good, ERROR),
    "drive": ({"location": "C:\\w"}, _good, ERROR),
    "url": ({"location": "http://localhost/w"}, _nothing, ERROR),
    "file-url": ({"location": "file:///etc/hostname"}, _nothing, ERROR),
    "memory-marker": ({"location": "*/_ORT_MEM_ADDR_/*", "offset": "4096", "length": "24"},
                      _nothing, ERROR),
    "empty": ({"location": ""}, _good, ERROR),
    "nul": ({"location": "w\0x"}, _good, ERROR),
    "long": ({"location": "w" * 5000}, _nothing, ERROR),
    "none": ({}, _nothing, ERROR),
    "absent": (LOC, _nothing, ERROR),
    "symlink": (LOC, _symlink, ERROR),
    "symlinked-folder": ({"location": "d/w"}, _symlinked_folder, ERROR),
    "hard-link": (LOC, _hard_link, ERROR),
    "links-in-a-circle": (LOC, _circle, ERROR),
    "pipe": (LOC, _fifo, ERROR),
    "device": (LOC, _device, ERROR),
    "folder": (LOC, _folder, ERROR),
    "short": ({**LOC, "offset": "4"}, _good, ERROR),
    "length-wrong": ({**LOC, "length": "20"}, _good, ERROR),
    "offset-beyond": ({**LOC, "offset": "1000000"}, _good, ERROR),
    "offset-negative": ({**LOC, "offset": "-24"}, _good, ERROR),
    "offset-2^63": ({**LOC, "offset": str(2**63)}, _good, ERROR),
    "offset-10^4000": ({**LOC, "offset": "9" * 4000}, _good, ERROR),
    "offset-10^5000": ({**LOC, "offset": "9" * 5000}, _good, ERROR),
    "offset-word": ({**LOC, "offset": "four"}, _good, ERROR),
    "length-word": ({**LOC, "length": "0x18"}, _good, ERROR),
    "offset-overflows": ({**LOC, "offset": str(2**64 - 12)}, _good, ERROR),
}  # fmt: skip


@register
def locations(_rng: random.Random) -> Iterator[Case]:
    """Every kind of location, in an initialiser, a Constant and a subgraph."""

    def case(name: str, row: tuple[dict[str, str], Prepare, str], place: str) -> Case:
        entries, prepare, expect = row

        def build(folder: Path) -> Path:
            inside = folder / "m"
            inside.mkdir()
            prepare(inside)
            path = inside / "model.onnx"
            path.write_bytes(holding(tensor(entries), place).SerializeToString())
            return path

        return Case(
            "external", f"{place}-{name}", build, expect,
            check=lambda out: bool((out["y"] == W).all()),
        )  # fmt: skip

    for name, row in ROWS.items():
        yield case(name, row, "initialiser")
    for name in ("beside", "absolute", "up", "symlink", "hard-link", "pipe", "memory-marker"):
        yield case(name, ROWS[name], "constant")
        yield case(name, ROWS[name], "branch")


def holding(held: Any, place: str) -> Any:
    """A model that adds a tensor to zeros."""
    x = info("x", shape=(6,))
    if place == "initialiser":
        return model([node("Add", "x w", "y")], [x], ["y"], initializers=[held])
    constant = node("Constant", "", "w")
    constant.output[:] = ["w"]
    constant.attribute.append(helper.make_attribute("value", held))
    if place == "constant":
        return model([constant, node("Add", "x w", "y")], [x], ["y"])
    branch = helper.make_graph([node("Add", "x w", "b")], "t", [], [info("b", shape=(6,))], [held])
    other = helper.make_graph([node("Neg", "x", "b")], "e", [], [info("b", shape=(6,))])
    nodes = [node("If", "yes", "y", then_branch=branch, else_branch=other)]
    return model(nodes, [x], ["y"], yes=np.array(True))


@register
def layouts(_rng: random.Random) -> Iterator[Case]:
    """A hub's cache, files that an installer shares, and spans that overlap."""

    def hub(folder: Path) -> Path:
        blobs, snapshot = folder / "blobs", folder / "snapshots" / "abc"
        snapshot.mkdir(parents=True)
        proto = holding(tensor({"location": "model.onnx_data"}), "initialiser")
        _write(blobs / "f00d", proto.SerializeToString())
        _write(blobs / "beef")
        (snapshot / "model.onnx").symlink_to("../../blobs/f00d")
        (snapshot / "model.onnx_data").symlink_to("../../blobs/beef")
        return snapshot / "model.onnx"

    def installed(folder: Path) -> Path:
        store = folder / "store"
        proto = holding(tensor(LOC), "initialiser")
        _write(store / "a", proto.SerializeToString())
        _write(store / "b")
        (folder / "m").mkdir()
        os.link(store / "a", folder / "m" / "model.onnx")
        os.link(store / "b", folder / "m" / "w")
        return folder / "m" / "model.onnx"

    def right(out: dict[str, Any]) -> bool:
        return bool((out["y"] == W).all())

    yield Case("external", "hub-cache", hub, RIGHT, check=right)
    yield Case("external", "installed-by-hard-links", installed, RIGHT, check=right)
    yield Case("external", "sparse-terabyte", _large(_sparse, (1 << 38,)))
    yield Case("external", "sparse-8-gb", _large(_sparse, (1 << 31,)))
    yield Case("external", "overlapping", _overlapping)


def _large(prepare: Prepare, dims: tuple[int, ...]) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        prepare(folder)
        held = tensor(LOC, dims=dims)
        path = folder / "model.onnx"
        proto = model([node("ReduceSum", "w", "y")], [], ["y"], initializers=[held])
        path.write_bytes(proto.SerializeToString())
        return path

    return build


def _overlapping(folder: Path) -> Path:
    """A thousand tensors that are nearly the same 100 MB of one file."""
    _write(folder / "w", b"")
    os.truncate(folder / "w", 100 << 20)
    size = (90 << 20) // 4
    held = [
        tensor({**LOC, "offset": str(4 * i), "length": str(4 * size)}, dims=(size,), name=f"w{i}")
        for i in range(1000)
    ]
    nodes = [node("Max", " ".join(f"w{i}" for i in range(1000)), "y")]
    path = folder / "model.onnx"
    path.write_bytes(model(nodes, [], ["y"], initializers=held).SerializeToString())
    return path
