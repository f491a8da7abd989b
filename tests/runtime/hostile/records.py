"""Plans, machine profiles and kept costs from files that nobody vouches for."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from functools import cache
from typing import Any

from tests.runtime.hostile.kit import EITHER, Case, register, written

READERS = ("plan", "machine", "costs")


@cache
def sound(reader: str) -> str:
    """A sound file of a kind."""
    from crossdock.devices import machines
    from crossdock.scheduler import CostModel
    from tests.runtime.handmade import plan, step

    if reader == "costs":
        return json.dumps(CostModel().to_json())
    if reader == "machine":
        return json.dumps(machines.read("laptop-iris-xe").to_json())
    return plan([step(0, "cpu:0/compute", 1.0), step(1, "cuda:0/compute", 1.0, (0,))]).dumps()


def _mutants(rng: random.Random, value: Any, count: int) -> Iterator[Any]:
    """Copies with one value somewhere replaced by what does not belong there."""
    odd = (None, True, -1, 2**70, 1e308, "", "x" * 9999, [], {}, [[]], {"a": {}})
    for _ in range(count):
        made = copy.deepcopy(value)
        at = made
        while True:
            keys = list(at) if isinstance(at, dict) else list(range(len(at)))
            if not keys:
                break
            key = rng.choice(keys)
            if isinstance(at[key], dict | list) and at[key] and rng.random() < 0.8:
                at = at[key]
                continue
            at[key] = rng.choice(odd)
            break
        yield made


@register
def files(rng: random.Random) -> Iterator[Case]:
    """JSON that is none, nested too deep, too long, or of other types."""
    deep = {"list": b"[" * 100_000, "object": b'{"a":' * 100_000}
    for reader in READERS:
        text = sound(reader)
        rows = {
            "empty": b"", "null": b"null", "number": b"1", "list": b"[]", "object": b"{}",
            "nan": b'{"schema": NaN}', "digits": b"9" * 10_000, "not-utf8": b"\xff\xfe{}",
            "deep-list": deep["list"], "deep-object": deep["object"],
            "pickle": b"\x80\x04]\x94.", "cut": text.encode()[: len(text) // 2],
            "keys": json.dumps({f"k{i}": 0 for i in range(200_000)}).encode()[:-1] + b', "k9": 1}',
        }  # fmt: skip
        for name, data in rows.items():
            yield Case(reader, name, written(_kept(reader, data), "file.json"), reader=reader)
        for index, made in enumerate(_mutants(rng, json.loads(text), 8)):
            data = _kept(reader, json.dumps(made).encode())
            yield Case(reader, f"mutant-{index}", written(data, "file.json"), EITHER, reader)


def _kept(reader: str, data: bytes) -> bytes:
    """A file of costs holds the digest of what it says, which an enemy knows how to make, too."""
    from crossdock.runtime.kept import sealed

    return sealed(data) if reader == "costs" and data[:1] == b"{" else data
