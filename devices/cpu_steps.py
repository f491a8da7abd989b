"""Native steps of the processor as plain data, for programs that are kept on disk.

A function is written as its name and the key of its code in the cache of machine code, a number as
the word that it becomes. An address means nothing in another process: a step with one is not kept.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from crossdock.devices import cpu_blas
from crossdock.devices.cpu import scalar_word
from crossdock.devices.cpu_llvm import kept_function, made_as
from crossdock.devices.program import (
    Argument,
    Function,
    In,
    NativeCall,
    Out,
    Packed,
    Scalar,
    Scratch,
)
from crossdock.runtime.errors import CompileError

_SLOTS: dict[str, type[In | Out | Scratch | Packed]] = {
    "in": In, "out": Out, "scratch": Scratch, "packed": Packed,
}  # fmt: skip
_NAMES = {kind: name for name, kind in _SLOTS.items()}
_BLAS = "blas."
NUMBERS = 1 << 40
"""Whole numbers from here on may be addresses: no extent or stride is as large."""


def plain(step: NativeCall) -> list[Any] | None:
    """A step as JSON; None where it cannot be kept."""
    function = _plain_function(step.address)
    args = [_plain_argument(arg) for arg in step.args]
    if function is None or None in args:
        return None
    return [step.name, function, args, step.extent, step.grain, step.align, step.blas]


def read(form: list[Any]) -> NativeCall:
    """The step that ``plain`` wrote.

    Raises:
        CompileError: the machine code of a function is not kept any more.
    """
    name, function, args, extent, grain, align, uses_blas = form
    address, words = _function(function), tuple(_argument(arg) for arg in args)
    return NativeCall(name, address, words, extent, grain, align, blas=uses_blas)


def _plain_function(function: object) -> list[str] | None:
    if not isinstance(function, Function):
        return None
    if function.name.startswith(_BLAS):
        return [function.name, ""]
    function.address()  # compiles it, if that is still to be done
    key = made_as(function.name)
    return None if key is None else [function.name, key]


def _function(form: list[str]) -> Function:
    name, key = form
    if name.startswith(_BLAS):
        return cpu_blas.routine(name.removeprefix(_BLAS))
    address = kept_function(name, key)
    if address is None:
        raise CompileError(f"cpu: the machine code of {name} is not kept any more; compile again")
    return Function(name, partial(int, address))


def _plain_argument(arg: Argument) -> list[Any] | None:
    if isinstance(arg, Function):
        found = _plain_function(arg)
        return None if found is None else ["function", found]
    if not isinstance(arg, Scalar):
        return [_NAMES[type(arg)], arg.index]
    word, kind = scalar_word(arg), np.asarray(arg.value).dtype.kind
    return ["word", word] if kind == "f" or abs(word) < NUMBERS else None


def _argument(form: list[Any]) -> Argument:
    kind, value = form
    if kind == "word":
        return Scalar(np.int64(value))
    return _function(value) if kind == "function" else _SLOTS[kind](value)
