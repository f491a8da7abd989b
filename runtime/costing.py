"""Costs of a graph's ops on devices: which kernels fit, what each is predicted to take.

The cost of an op on a device is that of its cheapest fitting kernel; the others and the reasons of
those that do not fit are kept for the explanation.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from crossdock.devices.base import DeviceInfo
from crossdock.devices.program import Work
from crossdock.kernels import table
from crossdock.kernels.kernel_set import kernel_set
from crossdock.kernels.precision import PLAIN, Permission
from crossdock.kernels.refusal import Cause, Refusal
from crossdock.kernels.spec import Kernel, OpCall
from crossdock.runtime import emulation, kept
from crossdock.runtime.calls import alias_roots as alias_roots
from crossdock.runtime.calls import is_alias as is_alias
from crossdock.runtime.calls import op_calls as op_calls
from crossdock.runtime.errors import Error, PlanError
from crossdock.runtime.refused import refused
from crossdock.runtime.settings import cache_dir
from crossdock.runtime.shape_features import shape_of
from crossdock.scheduler import CostModel, Estimate
from crossdock.scheduler import Work as CostWork

UNKNOWN_SECONDS = 1e-3
"""Stands in for an op of unknown cost where no device has a known one."""

OP_CLASSES = {
    "matmul": "gemm", "gemm": "gemm", "conv2d": "gemm", "conv_transpose2d": "gemm",
    "fused_conv2d": "gemm", "fused_matmul": "gemm", "conv_integer": "gemm",
    "matmul_integer": "gemm", "quantized_conv2d": "gemm", "quantized_matmul": "gemm",
}  # fmt: skip


@dataclass(frozen=True)
class Offer:
    """A kernel that fits an op on a device, with its predicted cost."""

    device: str
    kernel: Kernel
    estimate: Estimate


@dataclass(frozen=True)
class Offers:
    """What the devices offer for one op; ``reasons`` says why a device has nothing."""

    call: OpCall
    best: Mapping[str, Offer]
    reasons: Mapping[str, str]


def op_work(call: OpCall) -> Work:
    """Operations and bytes of an op instance."""
    return table.op(call.op).work(call.inputs, call.outputs, call.attrs)


def cost_work(call: OpCall) -> CostWork:
    """The same for the cost model, with op class and dtype for the roofline, and features."""
    work = op_work(call)
    dtype = next((s.dtype for s in call.inputs if s is not None), call.outputs[0].dtype)
    kind = OP_CLASSES.get(call.op, "elementwise")
    shape = shape_of(call)
    return CostWork(
        work.flops,
        work.bytes_read,
        work.bytes_written,
        kind,
        dtype,
        shape.family,
        shape.features,
        shape.units,
    )


Memo = dict[tuple[str, str, str], Estimate]
"""Estimates by fingerprint, kernel and key: a graph's ops are often alike."""


def offers(
    call: OpCall,
    devices: Sequence[DeviceInfo],
    model: CostModel,
    memo: Memo | None = None,
    permission: Permission = PLAIN,
    settled: Mapping[str, str] = MappingProxyType({}),
) -> Offers:
    """Find and cost the kernels for an op on each device; ``memo`` serves the ops of one graph.

    ``settled`` names the kernel of a device that is to be taken where it is there. ``permission``
    leaves out kernels, beside which every op has others; where it asks for the same
    bits, ops that round or compare have no device but the host.
    """
    best: dict[str, Offer] = {}
    reasons: dict[str, str] = {}
    known = {} if memo is None else memo
    key = call.key()
    for info in devices:
        if permission.same_bits and call.op not in MOVES and info.kind != "cpu":
            reasons[info.id] = ELSEWHERE
            continue
        found = emulation.candidates(call, info)
        if not found.fitting:
            reasons[info.id] = found.reason()
            continue
        made = []
        for kernel in permission.permitted(found.fitting):
            mark = (info.fingerprint, kernel.name, key)
            if mark in refused():
                continue
            if mark not in known:
                known[mark] = model.estimate(*mark, cost_work(call))
            made.append(Offer(info.id, kernel, known[mark]))
        if made:
            same = [offer for offer in made if offer.kernel.name == settled.get(info.id)]
            best[info.id] = min(same or made, key=_seconds)
        else:
            reasons[info.id] = _unbuilt(info, found.fitting, key)
    return Offers(call, best, reasons)


