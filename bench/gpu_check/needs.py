"""What is missing here, a line each with the fix; what is here, for the report."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Need:
    """Something that is not here: what is lost without it, and the fix."""

    what: str
    without: str
    fix: str
    vital: bool = False

    def __str__(self) -> str:
        return f"missing: {self.what} ({self.without}); {self.fix}"


VITAL = ("numpy", "numba")
"""Packages without which nothing of crossdock can be imported, or runs on the processor."""

PACKAGES = (
    ("pytest", "no device conformance, no CUDA tests", "pip install pytest"),
    ("torch", "no comparison of networks", "pip install torch"),
    ("onnx", "models are those built in code, no files", "pip install 'crossdock[onnx]'"),
    ("onnxruntime", "real models are held against the processor", "pip install onnxruntime"),
    ("ml_dtypes", "no bfloat16", "pip install 'crossdock[onnx]'"),
    ("pyopencl", "no plan over the processor, the card and OpenCL", "pip install pyopencl"),
    ("hypothesis", "no drawn graphs in the tests", "pip install hypothesis"),
)
"""Packages that sections ask for: name, what is lost without, the fix."""

COMPUTE_MODE, SHARED = 20, 0
"""cudaDevAttrComputeMode, and cudaComputeModeDefault."""

VERSIONS = ("crossdock", "numpy", "numba", "llvmlite", "torch", "triton", "onnx", "onnxruntime")


def missing(*, card: bool) -> list[Need]:
    """Everything that is not here; what no run is possible without comes first."""
    found = [
        Need(f"package {name}", "nothing runs", f"pip install {name}", vital=True)
        for name in VITAL
        if importlib.util.find_spec(name) is None
    ]
    if not found:
        found += _of_the_card(card=card)
    elif card and importlib.util.find_spec("cupy") is None:
        found.append(
            Need("package cupy", "no card can be reached", "pip install cupy-cuda12x[ctk]")
        )
    found += [
        Need(f"package {name}", without, fix)
        for name, without, fix in PACKAGES
        if importlib.util.find_spec(name) is None
    ]
    if importlib.util.find_spec("torch") is not None and not _compiler():
        found.append(
            Need("a C compiler", "torch.compile cannot build its launchers", "apt-get install gcc")
        )
    if not (ROOT / ".models").is_dir():
        found.append(Need("folder .models", "no trained models", "run `make models`"))
    return found


def _of_the_card(*, card: bool) -> list[Need]:
    from crossdock.devices import cuda, cuda_dnn

    found: list[Need] = []
    probe = cuda.probe()
    if card and not probe.devices:
        found.append(Need(probe.reason, "there is no card to check", probe.fix, vital=True))
    elif card:
        details = probe.devices[0].details
        if why := details.get("no cublas"):
            found.append(Need(f"cuBLAS: {why}", "products run on slower kernels", cuda.FIX))
        if why := details.get("no cudnn"):
            found.append(
                Need(
                    f"cuDNN: {why}",
                    "convolutions and the like run on our own kernels",
                    cuda_dnn.FIX,
                )
            )
    return found


def _compiler() -> str | None:
    names = (os.environ.get("CC", ""), "cc", "gcc", "clang")
    return next((found for name in names if name and (found := shutil.which(name))), None)


def facts(device: str) -> dict[str, object]:
    """The device, the versions and the machine, for the report's head."""
    from crossdock.devices import cuda, registry, topology

    infos = {info.id: info for info in registry.devices()}
    info = infos.get(device, infos["cpu:0"])
    return {
        "device": info.name,
        "device_id": info.id,
        "driver": info.driver,
        "driver_version": _read("/sys/module/nvidia/version"),
        "commit": _commit(),
        "memory_bytes": info.memory_bytes,
        "details": dict(info.details),
        "shared": info.kind == cuda.KIND and _shared(device),
        "devices": sorted(infos),
        "cpu": topology.cpu_model(),
        "cores": topology.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": versions(),
    }


def _shared(device: str) -> bool:
    """Whether the card lets several processes use it at once."""
    import cupy as cp

    index = int(device.partition(":")[2])
    return int(cp.cuda.runtime.deviceGetAttribute(COMPUTE_MODE, index)) == SHARED


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return None


def _commit() -> str | None:
    """The checkout's commit, where it is one and git is here."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def versions() -> dict[str, str]:
    """Versions of the packages that figures hang on; cupy goes by many names."""
    found: dict[str, str] = {}
    for name in (*VERSIONS, "cupy", *(f"cupy-cuda{n}x" for n in (11, 12, 13))):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def main(rehearse: bool) -> None:
    """Print everything as JSON; ``device`` is null where there is no card."""
    lacking = missing(card=not rehearse)
    vital = any(need.vital for need in lacking)
    known = {"device": None} if vital else facts("cpu:0" if rehearse else "cuda:0")
    print(json.dumps({**known, "missing": [str(need) for need in lacking]}))


if __name__ == "__main__":
    main(rehearse="--rehearse" in sys.argv)
