"""What a device is asked to run: steps, as kernels lower to them. Data only.

Three kinds of step, each understood by the device kinds that can run it:

* ``GridLaunch``: a kernel text in the shared C dialect, run over a grid (opencl, cuda);
* ``ArrayCall``: a Python function over arrays of the device's namespace (cpu, sim, cuda);
* ``NativeCall``: a compiled function with the uniform pointer ABI (cpu).

A step names its buffers by slot: ``In(i)`` the op's i-th operand, ``Out(i)`` its i-th result,
``Scratch(i)`` the i-th scratch buffer, ``Packed(i)`` the i-th packed constant.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from crossdock.runtime.tensor import Array, TensorSpec


@dataclass(frozen=True, slots=True)
class In:
    """Operand ``index`` of the op (an index into its ``inputs``, absent ones counted)."""

    index: int


@dataclass(frozen=True, slots=True)
class Out:
    """Result ``index`` of the op."""

    index: int


@dataclass(frozen=True, slots=True)
class Scratch:
    """Scratch buffer ``index``, live during the op only."""

    index: int


@dataclass(frozen=True, slots=True)
class Packed:
    """Packed constant ``index``: made once a session by ``Pack.make``, resident on the device."""

    index: int


Slot = In | Out | Scratch | Packed
_SLOTS = (In, Out, Scratch, Packed)


@dataclass(frozen=True, slots=True)
class Scalar:
    """A scalar kernel argument; ``value`` is a numpy scalar, whose dtype is the C type's."""

    value: Any


@dataclass(frozen=True, slots=True)
class Function:
    """A function as an argument: its address, which each process has its own of.

    ``name`` stands for the same function in every process: that of compiled code, or
    ``blas.sgemm`` and the like. ``address`` finds it, compiling it if need be; ``source`` writes
    the text that is compiled, where there is one.
    """

    name: str
    address: Callable[[], int] = field(compare=False)
    source: Callable[[], str] | None = field(default=None, compare=False)

    def __call__(self) -> int:
        """The address."""
        return self.address()


Argument = Slot | Scalar | Function


@dataclass(frozen=True, slots=True)
class Work:
    """Arithmetic and traffic of a step or op: floating (or integer) operations and bytes."""

    flops: float = 0.0
    bytes_read: float = 0.0
    bytes_written: float = 0.0

    @property
    def bytes(self) -> float:
        """Bytes moved in both directions."""
        return self.bytes_read + self.bytes_written

    def __add__(self, other: Work) -> Work:
        return Work(
            self.flops + other.flops,
            self.bytes_read + other.bytes_read,
            self.bytes_written + other.bytes_written,
        )


@dataclass(frozen=True)
class GridLaunch:
    """One kernel launch over a grid.

    ``source`` is dialect text *without* the header of macros; the device kind puts its own header
    (``OPENCL_HEADER``/``CUDA_HEADER`` in ``devices.dialect``) before it. ``defines`` become
    ``#define`` lines before the text. ``grid`` is in work items (OpenCL's global size), a multiple
    of ``block`` (work-group / thread block) in each of at most three dimensions.

    ``others`` make the same of the same slots and may be faster, which is to be measured: they are
    told apart by their ``variant``, and this launch is what a rule takes where nobody did.
    """

    source: str
    entry: str
    args: tuple[Argument, ...]
    grid: tuple[int, ...]
    block: tuple[int, ...]
    defines: tuple[tuple[str, str], ...] = ()
    variant: str = ""
    others: tuple[GridLaunch, ...] = ()


Form = Callable[[], tuple[str, str, Any] | None]
ArrayFn = Callable[[Any, list[Any], list[Any]], None]
"""``fn(xp, ins, outs)``: read the arrays ``ins`` (None where absent), write into ``outs``."""


@dataclass(frozen=True)
class ArrayCall:
    """A function over arrays of the device's namespace (numpy, cupy).

    The device passes views of its buffers shaped by ``in_specs``/``out_specs`` for the slots in
    ``ins``/``outs``. ``fn`` must write every element of every output. ``form`` gives what another
    process makes ``fn`` of: a module of this package, a function of it, and the plain data that
    it takes; or None. ``captured``: it allocates nothing, so that a graph of launches may hold it.
    ``fixed`` has ``fn`` and ``form`` of the same by an algorithm that no measurement chose, where
    ``fn`` has such.
    """

    fn: ArrayFn
    ins: tuple[Slot | None, ...]
    outs: tuple[Slot, ...]
    in_specs: tuple[TensorSpec | None, ...]
    out_specs: tuple[TensorSpec, ...]
    form: Form | None = field(default=None, compare=False)
    captured: bool = False
    fixed: tuple[ArrayFn, Form] | None = field(default=None, compare=False)


@dataclass(frozen=True)
class NativeCall:
    """A compiled function ``void f(const int64_t *args, int64_t begin, int64_t end)``.

    ``args`` become 64-bit words: a slot or function its address, a scalar its integer value, or the
    bits of a float64. ``extent`` independent items can be split over threads by [begin, end), in
    parts of at least ``grain`` items that begin at multiples of ``align``. ``address`` makes the
    function (compiling it if need be) and returns its address. ``blas``: it calls the
    BLAS library, which is kept to one thread meanwhile.
    """

    name: str
    address: Callable[[], int]
    args: tuple[Argument, ...]
    extent: int
    grain: int = 1
    align: int = 1
    blas: bool = False


Step = GridLaunch | ArrayCall | NativeCall


def fixed(step: Step) -> Step:
    """The step with nothing in it chosen by a measurement."""
    if isinstance(step, ArrayCall) and step.fixed is not None:
        fn, form = step.fixed
        return replace(step, fn=fn, form=form, fixed=None)
    if isinstance(step, GridLaunch) and step.others:
        return replace(step, others=())
    return step


def renamed(step: Step, names: Mapping[Slot, Slot]) -> Step:
    """The step over other slots, by the slots it has; those without a name stay."""
    if isinstance(step, ArrayCall):
        ins = tuple(None if s is None else names.get(s, s) for s in step.ins)
        return replace(step, ins=ins, outs=tuple(names.get(s, s) for s in step.outs))

    def over(args: tuple[Argument, ...]) -> tuple[Argument, ...]:
        return tuple(names.get(a, a) if isinstance(a, _SLOTS) else a for a in args)

    if isinstance(step, GridLaunch):
        others = tuple(replace(other, args=over(other.args)) for other in step.others)
        return replace(step, args=over(step.args), others=others)
    return replace(step, args=over(step.args))


def slots(step: Step) -> frozenset[Slot]:
    """The slots that a step names."""
    named = (*step.ins, *step.outs) if isinstance(step, ArrayCall) else step.args
    return frozenset(s for s in named if isinstance(s, _SLOTS))


def is_launch(step: Step) -> bool:
    """Whether a device that replays launches may replay this one."""
    return isinstance(step, GridLaunch) or (isinstance(step, ArrayCall) and step.captured)


@dataclass(frozen=True)
class Pack:
    """A constant made from an op's constant operands, once a session, uploaded once."""

    make: Callable[[], Array]
    spec: TensorSpec


@dataclass(frozen=True)
class Lowered:
    """An op on a device: steps in order, scratch sizes in bytes, packed constants.

    ``unused`` lists operands that the steps never read (they were packed), so that they need no
    copy on the device.
    """

    steps: tuple[Step, ...]
    scratch: tuple[int, ...] = ()
    packs: tuple[Pack, ...] = ()
    unused: frozenset[int] = field(default_factory=frozenset)
