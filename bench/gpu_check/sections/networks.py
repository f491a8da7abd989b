"""Whole networks against torch: eager, compiled, and replayed from a CUDA graph.

Inputs and outputs stay on the card; the first networks are run from host to host, too. Runs are
interleaved, and what counts is the ratio of medians: the best peer's time over ours, above 1 where
we are faster.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import crossdock as xd
from bench.gpu_check.nets import NETS, TINY, Net
from bench.gpu_check.nets_ours import graph
from bench.gpu_check.place import Place, geomean
from bench.gpu_check.report import Report
from bench.gpu_check.sections.models import error_of
from bench.timing import interleaved

ROUNDS = 40
COMPILING = 0.45
"""Share of the section's time that torch.compile may take."""
LAUNCH_BOUND = 1.5
"""Torch's eager time over its graph's, from which on a network hangs on its launches."""


@dataclass(frozen=True)
class Precision:
    """A storage type, whether float32 may be rounded to TF32, and the error that is allowed.

    ``ours`` is what ``compile`` is told for it.
    """

    name: str
    dtype: str
    tf32: bool
    error: float
    ours: str = ""


EXACT = Precision("float32", "float32", False, 1e-3)
TF32 = Precision("TF32", "float32", True, 3e-2, "high")
HALF = Precision("float16", "float16", False, 5e-2)
ORDER = (
    (1, EXACT), (8, HALF), (64, EXACT), (8, TF32), (1, HALF), (64, HALF), (64, TF32), (8, EXACT),
    (1, TF32),
)  # fmt: skip
"""What is measured first where time is short."""


def every(
    order: Sequence[tuple[int, Precision]], nets: Sequence[Net]
) -> list[tuple[int, Precision, Net, bool]]:
    """What is compared; the first batch and precision from host to host, too."""
    return [
        (batch, precision, net, resident)
        for i, (batch, precision) in enumerate(order)
        for resident in ((True, False) if i == 0 else (True,))
        for net in nets
    ]


@dataclass
class Result:
    """Seconds of a network by runner, at a batch and a precision.

    ``off``: predicted over measured, or its inverse, of our run.
    """

    net: str
    batch: int
    times: dict[str, float]
    off: float

    @property
    def ratio(self) -> float:
        """The best peer's time over ours."""
        return min(t for name, t in self.times.items() if name != "ours") / self.times["ours"]

    @property
    def launch_bound(self) -> bool:
        """Whether torch's time is that of its launches."""
        graphs = self.times.get("graphs")
        return graphs is not None and self.times["eager"] > LAUNCH_BOUND * graphs


