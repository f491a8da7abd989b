"""What a file is, told from its first bytes: for messages that say what went wrong."""

from __future__ import annotations

import struct
from collections.abc import Callable

HEAD = 512
"""How many bytes are looked at."""

Test = Callable[[bytes], bool]


def _at(offset: int, magic: bytes) -> Test:
    return lambda head: head[offset : offset + len(magic)] == magic


def _text(*starts: bytes) -> Test:
    def test(head: bytes) -> bool:
        return head.removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith(starts)

    return test


def is_safetensors(head: bytes) -> bool:
    """True for a safetensors header: a plausible length, then a JSON object."""
    if len(head) < 9 or head[8:9] != b"{":
        return False
    (length,) = struct.unpack_from("<Q", head)
    return 2 <= int(length) <= 100_000_000


is_npy = _at(0, b"\x93NUMPY")
is_zip = _at(0, b"PK")
is_pickle: Test = lambda head: head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05"  # noqa: E731

TENSORS = "it holds tensors, not a graph; read it with load_tensors"

KINDS: tuple[tuple[Test, str, str], ...] = (
    (
        _text(b"version https://git-lfs"),
        "a Git LFS pointer, not the file it stands for",
        "fetch it with `git lfs pull`",
    ),
    (_text(b"<!doctype", b"<html", b"<?xml"), "a web page", "the download failed; fetch it again"),
    (_at(0, b"\x1f\x8b"), "gzip-compressed", "unpack it first"),
    (_at(0, b"BZh"), "bzip2-compressed", "unpack it first"),
    (_at(0, b"\xfd7zXZ"), "xz-compressed", "unpack it first"),
    (_at(0, b"\x28\xb5\x2f\xfd"), "zstd-compressed", "unpack it first"),
    (_at(257, b"ustar"), "a tar archive", "unpack it first"),
    (
        is_zip,
        "a zip archive (perhaps a PyTorch checkpoint, or an npz for load_tensors)",
        "unpack it, or export the model to ONNX",
    ),
    (
        is_pickle,
        "a pickle, which can run any code when it is opened, and is never opened here",
        "export the model to ONNX, or its weights to safetensors",
    ),
    (is_npy, "a numpy array", TENSORS),
    (is_safetensors, "a safetensors file", TENSORS),
    (_at(0, b"\x89HDF"), "an HDF5 file (Keras)", "export the model to ONNX"),
    (_at(4, b"TFL3"), "a TFLite model", "convert it to ONNX (tf2onnx --tflite)"),
    (_at(4, b"ORTM"), "an ONNX Runtime model (.ort)", "use the ONNX file it was made from"),
    (_at(0, b"GGUF"), "a GGUF file", "export the model to ONNX"),
    (
        _text(b"ir_version:", b"graph {", b"opset_import", b"producer_name:"),
        "an ONNX model written as text",
        "save it as a binary with onnx.save",
    ),
    (_text(b"{", b"["), "JSON text", "give the model file itself"),
)
"""Tests in order, with what the file is and what to do about it."""

SOUND = frozenset(what for _, what, fix in KINDS if fix == TENSORS or "model" in what)
"""Kinds of file that are nothing broken, only not what a loader here reads."""


def describe(head: bytes) -> tuple[str, str] | None:
    """What a known but unwanted kind of file is and how to get on; None where it is none."""
    for test, what, fix in KINDS:
        if test(head):
            return what, fix
    return None
