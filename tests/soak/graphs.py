"""Small graphs whose right answers are known, for runs by the thousand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

import crossdock as xd
from crossdock.devices import registry
from crossdock.runtime.graph import Graph
from crossdock.runtime.session import Session

Feeds = dict[str, Any]


def opencl() -> list[str]:
    """The first OpenCL device, if there is one."""
    return [d.id for d in registry.probe_all(["opencl"])[0].devices][:1]


def branches(dims: tuple[int | str, int] = ("n", 32)) -> Graph:
    """Two branches of products and activations that meet; its rows are a symbol."""
    b = xd.GraphBuilder()
    x = b.input("x", dims)
    rng = np.random.default_rng(7)
    a, c = (b.constant(rng.standard_normal((32, 32)).astype(np.float32)) for _ in range(2))
    left = b.tanh(b.matmul(x, a), label="left")
    right = b.relu(b.matmul(x, c), label="right")
    return b.build({"y": b.add(left, right, label="join"), "z": b.softmax(left, axis=1)})


def feeds(rows: int, seed: int) -> Feeds:
    """Feeds of ``branches``."""
    x = np.random.default_rng(seed).standard_normal((rows, 32)).astype(np.float32)
    return {"x": x}


def same(found: Mapping[str, Any], want: Mapping[str, Any]) -> bool:
    """Whether all outputs have the same bits."""
    return found.keys() == want.keys() and all(
        np.asarray(found[name]).tobytes() == np.asarray(want[name]).tobytes() for name in want
    )


def sessions(graph: Callable[[], Graph] = branches, **options: Any) -> dict[str, Session]:
    """A session on the host, and with an OpenCL device: alone, and with a branch each."""
    made = {"host": xd.compile(graph(), "cpu:0", measure=False, **options)}
    for device in opencl():
        made["opencl"] = xd.compile(graph(), device, measure=False, **options)
        pinned = xd.Constraints(pin={"left": "cpu:0", "right": device})
        both = ["cpu:0", device]
        made["both"] = xd.compile(
            graph(), both, measure=False, constraints=pinned, split=False, **options
        )
    return made


def close(made: Mapping[str, Session]) -> None:
    """Close them all."""
    for session in made.values():
        session.close()
