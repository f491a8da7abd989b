"""Every exception crossdock raises on purpose, one tree.

    Error
    |-- LoadError          a model or tensor file could not become a graph
    |   |-- MalformedModel     the bytes or the graph they describe are broken
    |   |-- UnsupportedModel   legal, but it needs something crossdock lacks
    |   `-- UnsafeModel        it reaches outside its folder or its budget
    |       `-- LimitError         a budget of ``Limits``, or the memory that is free
    |-- GraphError         a graph breaks a rule of the operator set
    |   |-- ShapeError         shape, rank or type rule
    |   `-- UnsupportedOp      no such operator, or not for these types
    |-- PlanError          no acceptable placement
    |   |-- NoPlacement        an op has no device that may run it
    |   |-- MemoryBudget       the tensors do not fit
    |   `-- StalePlan          the plan was made for something else
    |-- DeviceError        a device is missing or failed; `device` has its id, where one is to blame
    |   |-- Unavailable        it cannot be opened; says what to install
    |   |-- OutOfMemory        an allocation failed or passed the budget; `wanted`, `free` in bytes
    |   |-- CompileError       a kernel did not build; `log` has the compiler's text
    |   |   |                  (also called KernelBuildError)
    |   |   `-- Declined           a library has no kernel for an op; the device builds others
    |   |-- LaunchError        a step could not be handed over, or failed on the device
    |   |-- TransferError      a copy arrived as other bytes (looked for with verify="transfers")
    |   |-- WrongResult        a step made what another way of computing it does not
    |   |                      (looked for with verify="sample:SHARE")
    |   `-- DeviceLost         it failed for good: until `crossdock.rescan()` it is not used again
    |       `-- DeviceHung         it did not end a step in many times the predicted time
    `-- ExecutionError     a run did not end well
        |-- FeedError          the inputs do not fit the graph
        |-- IterationLimit     a loop of the model went on for too long
        |-- NotFinite          an op made a NaN or an infinity, and that was looked for
        |-- Timeout            the deadline passed
        |-- Busy               as many runs wait as may, and the caller does not
        `-- Cancelled          the caller gave up

A message is one line: what, where, and what to do. What a file brings into it, a name or a value,
may be of any length and hold any character: it is cut, and escaped where it is not to be printed.
"""

from __future__ import annotations

from concurrent.futures import CancelledError

LONGEST = 1_000
"""Characters that a message may have."""


def _line(text: str) -> str:
    """One line of at most ``LONGEST`` printable characters; the middle of a longer one is cut."""
    if not text.isprintable():
        text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    half = LONGEST // 2
    return text if len(text) <= LONGEST else f"{text[: half - 5]} ... {text[-half:]}"


class Error(Exception):
    """Root of every exception raised on purpose."""

    def __init__(self, *args: object) -> None:
        super().__init__(*(_line(arg) if isinstance(arg, str) else arg for arg in args))


class CacheWarning(UserWarning):
    """Nothing can be kept on disk: every process makes its kernels and plans anew."""


class LoadError(Error):
    """A model or tensor file could not be loaded."""


class MalformedModel(LoadError):
    """The bytes, or the graph they describe, are broken."""


class UnsupportedModel(LoadError):
    """The model is legal but needs something crossdock does not have."""


class UnsafeModel(LoadError):
    """The model reaches outside its own folder or beyond a budget."""


class LimitError(UnsafeModel):
    """The model asks for more than ``Limits`` allow, or than there is memory."""


class GraphError(Error, ValueError):
    """A graph breaks a rule of the operator set."""


class ShapeError(GraphError):
    """A shape, rank or type rule is broken."""


class UnsupportedOp(GraphError):
    """No such operator, or not for these types."""


class PlanError(Error):
    """There is no acceptable plan."""


class NoPlacement(PlanError):
    """An op has no device that may run it."""


class MemoryBudget(PlanError):
    """The tensors do not fit a device's memory budget."""


class StalePlan(PlanError):
    """The plan was made for another graph, device or cost model."""


class DeviceError(Error):
    """A device is missing or failed.

    ``device`` is its id, empty where no device is to blame; ``retryable`` says whether the same
    call may succeed on the same device.
    """

    retryable = False

    def __init__(self, message: str = "", *, device: str = "") -> None:
        super().__init__(message)
        self.device = device


class Unavailable(DeviceError):
    """A device cannot be opened; the message says what to install."""


class OutOfMemory(DeviceError):
    """An allocation failed or passed the device's budget.

    ``wanted`` and ``free`` are bytes, and so is ``planned``, what the plan takes of the device in
    all; 0 where they are not known.
    """

    retryable = True

    def __init__(
        self, message: str = "", *, device: str = "", wanted: int = 0, free: int = 0
    ) -> None:
        super().__init__(message, device=device)
        self.wanted = wanted
        self.free = free
        self.planned = 0


class CompileError(DeviceError):
    """A kernel did not build.

    ``log`` holds the compiler's text, ``source`` the kernel's.
    """

    def __init__(
        self, message: str = "", *, log: str = "", source: str = "", device: str = ""
    ) -> None:
        super().__init__(message, device=device)
        self.log = log
        self.source = source


class Declined(CompileError):
    """A library has no kernel for an op of this form, which says nothing about the device.

    ``log`` holds what it was asked for and its text.
    """


KernelBuildError = CompileError
"""The same by another name."""


class LaunchError(DeviceError):
    """A step could not be handed to its device, or failed there."""


class TransferError(DeviceError):
    """A copy between a device and the host arrived as other bytes than were sent."""

    retryable = True


class WrongResult(DeviceError):
    """A step's results are not those of computing it another way, beyond the op's tolerance.

    ``op`` is the node, ``kernel`` what computed it on ``device``.
    """

    def __init__(
        self, message: str = "", *, device: str = "", op: str = "", kernel: str = ""
    ) -> None:
        super().__init__(message, device=device)
        self.op = op
        self.kernel = kernel


class DeviceLost(DeviceError):
    """A device failed for good and is not used again until ``crossdock.rescan()``."""


class DeviceHung(DeviceLost):
    """A device did not end a step in many times the time that was predicted."""


class ExecutionError(Error):
    """A run did not end with a result."""


class FeedError(ExecutionError, ValueError):
    """The given inputs do not fit the graph's."""


class IterationLimit(ExecutionError):
    """A loop of the model passed the number of iterations it may take."""


class NotFinite(ExecutionError):
    """An op made a NaN or an infinity out of finite operands, in a run with ``check_finite``.

    ``op``, ``device`` and ``kernel`` name the first one in the graph's order.
    """

    def __init__(self, message: str, *, op: str = "", device: str = "", kernel: str = "") -> None:
        super().__init__(message)
        self.op = op
        self.device = device
        self.kernel = kernel


class Timeout(ExecutionError, TimeoutError):
    """The deadline passed before the run ended."""


class Busy(ExecutionError):
    """As many runs wait as may (``waiting``), and the caller was not to wait for room."""


class Cancelled(ExecutionError, CancelledError):
    """The run was cancelled before it ended."""
