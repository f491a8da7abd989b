"""Which ops may fall back to the host: a contract that is checked before anything runs.

An op *falls back* where no device asked for can run it, natively or emulated, and the host takes
it. A pin of the caller's is no fallback.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from crossdock.kernels.refusal import Cause
from crossdock.runtime.errors import PlanError
from crossdock.runtime.graph import Graph
from crossdock.runtime.plan import HOST, Choice, Plan, Step

OWN_WISH = frozenset({Cause.PINNED, Cause.FORBIDDEN})
"""Causes that a caller's constraints bring about."""
SHOWN = 5


@dataclass(frozen=True)
class Fallback:
    """What may fall back to the host; a plan that needs more is refused with PlanError.

    Attributes:
        ops: names of nodes, op names or shell-style patterns of node names; None for any.
        max_share: of the ops of the graph (of each stage of a staged one, whose host ops are held
            against ``ops`` alone), from 0 to 1.
        max_boundary_bytes: of the values that are copied to or from the host for such ops in a
            run, in bytes.
    """

    ops: Collection[str] | None = None
    max_share: float | None = None
    max_boundary_bytes: float | None = None

    def __post_init__(self) -> None:
        share, nbytes = self.max_share, self.max_boundary_bytes
        named = self.ops is None or (
            not isinstance(self.ops, str) and all(isinstance(op, str) for op in self.ops)
        )
        if not named:
            raise PlanError(f"Fallback(ops={self.ops!r}): give a list of names or patterns")
        if share is not None and not 0 <= share <= 1:
            raise PlanError(f"Fallback(max_share={share!r}): give a share from 0 to 1")
        if nbytes is not None and not nbytes >= 0:
            raise PlanError(f"Fallback(max_boundary_bytes={nbytes!r}): give bytes, 0 or more")

    def may(self, name: str, op: str) -> bool:
        """True where the contract names an op as one that may fall back."""
        return self.ops is None or any(
            pattern in (name, op) or fnmatch.fnmatchcase(name, pattern) for pattern in self.ops
        )


ALLOW = Fallback()
FORBID = Fallback(ops=())
WORDS: Mapping[str, Fallback] = {"allow": ALLOW, "forbid": FORBID}


def contract_of(given: object) -> Fallback:
    """The contract of ``compile(fallback=...)``; raises PlanError for what is none."""
    if isinstance(given, Fallback):
        return given
    found = WORDS.get(given) if isinstance(given, str) else None
    if found is None:
        raise PlanError(
            f"fallback={given!r} is no contract; give 'allow', 'forbid' or a crossdock.Fallback"
        )
    return found


def fallbacks(plan: Plan, asked: Collection[str]) -> list[Step]:
    """The ops of a plan that fall back."""
    return [s for s in plan.launches() if s.device not in asked and not _wished(s, asked)]


def _wished(step: Step, asked: Collection[str]) -> bool:
    """Whether the caller's constraints keep an op from a device that could run it."""
    return any(c.device in asked and c.cause in OWN_WISH for c in step.choices)


def check(plan: Plan, asked: Collection[str], contract: Fallback, graph: Graph) -> None:
    """Hold a plan against a contract.

    Raises:
        PlanError: naming the ops, what each device asked for lacks, and what to do.
    """
    fallen = fallbacks(plan, asked)
    if not fallen or contract == ALLOW:
        return
    banned = [s for s in fallen if not contract.may(s.name, s.op)]
    if banned:
        said = "; ".join(_lacking(s, asked, graph) for s in banned[:SHOWN])
        more = f" (and {len(banned) - SHOWN} more)" if len(banned) > SHOWN else ""
        raise PlanError(
            f"{len(banned)} op(s) would fall back to {HOST}, which the contract does not allow: "
            f"{said}{more}; {_fix(banned)}"
        )
    share = len(fallen) / len(plan.launches())
    if contract.max_share is not None and share > contract.max_share:
        raise PlanError(
            f"{share:.1%} of the ops would fall back to {HOST}, and max_share is "
            f"{contract.max_share:.1%}: {_lacking(fallen[0], asked, graph)}; {_fix(fallen)}"
        )
    nbytes = boundary_bytes(plan, fallen)
    if contract.max_boundary_bytes is not None and nbytes > contract.max_boundary_bytes:
        raise PlanError(
            f"fallback to {HOST} would copy {nbytes} B a run, and max_boundary_bytes is "
            f"{int(contract.max_boundary_bytes)}: {_lacking(fallen[0], asked, graph)}; "
            f"{_fix(fallen)}"
        )


def boundary_bytes(plan: Plan, fallen: Sequence[Step]) -> int:
    """Bytes that a run copies between devices and the host for values of the given ops."""
    values = {v for s in fallen for v in (*s.inputs, *s.outputs)}
    return sum(c.nbytes for c in plan.copies() if c.name in values)


def _lacking(step: Step, asked: Collection[str], graph: Graph) -> str:
    """An op with its types, and why each device asked for cannot run it."""
    types = dict.fromkeys(graph.specs[v].dtype for v in step.inputs if v is not None)
    on = f" on {', '.join(types)}" if types else ""
    whys = [_why(c) for c in step.choices if c.device in asked]
    return f"{step.name} ({step.op}{on}): {', '.join(whys) or 'no device asked for is here'}"


def _why(choice: Choice) -> str:
    return f"{choice.device} has no kernel [{choice.cause}] ({choice.reason})"


def _fix(steps: Sequence[Step]) -> str:
    ops = list(dict.fromkeys(s.op for s in steps))
    return (
        f"allow them with fallback=crossdock.Fallback(ops={ops[:SHOWN]}), ask for a device that "
        f"has the kernels ({HOST} has all), or give the model a type that the device runs"
    )


def check_host_op(name: str, op: str, why: str, contract: Fallback) -> None:
    """Hold an op that only Python on the host can run, of a staged graph, against a contract.

    Raises:
        PlanError: the contract does not name it.
    """
    if not contract.may(name, op):
        raise PlanError(
            f"{name} ({op}) would run on the host, which the contract does not allow: no device "
            f"has a kernel [no-kernel] ({why}); allow it with "
            f"fallback=crossdock.Fallback(ops=[{op!r}]), or take it out of the model"
        )
