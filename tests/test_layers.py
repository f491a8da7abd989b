"""Rules on imports that reach further than one module's name.

Who may import whom is a set of contracts in pyproject.toml (`make layers`). Here is what those
cannot say: a device kind may be spread over several files, and a third-party runtime belongs to the
files of its kind.
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("devices", "kernels", "runtime", "scheduler")
KINDS = ("cpu", "cuda", "opencl", "sim")

# Third-party package: the files, by the start of their path, that may import it.
OWNERS = {
    "click": ("runtime/cli/",),
    "cupy": ("devices/cuda", "kernels/cuda"),
    "llvmlite": ("devices/cpu", "kernels/cpu"),
    "numba": ("devices/cpu", "kernels/cpu", "scheduler/"),  # the solver's search is compiled
    "onnx": ("runtime/loaders/onnx", "runtime/onnx_backend", "runtime/differential/to_onnx"),
    "pyopencl": ("devices/opencl", "kernels/opencl"),
    "rich": ("runtime/cli/",),
}


def sources() -> list[str]:
    return sorted(
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
    )


def imports(source: str) -> Iterator[str]:
    """Every module that a file imports, in functions too, by its full name."""
    for node in ast.walk(ast.parse((ROOT / source).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def kind_of(name: str) -> str | None:
    """`cpu` for both ``cpu`` and ``cpu_native``; None for a file that serves every kind."""
    return next((kind for kind in KINDS if name.split("_")[0] == kind), None)


def test_a_device_kind_knows_no_other() -> None:
    for source in (s for s in sources() if s.startswith("devices/")):
        own = kind_of(Path(source).stem)
        modules = [name.split(".") for name in imports(source)]
        kinds = {kind_of(parts[2]) for parts in modules if parts[:2] == ["crossdock", "devices"]}
        assert own is None or kinds <= {own, None}, source


def test_a_third_party_runtime_stays_in_its_files() -> None:
    for source in sources():
        foreign = {name.partition(".")[0] for name in imports(source)} & OWNERS.keys()
        strays = {name for name in foreign if not source.startswith(OWNERS[name])}
        assert strays == set(), source


def test_every_part_of_runtime_has_a_layer() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    rows = " ".join(settings["tool"]["importlinter"]["contracts"][0]["layers"])
    parts = {
        path.stem
        for path in (ROOT / "runtime").iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    unplaced = {
        part
        for part in parts - {"__init__"}
        if not re.search(rf"\bcrossdock\.runtime\.{part}\b", rows)
    }
    assert unplaced == set(), "name them in the layers of pyproject.toml"
