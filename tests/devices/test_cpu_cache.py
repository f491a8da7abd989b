"""Many processes share one cache of machine code while it is damaged: right answers, no crash."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from crossdock.devices import cpu_cache
from crossdock.runtime.errors import CacheWarning

BUILDERS, FUNCTIONS = 8, 24
BUILD = """
import ctypes, sys
from crossdock.devices.cpu_llvm import compile_ir

for i in range(int(sys.argv[1])):
    text = f"define i64 @seven_{i}(i64 %x) {{\\n  %y = add i64 %x, {i}\\n  ret i64 %y\\n}}"
    (address,) = compile_ir(text, [f"seven_{i}"])
    made = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(address)(7)
    assert made == 7 + i, (made, i)
print("right")
"""


def build(folder: Path) -> subprocess.Popen[str]:
    """A process that compiles, or finds, functions and checks what they return."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", BUILD, str(FUNCTIONS)],
        env={**os.environ, "CROSSDOCK_CACHE_DIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def right(process: subprocess.Popen[str]) -> None:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert out == "right\n"
    assert err == ""


def damage(folder: Path, dice: random.Random) -> bool:
    """Damage one file in one of several ways; False where there is none yet."""
    files = [p for p in folder.glob("*") if not p.name.startswith("new-")]
    if not files:
        return False
    one, other = dice.choice(files), dice.choice(files)
    match dice.randrange(6):
        case 0:
            one.write_bytes(one.read_bytes()[: dice.randrange(200)])
        case 1:
            one.write_bytes(dice.randbytes(dice.randrange(2000)))
        case 2:  # whole and sound, but the code of another function
            one.write_bytes(other.read_bytes())
        case 3:
            one.unlink()
        case 4:
            one.chmod(0o666)
        case _:
            content = bytearray(one.read_bytes())
            if content:
                content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
                one.write_bytes(content)
    return True


@pytest.mark.skipif(sys.platform == "win32", reason="permissions are POSIX")
def test_eight_processes_build_while_a_ninth_damages_their_cache(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    native, dice = tmp_path / "native", random.Random(5)
    right(build(tmp_path))  # so that there is something to damage
    assert len(list(native.iterdir())) >= FUNCTIONS
    builders = [build(tmp_path) for _ in range(BUILDERS)]
    damaged = 0
    while any(b.poll() is None for b in builders):
        try:
            damaged += damage(native, dice)
        except FileNotFoundError:
            continue  # it was replaced meanwhile
    for builder in builders:
        right(builder)
    assert damaged > FUNCTIONS
    right(build(tmp_path))  # and over what is left


def test_code_kept_for_something_else_is_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CROSSDOCK_CACHE_DIR", str(tmp_path))
    tmp_path.chmod(0o700)
    cpu_cache.save("one", b"code of one")
    cpu_cache.save("other", b"code of the other")
    (tmp_path / "native" / "one").write_bytes((tmp_path / "native" / "other").read_bytes())
    caplog.set_level("DEBUG", "crossdock")
    assert cpu_cache.load("one") is None
    assert [r.levelname for r in caplog.records] == ["DEBUG"]
    assert cpu_cache.load("one") is None
    assert len(caplog.records) == 1
    assert not (tmp_path / "native" / "one").exists()
    assert cpu_cache.load("other") == b"code of the other"


def test_a_folder_that_cannot_be_made_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CROSSDOCK_CACHE_DIR", str(tmp_path))
    tmp_path.chmod(0o700)
    (tmp_path / "native").write_text("a file where the folder should be")
    with pytest.warns(CacheWarning, match="cannot be made"):
        assert cpu_cache.load("one") is None
    cpu_cache.save("one", b"code")  # of which it is not told again
