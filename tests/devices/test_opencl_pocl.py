"""PoCL's cache: kept by us, by digest; no process reads what another one damages."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from crossdock.devices import opencl_pocl, registry

POCL = [d.id for d in registry.probe_all(["opencl"])[0].devices if "Portable" in d.driver]
pytestmark = pytest.mark.skipif(not POCL, reason="PoCL is not installed")

WORK = """
import sys
import numpy as np
import crossdock as xd

b = xd.GraphBuilder()
x = b.input("x", (4, 8))
y = b.matmul(x, b.constant(np.ones((8, 4), np.float32)))
graph = b.build({"y": b.add(y, b.constant(np.float32(1)))})
with xd.compile(graph, sys.argv[1], measure=False) as session:
    y = session.run({"x": np.ones((4, 8), np.float32)})["y"]
assert (y == 9).all()
"""


def work(home: Path, **more: str) -> None:
    """A process that compiles, or finds, kernels, and checks what they give."""
    unset = ("POCL_CACHE_DIR", "CROSSDOCK_CACHE_DIR")
    env = {k: v for k, v in os.environ.items() if k not in unset}
    command = [sys.executable, "-c", WORK, POCL[0]]
    env |= {"XDG_CACHE_HOME": str(home), **more}
    ran = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert (ran.returncode, ran.stdout) == (0, ""), ran.stderr


@pytest.fixture
def home(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_what_is_compiled_is_kept_and_damage_is_found(home: Path) -> None:
    work(home)
    kept = home / "crossdock" / "pocl"
    whole = contents(kept)
    assert whole
    assert any(b".so" in content.partition(b"\n")[0] for content in whole.values())
    assert not list((home / "crossdock").glob("pocl-*"))  # the process's own folder
    assert not (home / "pocl").exists()  # PoCL's usual one
    times = {p: p.stat().st_mtime_ns for p in kept.iterdir()}
    work(home)
    assert {p: p.stat().st_mtime_ns for p in kept.iterdir()} == times  # nothing was compiled
    for i, (name, content) in enumerate(sorted(whole.items())):
        middle = len(content) // 2
        wrong = content[:middle] if i % 2 else content[:middle] + b"\0" + content[middle + 1 :]
        (kept / name).write_bytes(wrong)
    work(home)
    assert contents(kept).keys() == whole.keys()
    assert all(kept.joinpath(n).stat().st_mtime_ns > times[kept / n] for n in whole)


def test_a_users_folder_is_left_to_pocl(home: Path) -> None:
    own = home / "own"
    own.mkdir()
    work(home, POCL_CACHE_DIR=str(own))
    assert list(own.rglob("*.so"))
    assert not (home / "crossdock" / "pocl").exists()


def test_folders_of_processes_that_are_gone_are_removed(home: Path) -> None:
    root = home / "crossdock"
    root.mkdir(mode=0o700)
    gone, here = root / f"{opencl_pocl.LIVE}gone", root / f"{opencl_pocl.LIVE}here"
    for folder in (gone, here):
        (folder / "AB").mkdir(parents=True)
    lock = opencl_pocl._locked(here)
    assert lock is not None
    made = opencl_pocl._made(root)
    assert made is not None
    try:
        assert not gone.exists()
        assert here.exists()
        assert opencl_pocl._locked(made.place) is None  # another process leaves it
    finally:
        os.close(lock)
        made.end()
    assert not made.place.exists()


def test_no_folder_is_made_where_nothing_can_be_written(home: Path) -> None:
    assert opencl_pocl._made(home / "none") is None
    assert opencl_pocl._made(Path("/proc/self")) is None


@pytest.mark.parametrize("place", ["../a.so", "a/../../b.so", "/a.so", "a//b.so", ""])
def test_names_that_lead_elsewhere_are_none_of_pocls(place: str) -> None:
    head = f'["AB/CD",[["{place}",1]]]\nx'.encode()
    with pytest.raises(ValueError, match=r"^"):
        opencl_pocl._unpacked(head)
    with pytest.raises(ValueError, match=r"^"):
        opencl_pocl._unpacked(f'["{place}",[["a.so",1]]]\nx'.encode())
    assert opencl_pocl._unpacked(b'["AB/CD",[["a.so",1]]]\nx') == ("AB/CD", {"a.so": b"x"})
