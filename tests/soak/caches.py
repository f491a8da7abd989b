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

from tests.soak import graphs
from tests.soak.figures import Figure

BUILDERS = 8
SHAPES = 25
"""Graphs that differ: few enough that most builds find something kept, more or less whole."""
PAUSE = 0.002
NAME = "S9"

BUILD = f"""
import os, random, sys, traceback
import numba  # of what a build needs, all that may be loaded before the fork
import numpy as np
import crossdock as xd

def build(shape, devices):
    rng = np.random.default_rng(shape)
    rows, columns = 4 + shape, 16 + 8 * (shape % 4)
    draw = lambda *dims: rng.integers(-4, 5, dims).astype(np.float32)
    x, w, c = draw(rows, columns), draw(columns, 32), draw(32)
    b = xd.GraphBuilder()
    y = b.add(b.matmul(b.input("x", x.shape), b.constant(w)), b.constant(c))
    z = b.max(y, b.neg(y), label="z")
    graph = b.build({{"y": y, "sum": b.reduce_sum(z, axes=[1])}})
    want = x @ w + c  # whole numbers, which are exact wherever they are computed
    with xd.compile(graph, devices, measure=0.02) as session:
        found = session.run({{"x": x}})
    assert np.array_equal(found["y"], want)
    assert np.array_equal(found["sum"], np.abs(want).sum(axis=1))

seed, builds, *devices = sys.argv[1:]
dice = random.Random(int(seed))
for _ in range(int(builds)):
    shape, device = dice.randrange({SHAPES}), dice.choice(devices)
    child = os.fork()
    if not child:
        status = 3
        try:
            build(shape, device)
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


KINDS = frozenset({"native", "opencl", "graphs", "costs", "machine"})


def shared(builds: int) -> list[Figure]:
    """``builds`` builds in all, by eight processes, on the host and the first OpenCL device."""
    dice, damaged = random.Random(9), Counter[str]()
    each, devices = -(-builds // BUILDERS), ["cpu:0", *graphs.opencl()]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        builders = [_builder(folder, seed, each, devices) for seed in range(BUILDERS)]
        while any(builder.poll() is None for builder in builders):
            with suppress(OSError):  # it was replaced meanwhile
                damaged[_damage(folder / "crossdock", dice)] += 1
            time.sleep(PAUSE)
        ends, said = Counter[int](), Counter[str]()
        for seed in range(BUILDERS):
            ends.update(map(int, (folder / f"{seed}.out").read_text("ascii").split()))
            said.update((folder / f"{seed}.err").read_text("utf-8").splitlines())
    del damaged[""]
    for line, count in said.items():
        print(f"{count:6} x {line}", file=sys.stderr)  # noqa: T201 - what went wrong
    kinds = KINDS if len(devices) > 1 else KINDS - {"opencl"}
    what = f"of {each * BUILDERS:,} builds, {damaged.total():,} files damaged"
    crashed = sum(count for end, count in ends.items() if end not in (RIGHT, WRONG, RAISED))
    return [
        Figure(NAME, f"crashes {what}", crashed, 0),
        Figure(NAME, f"wrong {what}", ends[WRONG], 0),
        Figure(NAME, f"errors {what}", ends[RAISED], 0),
        Figure(NAME, f"without an end {what}", each * BUILDERS - ends.total(), 0),
        Figure(NAME, "lines on standard error", said.total(), 0),
        Figure(NAME, "builds for each file that was damaged", _share(each, damaged.total()), 1),
        Figure(NAME, "kinds of files that never were", len(kinds - damaged.keys()), 0),
    ]


def _builder(folder: Path, seed: int, builds: int, devices: list[str]) -> subprocess.Popen[bytes]:
    with (folder / f"{seed}.out").open("wb") as out, (folder / f"{seed}.err").open("wb") as err:
        return subprocess.Popen(
            [sys.executable, "-c", BUILD, str(seed), str(builds), *devices],
            env={**os.environ, "XDG_CACHE_HOME": str(folder)},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
        )


def _share(each: int, damaged: int) -> float:
    return round(each * BUILDERS / max(1, damaged), 3)


def _damage(cache: Path, dice: random.Random) -> str:
    """Damage a file of a kind, in one of several ways; the kind, or nothing where there is none."""
    kind = dice.choice(sorted(KINDS))
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
