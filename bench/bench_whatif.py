"""What-if against really doing it: a device gone, one core, a slow link; and simulation's speed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import crossdock as xd
from crossdock.devices.base import Cap, DeviceInfo
from crossdock.devices.topology import cpu_count
from crossdock.runtime import planner, virtual
from crossdock.runtime.plan import Plan
from crossdock.runtime.target import Target
from crossdock.scheduler import CostModel, DeviceRates, LinkModel

CASES = ("removed", "one-core", "slow-link")


def found(case: str) -> dict[str, Any]:
    """What a case finds, in a process of its own."""
    script = Path(__file__).with_name("whatif_cases.py")
    done = subprocess.run(
        [sys.executable, str(script), case], check=True, stdout=subprocess.PIPE, text=True
    )
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


@pytest.fixture(scope="module")
def predicted() -> dict[str, Any]:
    """Plans with every change made, before any is."""
    if cpu_count() < 2 or not any(d.kind == "opencl" for d in xd.devices()):
        pytest.skip("needs two cores and an OpenCL device")
    return found("predict")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.benchmark(group="what-if")
def test_whatif(case: str, predicted: dict[str, Any], benchmark: Any) -> None:
    """Predicted against measured makespan, and the share of ops placed alike."""
    results: list[dict[str, Any]] = []
    benchmark.pedantic(lambda: results.append(found(case)), rounds=1)
    rows = {name: _row(predicted[name][case], got) for name, got in results[0].items()}
    benchmark.extra_info["results"] = rows
    benchmark.extra_info["note"] = "; ".join(
        f"{name}: predicted {r['predicted'] * 1e3:.2f} ms (simulated "
        f"{r['simulated'] * 1e3:.2f}), measured {r['measured'] * 1e3:.2f} ms "
        f"({r['error']:+.0%}; at the same pace {r['steady_error']:+.0%}), {r['same']:.0%} of "
        f"{r['ops']} ops alike"
        for name, r in rows.items()
    )


def _row(said: dict[str, Any], got: dict[str, Any]) -> dict[str, Any]:
    there, here = said["placement"], got["placement"]
    return {
        "predicted": said["predicted"],
        "simulated": said["simulated"],
        "measured": got["measured"],
        "planned_again": got["predicted"],
        "error": got["measured"] / said["predicted"] - 1,
        "steady_error": got["steady"] / said["steady"] - 1,
        "same": sum(here[op] == device for op, device in there.items()) / len(there),
        "ops": len(there),
    }


def thousand_nodes() -> Plan:
    """A plan of a thousand ops in forty chains that meet, over sixteen unequal devices."""
    b = xd.GraphBuilder("a thousand nodes")
    ends = [b.input(f"x{i}", (256, 256)) for i in range(40)]
    for layer in range(25):
        ends = [
            b.add(end, ends[(i + 1) % 40]) if layer % 5 == 4 else b.matmul(end, end)
            for i, end in enumerate(ends)
        ]
    graph = b.build({f"y{i}": end for i, end in enumerate(ends)})
    model = CostModel()
    infos = tuple(_device(i, model) for i in range(16))
    for info in infos[1:]:
        for source, target in ((infos[0], info), (info, infos[0])):
            link = LinkModel(5e-6, ((1.0, 20e9),))
            model.set_link(source.fingerprint, target.fingerprint, link)
    devices = Target(infos, frozenset(d.id for d in infos), model)
    return planner.make_plan(graph, devices, planner.Options())


def _device(index: int, model: CostModel) -> DeviceInfo:
    name = f"cuda:{index - 1}" if index else "cpu:0"
    made = DeviceInfo(
        id=name,
        kind=name.partition(":")[0],
        name=name,
        vendor="nobody",
        driver="1",
        physical_id=name,
        resource_group=name,
        compute_units=1,
        memory_bytes=8 << 30,
        caps=frozenset({Cap.ARRAY, Cap.GRID, Cap.NATIVE, Cap.FLOAT64}),
        fingerprint=f"imaginary {name}",
        local_memory=48 << 10,
        max_work_group=1024,
    )
    model.set_rates(made.fingerprint, DeviceRates({"*": (1 + index % 3) * 1e11}, 1e11, 2e-6))
    return made


@pytest.mark.benchmark(group="simulation")
def test_simulating_a_thousand_nodes_on_sixteen_devices(benchmark: Any) -> None:
    """The real executor on virtual time, its threads started and ended."""
    plan = thousand_nodes()
    made = benchmark(virtual.execute, plan)
    used = {s.device for s in plan.launches()}
    benchmark.extra_info["note"] = (
        f"{len(plan.launches())} ops and {len(plan.copies())} copies on {len(used)} of "
        f"{len(plan.devices)} devices, makespan {made.makespan * 1e3:.2f} ms, "
        f"predicted {plan.predicted * 1e3:.2f} ms"
    )
    np.testing.assert_allclose(made.makespan, plan.predicted, rtol=0.2)
