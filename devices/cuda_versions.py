"""Which driver, runtime, compiler and card go together, and what to install where they do not.

Sources: NVIDIA's "CUDA Compatibility" (minimum driver of each major version) and the CUDA 13.0
release notes (architectures that the compiler no longer has).
"""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Mapping
from typing import Any

MINIMUM_DRIVER = {11: "450", 12: "525", 13: "580"}
"""Driver branch that runs any runtime of a major version of CUDA."""

INSUFFICIENT = 35
"""cudaErrorInsufficientDriver."""

INSTALL = "install NVIDIA's driver, and in a container pass the card through"
REBOOT = "restart the machine, so that the kernel module is that of the libraries"
NO_CARD = "check that `nvidia-smi` lists the card, and in a container pass it through"
START = {
    3: ("the NVIDIA driver did not start", NO_CARD),
    100: ("the NVIDIA driver shows no card", NO_CARD),
    802: ("the system of the card is not ready yet", "start nvidia-fabricmanager, or wait"),
    803: ("the NVIDIA kernel module and the driver's libraries differ in version", REBOOT),
    804: ("the card does not take the forward-compatible driver", "remove cuda-compat from the "
          "library path"),
}  # fmt: skip
"""What cuInit's errors (CUDA driver API, CUresult) say, and the fix."""

Problem = tuple[str, str]
"""A reason and its fix."""


def driver_problem() -> Problem | None:
    """Why the driver shows no card, or None; asked first, since importing cupy takes seconds."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return "there is no NVIDIA driver", INSTALL
    count = ctypes.c_int()
    if status := driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        reason, fix = START.get(status, ("the NVIDIA driver shows no card", NO_CARD))
        return f"{reason} (error {status})", fix
    return None if count.value else ("the NVIDIA driver shows no card", NO_CARD)


def text(version: int) -> str:
    """A version as cudaRuntimeGetVersion counts it: 12040 is "12.4"."""
    return f"{version // 1000}.{version % 1000 // 10}"


def driver(cp: Any) -> str:
    """The CUDA that cupy is built for, and the newest that the driver takes."""
    runtime = cp.cuda.runtime
    return (
        f"CUDA {text(runtime.runtimeGetVersion())}, driver for CUDA "
        f"{text(runtime.driverGetVersion())}"
    )


def fingerprint(cp: Any, facts: Mapping[str, Any]) -> str:
    """What measurements on a card with these properties are kept by: model, clock and versions."""
    clock = facts.get("clockRate", 0) // 1000
    return f"{facts['name'].decode()}|{driver(cp)}|cupy {cp.__version__}|{clock} MHz"


def runtime_problem(cp: Any, error: Any) -> Problem:
    """What the first call of the runtime failed with."""
    runtime = cp.cuda.runtime
    if error.status != INSUFFICIENT:
        return f"CUDA does not answer ({error})", INSTALL
    wanted, taken = runtime.runtimeGetVersion(), runtime.driverGetVersion()
    if not taken:
        return "there is no NVIDIA driver", INSTALL
    least = MINIMUM_DRIVER.get(wanted // 1000)
    update = f"update NVIDIA's driver to {least} or newer" if least else "update NVIDIA's driver"
    return (
        f"the NVIDIA driver is too old: it takes CUDA {text(taken)}, cupy is built for CUDA "
        f"{text(wanted)}",
        f"{update}, or install the cupy for CUDA {taken // 1000} (cupy-cuda{taken // 1000}x)",
    )


def compiler_problem(cp: Any) -> Problem | None:
    """Why NVRTC, which compiles every kernel, cannot be used, or None."""
    major = cp.cuda.runtime.runtimeGetVersion() // 1000
    try:
        cp.cuda.nvrtc.getVersion()
    except (RuntimeError, OSError) as error:
        return (
            f"NVRTC, CUDA's compiler of kernels, cannot be loaded ({_first(error)})",
            f"pip install 'cupy-cuda{major}x[ctk]'",
        )
    return None


def library_problem(cp: Any, error: Exception) -> str:
    """What to install where a call wants a library of CUDA that is not here, or nothing.

    Cupy loads cuBLAS and others when a call first needs them.
    """
    absent = isinstance(error, ImportError) and re.search(r"\.(so|dll)\b", str(error))
    if not absent and type(error).__name__ != "DynamicLibNotFoundError":
        return ""
    major = cp.cuda.runtime.runtimeGetVersion() // 1000
    return (
        f"a library of CUDA cannot be loaded ({_first(error)}); pip install "
        f"'cupy-cuda{major}x[ctk]'"
    )


def _first(error: Exception) -> str:
    return " ".join(str(error).split())[:120]


def blas_missing(cp: Any) -> str:
    """Why cuBLAS, which cupy loads when it is first asked for it, is not here, or nothing."""
    try:
        loaded = cp.cuda.cublas
    except (ImportError, OSError, RuntimeError) as error:
        return _first(error)
    return "" if loaded is not None else "it is not part of this cupy"


def card_problem(cp: Any, facts: dict[str, Any]) -> Problem | None:
    """Why the compiler has no code for a card, or None; newer cards get theirs from the driver."""
    card = 10 * facts["major"] + facts["minor"]
    least = min(cp.cuda.nvrtc.getSupportedArchs())
    if card >= least:
        return None
    version = compiler(cp)
    return (
        f"{facts['name'].decode()} is of architecture sm_{card}, and NVRTC of CUDA {version} "
        f"compiles for sm_{least} and newer",
        "install the cupy and the NVRTC of an older CUDA (cupy-cuda12x[ctk] has sm_50 and newer)",
    )


def compiler(cp: Any) -> str:
    """NVRTC's version."""
    return ".".join(map(str, cp.cuda.nvrtc.getVersion()))


def mismatch(cp: Any) -> str:
    """What to do about a kernel that the driver does not load, where the versions explain it."""
    taken = cp.cuda.runtime.driverGetVersion()
    major, minor = cp.cuda.nvrtc.getVersion()
    if 1000 * major + 10 * minor <= taken:
        return ""
    return (
        f"; NVRTC is of CUDA {major}.{minor} and the driver takes CUDA {text(taken)}: update the "
        f"driver, or pip install 'cupy-cuda{taken // 1000}x[ctk]' and remove the newer NVRTC"
    )
