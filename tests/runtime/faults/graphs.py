"""Graphs of whole numbers over three devices, with the device of every op."""

from __future__ import annotations

import numpy as np

import crossdock as xd
from crossdock.runtime.graph import Graph
from tests.runtime.faults.machine import A, B, C

HOST = "cpu:0"
Placed = tuple[Graph, dict[str, str]]


def branches() -> Placed:
    """Values handed from device to device, with branches that run at the same time."""
    b = xd.GraphBuilder()
    x = b.input("x", (3, 4))
    n0 = b.add(x, x, label="n0")
    n1 = b.mul(n0, x, label="n1")
    n2 = b.sub(n0, x, label="n2")
    n3 = b.add(n1, n2, label="n3")
    n4 = b.max(n3, n1, label="n4")
    n6 = b.transpose(b.add(n3, n4, label="n5"), label="n6")
    places = {"n0": A, "n1": B, "n2": A, "n3": HOST, "n4": C, "n5": A, "n6": A}
    return b.build({"y": n6, "z": n4}), places


def chain() -> Placed:
    """One value through three devices, twice; arenas are used again on the way."""
    b = xd.GraphBuilder()
    x, places = b.input("x", (3, 4)), {}
    for i, device in enumerate((A, B, C, A, B, C)):
        for j in range(2):
            name = f"n{i}{'ab'[j]}"
            x = b.add(x, b.constant(np.full((3, 4), (i + j) % 3 - 1, np.float32)), label=name)
            places[name] = device
    return b.build({"y": x}), places


def views() -> Placed:
    """Reshaped values, several results, joined parts, and outputs that are inputs' views."""
    b = xd.GraphBuilder()
    x, w = b.input("x", (3, 4)), b.input("w", (3, 4))
    flat = b.reshape(b.add(x, w, label="n0"), [12], label="r0")
    doubled = b.add(flat, flat, label="n1")
    one, two = b.split(b.reshape(doubled, [3, 4]), 2, axis=1, label="n2")
    joined = b.concat([b.neg(two, label="n3"), b.abs(one, label="n4")], 1, label="n5")
    total = b.reduce_sum(joined, axes=[1], keep_dimensions=True, label="n6")
    y = b.mul(joined, total, label="n7")
    outputs = {"y": y, "flat": b.reshape(flat, [4, 3]), "x": b.reshape(x, [12]), "one": one}
    places = {"n0": A, "n1": B, "n2": A, "n3": B, "n4": C, "n5": HOST, "n6": C, "n7": A}
    return b.build(outputs), places


GRAPHS = {"branches": branches, "chain": chain, "views": views}
