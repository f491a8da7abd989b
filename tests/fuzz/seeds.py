"""Sound and hostile files to start from: a folder of them for each kind of file.

ONNX: the corpus of hostile files, what the package ``onnx`` has for its operators, and the small
models at hand. They are made once a folder, since the package takes half a minute.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

from tests.fuzz.watch import ROOT

LARGEST = 64 << 10
"""Bytes of a seed: a fuzzer changes little of a large file."""


def folder(work: Path, kind: str) -> Path:
    """The folder of a kind's seeds, filled where it is not there."""
    place = work / "seeds" / kind
    if place.is_dir():
        return place
    made = place.with_name(f"{kind}.new")
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    for data in MAKERS[kind]():
        if 0 < len(data) <= LARGEST:
            (made / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
    made.rename(place)
    return place


def read(place: Path) -> list[bytes]:
    """The seeds of a folder, smallest first."""
    return sorted((f.read_bytes() for f in place.iterdir()), key=lambda d: (len(d), d))


def _hostile(reader: str) -> Iterator[bytes]:
    """The corpus's files of a reader, but the large and the strange ones."""
    from tests.runtime.hostile.kit import corpus

    for case in corpus(0):
        if case.reader != reader or case.slow or case.kind in ("large", "other-file"):
            continue
        with tempfile.TemporaryDirectory() as place:
            path = case.build(Path(place))
            if path.is_file() and path.is_relative_to(place) and path.stat().st_size <= LARGEST:
                yield path.read_bytes()


def _operators() -> Iterator[bytes]:
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package's own, of its arithmetic
        for case in collect_testcases(None):
            yield case.model.SerializeToString()


def _models() -> Iterator[bytes]:
    yield from _hostile("model")
    yield from _operators()
    import onnx

    packaged = Path(onnx.__file__).parent / "backend" / "test" / "data"
    for place in (packaged, ROOT / ".models"):
        for path in sorted(place.rglob("*.onnx")):
            if path.stat().st_size <= LARGEST:
                yield path.read_bytes()


def _external() -> Iterator[bytes]:
    from tests.runtime.hostile.external import ROWS, holding, tensor

    for entries, _, _ in ROWS.values():
        for place in ("initialiser", "constant", "branch"):
            yield holding(tensor(entries), place).SerializeToString()


def _plans() -> Iterator[bytes]:
    from tests.fuzz.graphs import plans

    yield from _hostile("plan")
    yield from (plan.dumps().encode() for plan in plans())


def _machines() -> Iterator[bytes]:
    from crossdock.devices import machines

    yield from _hostile("machine")
    for name in machines.names():
        form = machines.read(name).to_json()
        yield json.dumps(form).encode()
        form["devices"], form["links"] = form["devices"][:1], []
        yield json.dumps(form).encode()


def _costs() -> Iterator[bytes]:
    from tests.fuzz.graphs import costs

    yield from _hostile("costs")
    yield json.dumps(costs().to_json()).encode()


def _problems() -> Iterator[bytes]:
    rng = random.Random(0)
    for devices in (1, 2, 3):
        ids = [f"d{i}" for i in range(devices)]
        tasks = [
            {"id": f"t{i}", "cost": [rng.choice((1.0, 2.5, None)) for _ in ids[1:]] + [3.0],
             "out_bytes": 8, "param_bytes": 0}
            for i in range(6)
        ]  # fmt: skip
        yield json.dumps({
            "devices": [{"id": d, "name": d, "kind": "cpu", "mem_bytes": 1e9} for d in ids],
            "links": [{"a": a, "b": b, "bw": 1e3, "lat": 0.1} for a in ids for b in ids if a < b],
            "tasks": tasks,
            "edges": [[f"t{i}", f"t{j}", 8] for i in range(6) for j in range(i + 1, 6)
                      if (i + j) % 3],
        }).encode()  # fmt: skip


MAKERS = {
    "model": _models,
    "external": _external,
    "tensors": lambda: _hostile("tensors"),
    "plan": _plans,
    "machine": _machines,
    "costs": _costs,
    "problem": _problems,
}