@dataclass
class Comparison:
    """What has been measured, and the seconds that torch.compile has taken each time."""

    place: Place
    report: Report
    results: list[Result] = field(default_factory=list)
    compiling: list[float] = field(default_factory=list)
    longest: float = 0.0

    @property
    def plan(self) -> list[tuple[int, Precision, Net, bool]]:
        """Batch, precision, network, and whether its values are resident, in order."""
        return every(((2, EXACT), (1, TF32)), TINY) if self.place.rehearsal else every(ORDER, NETS)

    @property
    def may_compile(self) -> bool:
        """Whether torch.compile has time left."""
        return sum(self.compiling) < COMPILING * self.place.seconds

    def run(self, net: Net, batch: int, precision: Precision, *, resident: bool) -> None:
        """Measure one network; what goes wrong costs no other one."""
        from bench.gpu_check import nets_torch

        how = "" if resident else ", from host to host"
        what = f"{net.name}, batch {batch}, {precision.name}{how}"
        needed = self.longest + max(self.compiling, default=0.0) * self.may_compile
        if self.place.left < 1.2 * needed + 5:
            self.report.not_run(what, "out of time; --seconds gives more")
            return
        begun, compiled = time.monotonic(), sum(self.compiling)
        try:
            self._measure(net, batch, precision, what, resident=resident)
        except Exception as error:  # noqa: BLE001 - whatever it is, the next network is another
            self.report.failed(what, f"{type(error).__name__}: {' '.join(str(error).split())}")
        nets_torch.give_back()
        seconds = time.monotonic() - begun - (sum(self.compiling) - compiled)
        self.longest = max(self.longest, seconds)

    def _measure(
        self, net: Net, batch: int, precision: Precision, what: str, *, resident: bool
    ) -> None:
        from bench.gpu_check import nets_torch

        options: dict[str, Any] = {"precision": precision.ours} if precision.ours else {}
        feeds = net.feeds(batch, precision.dtype)
        where = "cpu" if self.place.rehearsal else "cuda"
        nets_torch.tf32(precision.tf32)
        peers = nets_torch.Peers(net, batch, precision.dtype, where, feeds, resident=resident)
        runs, notes = self._peers(peers)
        made = graph(net, batch, precision.dtype)
        given: dict[str, Any] = peers.feeds if resident else feeds
        if resident:
            options["outputs"] = "device"
            options["feeds_on"] = None if self.place.rehearsal else self.place.device
        with xd.compile(made, self.place.device, **options) as session:
            found, want = session.run(given)["y"], runs["eager"]()
            error = error_of(nets_torch.on_host(found), nets_torch.on_host(want))
            self.report.bound(f"{what}: error", error, f"<= {precision.error:g}")
            runs["ours"] = lambda: session.run(given)
            times = interleaved(runs, self.place.size(ROUNDS, 3), self.place.seconds / 60)
            predicted = session.estimate().seconds
            ours = times["ours"]
            result = Result(net.name, batch, times, max(predicted / ours, ours / predicted))
        self.results.append(result)
        said = ", ".join(f"{name} {t * 1e3:.3g}" for name, t in times.items())
        note = "; ".join([f"ms: {said}", *notes])
        self.report.figure(f"{what}: ratio", result.ratio, "x", ">= 0.8", note)

    def _peers(self, peers: Any) -> tuple[dict[str, Callable[[], Any]], list[str]]:
        """Torch's ways that work here, run once, and why others do not."""
        runs, notes = {"eager": peers.eager()}, []
        ways: dict[str, Callable[[], Callable[[], Any]]] = {}
        if not self.place.rehearsal:
            ways["graphs"] = peers.graphs
            if self.may_compile:
                ways["compiled"] = peers.compiled
            else:
                notes.append("not compiled: out of time")
        for name, make in ways.items():
            begun = time.monotonic()
            try:
                runs[name] = make()
                for _ in range(3):  # torch.compile records its graphs at the second run
                    runs[name]()
            except Exception as error:  # noqa: BLE001 - a peer that fails is no comparison
                runs.pop(name, None)
                notes.append(f"no {name}: {' '.join(str(error).split())[:80]}")
            if name == "compiled":
                self.compiling.append(time.monotonic() - begun)
        return runs, notes

    def conclude(self) -> None:
        """The means over all networks, and how good the predictions were."""
        if not self.results:
            return
        ratios = [result.ratio for result in self.results]
        self.report.figure(f"geometric mean of {len(ratios)} ratios", geomean(ratios), "x",
                           ">= 1.0")  # fmt: skip
        whole = sum({"graphs", "compiled"} <= r.times.keys() for r in self.results)
        self.report.figure("networks beside all three of torch's ways", whole, "networks",
                           note=f"of {len(self.plan)}; --seconds gives more")  # fmt: skip
        bound = [r.ratio for r in self.results if r.batch == 1 and r.launch_bound]
        if bound:
            self.report.figure(f"the same of {len(bound)} that hang on launches", geomean(bound),
                               "x", ">= 1.2")  # fmt: skip
        else:
            self.report.not_run("the same of those that hang on launches",
                                "of batch 1, torch's graph is nowhere so much faster")  # fmt: skip
        off = [result.off for result in self.results]
        self.report.figure(
            "predicted over measured, or its inverse: geometric mean", geomean(off), "x", "<= 1.25"
        )
        self.report.figure("the same, worst", max(off), "x")


def run(place: Place, report: Report) -> None:
    """Every network at every batch and precision, as far as the time goes."""
    if importlib.util.find_spec("torch") is None:
        report.not_run("networks", "torch is not installed")
        return
    comparison = Comparison(place, report)
    for batch, precision, net, resident in comparison.plan:
        comparison.run(net, batch, precision, resident=resident)
    comparison.conclude()
