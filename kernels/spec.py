"""What an op entry and a kernel are.

``OpSpec`` is one operator: signature, rules, work, and its meaning as an array function.
``Kernel`` is a guarded candidate that runs an op on some device kinds; several may fit, each is
costed, and one that does not fit leaves its reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from crossdock.devices.base import DeviceInfo
from crossdock.devices.program import Lowered, Work
from crossdock.runtime.tensor import Array, TensorSpec

Attrs = Mapping[str, Any]
Specs = Sequence[TensorSpec | None]
Infer = Callable[[Specs, Attrs], tuple[TensorSpec, ...]]
Canon = Callable[[Specs, dict[str, Any]], dict[str, Any]]
WorkFn = Callable[[Specs, Sequence[TensorSpec], Attrs], Work]
ArrayFunction = Callable[..., Any]
Expression = str | Callable[[Attrs], str]
Decompose = Callable[..., Any]

REQUIRED: Any = object()
"""Marks an attribute without a default."""


@dataclass(frozen=True)
class OpSpec:
    """One operator of the IR.

    Attributes:
        name: WebNN name in snake_case, or an extension op's name.
        operands: operand names in order; ``name?`` is optional (an option in the builder),
            ``name*`` (alone) takes a list.
        params: attributes the builder takes positionally, after the operands, in order.
        attrs: every attribute with its default (REQUIRED where there is none).
        infer: checks the operator's rules, gives the result specs; raises ShapeError naming op,
            operand and rule. Gets canonical attributes.
        canon: fills in attributes that depend on the operands (axes, permutation, window ...), so
            that kernels never see None for them.
        work: operations and bytes.
        run: ``run(xp, *arrays, **attrs)``: the meaning, in array-namespace code (absent operands
            are None; attributes canonical); returns an array, or a tuple for several results.
        expr: C expression (``kernels.expression``) for elementwise ops; makes the op fusible.
        decompose: ``decompose(b, *operands, **attrs)`` builds the same from other ops with a
            builder ``b``; returns the operand(s). Half types reach it widened to float32, and
            its results are rounded to the op's types.
        extension: not a WebNN operator.
        alias: the result is the first operand's bytes under another shape; costs nothing.
        host: runs only where Python runs (control flow, sequences).
    """

    name: str
    operands: tuple[str, ...]
    infer: Infer
    run: ArrayFunction
    work: WorkFn
    params: tuple[str, ...] = ()
    attrs: Mapping[str, Any] = field(default_factory=dict)
    canon: Canon | None = None
    expr: Expression | None = None
    decompose: Decompose | None = None
    extension: bool = False
    alias: bool = False
    host: bool = False

    def expression(self, attrs: Attrs) -> str | None:
        """The C expression template for these attributes, or None."""
        return self.expr(attrs) if callable(self.expr) else self.expr


@dataclass(frozen=True)
class OpCall:
    """One op instance, as kernels see it: specs are static; constants known at compile time."""

    op: str
    attrs: Attrs
    inputs: tuple[TensorSpec | None, ...]
    outputs: tuple[TensorSpec, ...]
    constants: Mapping[int, Array] = field(default_factory=dict)
    name: str = ""

    def key(self) -> str:
        """Shapes, dtypes and attributes as a stable string: what measurements are keyed by."""
        ins = ";".join("-" if s is None else str(s) for s in self.inputs)
        outs = ";".join(str(s) for s in self.outputs)
        const = "".join(str(int(i in self.constants)) for i in range(len(self.inputs)))
        attrs = ",".join(f"{k}={_short(v)}" for k, v in sorted(self.attrs.items()))
        return f"{self.op}({ins})->({outs}){{{attrs}}}c{const}"


def _short(value: Any) -> str:
    digest = getattr(value, "digest", None)
    return str(digest()[:12]) if callable(digest) else str(value)


@dataclass(frozen=True)
class Leading(Mapping[int, Array]):
    """The constants among the first ``count`` operands; none is made before it is read."""

    constants: Mapping[int, Array]
    count: int

    def __getitem__(self, index: int) -> Array:
        if index >= self.count:
            raise KeyError(index)
        return self.constants[index]

    def __contains__(self, index: object) -> bool:
        return isinstance(index, int) and index < self.count and index in self.constants

    def __iter__(self) -> Iterator[int]:
        return (index for index in self.constants if index < self.count)

    def __len__(self) -> int:
        return sum(1 for _ in self)


When = Callable[[OpCall, DeviceInfo], str | None]
"""None where the kernel fits; else the reason it does not."""


@dataclass(frozen=True)
class Kernel:
    """A candidate: runs ``op`` on device kinds ``kinds``.

    ``name`` is stable (``opencl.matmul.tiled``) and keys measurements. ``rank`` orders candidates
    where costs do not decide (smaller is more specific). ``native`` is False for emulation,
    ``exact`` for algorithms that lose bits which the op's plain arithmetic keeps, ``steady`` for
    sums whose bits hang on how many threads there are. ``rounds`` names the format
    (``kernels.precision``) that float32 operands are rounded to; "" where they are not.
    ``declines``: a library is asked when it is compiled, and may have nothing for an op that fits.
    ``dtypes``: an op without an operand or result of one of these types is none that it could run;
    empty, where it could run any.
    """

    name: str
    op: str
    kinds: frozenset[str]
    when: When
    lower: Callable[[OpCall, DeviceInfo], Lowered]
    rank: int = 50
    native: bool = True
    exact: bool = True
    steady: bool = True
    rounds: str = ""
    declines: bool = False
    dtypes: frozenset[str] = frozenset()

    def lowered(self, call: OpCall, device: DeviceInfo) -> Lowered:
        """The op by this kernel; without a step where the result has no element.

        So no kernel meets a result of size 0, which many would divide by.
        """
        if not any(spec.size for spec in call.outputs):
            return Lowered((), unused=frozenset(range(len(call.inputs))))
        return self.lower(call, device)
