"""Modules compiled at once by other processes: the same code, and what is left to the caller."""

from __future__ import annotations

import ctypes
import itertools
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from crossdock.devices import cpu_compiler, cpu_compilers, cpu_llvm
from crossdock.devices.cpu_compilers import compile_all
from crossdock.devices.cpu_llvm import compile_ahead, compile_ir
from crossdock.runtime.errors import CompileError

PLUS = "define i64 @NAME(i64 %i) {\n  %r = add i64 %i, VALUE\n  ret i64 %r\n}\n"
WRONG = "define i64 @NAME(i64 %i) {\n  ret i32 %i\n}\n"


def plus(name: str, value: int) -> str:
    return PLUS.replace("NAME", name).replace("VALUE", str(value))


def called(address: int, value: int) -> int:
    return int(ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(address)(value))


@pytest.fixture(autouse=True)
def always_worth_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of this test's own, and processes for however little there is to compile."""
    monkeypatch.setenv("CROSSDOCK_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(cpu_compilers, "WORTH", 0)


def test_what_was_compiled_ahead_is_not_compiled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {f"ahead_{i}": plus(f"ahead_{i}", i) for i in range(5)}
    seen: list[tuple[int, int]] = []
    asked = [(n, lambda t=t: t) for n, t in texts.items()]
    compile_ahead(asked, progress=lambda *done: seen.append(done))
    assert [done for done, _ in seen] == [1, 2, 3, 4, 5]
    assert seen[-1] == (5, 5)
    monkeypatch.delattr(cpu_llvm, "_object_code")
    found = [compile_ir(text, [name])[0] for name, text in texts.items()]
    assert [called(address, 100) for address in found] == [100, 101, 102, 103, 104]
    assert not cpu_llvm._AHEAD


def test_what_the_caller_raises_ends_it() -> None:
    texts = {str(i): plus(f"ended_{i}", i) for i in range(30)}

    def stop(done: int, _total: int) -> None:
        if done == 2:
            raise TimeoutError

    made: dict[str, bytes] = {}
    with pytest.raises(TimeoutError):
        compile_all(texts.items(), "", made.__setitem__, progress=stop)
    assert len(made) == 1


@pytest.mark.parametrize("seconds", [-1.0, 0.05, 0.5])
def test_it_ends_in_time_however_much_there_is(seconds: float) -> None:
    def endless() -> Iterator[tuple[str, str]]:
        for i in itertools.count():
            yield str(i), plus(f"endless_{i}", i)

    made: dict[str, bytes] = {}
    began = time.monotonic()
    compile_all(endless(), "", made.__setitem__, began + seconds)
    assert time.monotonic() < began + seconds + 10  # however busy the machine is


def test_what_takes_long_to_compile_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    sleeper = [sys.executable, "-c", "import time; time.sleep(1e5)"]
    pipe = subprocess.PIPE
    started = lambda: subprocess.Popen(sleeper, stdin=pipe, stdout=pipe)  # noqa: E731
    monkeypatch.setattr(cpu_compilers, "_started", started)
    made: dict[str, bytes] = {}
    compile_all([("one", plus("long", 1))], "", made.__setitem__, time.monotonic() + 0.1)
    assert made == {}


def test_what_is_kept_is_not_compiled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    text = plus("kept_ahead", 1)
    compile_ahead([("kept_ahead", lambda: text)])
    monkeypatch.setattr(cpu_llvm, "_AHEAD", {})
    monkeypatch.setattr(cpu_compilers, "_started", None)
    compile_ahead([("kept_ahead", lambda: text)])
    assert called(compile_ir(text, ["kept_ahead"])[0], 1) == 2


def test_what_llvm_refuses_is_left_to_who_needs_it() -> None:
    wrong, right = WRONG.replace("NAME", "wrong_ahead"), plus("right_ahead", 3)
    made: dict[str, bytes] = {}
    compile_all({"wrong": wrong, "right": right}.items(), "", made.__setitem__)
    assert list(made) == ["right"]
    compile_ahead([("wrong_ahead", lambda: wrong)])
    with pytest.raises(CompileError, match="wrong_ahead"):
        compile_ir(wrong, ["wrong_ahead"])


def test_a_process_that_dies_leaves_its_work(monkeypatch: pytest.MonkeyPatch) -> None:
    started = cpu_compilers._started
    ended = [True, False]

    def one_dies() -> subprocess.Popen[bytes] | None:
        process = started()
        if process is not None and ended and ended.pop():
            process.kill()
        return process

    monkeypatch.setattr(cpu_compilers, "_started", one_dies)
    monkeypatch.setattr("crossdock.devices.topology.cpu_count", lambda: 2)
    texts = {str(i): plus(f"left_{i}", i) for i in range(20)}
    made: dict[str, bytes] = {}
    compile_all(texts.items(), "", made.__setitem__)
    assert len(made) >= 19  # the one it had been given may be lost


@pytest.mark.parametrize("executable", ["", "/usr/bin/some-program", "/not/there/python3"])
def test_without_a_python_to_start_nothing_is_compiled(
    executable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", executable)
    made: dict[str, bytes] = {}
    compile_all({"one": plus("unstarted", 1)}.items(), "", made.__setitem__)
    assert made == {}


def test_the_level_of_instruction_sets_is_kept_to() -> None:
    made: dict[str, dict[str, bytes]] = {"": {}, "x86-64-v2": {}}
    text = """
define void @wide(ptr %p) {
  %x = load <16 x float>, ptr %p
  %y = fadd <16 x float> %x, %x
  store <16 x float> %y, ptr %p
  ret void
}
"""
    if "avx2" not in cpu_llvm.host_features():
        pytest.skip("this processor has no vectors wider than the level's")
    for level, found in made.items():
        compile_all({"wide": text}.items(), level, found.__setitem__)
    assert len(made[""]["wide"]) != len(made["x86-64-v2"]["wide"])


LOOP = """
define i64 @NAME(ptr %p) {
entry:
  br label %loop
loop:
  %i = phi i64 [0, %entry], [%next, %loop]
  %sum = phi i64 [0, %entry], [%more, %loop]
  %row = mul i64 %i, 24
  %a = getelementptr i8, ptr %p, i64 %row
  %x = load i64, ptr %a
  %more = add i64 %sum, %x
  %next = add i64 %i, 1
  %on = icmp slt i64 %next, 4
  br i1 %on, label %loop, label %done
done:
  ret i64 %more
}
"""


def test_addresses_as_written_are_those_of_one_text_alone() -> None:
    target = cpu_compiler.machine("")
    text = LOOP.replace("NAME", "as_written")
    plain = cpu_compiler.object_code(target, text)
    written = cpu_compiler.object_code(target, cpu_compiler.AS_WRITTEN + text)
    assert written != plain
    assert cpu_compiler.object_code(target, text) == plain
    address = compile_ir(cpu_compiler.AS_WRITTEN + text, ["as_written"])[0]
    numbers = (ctypes.c_int64 * 12)(*range(12))
    assert called(address, ctypes.addressof(numbers)) == 0 + 3 + 6 + 9
