"""Profiling a model from the command line: ops beside their device's limits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

FAST = ("--device", "cpu:0", "--measure", "0", "--repeat", "2")


def test_profile_lists_ops_with_their_share(call: Any, model: Path) -> None:
    got = call("profile", model, "--dim", "N=3", *FAST)
    assert got.status == 0, got.err
    for said in ("matmul", "cpu:0", "FLOP/s", "roofline", "memory"):
        assert said in got.out


def test_profile_json_has_every_op(call: Any, model: Path) -> None:
    data = call("profile", model, "--dim", "N=3", "--top", "1", "--json", "-", *FAST).json
    assert data["schema"] == "crossdock-profile/1"
    assert len(data["ops"]) > 1
    for op in data["ops"]:
        assert op["device"] == "cpu:0"
        assert op["share"] == pytest.approx(op["bound"] / op["seconds"])
        assert op["bytes_per_s"] * op["seconds"] == pytest.approx(
            op["work"]["bytes_read"] + op["work"]["bytes_written"]
        )
