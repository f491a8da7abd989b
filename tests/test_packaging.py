"""The wheel holds the package and nothing else, and works away from the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest

import crossdock

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("devices", "kernels", "runtime", "scheduler")


def python(*args: str, cwd: Path, **environ: str) -> str:
    """Run Python with none of the checkout on its path, and give back what it printed."""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | environ
    done = subprocess.run(
        [sys.executable, *args], cwd=cwd, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(source: Path, target: str, out: Path) -> Path:
    python("-m", "hatchling", "build", "-t", target, "-d", str(out), cwd=source)
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, "wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, "sdist", tmp_path_factory.mktemp("sdist"))


def contents(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def checkout_modules() -> set[str]:
    """Every module of the four packages, under its name in the wheel."""
    found = {path for name in PACKAGES for path in (ROOT / name).rglob("*.py")}
    return {f"crossdock/{path.relative_to(ROOT).as_posix()}" for path in found}


def test_wheel_holds_the_package_and_its_metadata_alone(wheel: Path) -> None:
    names = contents(wheel)
    assert {name.split("/")[0] for name in names} == {
        "crossdock",
        f"crossdock-{crossdock.__version__}.dist-info",
    }
    assert not [name for name in names if "__pycache__" in name or name.endswith((".nbi", ".nbc"))]


def test_wheel_holds_every_module_and_the_type_marker(wheel: Path) -> None:
    front = {"crossdock/__init__.py", "crossdock/__main__.py", "crossdock/py.typed"}
    assert front | checkout_modules() <= contents(wheel)


def test_wheel_carries_the_licence_and_the_command(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        info = f"crossdock-{crossdock.__version__}.dist-info"
        assert "License-Expression: Apache-2.0" in archive.read(f"{info}/METADATA").decode()
        assert b"Apache License" in archive.read(f"{info}/licenses/LICENSE")
        assert b"crossdock = crossdock.runtime.cli.main:main" in archive.read(
            f"{info}/entry_points.txt"
        )


# Two independent tasks, two equal devices: each takes one, and both are done after one second.
PLACED = """
import crossdock
from crossdock.scheduler import Problem, schedule

devices = [{"id": i, "name": f"sim:{i}", "kind": "sim", "mem_bytes": 100} for i in range(2)]
tasks = [
    {"id": i, "name": f"t{i}", "cost": [1.0, 1.0], "out_bytes": 1, "param_bytes": 0}
    for i in range(2)
]
problem = Problem.from_json({"devices": devices, "links": [], "tasks": tasks, "edges": []})
print(crossdock.__file__, crossdock.__version__, schedule(problem, "heft").makespan, sep="\\n")
"""


def test_wheel_works_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    install = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-index")
    python(*install, "--target", str(target), str(wheel), cwd=tmp_path)
    # PYTHONPATH comes before the path that the editable install adds; the first line shows it.
    out = python("-c", PLACED, cwd=tmp_path, PYTHONPATH=str(target)).splitlines()
    assert out[0] == str(target / "crossdock" / "__init__.py")
    assert out[1] == crossdock.__version__
    assert float(out[2]) == 1.0


def test_sdist_builds_the_same_wheel(sdist: Path, wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "source", filter="data")
    (source,) = (tmp_path / "source").iterdir()
    assert contents(build(source, "wheel", tmp_path / "out")) == contents(wheel)


def test_editable_install_runs_the_checkout() -> None:
    if not (distribution("crossdock").read_text("direct_url.json") or "").count('"editable"'):
        pytest.skip("crossdock is not installed in editable mode")
    for name in PACKAGES:
        module = Path(crossdock.__file__).parent / name
        assert module.resolve() == ROOT / name


IMPORTED = """
import sys
before = set(sys.modules)
import crossdock
new = {name.partition(".")[0] for name in set(sys.modules) - before}
print(*sorted(new - sys.stdlib_module_names))
"""


def test_import_needs_numpy_alone(tmp_path: Path) -> None:
    assert set(python("-c", IMPORTED, cwd=tmp_path).split()) <= {"crossdock", "numpy"}


TIMED = """
import time, numpy
begin = time.process_time()
import crossdock
print(time.process_time() - begin)
"""


def test_import_takes_under_a_tenth_of_a_second_beyond_numpy(tmp_path: Path) -> None:
    # Processor time, and the least of a few runs: other work on the machine only ever adds.
    assert min(float(python("-c", TIMED, cwd=tmp_path)) for _ in range(5)) < 0.1
