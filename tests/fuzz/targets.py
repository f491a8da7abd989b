"""What reads bytes from outside, each as one function of bytes.

A target raises an ``Error`` where it refuses the bytes, Wrong where what it makes of them is not
right, and anything else is a fault.
"""

from __future__ import annotations

import io
import json
import math
import os
import random
import warnings
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import crossdock as xd
from crossdock.devices import cpu_cache
from crossdock.devices.machine import Machine
from crossdock.kernels.reference import evaluate
from crossdock.runtime import costing, kept, plan_diff
from crossdock.runtime.cli.options import Placing
from crossdock.runtime.cli.planning import Asked, plan_model
from crossdock.runtime.costing import read_costs
from crossdock.runtime.errors import Error
from crossdock.runtime.files import read_json
from crossdock.runtime.graph import Graph
from crossdock.runtime.loaders import load_source
from crossdock.runtime.loaders.source import Source
from crossdock.runtime.plan import Plan
from crossdock.runtime.tensor import to_numpy
from tests.fuzz import graphs, mutate, mutate_onnx, seeds
from tests.fuzz.peer import Peer
from tests.fuzz.watch import Wrong

Rng = random.Random
Mutate = Callable[[bytes, Rng, Sequence[bytes]], bytes]

SMALL = xd.Limits(
    file_bytes=1 << 20, nodes=500, depth=8, iterations=300, tensor_bytes=1 << 18, growth=4,
    seconds=3.0,
)  # fmt: skip
"""What a model may ask for where it is run, so that most runs are short."""


class Target:
    """One reader.

    ``share`` is its part of all executions, ``restart`` how many a process does (those that
    compile keep what they compiled). ``setup`` is called once in the process that fuzzes.
    """

    name = ""
    share = 0.0
    restart = 1 << 30
    largest = 64 << 10
    may_write: tuple[str, ...] = ()
    may_read: tuple[str, ...] | None = None

    def __init__(self, work: Path) -> None:
        self.work = work
        self.place = work / "place" / f"{self.name}-{os.getpid()}"

    def seeds(self) -> Path:
        """The folder of sound and hostile files to start from."""
        return seeds.folder(self.work, self.name)

    def setup(self) -> None:
        """Get ready."""

    def mutate(self, data: bytes, rng: Rng, donors: Sequence[bytes]) -> bytes:
        """Other bytes of the same kind."""
        return mutate.json_text(data, rng)

    def cross(self, data: bytes, donor: bytes, rng: Rng) -> bytes:
        """Bytes with a part of others in them."""
        at, end = sorted(rng.randrange(len(donor) + 1) for _ in range(2))
        place = rng.randrange(len(data) + 1)
        return data[:place] + donor[at:end] + data[place:]

    def run(self, data: bytes) -> None:
        """Read the bytes."""
        raise NotImplementedError


class Onnx(Target):
    """``xd.load`` of a model's bytes, all of it converted; one in sixteen under default limits."""

    name, share = "model", 0.34

    def mutate(self, data: bytes, rng: Rng, donors: Sequence[bytes]) -> bytes:
        return mutate_onnx.model(data, rng, donors)

    def cross(self, data: bytes, donor: bytes, rng: Rng) -> bytes:
        return mutate_onnx.crossed(data, donor, rng)

    def run(self, data: bytes) -> None:
        limits = xd.Limits() if zlib.crc32(data) % 16 == 0 else SMALL
        whole(xd.load(data, limits=limits))


def whole(graph: Graph) -> Graph:
    """The graph with every symbol bound to 2, its nodes looked at."""
    names = {d for spec in graph.inputs.values() for d in spec.shape if isinstance(d, str)}
    if names:
        graph = graph.bind(dims=dict.fromkeys(names, 2))
    if graph.staged is None:
        graph.check()
        graph.digest()
    return graph


