"""Models with more weights than their device may hold: what runs take that bring the rest.

``python -m bench.streaming [DEVICE]`` prints the figures of the device, or of the first that
OpenCL has.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import crossdock as xd
from bench.timing import interleaved, opencl
from crossdock.devices.base import Device


@dataclass(frozen=True)
class Rate:
    """A run that brings its weights, in seconds and bytes.

    ``predicted`` and ``measured`` are of a whole run, ``whole_predicted`` and ``whole`` of one
    without a budget, whose prediction is off by what the machine's pace has moved. ``alone`` is
    what the copies of the weights take one after the other, with nothing beside them.
    """

    nbytes: int
    budget: int
    peak: int
    predicted: float
    measured: float
    whole_predicted: float
    whole: float
    alone: float
    error: float
    rung: str

    @property
    def rate(self) -> float:
        """Bytes of weights a second, over the whole run."""
        return self.nbytes / self.measured

    @property
    def share(self) -> float:
        """The same over what the link does with nothing beside it."""
        return self.alone / self.measured

    def __str__(self) -> str:
        return (
            f"{self.nbytes / 1e6:.1f} MB of weights a run: predicted {self.predicted * 1e3:.2f} "
            f"ms, measured {self.measured * 1e3:.2f} (with no budget "
            f"{self.whole_predicted * 1e3:.2f}, {self.whole * 1e3:.2f}), "
            f"{self.rate / 1e9:.2f} GB/s, {self.share:.0%} of the link's rate by itself"
        )


Timer = Callable[[dict[str, Callable[[], Any]]], dict[str, float]]
"""Median seconds of calls by name, interleaved."""


def products(rows: int, side: int, depth: int) -> tuple[xd.Graph, dict[str, Any]]:
    """Products of ``rows`` rows with ``depth`` matrices of ``side`` by ``side``."""
    rng = np.random.default_rng(0)
    b = xd.GraphBuilder("products")
    y = b.input("x", (rows, side))
    for _ in range(depth):
        w = rng.standard_normal((side, side), np.float32) / np.float32(side**0.5)
        y = b.tanh(b.matmul(y, b.constant(w)))
    return b.build({"y": y}), {"x": rng.standard_normal((rows, side)).astype(np.float32)}


def rate(
    graph: xd.Graph,
    feeds: dict[str, Any],
    device: str,
    share: float,
    timer: Timer,
    threads: int | None = None,
) -> Rate:
    """Run a graph on a device that may hold the values and ``share`` of the weights."""
    with xd.compile(graph, device, threads=threads) as whole:
        want = whole.run(feeds)
        part = whole.plan.device(device)
        budget = int(part.run_bytes + share * part.fixed_bytes)
        rules = xd.Constraints(memory={device: budget})
        with xd.compile(graph, device, constraints=rules, threads=threads) as session:
            got = session.run(feeds)
            program = session.ready().program
            arrays = [program.streamed[one.name] for one in session.plan.streamed]
            copy = _copies(program.devices[device], arrays)
            found = timer(
                {
                    "measured": lambda: session.run(feeds),
                    "whole": lambda: whole.run(feeds),
                    "alone": copy,
                }
            )
            estimate = session.estimate()
            return Rate(
                nbytes=sum(array.nbytes for array in arrays),
                budget=budget,
                peak=session.plan.device(device).peak_bytes,
                predicted=estimate.seconds,
                whole_predicted=whole.estimate().seconds,
                error=max(_error(got[name], want[name]) for name in want),
                rung=session.plan.rungs[-1].name,
                **found,
            )


def _copies(device: Device, arrays: list[Any]) -> Callable[[], None]:
    """A function that copies arrays to a device one after the other, and waits for the last."""
    room = device.allocate(max((array.nbytes for array in arrays), default=1))
    queue = device.queues["upload"]

    def copy() -> None:
        events = [queue.write(room.view(0, array.nbytes), array) for array in arrays]
        queue.flush()
        for event in events:
            if event is not None:
                event.wait()

    return copy


def _error(got: Any, want: Any) -> float:
    scale = float(np.abs(want).max(initial=1e-9))
    return float(np.abs(got - want).max(initial=0.0)) / scale


if __name__ == "__main__":
    where = sys.argv[1] if sys.argv[1:] else opencl()
    for rows in (1, 64, 512):
        case = products(rows, 1024, 12)
        try:
            made = rate(*case, where, 0.5, lambda runs: interleaved(runs, 15), threads=1)
        except xd.Error as error:
            sys.exit(f"streaming: {error}")
        print(f"{where}, {rows} rows, {made.rung}: {made}")
