"""Runs, loads and failed loads by the thousand: nothing grows (S1, S2, S3)."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

import numpy as np

import crossdock as xd
from crossdock.devices import registry
from crossdock.runtime.errors import Error
from tests.soak import graphs
from tests.soak.figures import Figure
from tests.soak.usage import Usage, own_temporary_files, settled

WARM_UP = 2_000
ROWS = (1, 4, 16, 33)


def runs(count: int) -> list[Figure]:
    """``count`` runs over four shapes, on each device and on both at once."""
    with own_temporary_files():
        return _runs(count)


def _runs(count: int) -> list[Figure]:
    made = graphs.sessions()
    cases = [(name, rows, seed) for name in made for rows in ROWS for seed in (1, 2)]
    wants = {c: made[c[0]].run(graphs.feeds(*c[1:])) for c in cases}
    fed = {c: graphs.feeds(*c[1:]) for c in cases}
    dice = random.Random(1)
    wrong = sum(_wrong(made, fed, wants, dice.choice(cases)) for _ in range(WARM_UP))
    devices = {id(d): d for s in made.values() for d in s.devices.values()}.values()
    before = Usage.now(devices)
    wrong += sum(_wrong(made, fed, wants, dice.choice(cases)) for _ in range(count))
    after = settled(lambda: Usage.now(devices), before)
    graphs.close(made)
    name = "S1"
    return [
        Figure(name, f"wrong of {count:,} runs", wrong, 0),
        *after.figures(name, before),
        Figure(name, "growth of temporary files", after.files - before.files, 0),
    ]


def _wrong(made: dict, fed: dict, wants: dict, case: tuple) -> bool:  # type: ignore[type-arg]
    return not graphs.same(made[case[0]].run(fed[case]), wants[case])


def _model(folder: Path) -> Path:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    w = numpy_helper.from_array(np.ones((64, 64), np.float32), "w")
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [8, 64]) for n in "xy")
    model = helper.make_model(helper.make_graph(nodes, "m", [x], [y], [w]))
    path = folder / "model.onnx"
    onnx.save(model, str(path))
    return path


def loads(count: int) -> list[Figure]:
    """Load, compile, run and close; then files cut off or damaged at a random byte.

    As many are done beforehand: Python keeps up to 2,000 free tuples of each size below 20, some
    1.5 MB, and it takes about 1,000 loads to fill that store.
    """
    with tempfile.TemporaryDirectory() as folder:
        return [*_good(_model(Path(folder)), count), *_bad(Path(folder), count)]


def _good(path: Path, count: int) -> list[Figure]:
    x = np.ones((8, 64), np.float32)

    def once() -> bool:
        with xd.compile(xd.load(path), "cpu:0", measure=False) as session:
            return bool(session.run({"x": x})["y"][0, 0] == 64)

    wrong = sum(not once() for _ in range(max(50, count)))
    devices = [registry.open_device("cpu:0")]
    before = Usage.now(devices)
    wrong += sum(not once() for _ in range(count))
    after = settled(lambda: Usage.now(devices), before)
    return [Figure("S2", f"wrong of {count:,} loads", wrong, 0), *after.figures("S2", before)]


def _bad(folder: Path, count: int) -> list[Figure]:
    good, dice = (folder / "model.onnx").read_bytes(), random.Random(2)
    path = folder / "bad.onnx"

    def once() -> bool:
        """Whether it ends as it should: in a typed error, or in a legal model."""
        bad = bytearray(good[: dice.randrange(1, len(good))])
        bad[dice.randrange(min(len(bad), 400))] ^= 1 << dice.randrange(8)
        path.write_bytes(bad)
        try:
            xd.load(path)
        except Error:
            return True
        return True

    for _ in range(max(100, count)):
        once()
    before = Usage.now()
    for _ in range(count):
        once()
    after = settled(Usage.now, before)
    return after.figures("S3", before)
