"""What a queue does between two waits on other queues: one command buffer, or one copy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from crossdock.runtime.plan import Step


@dataclass(frozen=True)
class Segment:
    """Steps of one queue without a foreign wait in between; ``waits`` are segment indices."""

    index: int
    device: str
    role: str
    steps: tuple[int, ...]
    waits: tuple[int, ...]
    signals: bool


def segment(steps: Sequence[Step], *, singly: bool = False) -> tuple[Segment, ...]:
    """Cut each queue's steps where a wait or a signal to another queue stands.

    ``singly`` makes every step a segment.
    """
    awaited = {w for step in steps for w in step.waits}
    runs: list[list[Step]] = []
    open_run: dict[str, list[Step]] = {}
    for step in steps:
        run = open_run.get(step.queue)
        if run is None or step.waits or step.kind == "copy" or singly:
            run = open_run[step.queue] = []
            runs.append(run)
        run.append(step)
        if step.index in awaited or step.kind == "copy":
            del open_run[step.queue]
    home = {step.index: i for i, run in enumerate(runs) for step in run}
    made = []
    for i, run in enumerate(runs):
        device, role = run[0].queue.split("/")
        made.append(
            Segment(
                index=i,
                device=device,
                role=role,
                steps=tuple(s.index for s in run),
                waits=tuple(dict.fromkeys(home[w] for w in run[0].waits)),
                signals=run[-1].index in awaited,
            )
        )
    return tuple(made)
