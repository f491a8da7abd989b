"""Commands over callers' arrays: of a run that reads and writes them where they lie.

Only the calls that use such an array are bound anew, and each instance keeps the commands of the
arrays that it had last: memory that comes round again, as that of a loop does, costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from crossdock.devices.base import Buffer, CommandBuffer
from crossdock.devices.program import slots
from crossdock.runtime.in_place import named_slots
from crossdock.runtime.losses import blaming
from crossdock.runtime.program import Instance, Over, Program, bind_launch

Lying = Mapping[tuple[str, str], Buffer]
"""Where values lie that are not in the arena, by root and device."""


def rebound(program: Program, instance: Instance, lying: Lying) -> dict[int, CommandBuffer]:
    """The commands of the segments that use values which lie elsewhere, by segment.

    Raises:
        DeviceError: a device fails at it.
    """
    mine: dict[int, list[tuple[str, str]]] = {}
    for key in lying:
        for index in program.users[key].launches:
            mine.setdefault(index, []).append(key)
    return {
        index: _commands(program, instance, index, {key: lying[key] for key in sorted(keys)})
        for index, keys in mine.items()
    }


def _commands(program: Program, instance: Instance, index: int, lying: Lying) -> CommandBuffer:
    places = [buffer.place() for buffer in lying.values()]
    if None in places:
        return _made(program, instance, index, lying)
    sizes = (buffer.nbytes for buffer in lying.values())
    mark = (index, *zip(lying, places, sizes, strict=True))
    return instance.rebound.get_or_make(mark, lambda: _made(program, instance, index, lying))


def _made(program: Program, instance: Instance, index: int, lying: Lying) -> CommandBuffer:
    mark = (index, *lying)
    if mark not in instance.over:
        instance.over[mark] = tuple(_over(program, instance, index, lying))
    changed = {
        call.place: replace(
            call.bound,
            buffers={**call.bound.buffers, **{slot: lying[key] for slot, key in call.slots}},
        )
        for call in instance.over[mark]
    }
    device = program.devices[program.segments[index].device]
    with blaming(device):
        return device.rebind(instance.commands[index], changed)


def _over(program: Program, instance: Instance, index: int, lying: Lying) -> Iterator[Over]:
    """The calls of a segment that use values which lie elsewhere."""
    device = program.segments[index].device
    values = {root for root, _ in lying}
    for number in dict.fromkeys(i for key in lying for i in program.users[key].launches[index]):
        step, lowered = program.plan.steps[number], program.ops[number].lowered
        bound = bind_launch(program, instance, step)
        named = named_slots(step, program.roots, values)
        for call, what in enumerate(lowered.steps):
            mine = tuple((s, (root, device)) for s, root in named.items() if s in slots(what))
            if mine:
                yield Over(program.places[number] + call, bound[call], mine)