class Run(Onnx):
    """Load, compile and run under small limits; the answer is onnxruntime's, or the reference's."""

    name, share, restart = "run", 0.02, 3_000

    def seeds(self) -> Path:
        return seeds.folder(self.work, Onnx.name)

    def setup(self) -> None:
        self.peer = Peer()
        with xd.compile(graphs.graph(), ["cpu:0"], threads=1, measure=False) as session:
            session.run({"x": graphs.X})

    def run(self, data: bytes) -> None:
        graph = whole(xd.load(data, limits=SMALL))
        if any(
            math.prod(d for d in s.shape if isinstance(d, int)) > MOST
            for s in graph.inputs.values()
        ):
            return  # nobody could feed it
        feeds = drawn(graph)
        with xd.compile(graph, ["cpu:0"], threads=1, measure=False) as session:
            out = session.run(feeds, timeout=8.0)
        if _chancy(data) or not out:
            return
        peer = self.peer.run(data, feeds)
        if peer is not None and not differs(out, peer):
            return
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reference = evaluate(graph, feeds, dtype="float64")
        said = differs(out, reference)
        if said:
            raise Wrong(f"{_ops(data)}: {said}")
        if peer is not None:
            self.peer.note(_ops(data), differs(out, peer), data)


MOST = 1 << 24
"""Elements of an input that is drawn."""


def drawn(graph: Graph) -> dict[str, Any]:
    """Small numbers for the inputs, the same for the same shapes."""
    rng = np.random.default_rng(0)
    fed: dict[str, Any] = {}
    for name, spec in graph.inputs.items():
        dtype = np.dtype(to_numpy(spec.dtype))
        shape = tuple(d for d in spec.shape if isinstance(d, int))
        if dtype.kind == "f" or dtype.name == "bfloat16":
            fed[name] = rng.standard_normal(shape).astype(dtype)
        else:
            fed[name] = rng.integers(0, 2 if dtype.kind == "b" else 4, shape).astype(dtype)
    return fed


def _ops(data: bytes) -> str:
    proto = mutate_onnx.parsed(data)
    return "+".join(sorted({n.op_type for n in proto.graph.node}))[:80]


def _chancy(data: bytes) -> bool:
    """Whether a model has an operator that draws at random."""
    names = (b"Random", b"Bernoulli", b"Multinomial", b"Dropout")
    return any(name in data for name in names)


def differs(out: dict[str, Any], other: dict[str, Any]) -> str:
    """How two answers differ, beyond rounding; empty where they do not."""
    for name, value in out.items():
        if name not in other or not isinstance(value, np.ndarray):
            continue
        said = _differs(value, np.asarray(other[name]))
        if said:
            return f"output {name!r:.40}: {said}"
    return ""


def _differs(a: Any, b: Any) -> str:
    if a.shape != b.shape:
        return f"shape {list(a.shape)} for {list(b.shape)}"
    if a.dtype == object or b.dtype == object or not a.size:
        return "" if not a.size or (a == b).all() else f"{a!r:.60} for {b!r:.60}"
    x, y = a.astype(np.complex128), b.astype(np.complex128)
    both = np.isfinite(x) & np.isfinite(y)
    slack = {2: 2e-2, 1: 2e-2}.get(a.dtype.itemsize, 1e-3)
    largest = float(np.abs(y[both]).max(initial=0.0))
    whole = a.dtype.kind in "iub"
    most = slack * largest + (1.0 if whole and a.dtype.itemsize == 1 else 1e-4)
    with np.errstate(invalid="ignore"):
        off = (np.abs(x - y) > most) & both
    # Not-a-numbers and infinities come where rounding has them come; two answers that have them in
    # other places are not held against each other there, unless one has none at all.
    if not off.any():
        return ""
    at = np.unravel_index(int(np.argmax(off)), a.shape) if a.ndim else ()
    return f"{a[at]} for {b[at]} at {[int(i) for i in at]}"


