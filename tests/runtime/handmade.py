"""Plans by hand: devices, steps of given seconds, and what waits for what."""

from __future__ import annotations

from crossdock.runtime.plan import DevicePlan, Plan, Step


def device(name: str, group: str | None = None) -> DevicePlan:
    return DevicePlan(name, name, name, f"fp-{name}", group or name, 0, 0, {}, None)


def step(index: int, queue: str, seconds: float, waits: tuple[int, ...] = ()) -> Step:
    kind = "launch" if queue.endswith("compute") else "copy"
    return Step(
        index=index,
        kind=kind,
        device=queue.split("/")[0],
        queue=queue,
        name=f"s{index}",
        inputs=(),
        outputs=(),
        waits=waits,
        start=0.0,
        seconds=seconds,
        low=seconds,
        high=seconds,
        source="measured",
    )


def plan(steps: list[Step], *devices: DevicePlan) -> Plan:
    return Plan(
        graph="0",
        graph_name="g",
        policy="test",
        devices=devices or (device("cpu:0"), device("cuda:0")),
        steps=tuple(steps),
        predicted=0.0,
        low=0.0,
        high=0.0,
        lower_bound=0.0,
        expected_runs=1,
        cost_model="",
    )
