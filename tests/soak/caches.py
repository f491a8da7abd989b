"""Processes that share a cache while another one damages it: no crash, nothing wrong (S9).

Eight builders fork a child for each build, so that every build reads what the folder holds at that
moment. Only the project's own cache is damaged: what a driver keeps elsewhere is the driver's.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np

from crossdock.devices import registry
from tests.soak.figures import Figure

BUILDERS = 8
MODELS = 25
"""Few enough that most builds find something kept, more or less whole."""
PAUSE = 0.1
NAME = "S9"
UNSET = {"CROSSDOCK_CACHE_DIR", "PYTHONDONTWRITEBYTECODE"}

BUILD = """
import os, random, sys, traceback
from pathlib import Path
import numba  # what needs no device may be loaded before the fork
import numpy as np
import crossdock as xd
import crossdock.kernels, crossdock.runtime.prepare, crossdock.runtime.session

def build(model, devices):
    known = np.load(model.with_suffix(".npz"))
    with xd.compile(xd.load(model), devices, measure=0.02) as session:
        found = session.run({"x": known["x"]})
    assert np.array_equal(found["y"], known["y"])  # whole numbers, exact wherever computed
    assert np.array_equal(found["s"], known["s"])

folder, seed, builds, *devices = sys.argv[1:]
models = sorted(Path(folder).glob("*.onnx"))
dice = random.Random(int(seed))
for _ in range(int(builds)):
    model, device = dice.choice(models), dice.choice(devices)
    child = os.fork()
    if not child:
        status = 3
        try:
            build(model, device)
            status = 0
        except AssertionError:
            status = 1
        except BaseException:
            traceback.print_exc()
            status = 2
        finally:
            sys.stderr.flush()
            os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
RIGHT, WRONG, RAISED = 0, 1, 2


KINDS = frozenset({"native", "graphs", "costs", "machine"})
OF_DRIVERS = {"Portable": "pocl", "": "opencl"}
"""What a driver's programs are kept as, by what it is called."""


def shared(builds: int) -> list[Figure]:
    """``builds`` builds in all, by eight processes, on the host and every OpenCL device."""
    dice, damaged, each = random.Random(9), Counter[str](), -(-builds // BUILDERS)
    found = registry.probe_all(["opencl"])[0].devices
    devices = ["cpu:0", *(d.id for d in found)]
    kinds = KINDS | {next(k for n, k in OF_DRIVERS.items() if n in d.driver) for d in found}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for index in range(MODELS):
            _model(folder / f"{index}.onnx", index)
        builders = [_builder(folder, seed, each, devices) for seed in range(BUILDERS)]
        while any(builder.poll() is None for builder in builders):
            with suppress(OSError):  # it was replaced meanwhile
                damaged[_damage(folder / "crossdock", dice.choice(sorted(kinds)), dice)] += 1
            time.sleep(PAUSE)
        ends, said = Counter[int](), Counter[str]()
        for seed in range(BUILDERS):
            ends.update(map(int, (folder / f"{seed}.out").read_text("ascii").split()))
            said.update((folder / f"{seed}.err").read_text("utf-8").splitlines())
    del damaged[""]
    for line, count in said.items():
        print(f"{count:6} x {line}", file=sys.stderr)  # noqa: T201 - a driver's, or an error
    what = f"of {each * BUILDERS:,} builds, {damaged.total():,} files damaged"
    crashed = sum(count for end, count in ends.items() if end not in (RIGHT, WRONG, RAISED))
    return [
        Figure(NAME, f"crashes {what}", crashed, 0),
        Figure(NAME, f"wrong {what}", ends[WRONG], 0),
        Figure(NAME, f"errors {what}", ends[RAISED], 0),
        Figure(NAME, f"without an end {what}", each * BUILDERS - ends.total(), 0),
        Figure(NAME, "builds for each file that was damaged", _share(each, damaged.total()), 1),
        Figure(NAME, "kinds of files that never were", len(kinds - damaged.keys()), 0),
    ]


def _model(path: Path, seed: int) -> None:
    """A model, and feeds with what it gives, in a file beside it."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(seed)
    rows, columns = 4 + seed, 16 + 8 * (seed % 4)
    x, w, c = (
        rng.integers(-4, 5, dims).astype(np.float32)
        for dims in ((rows, columns), (columns, 32), (32,))
    )
    nodes = [
        helper.make_node("Gemm", ["x", "w", "c"], ["y"]),
        helper.make_node("Abs", ["y"], ["z"]),
        helper.make_node("ReduceSum", ["z", "axes"], ["s"], keepdims=0),
    ]
    weights = {"w": w, "c": c, "axes": np.array([1])}
    named = {"x": x.shape, "y": (rows, 32), "s": (rows,)}
    value = {n: helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in named.items()}
    graph = helper.make_graph(
        nodes,
        "shared",
        [value["x"]],
        [value["y"], value["s"]],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), str(path))
    y = x @ w + c
    np.savez(path.with_suffix(".npz"), x=x, y=y, s=np.abs(y).sum(axis=1))


def _builder(folder: Path, seed: int, builds: int, devices: list[str]) -> subprocess.Popen[bytes]:
    with (folder / f"{seed}.out").open("wb") as out, (folder / f"{seed}.err").open("wb") as err:
        return subprocess.Popen(
            [sys.executable, "-c", BUILD, str(folder), str(seed), str(builds), *devices],
            env={k: v for k, v in os.environ.items() if k not in UNSET}
            | {"XDG_CACHE_HOME": str(folder)},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
        )


def _share(each: int, damaged: int) -> float:
    return round(each * BUILDERS / max(1, damaged), 3)


def _damage(cache: Path, kind: str, dice: random.Random) -> str:
    """Damage a file of a kind, in one of several ways; the kind, or nothing where there is none."""
    files = [*(cache / kind).glob("*"), *cache.glob(f"{kind}*.json")]
    files = [file for file in files if not file.name.startswith("new-")]
    if not files:
        return ""
    one, other = dice.choice(files), dice.choice(files)
    content = bytearray(one.read_bytes())
    match dice.randrange(7):
        case 0:
            one.write_bytes(content[: dice.randrange(200)])
        case 1:
            one.write_bytes(dice.randbytes(dice.randrange(2_000)))
        case 2:  # whole and sound, but another's
            one.write_bytes(other.read_bytes())
        case 3:
            one.unlink()
        case 4:
            one.chmod(0o666)
        case 5:
            one.write_bytes(bytes(len(content)))
        case _ if content:
            content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
            one.write_bytes(content)
    return kind
