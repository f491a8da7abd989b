"""Plans of the real cuDNN for our graphs, on cards that are only described.

    python -m tests.kernels.cudnn_plans SITE [CAPABILITY ...]

SITE is a folder with nvidia-cudnn-frontend, nvidia-cudnn-cu12 and nvidia-cuda-runtime-cu12 (``pip
install --target``). cuDNN (9.8 and newer) takes a card's properties as text, compiles its kernels
and hands them to the driver, whose place a stub takes that is built here. So the frontend's checks,
the heuristics, the numerical notes and the workspace are the real ones; nothing is computed. Each
plan is made in a process of its own: a crash is one line of the table.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from crossdock.devices import cuda_dnn
from crossdock.devices.cuda_dnn import Asked
from crossdock.kernels import table
from crossdock.kernels.fused import FusedBody, FusedStep
from crossdock.kernels.fused_attention import Extents
from crossdock.kernels.spec import OpCall
from crossdock.runtime.tensor import to_numpy
from tests.cards import CARD
from tests.kernels.cpu_run import call_of

LIMIT = 300
"""Seconds for a plan."""

COMMON: dict[str, Any] = {
    "cudnnVersion": 92800, "schemaVersion": 1, "smCountOrigin": 0, "cudaDeviceId": 0,
    "driverVer": 12090, "isTccDriver": 0, "maxCtasPerSM": 32, "maxRegistersPerSM": 65536,
    "maxSharedMemoryPerBlock": 49152, "reservedSharedMemoryPerBlock": 1024,
    "oversizedSharedMemoryPerBlock": 0, "maxThreadsPerBlock": 1024, "maxThreadsPerSM": 2048,
    "pciDeviceId": 0, "regsPerBlock": 65536, "supportCoopLaunch": 1, "warpSize": 32,
    "maxGridSize": [2147483647, 65535, 65535], "maxBlockSize": [1024, 1024, 64],
}  # fmt: skip
OWN = (
    "deviceName", "deviceVer", "multiProcessorCount", "maxSharedMemoryPerBlockOptin",
    "smClockRateKHz", "memClockRateKHz", "memoryBusWidth", "l2CacheSize", "totalGlobalMem",
)  # fmt: skip
CARDS = {
    "7.0": ("V100", 700, 80, 98304, 1530000, 877000, 4096, 6 << 20, 16 << 30),
    "7.5": ("T4", 750, 40, 65536, 1590000, 5001000, 256, 4 << 20, 16 << 30),
    "8.0": ("A100", 800, 108, 166912, 1410000, 1215000, 5120, 40 << 20, 40 << 30),
    "9.0": ("H200", 900, 132, 232448, 1980000, 3201000, 6144, 60 << 20, 139 << 30),
    "10.0": ("B200", 1000, 148, 232448, 1965000, 3996000, 8192, 126 << 20, 180 << 30),
}
"""By compute capability, from the makers' data sheets; what cuDNN asks of a card besides, above."""


def described(capability: str) -> str:
    """A card's properties as cuDNN reads them."""
    return json.dumps({**COMMON, **dict(zip(OWN, CARDS[capability], strict=True))})


# --- graphs ---------------------------------------------------------------------------------------


def zeros(dtype: str, *shape: int) -> np.ndarray:
    """An operand."""
    return np.zeros(shape, to_numpy(dtype))


def _convolution(dtype: str = "float32") -> OpCall:
    steps = (("add", (0, 1)), ("relu", (-1,)))
    body = FusedBody(tuple(FusedStep(op, {}, at, dtype, (dtype,) * len(at)) for op, at in steps))
    arrays = [zeros(dtype, *s) for s in ((2, 64, 56, 56), (32, 64, 3, 3), (32,), (2, 32, 56, 56))]
    window = call_of("conv2d", arrays[:3], {"padding": [1, 1, 1, 1]}).attrs
    return call_of("fused_conv2d", arrays, {**window, "body": body})


def _layers(
    dtype: str = "float32", *, shape: tuple[int, ...] = (8, 128, 768), last: int = 1,
    scale: bool = True, bias: bool = True,
) -> OpCall:  # fmt: skip
    axes, own = list(range(len(shape) - last, len(shape))), zeros(dtype, *shape[-last:])
    arrays = [zeros(dtype, *shape), own if scale else None, own if bias else None]
    return call_of("layer_normalization", arrays, {"axes": axes})


