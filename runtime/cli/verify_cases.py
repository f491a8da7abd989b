"""Which op cases ``crossdock verify`` runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from crossdock.runtime.cases import CASES, Case
from crossdock.runtime.cases.special import SPECIAL, is_of_values
from crossdock.runtime.cases.types import type_cases
from crossdock.runtime.errors import UnsupportedOp


def chosen(ops: Sequence[str] = (), *, quick: bool = False) -> list[Case]:
    """The cases of some ops, or of all; ``quick``: each op's first, and the special values.

    Raises:
        UnsupportedOp: there is no such op; names those that sound like it.
    """
    everything = (*CASES, *type_cases(), *SPECIAL)
    there = dict.fromkeys(case.op for case in everything)
    for name in ops:
        if name not in there:
            near = [op for op in there if name in op or op in name]
            raise UnsupportedOp(f"--op {name}: no such op; {_near(near, there)}")
    if quick:
        firsts = {case.op: case for case in reversed(CASES)}
        everything = (*firsts.values(), *(case for case in SPECIAL if is_of_values(case)))
    order = {op: i for i, op in enumerate(there)}
    found = [case for case in everything if not ops or case.op in ops]
    return sorted(found, key=lambda case: order[case.op])


def _near(near: Sequence[str], there: Iterable[str]) -> str:
    return f"did you mean {', '.join(near)}?" if near else f"there are {', '.join(sorted(there))}"
