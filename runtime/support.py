"""What each device can run: native, emulated, on the host instead, or not at all, and why.

Everything here comes from the table that the runtime plans with: an op's rules say which element
types there are, and the search for kernels, on one instance of the op and type, says the rest.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from crossdock.devices import registry
from crossdock.devices.base import DeviceInfo
from crossdock.kernels import table
from crossdock.kernels.ops_rules import RULES, bare
from crossdock.runtime import emulation
from crossdock.runtime.calls import is_alias, op_call
from crossdock.runtime.cases import Case, of_op
from crossdock.runtime.cases.types import governing, typed_case
from crossdock.runtime.tensor import DTYPES, WEBNN_DTYPES

HOST = "cpu:0"
MAX_RANK = 8
"""The rank up to which ops of any rank are tested on every device; more may work."""


class Level(enum.StrEnum):
    """How an op of an element type runs on a device."""

    NATIVE = "native"
    EMULATED = "emulated"
    FALLBACK = "fallback"
    UNSUPPORTED = "unsupported"


@dataclass(frozen=True)
class Support:
    """One op and element type on one device.

    ``kernels`` are the candidates, best rank first; ``through`` the ops that an emulation takes;
    ``reason`` why there is no kernel (emulated, fallback), or the rule that forbids the type.
    """

    op: str
    dtype: str
    device: str
    level: Level
    kernels: tuple[str, ...] = ()
    through: tuple[str, ...] = ()
    reason: str = ""


def support(op: str, dtype: str, info: DeviceInfo) -> Support:
    """How ``op`` on ``dtype`` runs on a device: asked with one instance of both."""
    case = typed_case(op, dtype)
    if isinstance(case, str):
        return Support(op, dtype, info.id, Level.UNSUPPORTED, reason=case)
    graph = case.graph
    (node,) = graph.nodes
    if is_alias(node):
        return Support(op, dtype, info.id, Level.NATIVE, reason="a view of its operand")
    call = op_call(graph, node)
    found = emulation.candidates(call, info)
    names = tuple(k.name for k in found.fitting)
    if any(k.native for k in found.fitting):
        return Support(op, dtype, info.id, Level.NATIVE, names)
    if found.fitting:
        parts = emulation.parts_of(call, info)
        assert isinstance(parts, emulation.Parts)
        return Support(op, dtype, info.id, Level.EMULATED, names, parts.ops, found.reason())
    return Support(op, dtype, info.id, Level.FALLBACK, reason=found.reason())


def listed_ops() -> list[str]:
    """The ops that a graph may hold and a case shows, by name."""
    return [name for name in table.ops() if of_op(name)]


def supports(
    info: DeviceInfo, ops: Iterable[str] | None = None, dtypes: Sequence[str] = DTYPES
) -> list[Support]:
    """``support`` for all ops (or those given) and element types."""
    return [
        support(op, dtype, info)
        for op in (listed_ops() if ops is None else ops)
        for dtype in dtypes
    ]


class Context:
    """A device as the WebNN specification's MLContext sees it.

    Args:
        device: a device id.

    Raises:
        Unavailable: there is no such device.
    """

    def __init__(self, device: str = HOST) -> None:
        self.info = registry.open_device(device).info

    @property
    def accelerated(self) -> bool:
        """True where the device is no processor."""
        return self.info.resource_group != "host-cpu"

    def op_support_limits(self) -> dict[str, Any]:
        """What ``MLContext.opSupportLimits()`` gives, keys in snake_case.

        ``preferred_input_layout``, ``max_tensor_byte_length``, the limits of ``input``,
        ``constant`` and ``output``, and for every WebNN operator those of each operand and
        result: ``{"data_types": [...], "rank_range": {"min": ..., "max": ...}}``. A type is
        listed where the device runs the operator on it itself, natively or emulated.
        """
        limits = self.info.max_allocation or self.info.memory_bytes
        tensor = _limits(WEBNN_DTYPES, 0, MAX_RANK)
        found: dict[str, Any] = {
            "preferred_input_layout": "nchw",
            "max_tensor_byte_length": int(limits),
            "input": tensor,
            "constant": tensor,
            "output": tensor,
        }
        for op in listed_ops():
            if not table.op(op).extension:
                found[op] = self._op(op)
        return found

    def _op(self, op: str) -> dict[str, Any]:
        """The limits of an operator's operands and results."""
        runs = [s for s in supports(self.info, [op], WEBNN_DTYPES) if s.level in RUNS_THERE]
        own = [s.dtype for s in runs]
        leader = governing(op)
        made: dict[str, Any] = {}
        for mark in table.op(op).operands:
            name = bare(mark)
            rule = RULES[op][name]
            follows = name == leader or rule.like == leader
            types = own if follows else [d for d in WEBNN_DTYPES if d in rule.dtypes]
            made[name] = _limits(types if own else [], rule.low, rule.high)
        made["output"] = _limits(*_results(op, own))
        return made


RUNS_THERE = (Level.NATIVE, Level.EMULATED)


def _limits(dtypes: Iterable[str], low: int, high: int | None) -> dict[str, Any]:
    return {
        "data_types": list(dtypes),
        "rank_range": {"min": low, "max": MAX_RANK if high is None else high},
    }


def _results(op: str, dtypes: Sequence[str]) -> tuple[list[str], int, int | None]:
    """Element types that results have for these operand types, and their ranks."""
    cases = [c for c in (*map(typed_case, [op] * len(dtypes), dtypes), *of_op(op)) if _plain(c)]
    specs = [s for c in cases for s in c.graph.output_specs.values()]  # type: ignore[union-attr]
    found = {s.dtype for s in specs}
    rule = RULES[op][governing(op)]
    fixed = rule.high is not None and len({s.rank for s in specs}) == 1
    rank = specs[0].rank if fixed and specs else None
    return [d for d in WEBNN_DTYPES if d in found], rank or 0, rank


def _plain(case: Case | str) -> bool:
    """A case that there is, of no type outside WebNN."""
    return isinstance(case, Case) and case.dtypes <= set(WEBNN_DTYPES)
