"""Steps, buffers and errors as plain data, for a device in a process of its own.

Only data that is spelled out here crosses the border between the processes: nothing is pickled.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from typing import Any

import numpy as np

from crossdock.devices.program import (
    Argument,
    ArrayCall,
    ArrayFn,
    GridLaunch,
    In,
    Out,
    Packed,
    Scalar,
    Scratch,
    Slot,
    Step,
)
from crossdock.runtime.errors import (
    CompileError,
    Declined,
    DeviceError,
    DeviceHung,
    DeviceLost,
    LaunchError,
    OutOfMemory,
    TransferError,
    Unavailable,
)
from crossdock.runtime.tensor import TensorSpec

HOME = "crossdock."
_SLOTS: dict[str, Any] = {kind.__name__: kind for kind in (In, Out, Scratch, Packed)}
_FIELDS = ("log", "source", "wanted", "free")
"""What errors carry beside their text."""
_ERRORS: dict[str, type[DeviceError]] = {
    kind.__name__: kind
    for kind in (
        CompileError,
        Declined,
        DeviceError,
        DeviceHung,
        DeviceLost,
        LaunchError,
        OutOfMemory,
        TransferError,
        Unavailable,
    )
}


def slot_form(slot: Slot) -> list[Any]:
    """A slot as data."""
    return [type(slot).__name__, slot.index]


def read_slot(form: list[Any]) -> Slot:
    """The slot that ``slot_form`` wrote."""
    made: Slot = _SLOTS[form[0]](form[1])
    return made


def step_form(step: Step, where: str) -> list[Any]:
    """A step as data.

    Raises:
        CompileError: the step is a function of this process that no other one can make.
    """
    if isinstance(step, GridLaunch):
        args = [_argument(arg) for arg in step.args]
        others = [step_form(other, where) for other in step.others]
        own = [step.source, step.entry, args, step.grid, step.block, step.defines, step.variant]
        return ["grid", *own, others]
    if isinstance(step, ArrayCall) and step.form is not None and (made := step.form()) is not None:
        ins = [None if slot is None else slot_form(slot) for slot in step.ins]
        outs = [slot_form(slot) for slot in step.outs]
        in_specs = [None if spec is None else _spec(spec) for spec in step.in_specs]
        out_specs = [_spec(spec) for spec in step.out_specs]
        return ["array", made, ins, outs, in_specs, out_specs, step.captured]
    raise CompileError(
        f"{where}: {type(step).__name__} is code of this process alone, which the device's own "
        "process does not have; another kernel, or the device without a process of its own, runs it"
    )


def read_step(form: list[Any]) -> Step:
    """The step that ``step_form`` wrote."""
    kind, *parts = form
    if kind == "grid":
        return _read_launch(*parts)
    made, ins, outs, in_specs, out_specs, captured = parts
    return ArrayCall(
        _function(made),
        tuple(None if slot is None else read_slot(slot) for slot in ins),
        tuple(map(read_slot, outs)),
        tuple(None if spec is None else _read_spec(spec) for spec in in_specs),
        tuple(map(_read_spec, out_specs)),
        captured=captured,
    )


def _read_launch(
    source: str,
    entry: str,
    args: list[Any],
    grid: list[int],
    block: list[int],
    defines: list[tuple[str, str]],
    variant: str,
    others: list[list[Any]],
) -> GridLaunch:
    return GridLaunch(
        source,
        entry,
        tuple(_read_argument(arg) for arg in args),
        tuple(grid),
        tuple(block),
        tuple((name, value) for name, value in defines),
        variant,
        tuple(_read_launch(*parts) for _, *parts in others),
    )


def digest(form: list[Any]) -> str:
    """What stands for a step, whichever process it is tried in."""
    return hashlib.sha256(json.dumps(form).encode()).hexdigest()


def _function(form: list[Any]) -> ArrayFn:
    """The array function that a module of this package makes of data."""
    module, name, data = form
    if not module.startswith(HOME):
        raise CompileError(f"{module} is no module of crossdock to make an array function with")
    made: ArrayFn = getattr(importlib.import_module(module), name)(data)
    return made


def _argument(arg: Argument) -> list[Any]:
    if isinstance(arg, Scalar):
        value = np.asarray(arg.value)
        return ["scalar", value.dtype.str, value.tobytes().hex()]
    assert isinstance(arg, In | Out | Scratch | Packed)  # functions belong to native calls
    return slot_form(arg)


def _read_argument(form: list[Any]) -> Argument:
    if form[0] == "scalar":
        return Scalar(np.frombuffer(bytes.fromhex(form[2]), form[1])[0])
    return read_slot(form)


def _spec(spec: TensorSpec) -> list[Any]:
    return [spec.dtype, *spec.dims]


def _read_spec(form: list[Any]) -> TensorSpec:
    return TensorSpec(form[0], tuple(form[1:]))


def error_form(error: BaseException, inner: str, outer: str) -> list[Any]:
    """An error as data; the device ``inner`` goes by the name ``outer`` in it."""
    name = type(error).__name__
    known = type(error) if name in _ERRORS else _kin(error)
    text = " ".join(str(error).split())
    text = text if known is type(error) else f"{name}: {text or 'no message'}"
    more = {
        field: getattr(error, field)
        for field in _FIELDS
        if isinstance(getattr(error, field, None), str | int)
    }
    if inner not in text:
        text = f"{inner}: {text}"
    return [known.__name__, text.replace(inner, outer), more]


def _kin(error: BaseException) -> type[DeviceError]:
    if isinstance(error, MemoryError):
        return OutOfMemory
    return next((k for k in type(error).__mro__ if k in _ERRORS.values()), DeviceError)


def read_error(form: list[Any], device: str) -> DeviceError:
    """The error that ``error_form`` wrote."""
    name, text, more = form
    made = _ERRORS[name](text, device=device)
    for field in _FIELDS:
        if field in more:
            setattr(made, field, more[field])
    return made
