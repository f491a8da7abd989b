"""``crossdock ops``: levels, ways and reasons on the screen and as JSON."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.kernels.grid_run import opencl_ids, opened


def test_the_command_lists_levels_and_reasons(call: Callable[..., Any]) -> None:
    got = call("ops", "--device", opened(opencl_ids()[0]).info.id, "--op", "conv2d", "--all-types")
    assert got.status == 0
    for said in ("native f32 f16", "fallback f64", "no float64 kernel"):
        assert said in got.out
    data = call("ops", "--device", "cpu:0", "--op", "relu", "--json", "-").json
    assert data["schema"] == "crossdock-ops/1"
    assert {o["dtype"]: o["level"] for o in data["ops"]} == {
        "float32": "native", "float16": "native", "int32": "native", "uint32": "unsupported",
        "int64": "native", "uint64": "unsupported", "int8": "native", "uint8": "unsupported",
    }  # fmt: skip
    assert call("ops", "--op", "matmu").err.count("did you mean matmul") == 1
