"""Work functions of the op families: operations and bytes of an op instance.

Flops count one for an add, a multiply or a comparison; transcendental functions count as the
about ten operations they take on today's processors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from crossdock.devices.program import Work
from crossdock.kernels.spec import Attrs, Specs, WorkFn
from crossdock.runtime.tensor import TensorSpec, to_numpy

TRANSCENDENTAL = 10.0


def traffic(specs: Specs, outs: Sequence[TensorSpec], flops: float = 0.0) -> Work:
    """Every operand read once, every result written once."""
    read = sum(s.nbytes for s in specs if s is not None)
    return Work(float(flops), float(read), float(sum(o.nbytes for o in outs)))


def pointwise(flops: float = 1.0) -> WorkFn:
    """``flops`` operations for each element of the result."""

    def work(specs: Specs, outs: Sequence[TensorSpec], attrs: Attrs) -> Work:  # noqa: ARG001
        return traffic(specs, outs, flops * outs[0].size)

    return work


def per_input(flops: float = 1.0) -> WorkFn:
    """``flops`` operations for each element of the first operand (reductions, normalisations)."""

    def work(specs: Specs, outs: Sequence[TensorSpec], attrs: Attrs) -> Work:  # noqa: ARG001
        first = specs[0]
        assert first is not None
        return traffic(specs, outs, flops * first.size)

    return work


def moves(specs: Specs, outs: Sequence[TensorSpec], attrs: Attrs) -> Work:  # noqa: ARG001 - WorkFn
    """No arithmetic; as many bytes read from the first operand as are written."""
    written = float(sum(o.nbytes for o in outs))
    first = specs[0]
    assert first is not None
    others = float(sum(s.nbytes for s in specs[1:] if s is not None))
    return Work(0.0, min(float(first.nbytes), written) + others, written)


def joins(specs: Specs, outs: Sequence[TensorSpec], attrs: Attrs) -> Work:  # noqa: ARG001 - WorkFn
    """No arithmetic; all operands read and all results written."""
    return traffic(specs, outs)


def free(specs: Specs, outs: Sequence[TensorSpec], attrs: Attrs) -> Work:  # noqa: ARG001 - WorkFn
    """Nothing at all: the result is the operand under another shape."""
    return Work()


def itemsize(spec: TensorSpec) -> int:
    """Bytes of one element."""
    return to_numpy(spec.dtype).itemsize


def product(values: Sequence[int]) -> int:
    """Product of sizes; 1 for none."""
    return math.prod(values)