def _images(dtype: str = "float32", layout: str = "nchw") -> OpCall:
    shape = (2, 32, 28, 28) if layout == "nchw" else (2, 28, 28, 32)
    own = zeros(dtype, 32)
    arrays = [zeros(dtype, *shape), own, own]
    return call_of("instance_normalization", arrays, {"layout": layout})


def _channels(
    dtype: str = "float32", shape: tuple[int, ...] = (2, 32, 28, 28), axis: int = 1, *,
    affine: bool = True,
) -> OpCall:  # fmt: skip
    one = zeros(dtype, shape[axis])
    own = one if affine else None
    return call_of(
        "batch_normalization", [zeros(dtype, *shape), one, one, own, own], {"axis": axis}
    )


SHARING = Extents(2, 8, 2, 128, 256, 64, 64)
"""Two sequences of 128 queries and 256 keys; four heads of queries share one of keys."""


def _attention(
    dtype: str = "float16", bias: tuple[int, ...] | None = None, *,
    sizes: Extents = SHARING, **attrs: Any,
) -> OpCall:  # fmt: skip
    arrays = [*(zeros(dtype, *sizes.operand(i)) for i in range(3)),
              None if bias is None else zeros(dtype, *bias)]  # fmt: skip
    return call_of("scaled_dot_product_attention", arrays, attrs)


def _joined() -> OpCall:
    sizes = Extents(2, 8, 8, 128, 128, 64, 64)
    rows = zeros("float16", 2 * 128, 3 * 8 * 64)
    attrs = {"extents": sizes, "offsets": (0, 512, 1024), "by_row": True, "scale": 0.125}
    return call_of("fused_attention", [rows, rows, rows, None], attrs)


FORMS: dict[str, OpCall] = {
    "convolution": _convolution(),
    "convolution, halves": _convolution("float16"),
    "layers": _layers(),
    "layers, float16": _layers("float16"),
    "layers, bfloat16, ragged": _layers("bfloat16", shape=(3, 5, 7), last=2),
    "layers, plain": _layers(scale=False, bias=False),
    "layers, scale alone": _layers(bias=False),
    "images": _images(),
    "images, bfloat16, channels last": _images("bfloat16", "nhwc"),
    "channels": _channels(),
    "channels, float16, last": _channels("float16", (2, 28, 28, 33), 3),
    "channels, bfloat16, first": _channels("bfloat16", (32,), 0),
    "channels, plain": _channels(affine=False),
    "attention": _attention(),
    "attention, bfloat16, biased": _attention("bfloat16", (2, 1, 1, 256)),
    "attention, biased": _attention("float16", (128, 256)),
    "attention, causal": _attention(causal_offset=0),
    "attention, causal, biased": _attention("bfloat16", (8, 128, 1), causal_offset=3),
    "attention, causal from the end": _attention(causal_offset=128),
    "attention, one query": _attention(sizes=Extents(2, 8, 1, 1, 1000, 128, 128)),
    "attention, ragged": _attention("bfloat16", sizes=Extents(1, 3, 3, 5, 7, 40, 80)),
    "attention, by row": _joined(),
    "attention, widest": _attention(sizes=Extents(1, 2, 2, 64, 64, 256, 256)),
}
"""Op instances by what they are; every kind of graph that our kernels ask for."""


def asked_of(name: str, capability: str = "8.0") -> Asked:
    """What is asked of cuDNN for one of them; LookupError says why nothing is."""
    call, details = FORMS[name], {"compute_capability": capability, "cudnn": "described"}
    found = table.candidates(call, replace(CARD, details=details))
    for kernel in found.fitting:
        if kernel.name.startswith("cudnn.") and not kernel.rounds:
            for step in kernel.lowered(call, CARD).steps:
                if isinstance(fn := getattr(step, "fn", None), cuda_dnn.GraphCall):
                    return fn.asked
    raise LookupError(next(why for kernel, why in found.rejected if kernel.startswith("cudnn.")))


# --- plans ----------------------------------------------------------------------------------------