MOVES = frozenset({
    "bit_cast", "bitwise_and", "bitwise_not", "bitwise_or", "bitwise_xor", "concat", "expand",
    "gather", "gather_elements", "gather_nd", "identity", "logical_and", "logical_not",
    "logical_or", "logical_xor", "reshape", "reverse", "slice", "split", "tile", "transpose",
    "triangular", "where",
})  # fmt: skip
"""Ops that neither round nor compare: every device makes the same bits."""
ELSEWHERE = Refusal(
    "its bits may differ from the host's, and deterministic and strict ask for the same everywhere",
    Cause.FORM,
)


def _unbuilt(info: DeviceInfo, kernels: Sequence[Kernel], key: str) -> Refusal:
    """Why a device that has kernels for an op offers none of them."""
    marks = [(info.fingerprint, kernel.name, key) for kernel in kernels]
    found = [refused()[mark] for mark in marks if mark in refused()]
    said = "; ".join(f"kernel {one.kernel} did not build: {one.reason}" for one in found)
    return Refusal(said, Cause.BROKEN)


COMMON = 80
"""Ranks from which on a kernel is one for any op, written for none."""


def _seconds(offer: Offer) -> float:
    """Predicted seconds, by which the kernel is chosen.

    An unknown cost is taken only where all are unknown, best rank first. A kernel for any op counts
    with the upper end of its interval: it has to be the faster one for sure. What else runs on a
    machine while it is measured slows kernels of several threads most, and those of one, as array
    calls are, least.
    """
    found = offer.estimate
    if found.seconds is None:
        return math.inf
    return found.seconds if offer.kernel.rank < COMMON or found.high is None else found.high


def read_costs(path: Path) -> dict[str, Any]:
    """What a file of costs holds.

    Raises:
        LoadError: it cannot be read, or is not what was written.
        PlanError: what it holds is no costs.
    """
    data = kept.read_sealed(path, "file of costs")
    try:
        CostModel.from_json(data)
    except ArithmeticError as error:
        raise PlanError(f"{path}: cost data is damaged ({error}); delete it") from error
    return data


KERNELS_OF = "kernel_set"
"""Names, in the file of costs, the kernels that were measured."""

OF_KERNELS = ("kernels", "elasticity", "learnt", "calibrated")
"""What the file of costs says of kernels."""


class CostStore:
    """The measured costs of this machine, kept in the cache directory.

    Those of kernels go with the kernels' sources: where another version wrote the file, only the
    rates, links and paces of the devices are taken from it. A damaged or unwritable file means
    measuring again, never a failure.
    """

    FILE = "costs.json"

    def __init__(self) -> None:
        folder = cache_dir()
        self.path = None if folder is None else folder / self.FILE
        self.model = CostModel()
        kept = self._kept()
        if kept is not None:
            self.model = CostModel.from_json(kept)

    def _kept(self) -> dict[str, Any] | None:
        """What the file holds, if it is sound."""
        if self.path is None or not self.path.is_file():
            return None
        try:
            data = read_costs(self.path)
        except Error as error:
            kept.discard(self.path, str(error))
            return None
        if data.get(KERNELS_OF) != kernel_set():
            data.update({key: [] for key in OF_KERNELS})
        return data

    def save(self) -> None:
        """Write the costs atomically, with what other processes measured meanwhile added."""
        if self.path is None:
            return
        data = {KERNELS_OF: kernel_set(), **self.model.to_json()}
        _add_missing(data, self._kept() or {})
        text = json.dumps(data)
        kept.replace(self.path, lambda write: write(kept.sealed(text.encode())))


def _add_missing(data: dict[str, Any], other: Mapping[str, Any]) -> None:
    """Add the rates, links and kernels that only the other cost data has."""
    data["rates"] = {**other.get("rates", {}), **data["rates"]}
    for part, names in (("links", ("src", "dst")), ("kernels", ("device", "variant", "key"))):
        have = {tuple(row[n] for n in names) for row in data[part]}
        data[part] += [r for r in other.get(part, ()) if tuple(r[n] for n in names) not in have]


@lru_cache(maxsize=1)
def store() -> CostStore:
    """The process's cost store."""
    return CostStore()


def interval(estimate: Estimate) -> tuple[float, float, float]:
    """(seconds, low, high) that can be added up; an unknown cost becomes a wide stand-in."""
    if estimate.seconds is None or estimate.low is None or estimate.high is None:
        return UNKNOWN_SECONDS, UNKNOWN_SECONDS / 10, UNKNOWN_SECONDS * 10
    return estimate.seconds, estimate.low, estimate.high
