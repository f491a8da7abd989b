"""Object code loaded without LLVM: references inside and outside, and what is refused."""

from __future__ import annotations

import ctypes
import platform
import struct
import sys
from pathlib import Path

import pytest

from crossdock.devices import cpu_llvm, cpu_object
from crossdock.devices.cpu_llvm import compile_ir, kept_function, made_as

HERE = sys.platform == "linux" and platform.machine() == "x86_64"
needs_loader = pytest.mark.skipif(not HERE, reason="loads code for x86-64 on Linux only")

ABS = """
declare i32 @abs(i32)
@table = internal constant [4 x i64] [i64 10, i64 20, i64 30, i64 40]
@where = internal global ptr getelementptr ([4 x i64], ptr @table, i64 0, i64 2)

define internal i64 @inner(i64 %i) noinline {
  %at = getelementptr [4 x i64], ptr @table, i64 0, i64 %i
  %value = load i64, ptr %at
  ret i64 %value
}

define i64 @NAME(i64 %i) {
  %a = call i64 @inner(i64 %i)
  %b = call i32 @abs(i32 -7)
  %c = sext i32 %b to i64
  %p = load volatile ptr, ptr @where
  %d = load i64, ptr %p
  %e = add i64 %a, %c
  %f = add i64 %e, %d
  ret i64 %f
}
"""


def code_of(name: str) -> bytes:
    return cpu_llvm._object_code(ABS.replace("NAME", name), [name])


def called(address: int, value: int) -> int:
    return int(ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(address)(value))


@needs_loader
def test_tables_pointers_and_calls_inside_and_outside() -> None:
    found = cpu_object.link(code_of("test_object_one"))
    assert [called(found["test_object_one"], i) for i in range(4)] == [47, 57, 67, 77]


@needs_loader
def test_code_is_not_writable() -> None:
    address = cpu_object.link(code_of("test_object_two"))["test_object_two"]
    lines = Path("/proc/self/maps").read_text().splitlines()
    spans = [(line.split()[1], *(int(x, 16) for x in line.split()[0].split("-"))) for line in lines]
    assert [mode for mode, low, high in spans if low <= address < high] == ["r-xp"]


@needs_loader
@pytest.mark.parametrize(
    ("at", "form", "value"),
    [
        (4, "<B", 1),  # 32 bits wide
        (16, "<H", 2),  # a program, not relocatable
        (18, "<H", 183),  # for another processor
        (58, "<H", 32),  # sections of another size
    ],
)
def test_other_kinds_of_code_are_refused(at: int, form: str, value: int) -> None:
    code = bytearray(code_of("test_object_three"))
    struct.pack_into(form, code, at, value)
    with pytest.raises(cpu_object.Unsupported):
        cpu_object.link(bytes(code))


@needs_loader
def test_code_cut_off_anywhere_is_refused() -> None:
    code = code_of("test_object_four")
    for size in range(0, len(code), 61):
        with pytest.raises(cpu_object.Unsupported):
            cpu_object.link(code[:size])


@needs_loader
def test_an_unknown_function_is_refused() -> None:
    text = "declare void @no_such_function_anywhere()\n"
    text += "define void @caller() {\n  call void @no_such_function_anywhere()\n  ret void\n}"
    with pytest.raises(cpu_object.Unsupported, match="no_such_function_anywhere"):
        cpu_object.link(cpu_llvm._object_code(text, ["caller"]))


def test_llvm_loads_what_the_loader_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(code: bytes) -> dict[str, int]:
        raise cpu_object.Unsupported("no loader here")

    monkeypatch.setattr(cpu_object, "link", refuse)
    (address,) = compile_ir(ABS.replace("NAME", "test_object_llvm"), ["test_object_llvm"])
    assert called(address, 1) == 57


def test_a_name_stands_for_one_function() -> None:
    text = ABS.replace("NAME", "test_object_again")
    first, second = (compile_ir(text, ["test_object_again"]) for _ in range(2))
    assert first == second
    key = made_as("test_object_again")
    assert key is not None
    assert kept_function("test_object_again", key) == first[0]


def test_a_function_of_an_earlier_process_is_there_by_its_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CROSSDOCK_CACHE_DIR", str(tmp_path / "kept"))
    compile_ir(ABS.replace("NAME", "test_object_kept"), ["test_object_kept"])
    key = made_as("test_object_kept")
    assert key is not None
    monkeypatch.setattr(cpu_llvm, "_MADE", {})
    again = kept_function("test_object_kept", key)
    assert again is not None
    assert called(again, 0) == 47
    monkeypatch.setattr(cpu_llvm, "_MADE", {})
    (tmp_path / "kept" / "native" / key).write_bytes(b"damaged")
    assert kept_function("test_object_kept", key) is None
