"""What every test may rely on: a hypothesis profile, a private cache, and the outside folders."""

from __future__ import annotations

import gc
import importlib.metadata
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# The same examples on every run: a failure in CI is one that everybody sees. `explore` draws new
# ones: HYPOTHESIS_PROFILE=explore make test.
if importlib.util.find_spec("hypothesis"):  # machines that check a card may have pytest alone
    from hypothesis import settings

    settings.register_profile("ci", derandomize=True, deadline=None, print_blob=True)
    settings.register_profile("explore", deadline=None, max_examples=1000)
    settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture(scope="session", autouse=True)
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The session's own cache folder; child processes inherit it."""
    path = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CROSSDOCK_CACHE_DIR", str(path))
        patch.setenv("CROSSDOCK_CACHE_BYTES", str(1 << 27))  # large models are not worth the disk
        yield path


@pytest.fixture(scope="session")
def models_dir() -> Path:
    """The folder that `make models` fills."""
    return _folder(ROOT / ".models", "no .models here: run `make models`")


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The project's reference material, laid beside the checkout where there is any."""
    return _folder(ROOT.parent / "shared", "no folder `shared` beside the checkout")


def _folder(path: Path, reason: str) -> Path:
    if not path.is_dir():
        pytest.skip(reason)
    return path


LONG = (
    "scheduler/test_compiled", "kernels/test_grid_windows", "runtime/test_webnn_cases",
    "kernels/test_nvrtc", "kernels/test_host", "kernels/test_ops_extension", "soak/test_short",
    "devices/test_cuda_mutants", "devices/test_isolated", "runtime/faults/test_isolated",
    "runtime/test_executor_life", "runtime/faults/test_exhaustive", "kernels/test_grid",
)  # fmt: skip
"""Files that take longest. They come first, so that no worker begins one when the rest is done."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that take longest first; a file's tests keep their order."""
    place = {f"{ROOT}/tests/{name}.py": i for i, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(str(item.path), len(place)))


def pytest_collection_finish() -> None:
    """Keep the tests themselves out of garbage collections: they are what most objects belong to.

    Many tests collect garbage, to see what is let go of.
    """
    gc.collect()
    gc.freeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip by name what this machine cannot run."""
    for marker, missing in (("cuda", _no_cuda), ("intel", _no_intel)):
        if item.get_closest_marker(marker) and (reason := missing()):
            pytest.skip(reason)


def _no_cuda() -> str | None:
    from crossdock.devices import cuda

    found = cuda.probe()
    return None if found.devices else f"no card: {found.reason}; {found.fix}"


def _no_intel() -> str | None:
    try:
        importlib.metadata.distribution("intel-opencl-rt")
    except importlib.metadata.PackageNotFoundError:
        return "no Intel OpenCL runtime: run `make intel`"
    return None