class External(Target):
    """A model with data in other files, in a folder with links, pipes and files of others."""

    name, share = "external", 0.1

    def mutate(self, data: bytes, rng: Rng, donors: Sequence[bytes]) -> bytes:
        return mutate_onnx.model(data, rng, donors, external=True)

    def cross(self, data: bytes, donor: bytes, rng: Rng) -> bytes:
        return mutate_onnx.crossed(data, donor, rng)

    def setup(self) -> None:
        inside, outside = self.place / "m", self.place / "elsewhere"
        for place in (inside / "a" / "b", inside / "dir", outside):
            place.mkdir(parents=True)
        floats = np.arange(6, dtype=np.float32).tobytes()
        for path in (inside / "w", inside / "a" / "b" / "w", inside / "%77"):
            path.write_bytes(floats)
        (outside / "w").write_bytes(SECRET * 3)
        (inside / "link").symlink_to(outside / "w")
        (inside / "d").symlink_to(outside)
        (inside / "circle").symlink_to("circle")
        os.link(outside / "w", inside / "hard")
        os.mkfifo(inside / "pipe")
        self.path = inside / "model.onnx"
        self.may_read = (str(inside),)

    def run(self, data: bytes) -> None:
        if not data:
            return
        here = self.path.parent
        roots = (here.resolve(),)
        graph = whole(load_source(Source(data, "model.onnx", here, roots, SMALL)))
        if any(SECRET in np.asarray(a).tobytes() for a in graph.constants.values()):
            raise Wrong("it read a file of another folder")


SECRET = b"secret!!"


class Tensors(Target):
    """``xd.load_tensors``; an npy or npz that numpy reads as well holds what numpy says."""

    name, share = "tensors", 0.2

    def setup(self) -> None:
        self.place.mkdir(parents=True)
        self.path = self.place / "w.bin"

    def mutate(self, data: bytes, rng: Rng, donors: Sequence[bytes]) -> bytes:
        return mutate.tensors(data, rng)

    def run(self, data: bytes) -> None:
        fd = os.memfd_create("w")
        try:
            os.write(fd, data)
            arrays = xd.load_tensors(f"/proc/self/fd/{fd}", limits=SMALL)
        finally:
            os.close(fd)
        for name, array in arrays.items():
            array.reshape(-1).view(np.uint8)[:0].tobytes()
            if not (array.flags.writeable and array.flags.aligned):
                raise Wrong(f"array {name!r:.40} is not the caller's own")
        if data.startswith((b"\x93NUMPY", b"PK")):
            _as_numpy(data, arrays)


def _as_numpy(data: bytes, arrays: dict[str, Any]) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = np.load(io.BytesIO(data), allow_pickle=False)
            held = dict(found) if hasattr(found, "files") else dict.fromkeys(arrays, found)
    except Exception:  # noqa: BLE001 - numpy refuses it, in some way
        return
    if len(held) != len(arrays):
        raise Wrong(f"{len(arrays)} arrays, numpy has {len(held)}")
    for name, array in arrays.items():
        other = held[name]
        other = other.astype(other.dtype.newbyteorder("="))
        if array.shape != other.shape or array.dtype != other.dtype:
            raise Wrong(f"{array.dtype}{array.shape} where numpy has {other.dtype}{other.shape}")
        if array.tobytes() != other.tobytes():
            raise Wrong("other values than numpy has")


class Plans(Target):
    """``Plan.loads``, what is told of the plan, and running it: right, or refused."""

    name, share, restart = "plan", 0.1, 50_000

    def setup(self) -> None:
        graphs.quiet()
        self.sound = list(graphs.plans())

    def run(self, data: bytes) -> None:
        plan = Plan.loads(data)
        if Plan.loads(plan.dumps()) != plan:
            raise Wrong("written and read again, it is another plan")
        plan.explain()
        plan.to_json()
        for step in plan.launches():
            plan.explain_op(step.name)
        plan_diff.diff(plan, self.sound[0]).to_json()
        plan_diff.diff(self.sound[1], plan).to_json()
        pins = {s.name: s.device for s in plan.launches() if s.device in ("cpu:0", *graphs.SIMS)}
        rules = xd.Constraints(pin={n: d for n, d in pins.items() if n in graphs.NAMES})
        with xd.compile(graphs.graph(), plan=plan, constraints=rules, measure=False) as session:
            out = session.run({"x": graphs.X}, timeout=8.0)["y"]
        if not np.allclose(out, graphs.want(), rtol=1e-4, atol=1e-4):
            raise Wrong("the plan ran, and gave another answer")