def plan(name: str, capability: str) -> str:
    """The workspace that cuDNN takes for one of them on a card, or why it has no plan."""
    import cudnn

    try:
        asked = asked_of(name, capability)
    except LookupError as error:
        return f"not asked: {error.args[0]}"
    card = cudnn.create_device_properties(described(capability))
    version = round(float(capability) * 10)
    graph = cuda_dnn.graph_of(cudnn, asked, device_property=card, sm_version=version)
    try:
        taken = cuda_dnn.settle(cudnn, graph, asked)
    except cuda_dnn.Refused as error:
        return f"refused: {' '.join(str(error).split())[:300]}"
    return f"workspace {taken} of {asked.workspace}"


LOADED = re.compile(r"cu(Library|Module)(LoadData|LoadDataEx|GetKernel|GetModule|GetFunction)$")
GLOBAL = re.compile(r"cu(Library|Module)GetGlobal(_v2)?$")
ASKED = re.compile(r"cu(Kernel|Func)GetAttribute$")
DONE = re.compile(r"cu((Kernel|Func)Set\w+|(Library|Module)Unload)$")


def stub(libraries: Path, folder: Path) -> None:
    """Build a driver that loads kernels, and has no card for everything else."""
    named: set[str] = set()
    for path in libraries.glob("libcudnn*.so.9"):
        named.update(re.findall(rb"\0(cu[A-Z][A-Za-z0-9_]{3,60})(?=\0)", path.read_bytes()))
    text = []
    for symbol in sorted(name.decode() for name in named):
        if LOADED.match(symbol):
            text.append(f"int {symbol}(void **p) {{ static char x[4096]; *p = x; return 0; }}")
        elif GLOBAL.match(symbol):
            text.append(
                f"int {symbol}(void **p, unsigned long *n) {{ static char x[65536]; "
                "if (p) *p = x; if (n) *n = sizeof x; return 0; }"
            )
        elif ASKED.match(symbol):
            text.append(f"int {symbol}(int *p) {{ *p = 0; return 0; }}")
        else:
            text.append(f"int {symbol}(void) {{ return {0 if DONE.match(symbol) else 100}; }}")
    source = folder / "driver.c"
    source.write_text("\n".join(text) + "\n")
    made = folder / "libcuda.so.1"
    subprocess.run(["cc", "-w", "-shared", "-fPIC", "-o", made, source], check=True)


def plans(site: Path, capabilities: list[str]) -> Iterator[tuple[str, str, str]]:
    """Name, capability, and the outcome of each plan."""
    with tempfile.TemporaryDirectory() as folder:
        libraries = site / "nvidia" / "cudnn" / "lib"
        stub(libraries, Path(folder))
        paths = [folder, *(str(p) for p in site.glob("nvidia/*/lib")), str(libraries)]
        environment = {
            **os.environ,
            "LD_LIBRARY_PATH": ":".join(paths),
            "PYTHONPATH": f"{os.environ.get('PYTHONPATH', '')}:{site}",
        }
        for capability in capabilities:
            for name in FORMS:
                yield name, capability, _child(name, capability, environment)


def _child(name: str, capability: str, environment: dict[str, str]) -> str:
    command = [sys.executable, "-m", "tests.kernels.cudnn_plans", "--one", name, capability]
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=LIMIT, check=False
        )
    except subprocess.TimeoutExpired:
        return f"no end after {LIMIT} s"
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [""])[-1]
        return f"exit status {done.returncode}: {last[:300]}"
    return done.stdout.strip().splitlines()[-1]


def main(argv: Sequence[str]) -> None:
    """The command."""
    if argv[:1] == ["--one"]:
        print(plan(*argv[1:]))  # noqa: T201 - a table for a person
        return
    parser = argparse.ArgumentParser(prog="python -m tests.kernels.cudnn_plans")
    parser.add_argument("site", type=Path, help="where nvidia-cudnn-frontend is installed")
    parser.add_argument("capability", nargs="*", default=list(CARDS), help=", ".join(CARDS))
    given = parser.parse_args(argv)
    if not (given.site / "cudnn").is_dir():
        parser.error(
            f"{given.site} has no cudnn; pip install --target {given.site} nvidia-cudnn-frontend "
            "nvidia-cudnn-cu12"
        )
    for row in plans(given.site, given.capability):
        print(" | ".join(row), flush=True)  # noqa: T201 - a table for a person


if __name__ == "__main__":
    main(sys.argv[1:])