class Machines(Target):
    """A machine profile, and a plan for that machine."""

    name, share = "machine", 0.1

    def setup(self) -> None:
        self.place.mkdir(parents=True)

    def run(self, data: bytes) -> None:
        machine = Machine.from_json(_json(data, "machine profile"))
        again = Machine.from_json(json.loads(json.dumps(machine.to_json(), allow_nan=False)))
        if again != machine:
            raise Wrong("written and read again, it is another machine")
        plan = plan_model(graphs.graph(), Placing(), Asked(), machine).plan
        plan.dumps()
        plan.explain()


def _json(data: bytes, what: str) -> Any:
    fd = os.memfd_create("file.json")
    try:
        os.write(fd, data)
        return read_json(f"/proc/self/fd/{fd}", what)
    finally:
        os.close(fd)


class Costs(Target):
    """A file of measured costs, and planning with them."""

    name, share = "costs", 0.06

    def run(self, data: bytes) -> None:
        fd = os.memfd_create("costs.json")
        try:
            os.write(fd, kept.sealed(data) if data[:1] == b"{" else data)
            held = read_costs(Path(f"/proc/self/fd/{fd}"))
        finally:
            os.close(fd)
        model = xd.scheduler.CostModel.from_json(held)
        text = json.dumps(model.to_json())
        xd.scheduler.CostModel.from_json(json.loads(text))


class Problems(Target):
    """An instance of the scheduling problem, read and solved by a heuristic."""

    name, share = "problem", 0.05

    def run(self, data: bytes) -> None:
        from crossdock.scheduler.policies import schedule

        try:
            instance = json.loads(data)
        except (ValueError, RecursionError):
            return
        problem = xd.scheduler.Problem.from_json(instance)
        if len(problem.task_ids) > 50:
            return
        schedule(problem, "heft").to_json()


class Kept(Target):
    """A damaged file in the cache: made anew, with the right answer and not a word."""

    name, share, restart = "kept", 0.03, 5_000

    def setup(self) -> None:
        self._fill()
        self.may_write = (str(self.cache), str(self.place))

    def _fill(self) -> None:
        self.cache = self.place / "cache"
        self.cache.mkdir(parents=True, mode=0o700, exist_ok=True)
        os.environ["CROSSDOCK_CACHE_DIR"] = str(self.cache)
        costing.store.cache_clear()
        graphs.quiet()
        self.model = graphs.model_file(self.place)
        self.want = graphs.opened(self.model)
        graphs.opened(self.model)
        costing.store().save()
        self.files = sorted(p for p in self.cache.rglob("*") if p.is_file())
        self.held = {p: p.read_bytes() for p in self.files}

    def seeds(self) -> Path:
        place = self.place / "seeds"
        if not place.exists():
            self._fill()
            place.mkdir(parents=True)
            for index, path in enumerate(self.files):
                (place / str(index)).write_bytes(bytes([index]) + self.held[path])
        return place

    def mutate(self, data: bytes, rng: Rng, donors: Sequence[bytes]) -> bytes:
        if not data or rng.random() < 0.05:
            return mutate.plain(data, rng)
        change = mutate.json_text if data[1:2] == b"{" else mutate.plain
        return data[:1] + change(data[1:], rng)

    def run(self, data: bytes) -> None:
        if not data:
            return
        path = self.files[data[0] % len(self.files)]
        path.write_bytes(data[1:])
        try:
            self._open(path)
        except Error as error:
            raise Wrong(f"a damaged file in the cache is an error: {error}") from error
        finally:
            path.write_bytes(self.held[path])
            for extra in set(self.cache.rglob("*")) - {
                *self.files,
                *(p.parent for p in self.files),
            }:
                if extra.is_file():
                    extra.unlink()

    def _open(self, path: Path) -> None:
        if path.parent.name == "native":
            found = cpu_cache.load(path.name)
            if found is not None and found != self.held[path][32:]:
                raise Wrong("damaged machine code is taken")
        elif path.name == costing.CostStore.FILE:
            costing.CostStore().save()
        else:
            if not np.array_equal(graphs.opened(self.model), self.want):
                raise Wrong("another answer from a damaged cache")


TARGETS: dict[str, type[Target]] = {
    kind.name: kind
    for kind in (Onnx, External, Tensors, Plans, Machines, Costs, Problems, Run, Kept)
}
"""By name."""
